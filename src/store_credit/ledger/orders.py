"""The rules about what an order spent, and what was booked on the wrong line. Pure.

Orders are facts: the ledger does not refuse them.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from store_credit import money
from store_credit.ledger import returns
from store_credit.ledger.book import Book
from store_credit.ledger.commands import Deduct, Policy
from store_credit.ledger.draft import Draft
from store_credit.ledger.refusals import OutOfRange
from store_credit.ledger.sources import Source
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

BALANCE_MINOR_LIMIT = 10**18
"""How far below zero orders may take a balance; the databases count to some nine times as much."""


def deduct(book: Book, command: Deduct, now: datetime, policy: Policy) -> Change:
    """Book what an order spent, and what came back of it before it was known.

    Raises OutOfRange when an operator named a line that does not fit.
    """
    known = book.deductions.get(command.source_id)
    if known is not None:
        if command.line_id not in (None, known.line_id):
            return _move(book, command, now, known, policy)
        return _deduct_again(book, command, now, known)
    line = _spent_line(book, command)
    amount = _deductible(command, line) if line is not None else _lineless(command, now)
    told = book.sources.get(command.source_id)
    if line is None or isinstance(amount, Outcome):
        assert isinstance(amount, Outcome)
        before = told or Source(command.source_id)
        unmatched = replace(before, order_id=before.order_id or command.order_id, unmatched=True)
        return Change(amount._replace(at=now), sources=(unmatched,) if unmatched != before else ())
    draft = Draft(book, line, now, command.cause)
    draft.settle()
    deduction, hold = _deduct_new(draft, command, amount)
    if (offer := book.offers.get(deduction.upstream_id)) is not None:
        draft.offers.append(replace(offer, spent_at=draft.now))
    if told is None:
        draft.write_off()
        return draft.change(Reason.DEDUCTED, hold=hold, deduction=deduction)
    returned = returns.unpark(draft, deduction, told, policy)
    draft.write_off()
    change = draft.change(Reason.DEDUCTED, hold=hold, deduction=deduction._replace(returned=returned))
    outcome = change.outcome._replace(returned=returned, unparked=told.references, awaited=told.unmatched)
    return change._replace(outcome=outcome)


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
    moved = known._replace(line_id=target.id, session_id=known.session_id or command.session_id)
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


def _deduct_again(book: Book, command: Deduct, now: datetime, known: Deduction) -> Change:
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
        known = known._replace(session_id=command.session_id)
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
