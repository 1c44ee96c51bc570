"""What the rules decide upon, and what they answer: immutable values, no SQL, no clock.

Amounts are integers in the minor unit of the line's currency; times are aware and in UTC.

They are named tuples, as each request makes some ten of them: a frozen dataclass takes six times as long to
make, and three times as long to make anew with other values.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from store_credit.ledger.commands import Describe, Issue
from store_credit.ledger.offers import Offer
from store_credit.ledger.sources import Source


class LineStatus(StrEnum):
    ACTIVE = "active"
    SUSPENDED = "suspended"
    CLOSED = "closed"


class HoldState(StrEnum):
    OPEN = "open"
    CONSUMED = "consumed"
    """Its session's order was deducted."""
    RELEASED = "released"
    EXPIRED = "expired"


class EntryKind(StrEnum):
    ISSUED = "issued"
    ADJUSTED = "adjusted"
    HELD = "held"
    HOLD_CHANGED = "hold_changed"
    RELEASED = "released"
    HOLD_EXPIRED = "hold_expired"
    DEDUCTED = "deducted"
    RETURNED = "returned"
    EXPIRED = "expired"
    """The unheld balance of a line past its expiry was written off."""
    VOIDED = "voided"
    WRITE_OFF_REVERSED = "write_off_reversed"
    # What moves no money, and is explained all the same.
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    CLOSED = "closed"
    REOPENED = "reopened"
    EXPIRY_SET = "expiry_set"
    FLAGGED = "flagged"
    FLAG_CLEARED = "flag_cleared"
    DESCRIBED = "described"


class Flag(StrEnum):
    """What an operator should look at."""

    OVERDRAWN = "overdrawn"
    """A deduction took the balance below what is held, or below zero."""
    SOURCE_CONFLICT = "source_conflict"
    """A source that was deducted came again with another amount or line."""
    RETURN_TO_CLOSED = "return_to_closed"
    """Credit came back to a closed line."""


HoldKey = tuple[str, str]
"""Session id and upstream id as asked: at most one open hold each."""


class Line(NamedTuple):
    """A credit line's figures: the sums of its journal, and what decides about new holds."""

    id: str
    upstream_id: str
    currency: str
    status: LineStatus
    balance: int
    held: int
    written_off: int
    """What expired or was voided, less what came back: the most that a write-off can be reversed."""
    seq: int
    head_hash: str
    """Hash of the line's last entry."""
    last_entry_at: datetime
    expires_at: datetime | None = None
    allow_partial: bool | None = None
    flags: frozenset[str] = frozenset()

    @property
    def unheld(self) -> int:
        """Balance that no hold has promised; negative when the line is overdrawn."""
        return self.balance - self.held

    def is_expired(self, now: datetime) -> bool:
        return self.expires_at is not None and now >= self.expires_at

    def available(self, now: datetime) -> int:
        """What a new hold may take: nothing unless the line is active and unexpired."""
        if self.status != LineStatus.ACTIVE or self.is_expired(now):
            return 0
        return max(0, self.unheld)


class Hold(NamedTuple):
    """Credit promised to one checkout session."""

    id: str
    line_id: str
    session_id: str
    upstream_id: str
    amount: int
    state: HoldState
    created_at: datetime
    expires_at: datetime
    session_upstream_id: str | None = None
    ended_at: datetime | None = None
    deduction_id: str | None = None

    @property
    def key(self) -> HoldKey:
        return (self.session_id, self.upstream_id)


class Deduction(NamedTuple):
    """Credit spent on one order."""

    id: str
    line_id: str
    source_id: str
    upstream_id: str
    order_id: str | None
    session_id: str | None
    amount: int
    returned: int
    created_at: datetime


class Entry(NamedTuple):
    """One row of the journal. `amount` and `held` are signed changes.

    The hash is of all fields before it, in this order.
    """

    previous_hash: str
    line_id: str
    seq: int
    kind: EntryKind
    amount: int
    held: int
    balance_after: int
    held_after: int
    created_at: datetime
    actor: str
    hold_id: str | None
    deduction_id: str | None
    event_id: str | None
    reason: str | None
    idempotency_key: str | None
    hash: str


class Reason(StrEnum):
    """Why an outcome is what it is: stable codes that support can look up."""

    APPROVED = "approved"
    APPROVED_PARTIALLY = "approved_partially"
    HOLD_REPLACED = "hold_replaced"
    UNKNOWN_LINE = "unknown_line"
    LINE_SUSPENDED = "line_suspended"
    LINE_CLOSED = "line_closed"
    LINE_EXPIRED = "line_expired"
    INVALID_AMOUNT = "invalid_amount"
    SESSION_COMPLETED = "session_completed"
    INSUFFICIENT_CREDIT = "insufficient_credit"
    OFFER_EXPIRED = "offer_expired"
    OFFER_SPENT = "offer_spent"
    OFFER_OF_ANOTHER_SESSION = "offer_of_another_session"
    RELEASED = "released"
    NOTHING_HELD = "nothing_held"
    SEVERAL_HOLDS = "several_holds"
    DEDUCTED = "deducted"
    ALREADY_DEDUCTED = "already_deducted"
    SOURCE_CONFLICT = "source_conflict"
    NO_UPSTREAM_ID = "no_upstream_id"
    OTHER_CURRENCY = "other_currency"
    RETURNED = "returned"
    NOTHING_NEW = "nothing_new"
    """Everything that the payload tells of returns is in the books."""
    PARKED = "parked"
    """A return of a source that was not deducted yet; it is applied with its deduction."""
    REASSIGNED = "reassigned"
    ADJUSTED = "adjusted"
    CHANGED = "changed"
    ISSUED = "issued"
    SETTLED = "settled"


class Outcome(NamedTuple):
    """What a rule decided. After COMMIT, and only then, it reaches the caller."""

    reason: Reason
    at: datetime
    accepted: bool
    """Authorize: approved. Release: a hold was released. Deduct: the deduction stands in the books."""
    line: Line | None = None
    hold: Hold | None = None
    deduction: Deduction | None = None
    detail: str | None = None
    returned: int = 0
    """What this command gave back, in minor units."""
    unparked: tuple[str, ...] = ()
    """References of the returns that waited for this deduction."""
    ended: tuple[Hold, ...] = ()
    """The holds that an operator's release ended."""
    awaited: bool = False
    """An order named this source before, when its line was not known."""


class Change(NamedTuple):
    """A rule's whole effect: the new versions of what it touched, its entries, its outcome."""

    outcome: Outcome
    lines: tuple[Line, ...] = ()
    holds: tuple[Hold, ...] = ()
    deductions: tuple[Deduction, ...] = ()
    sources: tuple[Source, ...] = ()
    offers: tuple[Offer, ...] = ()
    entries: tuple[Entry, ...] = ()
    opened: Issue | None = None
    """The command that opened the line, when it is new."""
    described: Describe | None = None
    """The command that changed how the line is shown."""

    def beside(self, other: Change) -> Change:
        """This change together with another of the same command."""
        return self._replace(
            outcome=self.outcome if self.outcome.accepted else other.outcome,
            lines=(*other.lines, *self.lines),
            holds=(*other.holds, *self.holds),
            deductions=(*other.deductions, *self.deductions),
            sources=(*other.sources, *self.sources),
            offers=(*other.offers, *self.offers),
            entries=(*other.entries, *self.entries),
        )
