"""Whose works the next transaction carries, and when those of the one before get their answers.

Callers that are answered together ask again together. While the database works on what they ask, the
process would have nothing to do: so many callers are served in two groups that take turns. One group's
answers go out when the other's rows are on their way, and its next requests are read meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from store_credit.ledger.works import Pending, Result, answer, waiting

Answer = tuple[Pending, Result | Exception]

BATCH_MAX = 256
COMMANDS_MAX = 512
"""After so many a batch takes no more works: an event may have hundreds of them."""
GROUPS_MIN = 16
"""So many callers are worth two groups; fewer are served in as few transactions as can be."""
JOIN_SECONDS_MAX = 0.003
"""How long a transaction waits for works to join it, after one that carried several."""
KEPT_SECONDS_MAX = 0.01
"""How long answers wait for the next transaction to come so far."""


class Turns:
    """The queue of works, served in batches, and the answers that are kept back for a moment."""

    def __init__(self, group_max: int = BATCH_MAX) -> None:
        """`group_max`: of larger groups, the requests could not be read while the database works."""
        self._group_max = group_max
        self._queue: deque[Pending] = deque()
        self._kept: list[Answer] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._complete = asyncio.Event()
        self._wanted = 1
        self._most = BATCH_MAX

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, pending: Pending) -> None:
        self._queue.append(pending)
        if len(self._queue) >= self._wanted:
            self._complete.set()

    async def next(self) -> list[Pending]:
        """The next batch, without those whose callers are gone or past their deadline; none: the end.

        After a batch of several it waits a moment for as many again, or the first of them would be
        served alone, and all others wait for its transaction. A lone caller waits for nobody.
        """
        if len(self._queue) < self._wanted and self._wanted > 1:
            self._complete.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(JOIN_SECONDS_MAX):
                    await self._complete.wait()
        batch = self._take()
        if not batch:
            self._wanted, self._most = 1, BATCH_MAX
        return batch

    def served(self, answers: list[Answer]) -> None:
        """A transaction is over. Its callers are answered now, or shortly when the others are complete."""
        self._kept += answers
        callers = len(answers) + len(self._queue)
        in_groups = callers >= GROUPS_MIN
        self._wanted = min((callers + 1) // 2, self._group_max) if in_groups else len(answers)
        self._most = self._wanted if in_groups else BATCH_MAX
        if not in_groups or len(self._queue) < self._wanted:
            self.tell()
        elif self._alarm is None:
            self._loop = asyncio.get_running_loop()
            self._alarm = self._loop.call_later(KEPT_SECONDS_MAX, self.tell)

    def tell(self) -> None:
        """Answer those whose answers are kept back."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        kept, self._kept = self._kept, []
        for pending, result in kept:
            answer(pending.future, result)

    def tell_soon(self) -> None:
        """The same, from whatever thread a transaction runs in."""
        if self._kept and self._loop is not None:
            self._loop.call_soon_threadsafe(self.tell)

    def _take(self) -> list[Pending]:
        batch: list[Pending] = []
        commands = 0
        while self._queue and len(batch) < self._most and commands < COMMANDS_MAX:
            for pending in waiting([self._queue.popleft()]):
                batch.append(pending)
                commands += len(pending.work.commands)
        return batch
