"""What Digital River told of a payment source's cancels and refunds, merged whatever the order. Pure.

For each kind, what came back is the larger of two: the sum over the distinct ids ever seen, each at
its largest amount, and the largest total of one payload. So repeated, reordered and cumulative payloads
come out right, with ids or without, and partial ones with ids. Of a cancelled charge all came back that was
not captured, whether or not its cancels say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

Parts = Sequence[tuple[str | None, int]]
"""Cancels or refunds: an id, if there is one, and an amount in minor units."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What is known to have come back of one source in one way, cancelled or refunded."""

    by_id: Mapping[str, int] = field(default_factory=dict)
    """The largest amount ever seen under each id."""
    largest_total: int = 0
    """The largest total of one payload, entries with and without ids."""

    @property
    def amount(self) -> int:
        return max(sum(self.by_id.values()), self.largest_total)

    def merged(self, parts: Parts) -> Returned:
        """This and one more payload. In whatever order payloads come, the result is the same."""
        by_id = dict(self.by_id)
        for part_id, amount in parts:
            if part_id is not None:
                by_id[part_id] = max(amount, by_id.get(part_id, 0))
        total = sum(amount for _, amount in parts)
        return Returned(by_id, max(self.largest_total, total))


@dataclass(frozen=True, slots=True)
class Told:
    """What one payload tells of a source, in minor units."""

    cancels: Parts = ()
    refunds: Parts = ()
    captured: int | None = None
    uncaptured: Mapping[str, int] = field(default_factory=dict)
    charge_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def holds_amounts(self) -> bool:
        return bool(self.cancels or self.refunds or self.uncaptured or self.captured is not None)


@dataclass(frozen=True, slots=True)
class Source:
    """What Digital River said of a payment source's cancels and refunds, deducted or not."""

    id: str
    currency: str | None = None
    order_id: str | None = None
    cancelled: Returned = Returned()
    refunded: Returned = Returned()
    captured: int | None = None
    """Of a cancelled charge that says no amount: what had been captured, the smallest ever told."""
    uncaptured: Mapping[str, int] = field(default_factory=dict)
    """Of each cancelled charge, by its id: what was not captured, the largest ever told."""
    charge_of: Mapping[str, str] = field(default_factory=dict)
    """The charges that the cancels belong to; both by their ids."""
    everything: bool = False
    parked_at: datetime | None = None
    """Since when returns wait for the deduction; None when none do."""
    references: tuple[str, ...] = ()
    """Of the returns that wait."""
    unmatched: bool = False
    """An order named it as spent, and its line was not known."""
    event_id: str | None = None
    """The last event that told something new."""
    what: str | None = None

    def owed(self, deducted: int) -> int:
        """How much of a deduction came back in all; never more than was deducted."""
        if self.everything:
            return deducted
        rest = deducted - self.captured if self.captured is not None else 0
        return min(deducted, max(self._cancelled, rest) + self.refunded.amount)

    @property
    def _cancelled(self) -> int:
        """What the cancels say, and of each cancelled charge at least what was not captured."""
        by_charge: Counter[str | None] = Counter()
        for cancel_id, amount in self.cancelled.by_id.items():
            by_charge[self.charge_of.get(cancel_id)] += amount
        for charge_id, amount in self.uncaptured.items():
            by_charge[charge_id] = max(by_charge[charge_id], amount)
        return max(by_charge.total(), self.cancelled.largest_total)

    def merged(self, told: Told) -> Source:
        """This and one more payload. In whatever order payloads come, the figures are the same."""
        captures = [amount for amount in (self.captured, told.captured) if amount is not None]
        uncaptured = {
            charge_id: max(told.uncaptured.get(charge_id, 0), self.uncaptured.get(charge_id, 0))
            for charge_id in (*self.uncaptured, *told.uncaptured)
        }
        return replace(
            self,
            cancelled=self.cancelled.merged(told.cancels),
            refunded=self.refunded.merged(told.refunds),
            captured=min(captures, default=None),
            uncaptured=uncaptured,
            charge_of={**told.charge_of, **self.charge_of},
        )
