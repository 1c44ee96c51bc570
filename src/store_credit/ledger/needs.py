"""What a batch of commands names: gathered before anything is locked or read. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from store_credit.ledger.commands import (
    Adjust,
    Authorize,
    Command,
    Deduct,
    Describe,
    Issue,
    Release,
    ReleaseHolds,
    Return,
    SetExpiry,
    SetFlag,
    SetStatus,
    Settle,
)
from store_credit.ledger.state import Deduction


@dataclass(slots=True)
class Needs:
    """What a batch of commands names, and so what must be locked and loaded."""

    commands: int = 0
    settles: int = 0
    """How many of the commands only settle."""
    upstream_ids: set[str] = field(default_factory=set)
    line_ids: set[str] = field(default_factory=set)
    deducts: list[Deduct] = field(default_factory=list)
    source_ids: set[str] = field(default_factory=set)
    hold_keys: set[tuple[str, str]] = field(default_factory=set)
    hold_ids: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)
    """Upstream ids of which some open hold is to be released."""

    def add(self, command: Command) -> None:
        self.commands += 1
        match command:
            case Authorize():
                self.upstream_ids.add(command.upstream_id)
                self.hold_keys.add((command.session_id, command.upstream_id))
            case Release():
                self.upstream_ids.add(command.upstream_id)
                self.released.add(command.upstream_id)
            case Deduct():
                self._add_deduct(command)
            case Issue():
                self.upstream_ids.add(command.upstream_id)
            case Return():
                self.source_ids.add(command.source_id)
            case ReleaseHolds():
                self.line_ids.update(command.line_ids)
                self.hold_ids.update(command.holds)
            case Adjust() | SetStatus() | SetExpiry() | SetFlag() | Describe():
                self.line_ids.add(command.line_id)
            case Settle():
                self.settles += 1
                self.line_ids.add(command.line_id)

    def _add_deduct(self, command: Deduct) -> None:
        self.deducts.append(command)
        self.source_ids.add(command.source_id)
        if command.upstream_id is not None:
            self.upstream_ids.add(command.upstream_id)
        if command.line_id is not None:
            self.line_ids.add(command.line_id)

    def add_spent_holds(self, known: Collection[Deduction]) -> None:
        """Name the holds that deductions end: a source may come again without its upstream id."""
        upstream_ids: defaultdict[str, set[str]] = defaultdict(set)
        spending: list[Deduct | Deduction] = [*known, *self.deducts]
        for spent in spending:
            if spent.upstream_id is not None:
                upstream_ids[spent.source_id].add(spent.upstream_id)
        for command in self.deducts:
            if (session := command.session_id) is not None:
                self.hold_keys.update((session, name) for name in upstream_ids[command.source_id])

    def add_holds_on_named_lines(self, upstream_ids: Mapping[str, str]) -> None:
        """Name the holds that deductions end on a line that an operator named; its upstream id by id."""
        for command in self.deducts:
            upstream_id = upstream_ids.get(command.line_id or "")
            if upstream_id is not None and command.session_id is not None:
                self.hold_keys.add((command.session_id, command.upstream_id or upstream_id))
