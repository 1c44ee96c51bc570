"""The credit lines that somebody else keeps locked: their callers are refused, so that no others wait."""

from __future__ import annotations

import time
from collections.abc import Iterable

from store_credit.ledger.commands import Command
from store_credit.ledger.needs import Needs

LOCKED = "The credit line is locked."
REMEMBERED_SECONDS = 1.0
"""For how long a line is taken for locked before the next work tries it again."""


class LockedNames:
    """The names of lines that could not be locked: upstream ids, and ids of lines and payment sources."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def remember(self, names: Iterable[str]) -> None:
        until = time.monotonic() + REMEMBERED_SECONDS
        self._until.update(dict.fromkeys(names, until))

    def holds_up(self, commands: Iterable[Command]) -> bool:
        """Whether one of the commands would have to wait for such a line."""
        if not self._until:
            return False
        now = time.monotonic()
        self._until = {name: until for name, until in self._until.items() if now < until}
        needs = Needs.of(commands)
        return not self._until.keys().isdisjoint(needs.upstream_ids | needs.line_ids | needs.source_ids)
