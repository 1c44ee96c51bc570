"""What writes briefly to SQLite does so in the event loop, and what has to wait does not."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.exc import OperationalError

from store_credit import database as database_module
from store_credit.database import SqliteDatabase, connect
from store_credit.failures import is_busy

SECONDS_MAX = 30
"""For what should take none."""


def leave(connection: Connection, name: str) -> str:
    connection.execute(text("INSERT INTO source (id) VALUES (:id)"), {"id": name})
    return name


def names(connection: Connection) -> list[str]:
    return list(connection.scalars(text("SELECT id FROM source ORDER BY id")))


@pytest.fixture
async def database(sqlite_url: str) -> AsyncIterator[SqliteDatabase]:
    opened: Any = connect(sqlite_url)
    await opened.write(names)
    yield opened
    await opened.close()


@pytest.fixture
def stranger(sqlite_url: str) -> Iterator[sqlite3.Connection]:
    """Another process, as far as SQLite can tell."""
    path = make_url(sqlite_url).database
    connection = sqlite3.connect(Path(str(path)), isolation_level=None)
    yield connection
    connection.close()


class Commits:
    """The COMMITs of the one that writes: each waits until it may go on."""

    def __init__(self, database: Any) -> None:
        self.threads: list[threading.Thread] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        event.listen(database._writer, "commit", self._commit)

    def _commit(self, _connection: Connection) -> None:
        self.threads.append(threading.current_thread())
        self.begun.set()
        assert self.go_on.wait(SECONDS_MAX)


async def test_the_loop_writes_and_does_not_wait_for_the_disk(database: SqliteDatabase) -> None:
    commits = Commits(database)
    threads: list[threading.Thread] = []

    def write(connection: Connection) -> None:
        threads.append(threading.current_thread())
        leave(connection, "a")

    writing = asyncio.ensure_future(database.write_briefly(write))
    await asyncio.to_thread(commits.begun.wait, SECONDS_MAX)

    assert not writing.done()
    assert await database.read(names) == []
    commits.go_on.set()
    await writing
    assert await database.read(names) == ["a"]
    assert threads == [threading.current_thread()]
    assert commits.threads != threads


async def test_a_lock_of_another_process_is_waited_for_beside_the_loop(
    database: SqliteDatabase, stranger: sqlite3.Connection
) -> None:
    stranger.execute("BEGIN IMMEDIATE")
    started = time.perf_counter()
    writing = asyncio.ensure_future(database.write_briefly(leave, "a"))
    assert await database.read(names) == []
    assert time.perf_counter() - started < database_module.BUSY_TIMEOUT_MS / 1_000
    assert not writing.done()
    stranger.execute("COMMIT")

    assert await writing == "a"
    assert await database.read(names) == ["a"]


async def test_a_lock_that_lasts_is_told_and_passes(
    database: SqliteDatabase, stranger: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MS", 10)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises((sqlite3.OperationalError, OperationalError)) as locked:
        await database.write_briefly(leave, "a")
    stranger.execute("ROLLBACK")

    assert is_busy(locked.value)
    assert await database.write_briefly(leave, "b") == "b"
    assert await database.read(names) == ["b"]


@pytest.mark.parametrize("first", ["write", "write_briefly"])
@pytest.mark.parametrize("second", ["write", "write_briefly"])
@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_the_next_one_begins_when_the_one_before_is_committed(
    database: SqliteDatabase, first: str, second: str, is_cancelled: bool
) -> None:
    """Also when the caller of the one before is gone: nobody can call a COMMIT back."""
    commits = Commits(database)
    begun = threading.Event()

    def write_next(connection: Connection) -> list[str]:
        begun.set()
        return [*names(connection), leave(connection, "b")]

    one = asyncio.ensure_future(getattr(database, first)(leave, "a"))
    await asyncio.to_thread(commits.begun.wait, SECONDS_MAX)
    other = asyncio.ensure_future(getattr(database, second)(write_next))
    if is_cancelled:
        one.cancel()
    for _ in range(3):
        # Whatever may go on in the loop has gone on, and the threads had time to.
        await database.read(names)
        one.cancel() if is_cancelled else None

    assert not begun.is_set()
    commits.go_on.set()
    [told, _] = await asyncio.gather(one, other, return_exceptions=True)
    assert isinstance(told, asyncio.CancelledError) if is_cancelled else told == "a"
    assert await database.read(names) == ["a", "b"]
