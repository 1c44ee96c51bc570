"""A database that fails or waits when a test says so; the only stand-in that the ledger's tests use."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any

from sqlalchemy import Connection

from store_credit.database import Database
from store_credit.direct import Fetch
from store_credit.failures import CommitFailed


class Fault(Enum):
    AWAY = "no connection can be made"
    LOST = "the connection is lost before COMMIT"
    LOST_IN_COMMIT = "COMMIT raises, and it did not happen"
    COMMITTED_AND_LOST = "COMMIT raises, and it happened"
    REFUSED = "the database refuses for good"
    NONE = "all is well"


class RefusedForGood(Exception):
    """An error that does not pass."""


class _RolledBack(Exception):
    def __init__(self, result: Any) -> None:
        self.result = result


class Faulty:
    """Another database, whose next write transactions suffer the given faults, one each.

    While `gate` is cleared, a transaction waits before it begins; `asked` tells that there was one.
    """

    def __init__(self, database: Database, *faults: Fault) -> None:
        self.dialect = database.dialect
        self.faults = deque(faults)
        self.begun = 0
        self.asked = asyncio.Event()
        self.before: dict[int, Callable[[], Awaitable[Any]]] = {}
        """What others do before a transaction of this number begins, the first being 1."""
        self.gate = asyncio.Event()
        self.gate.set()
        self._database = database

    async def read(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await self._database.read(function, *args, **kwargs)

    async def write_briefly(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await self._suffer(
            lambda: self._database.write_briefly(function, *args, **kwargs),
            lambda: self._roll_back(function, *args, **kwargs),
        )

    write = write_briefly

    async def at_once(self, function: Callable[[Fetch], Awaitable[Any]]) -> Any:
        async def roll_back(fetch: Fetch) -> Any:
            await fetch("BEGIN")
            try:
                return await function(fetch)
            finally:
                await fetch("ROLLBACK")

        return await self._suffer(
            lambda: self._database.at_once(function), lambda: self._database.at_once(roll_back)
        )

    async def _suffer(
        self, commit: Callable[[], Awaitable[Any]], roll_back: Callable[[], Awaitable[Any]]
    ) -> Any:
        self.begun += 1
        self.asked.set()
        await self.gate.wait()
        if others := self.before.pop(self.begun, None):
            await others()
        fault = self.faults.popleft() if self.faults else Fault.NONE
        if fault is Fault.AWAY:
            raise ConnectionRefusedError(fault.value)
        if fault is Fault.REFUSED:
            raise RefusedForGood(fault.value)
        if fault in (Fault.LOST, Fault.LOST_IN_COMMIT):
            result = await roll_back()
            if result is None:
                # Nothing was to be saved: the fault is for the transaction that does.
                self.faults.appendleft(fault)
                return None
            raise (
                CommitFailed(result) if fault is Fault.LOST_IN_COMMIT else ConnectionResetError(fault.value)
            )
        result = await commit()
        if fault is Fault.COMMITTED_AND_LOST and result is None:
            self.faults.appendleft(fault)
        elif fault is Fault.COMMITTED_AND_LOST:
            raise CommitFailed(result)
        return result

    async def close(self) -> None:
        await self._database.close()

    async def _roll_back(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def run(connection: Connection) -> None:
            raise _RolledBack(function(connection, *args, **kwargs))

        try:
            await self._database.write_briefly(run)
        except _RolledBack as rolled_back:
            return rolled_back.result
