"""What Digital River told of a payment source's cancels and refunds, merged whatever the order. Pure.

For each kind, what came back is the larger of two: the sum over the distinct ids ever seen, each at
its largest amount, and the largest total of one payload. So repeated, reordered and cumulative payloads
come out right, with ids or without, and partial ones with ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime


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

    def merged(self, parts: Sequence[tuple[str | None, int]]) -> Returned:
        """This and one more payload. In whatever order payloads come, the result is the same."""
        by_id = dict(self.by_id)
        for part_id, amount in parts:
            if part_id is not None:
                by_id[part_id] = max(amount, by_id.get(part_id, 0))
        total = sum(amount for _, amount in parts)
        return Returned(by_id, max(self.largest_total, total))


@dataclass(frozen=True, slots=True)
class Source:
    """What Digital River said of a payment source's cancels and refunds, deducted or not."""

    id: str
    currency: str | None = None
    order_id: str | None = None
    cancelled: Returned = Returned()
    refunded: Returned = Returned()
    captured: int | None = None
    """Of a cancelled charge: what had been captured, the smallest ever told; the rest came back."""
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
        return min(deducted, max(self.cancelled.amount, rest) + self.refunded.amount)
