"""The rules about what comes back of an order: cancels and refunds, whatever the order of arrival. Pure.

Digital River repeats, reorders and accumulates what it tells of them; what is known of each source is
merged so that the order does not matter, and only the increase is booked.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from store_credit import money
from store_credit.ledger.book import Book
from store_credit.ledger.commands import Part, Policy, Return
from store_credit.ledger.draft import Draft
from store_credit.ledger.sources import Parts, Source, Told
from store_credit.ledger.state import Change, Deduction, EntryKind, Flag, Line, Outcome, Reason

PARTS_MAX = 1_000
"""Cancels and refunds of one source."""

REFERENCES_MAX = 100
WHAT_LENGTH_MAX = 2_000

_NEVER = datetime.min.replace(tzinfo=UTC)


def give_back(book: Book, command: Return, now: datetime, policy: Policy) -> Change:
    """Book what came back of a source since the last payload; without its deduction, let it wait."""
    deduction = book.deductions.get(command.source_id)
    line = book.lines[deduction.line_id] if deduction else None
    before = book.sources.get(command.source_id) or Source(command.source_id)
    told = _told(command, line, before)
    if isinstance(told, Outcome):
        return Change(told._replace(at=now))
    after = _merged(before, told, command)
    if deduction is None or line is None:
        return _park(before, after, command, now)
    draft = Draft(book, line, now, command.cause)
    draft.settle()
    if after != before:
        draft.sources.append(after)
    increase = after.owed(deduction.amount) - deduction.returned
    if increase <= 0:
        return draft.change(Reason.NOTHING_NEW, deduction=deduction)
    deduction = _book_return(draft, deduction, increase, command.what, policy)
    draft.write_off()
    return draft.change(Reason.RETURNED, deduction=deduction, returned=increase)


def unpark(draft: Draft, deduction: Deduction, told: Source, policy: Policy) -> int:
    """Book what came back before its deduction was known. Returns how much."""
    known = replace(told, parked_at=None, references=(), unmatched=False)
    if told.currency not in (None, draft.line.currency):
        # Amounts of another currency are worth nothing here, and must not spoil those that follow.
        draft.flag(Flag.SOURCE_CONFLICT)
        known = Source(told.id, order_id=told.order_id, everything=told.everything)
    if known != told:
        draft.sources.append(known)
    owed = known.owed(deduction.amount)
    if owed > 0:
        draft.caused_by(told.event_id)
        _book_return(draft, deduction, owed, told.what, policy)
    return owed


def _told(command: Return, line: Line | None, before: Source) -> Told | Outcome:
    """The payload's amounts in minor units, or why they book nothing."""

    def refused(reason: Reason, detail: str) -> Outcome:
        at = line.last_entry_at if line else _NEVER
        return Outcome(reason, at, accepted=False, line=line, detail=detail)

    if not (command.cancels or command.refunds or command.charges) and command.captured is None:
        return Told()
    currency = command.currency or (line.currency if line else None)
    if currency not in money.EXPONENTS:
        return refused(Reason.OTHER_CURRENCY, "the currency of the amounts is not known")
    if line is not None and currency != line.currency:
        return refused(Reason.OTHER_CURRENCY, f"the return is in {currency}, the line in {line.currency}")
    if line is None and before.currency not in (None, currency):
        detail = f"the return is in {currency}, and what waits already is in {before.currency}"
        return refused(Reason.OTHER_CURRENCY, detail)
    if len(command.cancels) + len(command.refunds) + len(command.charges) > PARTS_MAX:
        return refused(Reason.INVALID_AMOUNT, f"there are more than {PARTS_MAX} cancels and refunds")
    try:
        return _in_minor_units(command, currency)
    except money.InvalidAmount as error:
        return refused(Reason.INVALID_AMOUNT, f"an amount {error}")


def _in_minor_units(command: Return, currency: str) -> Told:
    """The payload's amounts. Raises InvalidAmount."""

    def captured(amount: Decimal) -> int:
        return money.positive_minor(amount, currency) if amount else 0

    def minor(parts: tuple[Part, ...]) -> Parts:
        return [(part.id, money.positive_minor(part.amount, currency), part.charge_id) for part in parts]

    uncaptured: Counter[str] = Counter()
    for charge in command.charges:
        back = money.positive_minor(charge.amount, currency) - captured(charge.captured)
        uncaptured[charge.id] = max(uncaptured[charge.id], back)
    return Told(
        cancels=minor(command.cancels),
        refunds=minor(command.refunds),
        captured=None if command.captured is None else captured(command.captured),
        uncaptured=uncaptured,
    )


def _merged(before: Source, told: Told, command: Return) -> Source:
    after = replace(before.merged(told), everything=before.everything or command.everything)
    if after == before:
        return before
    return replace(
        after,
        # All that is left comes back in the deduction's own currency, whatever the order's is.
        currency=before.currency or (command.currency if told.holds_amounts else None),
        order_id=before.order_id or command.order_id,
        event_id=command.cause.event_id,
        what=command.what,
    )


def _park(before: Source, after: Source, command: Return, now: datetime) -> Change:
    """Keep what was told until the source is deducted; it may be a credit card's, and never be."""
    references = after.references
    if command.reference is not None and command.reference not in references:
        references = (*references, command.reference)[-REFERENCES_MAX:]
    # One entry will tell of all that waited, each cancel and refund by its id.
    told = dict.fromkeys([*(before.what or "").split("; "), *command.what.split("; ")])
    what = "; ".join(filter(None, told))[:WHAT_LENGTH_MAX]
    parked = replace(after, references=references, parked_at=before.parked_at or now, what=what)
    return Change(Outcome(Reason.PARKED, now, accepted=True), sources=(parked,))


def _book_return(
    draft: Draft, deduction: Deduction, amount: int, what: str | None, policy: Policy
) -> Deduction:
    reason = draft.welcome_back(policy.return_grace, what)
    draft.post(EntryKind.RETURNED, amount=amount, deduction_id=deduction.id, reason=reason)
    returned = deduction._replace(returned=deduction.returned + amount)
    draft.put_deduction(returned)
    return returned
