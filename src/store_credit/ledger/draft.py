"""A credit line while one rule writes its next version: entries, holds, deductions.

A draft is local to one rule; what leaves the rule is the immutable `Change` that it builds. Pure: no
SQL, no clock.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from store_credit.ledger import journal
from store_credit.ledger.commands import Cause
from store_credit.ledger.state import (
    Book,
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
        self.deductions: list[Deduction] = []
        self._cause = cause
        self._entries: list[Entry] = []
        self._known_holds = book.holds_of(line.id)
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
        )
        self._entries.append(entry)

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
        ended = replace(hold, state=state, ended_at=self.now, deduction_id=deduction_id)
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

    def flag(self, flag: Flag) -> None:
        self.line = replace(self.line, flags=self.line.flags | {flag})

    def change(
        self,
        reason: Reason,
        *,
        accepted: bool = True,
        hold: Hold | None = None,
        deduction: Deduction | None = None,
        detail: str | None = None,
    ) -> Change:
        return Change(
            outcome=Outcome(reason, self.now, accepted, self.line, hold, deduction, detail),
            line=self.line if self.line is not self._before else None,
            holds=tuple(self.holds),
            deductions=tuple(self.deductions),
            entries=tuple(self._entries),
        )
