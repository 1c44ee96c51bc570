"""The rules of the ledger: `(book, command, now, policy) -> Change`, pure.

No SQL, no clock, no I/O, no framework. Every rule settles its line first, so that an expired hold or
line can never be used, swept or not. "Expired" means `now >= expires_at`, and `now` is never
earlier than the line's last entry: a clock that jumps back revives nothing.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import assert_never

from store_credit import money
from store_credit.ledger import journal
from store_credit.ledger.commands import (
    Authorize,
    Command,
    Deduct,
    Issue,
    Policy,
    Release,
    Settle,
)
from store_credit.ledger.draft import Draft
from store_credit.ledger.refusals import AlreadyExists, OutOfRange
from store_credit.ledger.state import (
    Book,
    Change,
    Deduction,
    EntryKind,
    Flag,
    Hold,
    HoldState,
    Line,
    LineStatus,
    Outcome,
    Reason,
)


def decide(book: Book, command: Command, now: datetime, policy: Policy) -> Change:
    """What the command does to the book. Raises Refusal when a rule says no."""
    match command:
        case Authorize():
            return authorize(book, command, now, policy)
        case Release():
            return release(book, command, now)
        case Deduct():
            return deduct(book, command, now)
        case Issue():
            return issue(book, command, now)
        case Settle():
            return settle(book, command, now)
        case _:
            assert_never(command)


def issue(book: Book, command: Issue, now: datetime) -> Change:
    """Open a line with its opening balance. An upstream id is unique for ever."""
    if book.line_of(command.upstream_id) is not None:
        raise AlreadyExists("A credit line with this upstreamId exists.", "upstreamId")
    if command.expires_at is not None and command.expires_at <= now:
        raise OutOfRange("The expiry must be in the future.", "expiresTime")
    new = Line(
        id=command.line_id,
        upstream_id=command.upstream_id,
        currency=command.currency,
        status=LineStatus.ACTIVE,
        balance=0,
        held=0,
        written_off=0,
        seq=0,
        head_hash=journal.FIRST_HASH,
        last_entry_at=now,
        expires_at=command.expires_at,
        allow_partial=command.allow_partial,
    )
    draft = Draft(book, new, now, command.cause)
    draft.post(EntryKind.ISSUED, amount=command.amount_minor)
    return replace(draft.change(Reason.ISSUED), opened=command)


def authorize(book: Book, command: Authorize, now: datetime, policy: Policy) -> Change:
    """Promise credit to a session; its earlier hold under the same upstream id is replaced."""
    line = book.line_of(command.upstream_id)
    if line is None:
        return Change(Outcome(Reason.UNKNOWN_LINE, now, accepted=False))
    draft = Draft(book, line, now, command.cause)
    draft.settle()
    if (blocked := _blocked(draft)) is not None:
        return draft.change(blocked, accepted=False)
    try:
        asked = money.positive_minor(command.amount, line.currency)
    except money.InvalidAmount as error:
        return draft.change(Reason.INVALID_AMOUNT, accepted=False, detail=str(error))
    if (line.id, command.session_id) in book.completed_sessions:
        return draft.change(Reason.SESSION_COMPLETED, accepted=False)
    earlier = draft.open_hold(command.session_id, command.upstream_id)
    available = max(0, draft.line.unheld + (earlier.amount if earlier else 0))
    partial = line.allow_partial if line.allow_partial is not None else policy.partial_approval
    if asked > available and not (partial and available > 0):
        return draft.change(Reason.INSUFFICIENT_CREDIT, accepted=False)
    return _hold(draft, command, earlier, asked, min(asked, available), policy)


def release(book: Book, command: Release, now: datetime) -> Change:
    """End the one open hold under this upstream id.

    Digital River does not say which session it means. Of several open holds none is released: to
    release the wrong one would let its credit be promised again.
    """
    line = book.line_of(command.upstream_id)
    if line is None:
        return Change(Outcome(Reason.UNKNOWN_LINE, now, accepted=False))
    draft = Draft(book, line, now, command.cause)
    draft.settle()
    holds = [hold for hold in draft.open_holds() if hold.upstream_id == command.upstream_id]
    if not holds:
        return draft.change(Reason.NOTHING_HELD, accepted=False)
    if len(holds) > 1:
        return draft.change(Reason.SEVERAL_HOLDS, accepted=False)
    ended = draft.end_hold(holds[0], HoldState.RELEASED)
    draft.write_off()
    return draft.change(Reason.RELEASED, hold=ended)


def deduct(book: Book, command: Deduct, now: datetime) -> Change:
    """Book what an order spent. The order exists: the ledger records facts, it does not refuse them."""
    known = book.deductions.get(command.source_id)
    if known is not None:
        return _deduct_again(book, command, now, known)
    line = book.line_of(command.upstream_id)
    if command.upstream_id is None or line is None:
        reason = Reason.NO_UPSTREAM_ID if command.upstream_id is None else Reason.UNKNOWN_LINE
        return Change(Outcome(reason, now, accepted=False))
    amount = _deductible(command, line)
    if isinstance(amount, Outcome):
        return Change(replace(amount, at=now))
    draft = Draft(book, line, now, command.cause)
    draft.settle()
    return _deduct_new(draft, command, command.upstream_id, amount)


def settle(book: Book, command: Settle, now: datetime) -> Change:
    """Release the holds that are past their time, and write off an expired line's unheld balance."""
    line = book.lines.get(command.line_id)
    if line is None:
        return Change(Outcome(Reason.UNKNOWN_LINE, now, accepted=False))
    draft = Draft(book, line, now, command.cause)
    draft.settle()
    return draft.change(Reason.SETTLED)


def _blocked(draft: Draft) -> Reason | None:
    """Why this line takes no new holds, if so."""
    if draft.line.status == LineStatus.SUSPENDED:
        return Reason.LINE_SUSPENDED
    if draft.line.status == LineStatus.CLOSED:
        return Reason.LINE_CLOSED
    if draft.line.is_expired(draft.now):
        return Reason.LINE_EXPIRED
    return None


def _hold(
    draft: Draft, command: Authorize, earlier: Hold | None, asked: int, amount: int, policy: Policy
) -> Change:
    hold = Hold(
        id=earlier.id if earlier else command.hold_id,
        line_id=draft.line.id,
        session_id=command.session_id,
        upstream_id=command.upstream_id,
        amount=amount,
        state=HoldState.OPEN,
        created_at=earlier.created_at if earlier else draft.now,
        expires_at=draft.now + policy.hold_ttl,
        session_upstream_id=command.session_upstream_id
        or (earlier.session_upstream_id if earlier else None),
    )
    draft.holds.append(hold)
    if earlier:
        draft.post(EntryKind.HOLD_CHANGED, held=amount - earlier.amount, hold_id=hold.id)
    else:
        draft.post(EntryKind.HELD, held=amount, hold_id=hold.id)
    if amount < asked:
        return draft.change(Reason.APPROVED_PARTIALLY, hold=hold)
    return draft.change(Reason.HOLD_REPLACED if earlier else Reason.APPROVED, hold=hold)


def _deductible(command: Deduct, line: Line) -> int | Outcome:
    """The amount in minor units of the line's currency, or why none can be booked on it."""
    if command.currency is not None and command.currency != line.currency:
        detail = f"the source is in {command.currency}, the line in {line.currency}"
        return Outcome(Reason.OTHER_CURRENCY, line.last_entry_at, accepted=False, detail=detail)
    try:
        return money.positive_minor(command.amount, line.currency)
    except money.InvalidAmount as error:
        detail = f"the amount {error}"
        return Outcome(Reason.INVALID_AMOUNT, line.last_entry_at, accepted=False, detail=detail)


def _deduct_new(draft: Draft, command: Deduct, upstream_id: str, amount: int) -> Change:
    hold = draft.open_hold(command.session_id, upstream_id)
    promised = hold.amount if hold else 0
    draft.reverse_write_off(amount - (draft.line.unheld + promised))
    deduction = Deduction(
        id=command.deduction_id,
        line_id=draft.line.id,
        source_id=command.source_id,
        upstream_id=upstream_id,
        order_id=command.order_id,
        session_id=command.session_id,
        amount=amount,
        returned=0,
        created_at=draft.now,
    )
    draft.deductions.append(deduction)
    draft.post(
        EntryKind.DEDUCTED,
        amount=-amount,
        held=-promised,
        hold_id=hold.id if hold else None,
        deduction_id=deduction.id,
    )
    if hold:
        draft.close_hold(hold, HoldState.CONSUMED, deduction.id)
    if draft.line.unheld < 0 or draft.line.balance < 0:
        draft.flag(Flag.OVERDRAWN)
    draft.write_off()
    return draft.change(Reason.DEDUCTED, hold=hold, deduction=deduction)


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
        known = replace(known, session_id=command.session_id)
        draft.deductions.append(known)
    return draft.change(Reason.ALREADY_DEDUCTED, hold=hold, deduction=known)


def _difference(book: Book, command: Deduct, line: Line, known: Deduction) -> str | None:
    """How a repeated source contradicts its deduction, if it does."""
    if command.upstream_id not in (None, known.upstream_id):
        named = book.line_of(command.upstream_id)
        if named is None or named.id != line.id:
            return "the source was deducted from another line"
    amount = _deductible(command, line)
    if isinstance(amount, Outcome):
        return amount.detail
    if amount != known.amount:
        return f"the source was deducted with {money.to_text(known.amount, line.currency)}"
    return None
