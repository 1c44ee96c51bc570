"""What a batch of commands names: gathered before anything is locked or read. Pure."""

from __future__ import annotations

from collections.abc import Iterable
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


@dataclass(slots=True)
class Needs:
    """What a batch of commands names, and so what must be locked and loaded."""

    commands: int = 0
    settles: int = 0
    """How many of the commands only settle."""
    upstream_ids: set[str] = field(default_factory=set)
    line_ids: set[str] = field(default_factory=set)
    source_ids: set[str] = field(default_factory=set)
    session_ids: set[str] = field(default_factory=set)
    hold_ids: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)
    """Upstream ids of which some open hold is to be released."""
    claims: set[str] = field(default_factory=set)
    """Keys that are to be claimed."""
    locks: bool = False
    """Whether a command can only be decided under locks."""

    @classmethod
    def of(cls, commands: Iterable[Command]) -> Needs:
        needs = cls()
        for command in commands:
            needs.add(command)
        return needs

    def add(self, command: Command) -> None:
        self.commands += 1
        self.locks = self.locks or not isinstance(command, (Authorize, Release, Deduct))
        match command:
            case Authorize():
                self.upstream_ids.add(command.upstream_id)
                self.session_ids.add(command.session_id)
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
        self.source_ids.add(command.source_id)
        if command.upstream_id is not None:
            self.upstream_ids.add(command.upstream_id)
        if command.line_id is not None:
            self.locks = True
            self.line_ids.add(command.line_id)
        if command.session_id is not None:
            self.session_ids.add(command.session_id)
