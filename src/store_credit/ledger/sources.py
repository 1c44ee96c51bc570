"""What Digital River told of a payment source's cancels and refunds, merged whatever the order. Pure.

For each kind, what came back is the largest of what can be told: the sum over the distinct ids ever seen,
each at its largest amount; the largest total of one payload; and the sum over the charges that are named,
each by its ids or its own largest total. So repeated, reordered and cumulative payloads come out right,
with ids or without, and partial ones with ids, or where each tells of another charge. Of a cancelled charge
all came back that was not captured, whether or not its cancels say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

Parts = Sequence[tuple[str | None, int, str | None]]
"""Cancels or refunds: an id, if there is one, an amount in minor units, and the charge's id, if known."""

Amounts = Mapping[str, int]
"""In minor units, by the ids of charges, or of cancels or refunds."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What is known to have come back of one source in one way, cancelled or refunded."""

    by_id: Amounts = field(default_factory=dict)
    """The largest amount ever seen under each id."""
    largest_total: int = 0
    """The largest total of one payload, entries with and without ids."""

    @property
    def amount(self) -> int:
        return max(sum(self.by_id.values()), self.largest_total)

    def merged(self, parts: Parts) -> Returned:
        """This and one more payload. In whatever order payloads come, the result is the same."""
        named = ({part_id: amount} for part_id, amount, _ in parts if part_id is not None)
        total = sum(amount for _, amount, _ in parts)
        return Returned(_largest(self.by_id, *named), max(self.largest_total, total))

    def amount_with(self, charge_of: Mapping[str, str], *by_charge: Amounts) -> int:
        """The amount, or what the named charges come to, if that is more.

        `by_charge` is what else is known of each charge: all of it tells of the same money. What has an id
        and no charge may be part of any of them, and is not added to theirs.
        """
        charges: Counter[str] = Counter()
        for part_id, amount in self.by_id.items():
            if part_id in charge_of:
                charges[charge_of[part_id]] += amount
        return max(self.amount, sum(_largest(charges, *by_charge).values()))


@dataclass(frozen=True, slots=True)
class Told:
    """What one payload tells of a source, in minor units."""

    cancels: Parts = ()
    refunds: Parts = ()
    captured: int | None = None
    uncaptured: Amounts = field(default_factory=dict)

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
    uncaptured: Amounts = field(default_factory=dict)
    """Of each cancelled charge: what was not captured, the largest ever told."""
    charge_of: Mapping[str, str] = field(default_factory=dict)
    """The charges that the cancels belong to; both by their ids. The smallest, if several were told."""
    refund_charge_of: Mapping[str, str] = field(default_factory=dict)
    cancel_totals: Amounts = field(default_factory=dict)
    """Of each charge: the largest total of its cancels in one payload that tells some without ids."""
    refund_totals: Amounts = field(default_factory=dict)
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
        cancelled = self.cancelled.amount_with(self.charge_of, self.cancel_totals, self.uncaptured)
        refunded = self.refunded.amount_with(self.refund_charge_of, self.refund_totals)
        return min(deducted, max(cancelled, rest) + refunded)

    def merged(self, told: Told) -> Source:
        """This and one more payload. In whatever order payloads come, the figures are the same."""
        captures = [amount for amount in (self.captured, told.captured) if amount is not None]
        return replace(
            self,
            cancelled=self.cancelled.merged(told.cancels),
            refunded=self.refunded.merged(told.refunds),
            captured=min(captures, default=None),
            uncaptured=_largest(self.uncaptured, told.uncaptured),
            charge_of=_with_charge_of(self.charge_of, told.cancels),
            refund_charge_of=_with_charge_of(self.refund_charge_of, told.refunds),
            cancel_totals=_largest(self.cancel_totals, _totals(told.cancels)),
            refund_totals=_largest(self.refund_totals, _totals(told.refunds)),
        )


def _largest(*told: Amounts) -> dict[str, int]:
    """Of each id the largest amount."""
    largest: dict[str, int] = {}
    for amounts in told:
        for one, amount in amounts.items():
            largest[one] = max(amount, largest.get(one, 0))
    return largest


def _with_charge_of(known: Mapping[str, str], parts: Parts) -> dict[str, str]:
    charge_of = dict(known)
    for part_id, _, charge_id in parts:
        if part_id is not None and charge_id is not None:
            charge_of[part_id] = min(charge_id, charge_of.get(part_id, charge_id))
    return charge_of


def _totals(parts: Parts) -> Amounts:
    """Of each charge that has a part without an id: the total. What has ids adds up by these."""
    nameless = {charge_id for part_id, _, charge_id in parts if part_id is None}
    totals: Counter[str] = Counter()
    for _, amount, charge_id in parts:
        if charge_id is not None and charge_id in nameless:
            totals[charge_id] += amount
    return totals
