"""Statements that go straight to a driver, on a connection of an engine's.

The ledger runs a handful of statements for each batch, and the engine around a driver takes several times
as long as the driver does. Whoever wants to see all statements that are run must look here too.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from store_credit.failures import leaves_session

T = TypeVar("T")

Fetch = Callable[..., Awaitable[Any]]
"""Takes a statement in PostgreSQL's own form and its values, and returns its first row.

Raises the driver's errors; see `failures`.
"""


class OwnConnection:
    """One connection to PostgreSQL that is kept, for statements that commit by themselves."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._alone = asyncio.Lock()
        self._held: AsyncConnection | None = None
        self._driver: asyncpg.Connection[asyncpg.Record] | None = None

    async def use(self, function: Callable[[Fetch], Awaitable[T]]) -> T:
        """Run the function alone on the connection, which is made anew if it was lost."""
        async with self._alone:
            driver = await self._connected()
            is_asked = False

            async def fetch(sql: str, *values: Any) -> Any:
                nonlocal is_asked
                is_asked = True
                row = await driver.fetchrow(sql, *values)
                is_asked = False
                return row

            try:
                return await function(fetch)
            except BaseException as error:
                if is_asked and not leaves_session(error):
                    # It is lost, or nobody knows what it is doing. That error is the one to tell.
                    with contextlib.suppress(Exception):
                        await self._drop()
                raise

    async def close(self) -> None:
        if self._held is not None:
            await self._held.close()
        await self._engine.dispose()

    async def _connected(self) -> asyncpg.Connection[asyncpg.Record]:
        if self._driver is not None and self._driver.is_closed():
            await self._drop()
        if self._driver is None:
            held = await self._engine.connect()
            try:
                self._driver = (await held.get_raw_connection()).driver_connection
            except BaseException:
                await held.close()
                raise
            self._held = held
        assert self._driver is not None
        return self._driver

    async def _drop(self) -> None:
        held, driver = self._held, self._driver
        self._held = self._driver = None
        if held is not None and driver is not None:
            driver.terminate()
            await held.invalidate()
            await held.close()


def run(connection: Connection, sql: str) -> None:
    """Run a statement of SQLite without values, whose rows nobody wants. Raises the driver's errors."""
    _driver(connection).execute(sql)


def rows(connection: Connection, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """All rows of a statement of SQLite. Raises the driver's errors."""
    return _driver(connection).execute(sql, values).fetchall()


def repeat(connection: Connection, sql: str, values: Sequence[Sequence[Any]]) -> None:
    """Run a statement of SQLite once with each of the values. Raises the driver's errors."""
    _driver(connection).executemany(sql, values)


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
