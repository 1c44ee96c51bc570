"""Statements that go straight to SQLite's driver, within a transaction of the engine's connection.

The ledger runs a handful of statements for each batch; the engine around the driver takes longer than
SQLite does. Whoever wants to see all statements that are run must look here too, and at `Database.at_once`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection


def rows(connection: Connection, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """All rows of a statement. Raises the driver's errors; see `failures`."""
    return _driver(connection).execute(sql, values).fetchall()


def repeat(connection: Connection, sql: str, values: Sequence[Sequence[Any]]) -> None:
    """Run a statement once with each of the values. Raises the driver's errors."""
    _driver(connection).executemany(sql, values)


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
