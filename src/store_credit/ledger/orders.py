"""The rules about orders: what was spent, what came back, and what was booked on the wrong line. Pure.

Orders are facts: the ledger does not refuse them. Digital River repeats, reorders and accumulates what
it tells of cancels and refunds; what is known of each source is merged so that the order of arrival does
not matter, and only the increase is booked.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from store_credit import money
from store_credit.ledger.book import Book
from store_credit.ledger.commands import Deduct, Part, Policy, Return
from store_credit.ledger.draft import Draft
from store_credit.ledger.refusals import OutOfRange
from store_credit.ledger.sources import Parts, Source, Told
from store_credit.ledger.state import (
    Change,
    Deduction,
    EntryKind,
    Flag,
    Hold,
    HoldState,
    Line,
    Outcome,
    Reason,
)

PARTS_MAX = 1_000
"""Cancels and refunds of one source."""

REFERENCES_MAX = 100

BALANCE_MINOR_LIMIT = 10**18
"""How far below zero orders may take a balance; the databases count to some nine times as much."""
WHAT_LENGTH_MAX = 2_000

_NEVER = datetime.min.replace(tzinfo=UTC)


def deduct(book: Book, command: Deduct, now: datetime, policy: Policy) -> Change:
    """Book what an order spent, and what came back of it before it was known.

    Raises OutOfRange when an operator named a line that does not fit.
    """
    known = book.deductions.get(command.source_id)
    if known is not None:
        moves = command.line_id not in (None, known.line_id)
        return (_move if moves else _deduct_again)(book, command, now, known, policy)
    line = _spent_line(book, command)
    amount = _deductible(command, line) if line is not None else _lineless(command, now)
    told = book.sources.get(command.source_id) or Source(command.source_id)
    if line is None or isinstance(amount, Outcome):
        assert isinstance(amount, Outcome)
        unmatched = replace(told, order_id=told.order_id or command.order_id, unmatched=True)
        return Change(replace(amount, at=now), sources=(unmatched,) if unmatched != told else ())
    draft = Draft(book, line, now, command.cause)
    draft.settle()
    deduction, hold = _deduct_new(draft, command, amount)
    if (offer := book.offers.get(deduction.upstream_id)) is not None:
        draft.offers.append(replace(offer, spent_at=draft.now))
    returned = _unpark(draft, deduction, told, policy)
    draft.write_off()
    change = draft.change(Reason.DEDUCTED, hold=hold, deduction=replace(deduction, returned=returned))
    outcome = replace(change.outcome, returned=returned, unparked=told.references, awaited=told.unmatched)
    return replace(change, outcome=outcome)


def give_back(book: Book, command: Return, now: datetime, policy: Policy) -> Change:
    """Book what came back of a source since the last payload; without its deduction, let it wait."""
    deduction = book.deductions.get(command.source_id)
    line = book.lines[deduction.line_id] if deduction else None
    before = book.sources.get(command.source_id) or Source(command.source_id)
    told = _told(command, line, before)
    if isinstance(told, Outcome):
        return Change(replace(told, at=now))
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


def _move(book: Book, command: Deduct, now: datetime, known: Deduction, policy: Policy) -> Change:
    """Undo a deduction on its line and book it, with what came back of it, on the operator's line."""
    target = _spent_line(book, command)
    assert target is not None
    origin = book.lines[known.line_id]
    if target.currency != origin.currency:
        detail = f"The source was deducted in {origin.currency}, the line is in {target.currency}."
        raise OutOfRange(detail, "creditLineId")
    left = Draft(book, origin, now, command.cause)
    left.settle()
    left.move_out(known, target.id, policy.return_grace)
    left.write_off()
    arrived = Draft(book, target, now, command.cause)
    arrived.settle()
    if hold := _session_hold(arrived, command):
        hold = arrived.end_hold(hold, HoldState.CONSUMED, deduction_id=known.id)
    arrived.reverse_write_off(known.amount - known.returned - arrived.unheld)
    arrived.move_in(known, origin.id)
    arrived.flag_if_overdrawn()
    arrived.write_off()
    moved = replace(known, line_id=target.id, session_id=known.session_id or command.session_id)
    arrived.put_deduction(moved)
    change = arrived.change(Reason.REASSIGNED, hold=hold, deduction=moved)
    return change.beside(left.change(Reason.REASSIGNED))


def _lineless(command: Deduct, now: datetime) -> Outcome:
    nameless = command.upstream_id is None
    reason = Reason.NO_UPSTREAM_ID if nameless else Reason.UNKNOWN_LINE
    return Outcome(reason, now, accepted=False)


def _deductible(command: Deduct, line: Line) -> int | Outcome:
    """The amount in minor units of the line's currency, or why none can be booked on it."""
    if command.currency is not None and command.currency != line.currency:
        detail = f"the source is in {command.currency}, the line in {line.currency}"
        if command.line_id is not None:
            raise OutOfRange(f"No: {detail}.", "creditLineId")
        return Outcome(Reason.OTHER_CURRENCY, line.last_entry_at, accepted=False, detail=detail)
    try:
        amount = money.positive_minor(command.amount, line.currency)
        if line.balance - amount <= -BALANCE_MINOR_LIMIT:
            raise money.InvalidAmount("would take the balance below what can be counted")
        return amount
    except money.InvalidAmount as error:
        detail = f"the amount {error}"
        return Outcome(Reason.INVALID_AMOUNT, line.last_entry_at, accepted=False, detail=detail)


def _spent_line(book: Book, command: Deduct) -> Line | None:
    if command.line_id is None:
        return book.line_of(command.upstream_id)
    if command.line_id not in book.lines:
        raise OutOfRange("There is no such credit line.", "creditLineId")
    return book.lines[command.line_id]


def _session_hold(draft: Draft, command: Deduct) -> Hold | None:
    """The session's hold; on an operator's line also under that line's own upstream id."""
    own = draft.line.upstream_id
    hold = draft.open_hold(command.session_id, command.upstream_id or own)
    return hold or (draft.open_hold(command.session_id, own) if command.line_id else None)


def _deduct_new(draft: Draft, command: Deduct, amount: int) -> tuple[Deduction, Hold | None]:
    hold = _session_hold(draft, command)
    promised = hold.amount if hold else 0
    draft.reverse_write_off(amount - (draft.unheld + promised))
    deduction = Deduction(
        id=command.deduction_id,
        line_id=draft.line.id,
        source_id=command.source_id,
        upstream_id=command.upstream_id or draft.line.upstream_id,
        order_id=command.order_id,
        session_id=command.session_id,
        amount=amount,
        returned=0,
        created_at=draft.now,
    )
    draft.put_deduction(deduction)
    draft.post(
        EntryKind.DEDUCTED,
        amount=-amount,
        held=-promised,
        hold_id=hold.id if hold else None,
        deduction_id=deduction.id,
    )
    if hold:
        hold = draft.close_hold(hold, HoldState.CONSUMED, deduction.id)
    draft.flag_if_overdrawn()
    return deduction, hold


def _deduct_again(book: Book, command: Deduct, now: datetime, known: Deduction, _policy: Policy) -> Change:
    """A source that is in the books: it ends the session's hold, should an event name it only now."""
    draft = Draft(book, book.lines[known.line_id], now, command.cause)
    draft.settle()
    if (difference := _difference(book, command, draft.line, known)) is not None:
        draft.flag(Flag.SOURCE_CONFLICT)
        return draft.change(Reason.SOURCE_CONFLICT, accepted=False, deduction=known, detail=difference)
    hold = draft.open_hold(command.session_id, command.upstream_id or known.upstream_id)
    if hold:
        draft.end_hold(hold, HoldState.CONSUMED, deduction_id=known.id)
        draft.write_off()
    if known.session_id is None and command.session_id is not None:
        known = replace(known, session_id=command.session_id)
        draft.put_deduction(known)
    return draft.change(Reason.ALREADY_DEDUCTED, hold=hold, deduction=known)


def _difference(book: Book, command: Deduct, line: Line, known: Deduction) -> str | None:
    """How a repeated source contradicts its deduction, if it does."""
    if command.line_id is None and command.upstream_id not in (None, known.upstream_id):
        named = book.line_of(command.upstream_id)
        if named is None or named.id != line.id:
            return "the source was deducted from another line"
    amount = _deductible(command, line)
    if isinstance(amount, Outcome):
        return amount.detail
    if amount != known.amount:
        return f"the source was deducted with {money.to_text(known.amount, line.currency)}"
    return None


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
        return [(part.id, money.positive_minor(part.amount, currency)) for part in parts]

    uncaptured: Counter[str] = Counter()
    for charge in command.charges:
        back = money.positive_minor(charge.amount, currency) - captured(charge.captured)
        uncaptured[charge.id] = max(uncaptured[charge.id], back)
    return Told(
        cancels=minor(command.cancels),
        refunds=minor(command.refunds),
        captured=None if command.captured is None else captured(command.captured),
        uncaptured=uncaptured,
        charge_of={part.id: part.charge_id for part in command.cancels if part.id and part.charge_id},
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


def _unpark(draft: Draft, deduction: Deduction, told: Source, policy: Policy) -> int:
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


def _book_return(
    draft: Draft, deduction: Deduction, amount: int, what: str | None, policy: Policy
) -> Deduction:
    reason = draft.welcome_back(policy.return_grace, what)
    draft.post(EntryKind.RETURNED, amount=amount, deduction_id=deduction.id, reason=reason)
    returned = replace(deduction, returned=deduction.returned + amount)
    draft.put_deduction(returned)
    return returned
