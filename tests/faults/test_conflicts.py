"""Transactions get in each other's way: strangers' deadlocks, and isolation that is forced on all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from tests.faults.recorder import Recorder
from tests.faults.sizes import CONFLICTS, seeded
from tests.server import administer, calling, check_books, running, until

QUIET = {"LOG_LEVEL": "warning"}
_WAITING_FOR_ME = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))"
_SERIALIZABLE = (
    "CREATE FUNCTION force_serializable() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
    " PERFORM set_config('default_transaction_isolation', 'serializable', false); END $$",
    "CREATE EVENT TRIGGER force_serializable ON login EXECUTE FUNCTION force_serializable()",
)
"""Runs after a connection's own settings: what it asked for at its start does not count."""


def stranger(database_url: str, work: Callable[[asyncpg.Connection], Awaitable[None]]) -> None:
    """Run statements on a connection of a stranger's, in a thread of its own."""

    async def connected() -> None:
        connection = await asyncpg.connect(database_url)
        try:
            await work(connection)
        finally:
            await connection.close()

    thread = threading.Thread(target=asyncio.run, args=(connected(),))
    thread.start()
    thread.join()


async def waited_for(connection: asyncpg.Connection) -> None:
    """Someone waits for what this transaction locked."""
    mine = await connection.fetchval("SELECT pg_backend_pid()")

    async def is_waited_for() -> bool:
        return bool(await connection.fetchval(_WAITING_FOR_ME, mine))

    await until(is_waited_for)


@pytest.mark.parametrize("serializable", [False, True], ids=["read-committed", "serializable"])
def test_deadlocks_with_a_stranger(own_url: str, tmp_path: Path, serializable: bool) -> None:
    """The stranger locks the two shared lines in the other order, once it is waited for."""
    database = own_url.rpartition("/")[2]
    administer(own_url, f"ALTER DATABASE {database} SET deadlock_timeout = '20ms'", "SELECT 1")
    if serializable:
        administer(own_url, *_SERIALIZABLE, "SELECT 1")
    gave_way = 0

    async def lock_both(connection: asyncpg.Connection) -> None:
        nonlocal gave_way
        lines = "SELECT id FROM credit_line WHERE upstream_id = ANY($1) ORDER BY id DESC"
        touch = "UPDATE credit_line SET name = 'touched' WHERE id = $1"
        try:
            last, first = [row[0] for row in await connection.fetch(lines, recorder.shared_lines)]
            async with connection.transaction():
                await connection.execute(touch, last)
                await waited_for(connection)
                await connection.execute(touch, first)
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
            gave_way += 1

    with running(own_url, tmp_path, processes=2, **QUIET) as servers:
        recorder = Recorder(servers, seeded())
        with recorder.shopping():
            for _ in range(CONFLICTS):
                stranger(own_url, lock_both)
            recorder.wait_for_answers()
        ran_again = "".join(server.log for server in servers).count("failed for a passing reason")
        print(  # noqa: T201
            f"the stranger gave way {gave_way} times, the service {ran_again} times;"
            f" 503: {len(recorder.attempts(503))} of {len(recorder.questions)}"
        )
        assert gave_way + ran_again > 0
        recorder.check(own_url)


async def test_two_processes_on_one_line_where_isolation_is_serializable(
    own_url: str, tmp_path: Path
) -> None:
    """The credit is enough for half of the sessions, and few are asked to come again."""
    administer(own_url, *_SERIALIZABLE, "SELECT 1")
    with running(own_url, tmp_path, processes=2, **QUIET) as servers:
        async with calling(*servers) as service:
            line = await service.issued(10.00 * CONFLICTS)
            sent = [
                service.authorize(line["upstreamId"], f"session-{n}", 1.00) for n in range(20 * CONFLICTS)
            ]
            answers = await asyncio.gather(*sent)
            again = "".join(server.log for server in servers).count("could not serialize")
            refused = [answer for answer in answers if answer.status_code == 503]
            approved = [answer for answer in answers if answer.json().get("approval")]
            print(f"run again: {again}; 503: {len(refused)} of {len(answers)}")  # noqa: T201
            assert again > 0, "nothing got in each other's way"
            assert {answer.status_code for answer in answers} <= {200, 503}
            assert len(refused) < len(answers) / 4
            books = await service.books(line["id"])
            books.check()
            assert len(approved) <= len(books.holds) <= 10 * CONFLICTS
    check_books(own_url)
