"""What the service should answer, told by its README alone: promises, facts and sums. Amounts in cents.

It knows nothing of entries, batches, rows or requests. Every line is brought up to date before it is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

HOLD_TTL = timedelta(hours=24)
GRACE = timedelta(days=30)


@dataclass
class Promise:
    amount: int
    ends: datetime


@dataclass
class ModelOffer:
    line: str
    amount: int
    ends: datetime
    session: str | None = None
    spent: bool = False


@dataclass
class ModelCharge:
    """A part of a source: what was told of its cancels, by id, and of its end."""

    amount: int
    cancels: dict[str, int] = field(default_factory=dict)
    captured_at_end: int | None = None

    @property
    def cancelled(self) -> int:
        ended = 0 if self.captured_at_end is None else self.amount - self.captured_at_end
        return max(sum(self.cancels.values()), ended)


@dataclass
class ModelSource:
    """A payment source: whether an order spent it, and all that was told of what came back."""

    amount: int
    charges: list[ModelCharge]
    line: str | None = None
    """The line that it was deducted from."""
    upstream: str | None = None
    refunds: dict[str, int] = field(default_factory=dict)
    ended: bool = False
    returned: int = 0

    @property
    def owed(self) -> int:
        cancelled = sum(charge.cancelled for charge in self.charges)
        back = self.amount if self.ended else cancelled + sum(self.refunds.values())
        return min(self.amount, back)


@dataclass
class ModelLine:
    balance: int
    partial: bool
    expires: datetime | None = None
    status: str = "active"
    written_off: int = 0
    promises: dict[tuple[str, str], Promise] = field(default_factory=dict)
    """By session and upstream id."""
    completed: set[str] = field(default_factory=set)

    @property
    def held(self) -> int:
        return sum(promise.amount for promise in self.promises.values())

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and now >= self.expires

    def available(self, now: datetime) -> int:
        usable = self.status == "active" and not self.expired(now)
        return max(0, self.balance - self.held) if usable else 0

    def settle(self, now: datetime) -> None:
        """Promises past their time end; an expired line keeps only what is promised."""
        self.promises = {key: one for key, one in self.promises.items() if now < one.ends}
        if self.expired(now) and self.status != "closed" and self.balance > self.held:
            self._write_off(self.balance - self.held)

    def close(self) -> bool:
        if self.status == "closed" or self.held or self.balance < 0:
            return False
        self._write_off(self.balance)
        self.status = "closed"
        return True

    def spend(self, amount: int, session: str | None, upstream: str, now: datetime) -> None:
        own = self.promises.get((session or "", upstream))
        missing = amount - (self.balance - self.held + (own.amount if own else 0))
        if (self.expired(now) or self.status == "closed") and missing > 0:
            back = min(missing, self.written_off)
            self.balance += back
            self.written_off -= back
        self.balance -= amount
        self.end_promise(session, upstream)

    def end_promise(self, session: str | None, upstream: str) -> None:
        """The session's order came: it is done with this line."""
        if session is not None:
            self.promises.pop((session, upstream), None)
            self.completed.add(session)

    def take_back(self, amount: int, now: datetime) -> None:
        if self.status != "closed" and self.expires is not None:
            self.expires = max(self.expires, now + GRACE)
        self.balance += amount

    def _write_off(self, amount: int) -> None:
        self.balance -= amount
        self.written_off += amount


@dataclass
class ShopModel:
    """All lines, offers and sources."""

    lines: dict[str, ModelLine] = field(default_factory=dict)
    offers: dict[str, ModelOffer] = field(default_factory=dict)
    sources: dict[str, ModelSource] = field(default_factory=dict)

    def settle(self, now: datetime) -> None:
        for line in self.lines.values():
            line.settle(now)

    def authorize(self, upstream: str, session: str, amount: int, now: datetime) -> int | None:
        """The amount that is approved; None when it is declined."""
        self.settle(now)
        offer = self.offers.get(upstream)
        line = self.lines.get(offer.line if offer else upstream)
        if line is None or session in line.completed or line.status != "active" or line.expired(now):
            return None
        if offer and (offer.spent or offer.session not in (None, session) or now >= offer.ends):
            return None
        own = line.promises.get((session, upstream))
        available = max(0, line.balance - line.held + (own.amount if own else 0))
        if offer:
            available = min(available, offer.amount)
        if amount > available and not (line.partial and available > 0):
            return None
        approved = min(amount, available)
        line.promises[session, upstream] = Promise(approved, now + HOLD_TTL)
        if offer:
            offer.session = session
        return approved

    def remove(self, upstream: str, now: datetime) -> None:
        """With one promise under the id, that one ends; with several, none does."""
        self.settle(now)
        offer = self.offers.get(upstream)
        line = self.lines.get(offer.line if offer else upstream)
        if line is not None:
            keys = [key for key in line.promises if key[1] == upstream]
            if len(keys) == 1:
                del line.promises[keys[0]]
            line.settle(now)

    def release_session(self, session: str, now: datetime) -> int:
        """End a session's promises; returns how many there were."""
        self.settle(now)
        ended = 0
        for line in self.lines.values():
            for key in [key for key in line.promises if key[0] == session]:
                del line.promises[key]
                ended += 1
        self.settle(now)
        return ended

    def order(self, source_id: str, upstream: str, session: str | None, now: datetime) -> None:
        """An order spent the source under this id; told again, it only ends its session's promise."""
        self.settle(now)
        source = self.sources[source_id]
        if source.line is not None and source.upstream is not None:
            self.lines[source.line].end_promise(session, source.upstream)
        else:
            offer = self.offers.get(upstream)
            source.line, source.upstream = offer.line if offer else upstream, upstream
            self.lines[source.line].spend(source.amount, session, upstream, now)
            if offer:
                offer.spent = True
        self.book_returns(source_id, now)

    def book_returns(self, source_id: str, now: datetime) -> None:
        """Once the source was spent, what came back is the larger of what was told."""
        self.settle(now)
        source = self.sources[source_id]
        if source.line is not None and source.owed > source.returned:
            self.lines[source.line].take_back(source.owed - source.returned, now)
            source.returned = source.owed
        self.settle(now)
