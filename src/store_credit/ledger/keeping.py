"""The rules about a line's life: adjusting, suspending, closing, its expiry, flags and description. Pure.

Each of them names an actor, and leaves an entry even where no money moves: every change is explained. A
hold is a promise, and none of these rules cuts one short but the release that an operator asks for.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from store_credit import money
from store_credit.ledger.book import Book
from store_credit.ledger.commands import (
    Adjust,
    Describe,
    ReleaseHolds,
    SetExpiry,
    SetFlag,
    SetStatus,
)
from store_credit.ledger.draft import Draft
from store_credit.ledger.refusals import NotAllowed, OutOfRange, UnknownLine
from store_credit.ledger.state import (
    Change,
    EntryKind,
    Flag,
    HoldState,
    LineStatus,
    Outcome,
    Reason,
)

_FROM = {
    "suspend": (LineStatus.ACTIVE,),
    "resume": (LineStatus.SUSPENDED,),
    "close": (LineStatus.ACTIVE, LineStatus.SUSPENDED),
    "reopen": (LineStatus.CLOSED,),
}
_TO = {
    "suspend": (LineStatus.SUSPENDED, EntryKind.SUSPENDED),
    "resume": (LineStatus.ACTIVE, EntryKind.RESUMED),
    "close": (LineStatus.CLOSED, EntryKind.CLOSED),
    "reopen": (LineStatus.ACTIVE, EntryKind.REOPENED),
}


Keeping = Adjust | SetStatus | SetExpiry | SetFlag | Describe | ReleaseHolds


def decide(book: Book, command: Keeping, now: datetime) -> Change:
    match command:
        case Adjust():
            return adjust(book, command, now)
        case SetStatus():
            return set_status(book, command, now)
        case SetExpiry():
            return set_expiry(book, command, now)
        case SetFlag():
            return set_flag(book, command, now)
        case Describe():
            return describe(book, command, now)
        case ReleaseHolds():
            return release_holds(book, command, now)


def adjust(book: Book, command: Adjust, now: datetime) -> Change:
    """Correct the balance. A decrease never goes below what is held; an increase is always possible.

    Raises UnknownLine, OutOfRange and NotAllowed.
    """
    draft = _draft(book, command, now)
    line = draft.line
    try:
        amount = money.to_minor(command.amount, line.currency)
    except money.InvalidAmount as error:
        raise OutOfRange(f"The amount {error}.", "amount") from None
    if line.status == LineStatus.CLOSED:
        raise NotAllowed("A closed line is not adjusted; reopen it first.")
    if line.is_expired(draft.now) and amount > 0:
        raise NotAllowed("An expired line is not adjusted upwards; change its expiry first.")
    if amount < 0 and draft.unheld + amount < 0:
        most = money.to_text(max(0, draft.unheld), line.currency)
        message = f"A decrease can not take the balance below what is held: at most {most} can be taken."
        raise NotAllowed(message, "amount")
    if line.balance + amount >= money.AMOUNT_MINOR_LIMIT:
        raise OutOfRange("The balance would be too large.", "amount")
    draft.post(EntryKind.ADJUSTED, amount=amount)
    return draft.change(Reason.ADJUSTED)


def set_status(book: Book, command: SetStatus, now: datetime) -> Change:
    """Suspend, resume, close or reopen. Closing voids what is left; reopening does not bring it back.

    Raises UnknownLine and NotAllowed.
    """
    draft = _draft(book, command, now)
    if draft.line.status not in _FROM[command.action]:
        raise NotAllowed(f"The line is {draft.line.status}; it can not be made to {command.action}.")
    if command.action == "close":
        _void(draft)
    status, kind = _TO[command.action]
    draft.line = draft.line._replace(status=status)
    draft.post(kind)
    draft.write_off()
    return draft.change(Reason.CHANGED)


def set_expiry(book: Book, command: SetExpiry, now: datetime) -> Change:
    """Change, set or remove the expiry. What an earlier expiry has written off stays written off.

    Raises UnknownLine, OutOfRange for a time that is past, and NotAllowed for a closed line.
    """
    draft = _draft(book, command, now)
    if draft.line.status == LineStatus.CLOSED:
        raise NotAllowed("A closed line does not expire; reopen it first.")
    if command.expires_at is not None and command.expires_at <= draft.now:
        raise OutOfRange("The expiry must be in the future.", "expiresTime")
    if command.expires_at == draft.line.expires_at:
        return draft.change(Reason.CHANGED)
    draft.line = draft.line._replace(expires_at=command.expires_at)
    until = f"{command.expires_at:%Y-%m-%d %H:%M:%S} UTC" if command.expires_at else "never"
    draft.post(EntryKind.EXPIRY_SET, reason=_and(command.cause.reason, f"expires {until}"))
    return draft.change(Reason.CHANGED)


def set_flag(book: Book, command: SetFlag, now: datetime) -> Change:
    """Mark the line for an operator, or take the mark off. Raises UnknownLine and OutOfRange."""
    draft = _draft(book, command, now)
    if command.flag not in tuple(Flag):
        raise OutOfRange("There is no such flag.", "flag")
    if (command.flag in draft.line.flags) == command.raised:
        return draft.change(Reason.CHANGED)
    changed = draft.line.flags | {command.flag} if command.raised else draft.line.flags - {command.flag}
    draft.line = draft.line._replace(flags=frozenset(changed))
    kind = EntryKind.FLAGGED if command.raised else EntryKind.FLAG_CLEARED
    draft.post(kind, reason=_and(command.flag, command.cause.reason))
    return draft.change(Reason.CHANGED)


def describe(book: Book, command: Describe, now: datetime) -> Change:
    """Change what the line is called and how it is shown. Raises UnknownLine."""
    draft = _draft(book, command, now)
    if "allow_partial" in command.changes:
        allowed: Any = command.changes["allow_partial"]
        draft.line = draft.line._replace(allow_partial=allowed)
    draft.post(EntryKind.DESCRIBED, reason=_and(command.cause.reason, ", ".join(command.changes)))
    return draft.change(Reason.CHANGED)._replace(described=command)


def release_holds(book: Book, command: ReleaseHolds, now: datetime) -> Change:
    """End the named holds that are still open, on whichever lines they stand."""
    whole = nothing = Change(Outcome(Reason.NOTHING_HELD, now, accepted=False))
    for line_id in command.line_ids:
        if line_id in book.lines:
            whole = _release_on(book, line_id, command, now).beside(whole)
    named = tuple(hold for hold in whole.holds if hold.id in command.holds)
    if not any(hold.state == HoldState.RELEASED for hold in named):
        return whole._replace(outcome=nothing.outcome)
    return whole._replace(outcome=whole.outcome._replace(ended=named))


def _release_on(book: Book, line_id: str, command: ReleaseHolds, now: datetime) -> Change:
    draft = Draft(book, book.lines[line_id], now, command.cause)
    draft.settle()
    for hold in sorted(draft.open_holds(), key=lambda hold: hold.id):
        if hold.id in command.holds:
            draft.end_hold(hold, HoldState.RELEASED)
    draft.write_off()
    return draft.change(Reason.RELEASED)


def _draft(book: Book, command: Any, now: datetime) -> Draft:
    line = book.lines.get(command.line_id)
    if line is None:
        raise UnknownLine("There is no such credit line.", "id")
    draft = Draft(book, line, now, command.cause)
    draft.settle()
    return draft


def _void(draft: Draft) -> None:
    if draft.line.held > 0:
        raise NotAllowed("Credit of this line is held; it can not be closed before that ends.")
    if draft.line.balance < 0:
        raise NotAllowed("The line is overdrawn; adjust it before it is closed.")
    if draft.line.balance > 0:
        draft.post(EntryKind.VOIDED, amount=-draft.line.balance)


def _and(*parts: str | None) -> str:
    return "; ".join(part for part in parts if part)
