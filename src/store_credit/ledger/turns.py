"""Whose works the next transaction carries, and when those of the one before get their answers.

Callers that are answered together ask again together. So after a batch of several, a transaction waits a
moment for its callers to come back, or the first of them would be served alone.

While the database works, the process has nothing to do. Therefore many callers are served in groups,
mostly two, that take turns: a complete group begins before the other one is answered, whose answers go out
and whose next requests are read while the database works. When the database is so slow that it is the one
to be waited for, all are served together, as few transactions are best then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque

from store_credit.ledger.works import Answer, Pending, answer, waiting

BATCH_MAX = 256
GROUP_MAX = 96
"""Of a group: while it is in the database, the process shall not run out of others."""
COMMANDS_MAX = 512
"""After so many a batch takes no more works: an event may have hundreds of them."""
CALLERS_MIN = 16
"""Fewer are not worth two groups."""
WORK_SHARE = 0.7
"""What a work costs within a transaction, of what its request costs outside, about."""
JOIN_SECONDS_MAX = 0.003
"""How long a transaction waits for works to join it, after one that carried several."""
WAIT_SECONDS_MAX = 0.1
"""When a work would wait longer, by the pace of late, the queue is crowded."""
QUEUE_MIN = 128
"""So many fit into the next batch: they are no crowd, however slow the batches before it were."""
PACE_WORKS_MIN = 16
"""Smaller batches tell how fast the ledger is at least, and not how slow."""


class Turns:
    """The queue of works, served in batches, and the answers that are kept back for a moment."""

    def __init__(self, *, groups: bool = True) -> None:
        """Without `groups` all callers are served together, however many they are."""
        self._groups = groups
        self._queue: deque[Pending] = deque()
        self._wanted = 1
        self._most = BATCH_MAX
        self._complete = asyncio.Event()
        self._kept: list[Answer] = []
        self._seconds: float | None = None
        self._told = 0
        self._told_at = 0.0
        self._seconds_per_request = 0.0
        self._seconds_per_work = 0.0

    def __len__(self) -> int:
        return len(self._queue)

    def is_crowded_with(self, others: int) -> bool:
        """Whether a work that came after so many others would wait for too long."""
        works = len(self._queue) + others
        return works > QUEUE_MIN and works * self._seconds_per_work > WAIT_SECONDS_MAX

    def add(self, pending: Pending) -> None:
        self._queue.append(pending)
        if len(self._queue) >= self._wanted:
            self._complete.set()
            self._learn_requests()

    async def next(self) -> list[Pending]:
        """The next batch, without those whose callers are gone or past their deadline; none: the end.

        A lone caller waits for nobody. Those of the batch before are answered now at the latest: what the
        batch does first, until it has to wait, still comes before whatever they do.
        """
        if len(self._queue) < self._wanted and self._wanted > 1:
            self._complete.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(JOIN_SECONDS_MAX):
                    await self._complete.wait()
        batch = self._take()
        self.tell()
        if not batch:
            # Whoever asks next comes of their own accord, and tells nothing of what a request costs.
            self._wanted, self._most, self._told = 1, BATCH_MAX, 0
        return batch

    def took(self, works: int, seconds: float) -> None:
        """A transaction with so many works was committed."""
        self._seconds = seconds
        pace = seconds / works
        if works >= PACE_WORKS_MIN or pace < self._seconds_per_work:
            self._seconds_per_work += (pace - self._seconds_per_work) / 4

    def served(self, answers: list[Answer]) -> None:
        """A transaction is over. Its callers are answered now; once the others begin, if all are there."""
        self._kept += answers
        callers = len(answers) + len(self._queue)
        in_groups = self._are_groups_faster(callers, len(answers))
        self._most = min((callers + 1) // 2, GROUP_MAX) if in_groups else BATCH_MAX
        self._wanted = min(callers if callers >= CALLERS_MIN else len(answers), self._most)
        if not in_groups or len(self._queue) < self._wanted:
            self.tell()

    def tell(self) -> None:
        """Answer those whose answers are kept back."""
        if not self._kept:
            return
        kept, self._kept = self._kept, []
        self._told, self._told_at = len(kept), time.perf_counter()
        for pending, result in kept:
            answer(pending.future, result)

    def _take(self) -> list[Pending]:
        batch: list[Pending] = []
        commands = 0
        while self._queue and len(batch) < self._most and commands < COMMANDS_MAX:
            for pending in waiting([self._queue.popleft()]):
                batch.append(pending)
                commands += len(pending.work.commands)
        return batch

    def _are_groups_faster(self, callers: int, works: int) -> bool:
        """Whether a transaction, but for what its works cost in it, is over before all callers are read.

        With two groups there is one transaction more in a round, and all reading beside them.
        """
        seconds, self._seconds = self._seconds, None
        if not self._groups or callers < CALLERS_MIN or seconds is None:
            return False
        return seconds < (callers + WORK_SHARE * works) * self._seconds_per_request

    def _learn_requests(self) -> None:
        """How long it takes to answer a request and to read the next, when many are answered together."""
        if self._told >= CALLERS_MIN // 2:
            seconds = (time.perf_counter() - self._told_at) / self._told
            self._seconds_per_request += (seconds - self._seconds_per_request) / 4
        self._told = 0
