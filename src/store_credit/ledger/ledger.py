"""The one way into the ledger: group commit.

Works that arrive while a transaction is in flight wait for the next one, which carries all of them, or the
half when there are many: see `turns`. A batch of one is the ordinary case under light load and costs no
waiting. After COMMIT, and only then, each caller gets its result.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import Connection

from store_credit import bulk, ids
from store_credit.bulk import Record
from store_credit.database import Database
from store_credit.direct import Fetch
from store_credit.failures import CommitFailed, is_locked, is_passing, is_race
from store_credit.ledger import at_once, store
from store_credit.ledger.batch import Batch
from store_credit.ledger.commands import Command, Policy
from store_credit.ledger.locked import LOCKED, LockedNames
from store_credit.ledger.needs import Needs
from store_credit.ledger.refusals import Unavailable
from store_credit.ledger.state import Outcome
from store_credit.ledger.turns import Turns
from store_credit.ledger.works import (
    Answer,
    Claim,
    Deadlines,
    Pending,
    Result,
    Work,
    answer,
    waiting,
)

__all__ = ["Claim", "Clock", "Ledger", "Record", "Result", "Work"]

QUEUE_MAX = 4_096
TRIES_MAX = 8
BRIEF_COMMANDS_MAX = 256
"""So many take some 20 ms on SQLite."""
PAUSE_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Pauses between the tries of a batch whose transaction failed for a passing reason, at the most.

Their length is left to chance, so that two processes in each other's way do not meet again.
"""

Clock = Callable[[], datetime]
Doubtful = dict[str, list[Answer]]
"""What tries of a batch would answer whose fate is unknown, by their markers."""

_log = logging.getLogger(__name__)


class Ledger:
    """Executes works against one database, from one event loop."""

    def __init__(
        self,
        database: Database,
        policy: Policy,
        *,
        clock: Clock | None = None,
        deadline_seconds: float = 2.5,
        on_commit: Callable[[int, float], None] | None = None,
    ) -> None:
        """`clock` None means PostgreSQL's own clock there, and the system's clock on SQLite.

        `on_commit` is told the number of works and the seconds of each committed transaction.
        """
        self.database = database
        self._policy = policy
        self._own_clock = clock is None and database.dialect == "postgresql"
        self._clock = clock or _system_time
        self._deadline_seconds = deadline_seconds
        self._on_commit = on_commit
        # SQLite works in this very process: there is less to be done meanwhile than a COMMIT more costs.
        self._has_trips = database.dialect == "postgresql"
        self._turns = Turns(groups=self._has_trips)
        self._under_locks = 0
        self._drain: asyncio.Task[None] | None = None
        self._deadlines = Deadlines()
        self._locked = LockedNames()

    def is_crowded_with(self, others: int) -> bool:
        """Whether a work would wait for too long that came now, after so many others.

        Asked before a request costs anything.
        """
        return self._turns.is_crowded_with(others)

    async def execute(
        self,
        *commands: Command,
        claim: Claim | None = None,
        record: Callable[[Sequence[Outcome], datetime], Iterable[Record]] | None = None,
    ) -> Result:
        """Run the commands together or not at all; returns once they are durable.

        Raises Refusal when a rule says no, and Unavailable when the database is away, the queue is
        full or the deadline passed; a work past its deadline is not begun.
        """
        if len(self._turns) >= QUEUE_MAX:
            raise Unavailable("The ledger has too much to do.")
        if self._locked.holds_up(commands):
            raise Unavailable(LOCKED)
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + self._deadline_seconds
        pending = Pending(Work(commands, claim, record), deadline, loop.create_future())
        self._turns.add(pending)
        if self._drain is None:
            self._drain = loop.create_task(self._serve_queue())
        self._deadlines.keep(pending)
        return await pending.future

    async def now(self) -> datetime:
        """The time that the rules go by."""
        return await self.database.read(self.now_within)

    def now_within(self, connection: Connection) -> datetime:
        """The time that the rules go by, within a transaction of the caller's."""
        return store.current_time(connection) if self._own_clock else self._clock()

    async def close(self) -> None:
        """Wait for what is under way. Nothing may be executed afterwards."""
        if self._drain is not None:
            await self._drain
        self._deadlines.close()

    async def _serve_queue(self) -> None:
        try:
            while batch := await self._turns.next():
                await self._serve(batch)
        finally:
            self._turns.tell()
            self._drain = None

    async def _serve(self, batch: list[Pending], *, again: bool = False) -> None:
        try:
            answers = await self._commit(batch, again=again)
        except Unavailable as error:
            answers = [(pending, error) for pending in batch]
        except Exception as error:
            if is_race(error) and not again:
                # Another process took a name between our look and our write; a second look sees it.
                await self._serve(batch, again=True)
                return
            if is_locked(error) and (others := await self._without_locked(batch)) is not None:
                await self._serve(others)
                return
            if len(batch) > 1:
                _log.warning("a batch of %d failed; running them one by one: %r", len(batch), error)
                for pending in batch:
                    await self._serve([pending])
                    self._turns.tell()
                return
            failed = Unavailable(LOCKED) if is_locked(error) else error
            answers = [(pending, failed) for pending in batch]
        self._turns.served(answers)

    async def _without_locked(self, batch: list[Pending]) -> list[Pending] | None:
        """Refuse the works on lines that somebody else has locked for long; the others go on.

        None when no such line is found: it was let go meanwhile, something else is locked, or the
        database does not tell.
        """
        needs = Needs.of(command for pending in batch for command in pending.work.commands)
        try:
            self._locked.remember(await self.database.write(store.locked_names, needs))
        except Exception as error:
            _log.warning("which lines are locked can not be told: %r", error)
            return None
        others: list[Pending] = []
        for pending in batch:
            if self._locked.holds_up(pending.work.commands):
                answer(pending.future, Unavailable(LOCKED))
            else:
                others.append(pending)
        return others if len(others) < len(batch) else None

    async def _commit(self, batch: list[Pending], *, again: bool) -> list[Answer]:
        """Run one transaction, again if need be, and never twice: see `_run`.

        Each try leaves out the works whose deadline passed meanwhile.
        """
        doubtful: Doubtful = {}
        for pause in (*PAUSE_SECONDS[: TRIES_MAX - 1], None):
            if not (batch := waiting(batch)):
                break
            started, marker_id = time.perf_counter(), ids.mint("batch")
            try:
                answers = await self._write(batch, marker_id, doubtful, again)
            except Exception as error:
                if is_locked(error) and not doubtful:
                    raise  # Those on other lines need not wait for it: see `_serve`.
                # Once the fate of a COMMIT is unknown, only its marker can tell it.
                if not is_passing(error) and not doubtful:
                    raise
                if isinstance(error, CommitFailed):
                    doubtful[marker_id] = error.result
                _log.warning("a transaction failed for a passing reason: %r", error)
                if pause is None:
                    raise Unavailable("The database does not answer.") from error
                await asyncio.sleep(pause * random.random())  # noqa: S311
                continue
            seconds = time.perf_counter() - started
            self._turns.took(len(answers), seconds)
            self._observe(len(answers), seconds)
            return answers
        return []

    def _observe(self, works: int, seconds: float) -> None:
        """Tell of a committed transaction. Whatever that raises, what is committed stays answered."""
        if self._on_commit is not None:
            try:
                self._on_commit(works, seconds)
            except Exception:
                _log.exception("a committed transaction could not be counted")

    async def _write(
        self, batch: list[Pending], marker_id: str, doubtful: Doubtful, again: bool
    ) -> list[Answer]:
        """Write one transaction, without locks if that may do: then two trips to PostgreSQL are enough."""
        needs = Needs.of(command for pending in batch for command in pending.work.commands)
        needs.claims.update(pending.work.claim.key for pending in batch if pending.work.claim)
        self._under_locks = max(0, self._under_locks - 1)
        if self._has_trips and not (needs.locks or doubtful or again or self._under_locks):
            answers = await self.database.at_once(partial(self._run_at_once, batch, needs, marker_id))
            if answers is not None:
                return answers
        write = self.database.write_briefly if needs.commands <= BRIEF_COMMANDS_MAX else self.database.write
        return await write(partial(self._run, batch, needs, marker_id, doubtful))

    async def _run_at_once(
        self, pendings: list[Pending], needs: Needs, marker_id: str, fetch: Fetch
    ) -> list[Answer] | None:
        """Load, decide and save, without locks. None: nothing is done, as that would not do."""
        seen = await at_once.look(fetch, needs, None if self._own_clock else self._clock())
        if seen is None:
            return None
        batch = Batch(seen.book, seen.claimed, seen.now, self._policy)
        answers = batch.decide_all(pendings)
        saving = at_once.saving(needs, seen, batch, store.marker(marker_id, seen.now))
        if saving is None:
            return None
        if await at_once.save(fetch, saving, answers):
            return answers
        self._under_locks = at_once.BATCHES_UNDER_LOCKS
        return None

    def _run(
        self,
        pendings: list[Pending],
        needs: Needs,
        marker_id: str,
        doubtful: Doubtful,
        connection: Connection,
    ) -> list[Answer]:
        """Load, decide and save, within a transaction.

        If one of the doubtful tries was committed after all, its outcomes are the answers. Works whose
        deadline passed while rows were waited for are left out.
        """
        # The newest first: it claims the markers of those before it, which then are there too. For the same
        # reason whoever repeats an answer leaves a marker.
        for earlier_id, answers in reversed(doubtful.items()):
            at = self.now_within(connection)
            if not store.claim_batch(connection, earlier_id, at):
                bulk.write(connection, [store.marker(marker_id, at)])
                return answers
        book, now, claimed = store.load(connection, needs, None if self._own_clock else self._clock())
        batch = Batch(book, claimed, now, self._policy)
        answers = batch.decide_all(pendings)
        bulk.write(connection, batch.records(store.marker(marker_id, now)))
        return answers


def _system_time() -> datetime:
    return datetime.now(UTC)
