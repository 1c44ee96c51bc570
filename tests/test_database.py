"""Transactions: what is committed, what is rolled back, and which errors are worth another try."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from store_credit.database import Database, InvalidUrl, connect
from store_credit.failures import CommitFailed, is_passing, is_race

Write = Callable[..., Awaitable[Any]]


def leave(connection: Connection, name: str) -> str:
    connection.execute(text("INSERT INTO source (id) VALUES (:id)"), {"id": name})
    return name


def names(connection: Connection) -> list[str]:
    return list(connection.scalars(text("SELECT id FROM source ORDER BY id")))


@pytest.fixture(params=["write", "write_briefly"])
def write(request: pytest.FixtureRequest, database: Database) -> Write:
    """Both ways to write."""
    way: Write = getattr(database, request.param)
    return way


async def test_what_a_write_returns_is_committed(write: Write, database: Database) -> None:
    assert await write(leave, "a") == "a"
    assert await write(leave, "b") == "b"
    assert await database.read(names) == ["a", "b"]


async def test_a_write_that_raises_leaves_nothing(write: Write, database: Database) -> None:
    def fail(connection: Connection) -> None:
        leave(connection, "b")
        raise ZeroDivisionError

    await write(leave, "a")
    with pytest.raises(ZeroDivisionError):
        await write(fail)
    await write(leave, "c")

    assert await database.read(names) == ["a", "c"]


async def test_a_read_can_not_write(database: Database) -> None:
    with pytest.raises(DBAPIError):
        await database.read(leave, "a")

    assert await database.read(names) == []


async def test_a_failing_commit_hands_over_what_it_would_have_given(database: Any, write: Write) -> None:
    await write(names)
    engine = database._writer if database.dialect == "sqlite" else database._engine.sync_engine

    @event.listens_for(engine, "commit", once=True)
    def fail(_connection: Connection) -> None:
        raise ConnectionResetError

    with pytest.raises(CommitFailed) as failed:
        await write(leave, "a")
    await write(leave, "b")

    assert failed.value.result == "a"
    assert is_passing(failed.value)
    assert await database.read(names) == ["b"]


async def test_a_name_taken_meanwhile_is_a_race_on_postgresql(database: Database) -> None:
    await database.write(leave, "a")

    with pytest.raises(DBAPIError) as taken:
        await database.write(leave, "a")

    assert is_race(taken.value) == (database.dialect == "postgresql")
    assert not is_passing(taken.value)


@pytest.mark.parametrize(
    "error",
    [
        CommitFailed(None),
        ConnectionResetError(),
        TimeoutError(),
        PoolTimeoutError(),
        DBAPIError("", {}, Exception(), connection_invalidated=True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_passes(error: Exception) -> None:
    assert is_passing(error)


@pytest.mark.parametrize("error", [ValueError(), ZeroDivisionError(), KeyError("a")], ids=repr)
def test_an_error_that_lasts(error: Exception) -> None:
    assert not is_passing(error)


@pytest.mark.parametrize(
    ("sqlstate", "passing"),
    [
        ("08006", True),
        ("40001", True),
        ("40P01", True),
        ("53300", True),
        ("55P03", True),
        ("57P01", True),
        ("22001", False),
        ("23505", False),
        ("28P01", True),
        ("42P01", True),
        ("42601", False),
    ],
)
def test_postgresql_errors_are_told_apart_by_their_state(sqlstate: str, passing: bool) -> None:
    original = Exception()
    original.sqlstate = sqlstate  # type: ignore[attr-defined]

    assert is_passing(DBAPIError("", {}, original)) == passing


@pytest.mark.parametrize(
    ("name", "passing"),
    [
        ("SQLITE_BUSY", True),
        ("SQLITE_BUSY_SNAPSHOT", True),
        ("SQLITE_PROTOCOL", True),
        ("SQLITE_IOERR_WRITE", True),
        ("SQLITE_FULL", True),
        ("SQLITE_CONSTRAINT_UNIQUE", False),
        ("SQLITE_CORRUPT", False),
    ],
)
def test_sqlite_errors_are_told_apart_by_their_name(name: str, passing: bool) -> None:
    original = sqlite3.OperationalError()
    original.sqlite_errorname = name

    assert is_passing(OperationalError("", {}, original)) == passing


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://user:secret@host/name", "neither sqlite nor postgresql"),
        ("no url: secret", "can not be read"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_a_useless_url_is_refused_without_its_password(url: str, why: str) -> None:
    with pytest.raises(InvalidUrl, match=why) as refused:
        connect(url)

    assert "secret" not in str(refused.value)
