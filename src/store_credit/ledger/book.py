"""The loaded part of the ledger: what the rules look things up in. Pure: no SQL, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from store_credit.ledger.offers import Offer
from store_credit.ledger.sources import Source
from store_credit.ledger.state import Change, Deduction, Hold, HoldKey, HoldState, Line


@dataclass(slots=True)
class Book:
    """The loaded part of the ledger that one transaction works on.

    The rules only look things up in it; `apply` takes in what they decided. Of holds it has the open
    ones that the batch names and those that are past their time, of these not always all.
    """

    lines: dict[str, Line] = field(default_factory=dict)
    line_ids: dict[str, str] = field(default_factory=dict)
    """Line id by upstream id."""
    open_holds: dict[str, dict[HoldKey, Hold]] = field(default_factory=dict)
    """Open holds by line id and key."""
    overdue: dict[str, int] = field(default_factory=dict)
    """By line id, what is held by holds past their time that are not loaded: they are too many to be ended
    at once. It counts as held in the journal until they are, and promises nothing."""
    deductions: dict[str, Deduction] = field(default_factory=dict)
    """Deductions by source id."""
    sources: dict[str, Source] = field(default_factory=dict)
    offers: dict[str, Offer] = field(default_factory=dict)
    """Offers by upstream id."""
    completed_sessions: set[tuple[str, str]] = field(default_factory=set)
    """(line id, session id) of which an order was deducted."""

    def line_of(self, upstream_id: str | None) -> Line | None:
        """The line of this upstream id, its own or an offer's."""
        if upstream_id is None:
            return None
        offer = self.offers.get(upstream_id)
        line_id = self.line_ids.get(upstream_id) or (offer.line_id if offer else None)
        return self.lines.get(line_id) if line_id is not None else None

    def holds_of(self, line_id: str) -> Mapping[HoldKey, Hold]:
        return self.open_holds.get(line_id, {})

    def add_line(self, line: Line) -> None:
        self.lines[line.id] = line
        self.line_ids[line.upstream_id] = line.id

    def add_hold(self, hold: Hold) -> None:
        holds = self.open_holds.setdefault(hold.line_id, {})
        if hold.state == HoldState.OPEN:
            holds[hold.key] = hold
        elif (known := holds.get(hold.key)) is not None and known.id == hold.id:
            del holds[hold.key]

    def add_deduction(self, deduction: Deduction) -> None:
        self.deductions[deduction.source_id] = deduction
        if deduction.session_id is not None:
            self.completed_sessions.add((deduction.line_id, deduction.session_id))

    def apply(self, change: Change) -> None:
        for line in change.lines:
            self.add_line(line)
        for hold in change.holds:
            self.add_hold(hold)
        for deduction in change.deductions:
            self.add_deduction(deduction)
        for source in change.sources:
            self.sources[source.id] = source
        for offer in change.offers:
            self.offers[offer.upstream_id] = offer
