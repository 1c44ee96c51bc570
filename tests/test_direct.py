"""The connection to PostgreSQL that is kept: when it is kept, and when another is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from store_credit.database import Database, connect
from store_credit.direct import Fetch

ASK_SESSION = "SELECT pg_backend_pid()"


@pytest.fixture
async def database(postgresql_url: str) -> AsyncIterator[Database]:
    opened = connect(postgresql_url)
    yield opened
    await opened.close()


async def session(database: Database) -> int:
    """Which session of the server it is."""
    return int((await database.at_once(lambda fetch: fetch(ASK_SESSION)))[0])


async def run(database: Database, *statements: str) -> Any:
    async def ask(fetch: Fetch) -> Any:
        return [await fetch(statement) for statement in statements]

    return await database.at_once(ask)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("SELECT 1 / 0", asyncpg.DivisionByZeroError),
        ("SELECT nothing", asyncpg.UndefinedColumnError),
        ("DO $$ BEGIN RAISE EXCEPTION 'no'; END $$", asyncpg.RaiseError),
    ],
)
async def test_a_statement_that_the_server_undid_leaves_the_session(
    database: Database, statement: str, error: type[Exception]
) -> None:
    before = await session(database)
    with pytest.raises(error):
        await run(database, statement)
    assert await session(database) == before


async def test_a_value_that_can_not_be_sent_leaves_the_session(database: Database) -> None:
    before = await session(database)
    with pytest.raises(asyncpg.DataError):
        await database.at_once(lambda fetch: fetch("SELECT $1::int", "one"))
    assert await session(database) == before


async def test_an_error_of_the_caller_s_leaves_the_session(database: Database) -> None:
    async def fail(fetch: Fetch) -> None:
        await fetch(ASK_SESSION)
        raise ZeroDivisionError

    before = await session(database)
    with pytest.raises(ZeroDivisionError):
        await database.at_once(fail)
    assert await session(database) == before


async def test_a_session_that_may_only_read_is_replaced(database: Database) -> None:
    before = await session(database)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await run(database, "SET default_transaction_read_only = on", "CREATE TABLE no (id int)")
    assert await session(database) != before
    await run(database, "CREATE TABLE yes (id int)")


async def test_a_session_that_forgot_its_statements_is_replaced(database: Database) -> None:
    """As behind a pooler: the driver would name them for ever."""
    before = await session(database)
    await run(database, "DEALLOCATE ALL")
    with pytest.raises(asyncpg.InvalidSQLStatementNameError):
        await session(database)
    assert await session(database) != before


async def test_a_session_that_is_ended_is_replaced(database: Database) -> None:
    before = await session(database)
    with pytest.raises((asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError)):
        await run(database, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert await session(database) != before


async def test_a_session_that_is_ended_while_nobody_uses_it_is_replaced(
    database: Database, postgresql_url: str
) -> None:
    before = await session(database)
    ended = f"SELECT pg_terminate_backend({before}, 5000)"
    assert (await database.read(lambda c: c.exec_driver_sql(ended).scalar())) is True
    await asyncio.sleep(0.01)
    assert await session(database) != before


async def test_a_caller_who_gives_up_takes_the_session_with_them(database: Database) -> None:
    """Nobody would know which of the answers to come is whose."""
    before = await session(database)
    asking = asyncio.ensure_future(run(database, "SELECT pg_sleep(30)"))
    sleeps = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {before} AND wait_event = 'PgSleep'"
    while not await database.read(lambda c: c.exec_driver_sql(sleeps).scalar()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await session(database) != before


async def test_callers_are_alone_on_it(database: Database) -> None:
    at_work = 0

    async def work(fetch: Fetch) -> None:
        nonlocal at_work
        at_work += 1
        await fetch("SELECT pg_sleep(0.01)")
        assert at_work == 1
        at_work -= 1

    await asyncio.gather(*(database.at_once(work) for _ in range(5)))


async def test_no_session_is_left_when_it_is_closed(postgresql_url: str, database: Database) -> None:
    closed = connect(postgresql_url)
    pid = await session(closed)
    await closed.close()
    left = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"
    async with asyncio.timeout(10):
        while await database.read(lambda c: c.exec_driver_sql(left).scalar()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_reader_s_session_that_is_ended_while_nobody_uses_it_is_replaced(
    database: Database,
) -> None:
    """And what is read is read once: whoever reads may tell of it at once."""
    pids: list[int] = []

    def read(connection: Any) -> None:
        pids.append(connection.exec_driver_sql(ASK_SESSION).scalar())

    await database.read(read)
    ended = f"SELECT pg_terminate_backend({pids[0]}, 5000)"
    assert (await run(database, ended))[0][0] is True
    await asyncio.sleep(0.01)
    await database.read(read)
    assert len(pids) == 2
    assert pids[0] != pids[1]
