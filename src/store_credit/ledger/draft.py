"""A credit line while one rule writes its next version: entries, holds, deductions.

A draft is local to one rule; what leaves the rule is the immutable `Change` that it builds. Pure: no
SQL, no clock.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from store_credit.ledger import journal
from store_credit.ledger.book import Book
from store_credit.ledger.commands import Cause
from store_credit.ledger.offers import Offer
from store_credit.ledger.sources import Source
from store_credit.ledger.state import (
    Change,
    Deduction,
    Entry,
    EntryKind,
    Flag,
    Hold,
    HoldState,
    Line,
    LineStatus,
    Outcome,
    Reason,
)

_TIME = Cause(actor="system")
"""What expires, expires by itself, whichever command happens to notice it."""


class Draft:
    """A line's next version while one rule writes it, seen by that rule alone."""

    def __init__(self, book: Book, line: Line, now: datetime, cause: Cause) -> None:
        self.line = line
        self._before = line
        self.now = max(now, line.last_entry_at)
        self.holds: list[Hold] = []
        self.sources: list[Source] = []
        self.offers: list[Offer] = []
        self._cause = cause
        self._entries: list[Entry] = []
        self._deductions: dict[str, Deduction] = {}
        self._known_holds = book.holds_of(line.id)
        self._overdue = book.overdue.get(line.id, 0)
        self._ended: set[str] = set()

    def post(
        self,
        kind: EntryKind,
        *,
        cause: Cause | None = None,
        amount: int = 0,
        held: int = 0,
        hold_id: str | None = None,
        deduction_id: str | None = None,
        reason: str | None = None,
    ) -> None:
        self.line, entry = journal.post(
            self.line,
            kind,
            self.now,
            cause or self._cause,
            amount=amount,
            held=held,
            hold_id=hold_id,
            deduction_id=deduction_id,
            reason=reason,
        )
        self._entries.append(entry)

    @property
    def unheld(self) -> int:
        """Balance that no hold within its time has promised; negative when the line is overdrawn."""
        return self.line.unheld + self._overdue

    def open_holds(self) -> list[Hold]:
        return [hold for hold in self._known_holds.values() if hold.id not in self._ended]

    def open_hold(self, session_id: str | None, upstream_id: str) -> Hold | None:
        hold = self._known_holds.get((session_id, upstream_id)) if session_id is not None else None
        return hold if hold is not None and hold.id not in self._ended else None

    def settle(self) -> None:
        due = [hold for hold in self._known_holds.values() if self.now >= hold.expires_at]
        for hold in sorted(due, key=lambda hold: (hold.expires_at, hold.id)):
            self.end_hold(hold, HoldState.EXPIRED)
        self.write_off()

    def end_hold(self, hold: Hold, state: HoldState, deduction_id: str | None = None) -> Hold:
        """End a hold with an entry of its own; what it held becomes available again."""
        kind = EntryKind.HOLD_EXPIRED if state == HoldState.EXPIRED else EntryKind.RELEASED
        cause = _TIME if state == HoldState.EXPIRED else None
        self.post(kind, cause=cause, held=-hold.amount, hold_id=hold.id, deduction_id=deduction_id)
        return self.close_hold(hold, state, deduction_id)

    def close_hold(self, hold: Hold, state: HoldState, deduction_id: str | None = None) -> Hold:
        ended = hold._replace(state=state, ended_at=self.now, deduction_id=deduction_id)
        self._ended.add(hold.id)
        self.holds.append(ended)
        return ended

    def write_off(self) -> None:
        """An expired line keeps only what its open holds have promised."""
        expired = self.line.is_expired(self.now) and self.line.status != LineStatus.CLOSED
        if expired and self.line.unheld > 0:
            self.post(EntryKind.EXPIRED, cause=_TIME, amount=-self.line.unheld)

    def reverse_write_off(self, missing: int) -> None:
        """Bring back up to `missing` of what an expired or closed line has written off."""
        ended = self.line.is_expired(self.now) or self.line.status == LineStatus.CLOSED
        back = min(missing, self.line.written_off)
        if ended and back > 0:
            self.post(EntryKind.WRITE_OFF_REVERSED, amount=back)

    def welcome_back(self, grace: timedelta, reason: str | None = None) -> str | None:
        """See to it that what comes back can be used: an expired line, or one about to, is prolonged.

        Returns the reason for the journal, with the new expiry in it. A closed line stays closed and
        waits for an operator.
        """
        if self.line.status == LineStatus.CLOSED:
            self.flag(Flag.RETURN_TO_CLOSED)
        elif self.line.expires_at is not None and grace and self.line.expires_at < self.now + grace:
            until = self.now + grace
            self.line = self.line._replace(expires_at=until)
            return "; ".join(part for part in (reason, f"usable until {until:%Y-%m-%d %H:%M} UTC") if part)
        return reason

    def move_out(self, deduction: Deduction, to: str, grace: timedelta) -> None:
        """Undo a deduction that was booked on this line, and what came back of it."""
        self._move(deduction, 1, self.welcome_back(grace, f"moved to {to}"))

    def move_in(self, deduction: Deduction, origin: str) -> None:
        """Book a deduction that was booked on another line, and what came back of it."""
        self._move(deduction, -1, f"moved from {origin}")

    def _move(self, deduction: Deduction, sign: int, where: str | None) -> None:
        reason = "; ".join(part for part in (self._cause.reason, where) if part)
        amount, returned = sign * deduction.amount, -sign * deduction.returned
        self.post(EntryKind.DEDUCTED, amount=amount, deduction_id=deduction.id, reason=reason)
        if returned:
            self.post(EntryKind.RETURNED, amount=returned, deduction_id=deduction.id, reason=reason)

    def put_deduction(self, deduction: Deduction) -> None:
        self._deductions[deduction.id] = deduction

    def caused_by(self, event_id: str | None) -> None:
        """The entries that follow are owed to another event."""
        if event_id is not None:
            self._cause = self._cause._replace(event_id=event_id)

    def flag_if_overdrawn(self) -> None:
        if self.unheld < 0 or self.line.balance < 0:
            self.flag(Flag.OVERDRAWN)

    def flag(self, flag: Flag) -> None:
        self.line = self.line._replace(flags=self.line.flags | {flag})

    @property
    def _is_changed(self) -> bool:
        """Whether anything of the line is another than before, with its holds, deductions and offers."""
        return bool(self.line is not self._before or self.holds or self._deductions or self.offers)

    def change(
        self,
        reason: Reason,
        *,
        accepted: bool = True,
        hold: Hold | None = None,
        deduction: Deduction | None = None,
        detail: str | None = None,
        returned: int = 0,
    ) -> Change:
        return Change(
            outcome=Outcome(reason, self.now, accepted, self.line, hold, deduction, detail, returned),
            # Whoever reads without locks tells by the line's row that nothing of the line has changed.
            lines=(self.line,) if self._is_changed else (),
            holds=tuple(self.holds),
            deductions=tuple(self._deductions.values()),
            sources=tuple(self.sources),
            offers=tuple(self.offers),
            entries=tuple(self._entries),
        )
