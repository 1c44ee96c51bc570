"""Commands and clocks for scenarios: what a scenario does not care about is filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from store_credit import ids
from store_credit.ledger import rules
from store_credit.ledger.book import Book
from store_credit.ledger.commands import (
    Adjust,
    Authorize,
    Cause,
    Command,
    Deduct,
    Issue,
    Part,
    Policy,
    Release,
    ReleaseHolds,
    Return,
    SetExpiry,
    SetFlag,
    SetStatus,
    Settle,
)
from store_credit.ledger.offers import PREFIX, Offer
from store_credit.ledger.state import Entry, Hold, Line, Outcome

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
CAUSE = Cause(actor="test")
SUPPORT = Cause(actor="support", reason="a good reason")
POLICY = Policy(hold_ttl=DAY)


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


class Desk:
    """The rules with a whole ledger in memory: what a batch would load is always there."""

    def __init__(self, policy: Policy = POLICY, now: datetime = NOON) -> None:
        self.book = Book()
        self.policy = policy
        self.clock = Clock(now)
        self.entries: list[Entry] = []

    def do(self, command: Command) -> Outcome:
        change = rules.decide(self.book, command, self.clock(), self.policy)
        self.book.apply(change)
        self.entries.extend(change.entries)
        return change.outcome

    def line(self, upstream_id: str = "line-1") -> Line:
        line = self.book.line_of(upstream_id)
        assert line is not None
        return line

    def available(self, upstream_id: str = "line-1") -> int:
        return self.line(upstream_id).available(self.clock())

    def offer(
        self, name: str, amount: int = 100_00, upstream_id: str = "line-1", ttl: timedelta = DAY
    ) -> str:
        """Mint an offer of a line; returns its upstream id."""
        minted = f"{PREFIX}{name}"
        made = Offer(minted, self.line(upstream_id).id, amount, self.clock() + ttl)
        self.book.offers[minted] = made
        return minted

    def kinds(self, upstream_id: str = "line-1") -> list[str]:
        """The kinds of a line's entries, oldest first."""
        line_id = self.line(upstream_id).id
        return [entry.kind.value for entry in self.entries if entry.line_id == line_id]


def issue(amount_minor: int = 100_00, upstream_id: str = "line-1", **more: Any) -> Issue:
    more = {"line_id": ids.mint("cl"), "customer_id": "customer-1", "currency": "USD"} | more
    return Issue(upstream_id=upstream_id, amount_minor=amount_minor, cause=CAUSE, **more)


def authorize(
    amount: str | Decimal, session_id: str = "session-1", upstream_id: str = "line-1"
) -> Authorize:
    return Authorize(upstream_id, session_id, Decimal(amount), ids.mint("hold"), CAUSE)


def release(upstream_id: str = "line-1") -> Release:
    return Release(upstream_id, CAUSE)


def deduct(
    amount: str | Decimal,
    source_id: str = "source-1",
    session_id: str | None = "session-1",
    upstream_id: str | None = "line-1",
    currency: str | None = None,
    line_id: str | None = None,
) -> Deduct:
    return Deduct(
        source_id=source_id,
        upstream_id=upstream_id,
        order_id=f"order of {source_id}",
        session_id=session_id,
        amount=Decimal(amount),
        currency=currency,
        deduction_id=ids.mint("ded"),
        cause=CAUSE,
        line_id=line_id,
    )


Amounts = Mapping[str, str] | Sequence[str]
"""Amounts by id, or without ids."""


def give_back(
    source_id: str = "source-1",
    *,
    refunds: Amounts = (),
    cancels: Amounts = (),
    captured: str | None = None,
    everything: bool = False,
    currency: str | None = "USD",
    event_id: str = "event-1",
    charge: str | None = None,
) -> Return:
    """What a payload tells of a source's refunds and cancels."""
    return Return(
        source_id=source_id,
        order_id=f"order of {source_id}",
        currency=currency,
        what=f"told by {event_id}",
        cause=Cause(actor="test", event_id=event_id),
        cancels=_parts(cancels, charge),
        refunds=_parts(refunds, charge),
        captured=None if captured is None else Decimal(captured),
        everything=everything,
        reference=f"receipt of {event_id}",
    )


def _parts(amounts: Amounts, charge: str | None) -> tuple[Part, ...]:
    if isinstance(amounts, Mapping):
        return tuple(Part(part_id, Decimal(amount), charge) for part_id, amount in amounts.items())
    return tuple(Part(None, Decimal(amount), charge) for amount in amounts)


def settle(line_id: str) -> Settle:
    return Settle(line_id)


def adjust(line: Line, amount: str) -> Adjust:
    return Adjust(line.id, Decimal(amount), SUPPORT)


def set_status(line: Line, action: Any) -> SetStatus:
    return SetStatus(line.id, action, SUPPORT)


def set_expiry(line: Line, expires_at: datetime | None) -> SetExpiry:
    return SetExpiry(line.id, expires_at, SUPPORT)


def set_flag(line: Line, flag: str, raised: bool) -> SetFlag:
    return SetFlag(line.id, flag, raised, SUPPORT)


def release_holds(*holds: Hold) -> ReleaseHolds:
    """An operator ends these holds."""
    line_ids = tuple(dict.fromkeys(hold.line_id for hold in holds))
    return ReleaseHolds(tuple(hold.id for hold in holds), line_ids, SUPPORT)
