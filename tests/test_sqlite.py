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
from store_credit.ledger.ledger import Ledger, Record
from tests.making import POLICY, Clock, authorize, issue

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


async def test_whoever_was_answered_goes_on_before_the_next_one_writes(database: SqliteDatabase) -> None:
    happened: list[str] = []
    answer = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await answer
        happened.append("went on")

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    answer.set_result(None)
    await database.write_briefly(lambda _: happened.append("wrote"))
    await waiting

    assert happened == ["went on", "wrote"]


async def test_to_connect_is_none_of_the_loop_s_work(sqlite_url: str) -> None:
    """It may have to wait for another process."""
    database: Any = connect(sqlite_url)
    threads: list[threading.Thread] = []
    event.listen(database._writer, "connect", lambda *_: threads.append(threading.current_thread()))

    assert await database.write_briefly(leave, "a") == "a"
    await database.close()

    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_nothing_is_put_down_outside_the_database_s_own_files(database: SqliteDatabase) -> None:
    """A temporary file would be written to in the loop, on a disk that may be slow or full."""

    def temp_store(connection: Connection) -> object:
        return connection.exec_driver_sql("PRAGMA temp_store").scalar()

    in_memory = 2
    assert await database.write_briefly(temp_store) == in_memory
    assert await database.read(temp_store) == in_memory


async def test_a_connection_that_can_not_even_roll_back_is_given_up(database: Any) -> None:
    @event.listens_for(database._writer, "rollback", once=True)
    def fail(_connection: Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    def refuse(_connection: Connection) -> None:
        raise ZeroDivisionError

    with pytest.raises(sqlite3.OperationalError):
        await database.write_briefly(refuse)

    assert await database.write_briefly(leave, "b") == "b"
    assert await database.read(names) == ["b"]


@pytest.mark.parametrize("way", ["write", "write_briefly"])
async def test_what_queues_is_written_before_the_end(sqlite_url: str, way: str) -> None:
    database: Any = connect(sqlite_url)
    queued = [asyncio.ensure_future(getattr(database, way)(leave, name)) for name in "abcd"]
    await asyncio.sleep(0)
    await database.close()

    assert await asyncio.gather(*queued) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("commands", "is_in_loop"), [(1, True), (256, True), (257, False)])
async def test_the_ledger_s_batches_are_brief_but_for_the_largest(
    database: SqliteDatabase, commands: int, is_in_loop: bool
) -> None:
    ledger = Ledger(database, POLICY, clock=Clock(), deadline_seconds=30)
    threads: list[threading.Thread] = []

    def record(*_: object) -> list[Record]:
        threads.append(threading.current_thread())
        return []

    await ledger.execute(issue(100_00))
    asked = [authorize("0.01", session_id=f"session-{number}") for number in range(commands)]
    result = await ledger.execute(*asked, record=record)
    await ledger.close()

    assert all(outcome.accepted for outcome in result.outcomes)
    assert [thread is threading.current_thread() for thread in threads] == [is_in_loop]


async def test_a_lock_of_another_process_is_waited_for_beside_the_loop(
    database: SqliteDatabase, stranger: sqlite3.Connection
) -> None:
    stranger.execute("BEGIN IMMEDIATE")
    started = time.perf_counter()
    writing = asyncio.ensure_future(database.write_briefly(leave, "a"))
    assert await database.read(names) == []
    assert time.perf_counter() - started < database_module.BUSY_TIMEOUT_MS / 1_000
    await asyncio.wait([writing], timeout=0.1)
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
