"""The rules of the ledger: `(book, command, now, policy) -> Change`, pure; those of orders are beside.

No SQL, no clock, no I/O, no framework. Every rule settles its line first, so that an expired hold or
line can never be used, swept or not. "Expired" means `now >= expires_at`, and `now` is never
earlier than the line's last entry: a clock that jumps back revives nothing.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import assert_never

from store_credit import money
from store_credit.ledger import journal, keeping, orders, returns
from store_credit.ledger.book import Book
from store_credit.ledger.commands import (
    Adjust,
    Authorize,
    Command,
    Deduct,
    Describe,
    Issue,
    Policy,
    Release,
    ReleaseHolds,
    Return,
    SetExpiry,
    SetFlag,
    SetStatus,
    Settle,
)
from store_credit.ledger.draft import Draft
from store_credit.ledger.offers import Offer
from store_credit.ledger.refusals import AlreadyExists, OutOfRange
from store_credit.ledger.state import (
    Change,
    EntryKind,
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
            return orders.deduct(book, command, now, policy)
        case Return():
            return returns.give_back(book, command, now, policy)
        case Issue():
            return issue(book, command, now)
        case Adjust() | SetStatus() | SetExpiry() | SetFlag() | Describe() | ReleaseHolds():
            return keeping.decide(book, command, now)
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
    return draft.change(Reason.ISSUED)._replace(opened=command)


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
    offer = book.offers.get(command.upstream_id)
    if offer is not None and (refused := _refused_offer(offer, command, draft.now)) is not None:
        return draft.change(refused, accepted=False)
    earlier = draft.open_hold(command.session_id, command.upstream_id)
    available = max(0, draft.unheld + (earlier.amount if earlier else 0))
    if offer is not None:
        available = min(available, offer.amount)
        draft.offers.append(replace(offer, session_id=command.session_id))
    partial = line.allow_partial if line.allow_partial is not None else policy.partial_approval
    if asked > available and not (partial and available > 0):
        draft.offers.clear()
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


def settle(book: Book, command: Settle, now: datetime) -> Change:
    """Release the holds that are past their time, and write off an expired line's unheld balance."""
    line = book.lines.get(command.line_id)
    if line is None:
        return Change(Outcome(Reason.UNKNOWN_LINE, now, accepted=False))
    draft = Draft(book, line, now, command.cause)
    draft.settle()
    change = draft.change(Reason.SETTLED)
    # An expired line without anything to write off is kept anew too: so the sweeper's mark goes.
    return change._replace(lines=(draft.line,)) if draft.line.is_expired(draft.now) else change


def _blocked(draft: Draft) -> Reason | None:
    """Why this line takes no new holds, if so."""
    if draft.line.status == LineStatus.SUSPENDED:
        return Reason.LINE_SUSPENDED
    if draft.line.status == LineStatus.CLOSED:
        return Reason.LINE_CLOSED
    if draft.line.is_expired(draft.now):
        return Reason.LINE_EXPIRED
    return None


def _refused_offer(offer: Offer, command: Authorize, now: datetime) -> Reason | None:
    """Why this session can not use the offer, if so."""
    if offer.spent_at is not None:
        return Reason.OFFER_SPENT
    if offer.session_id not in (None, command.session_id):
        return Reason.OFFER_OF_ANOTHER_SESSION
    return Reason.OFFER_EXPIRED if now >= offer.expires_at else None


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
