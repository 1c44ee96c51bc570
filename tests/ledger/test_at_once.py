"""In two trips to PostgreSQL and without locks: what nobody is in the way of, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Connection, text

from store_credit.database import Database, connect
from store_credit.direct import Fetch
from store_credit.failures import CommitFailed
from store_credit.ledger import store
from store_credit.ledger.commands import Command
from store_credit.ledger.ledger import Claim, Ledger, Record
from store_credit.ledger.refusals import Unavailable
from store_credit.ledger.state import Outcome, Reason
from store_credit.ledger.tables import source
from tests.making import DAY, POLICY, Clock, authorize, deduct, give_back, issue, release

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

Act = Callable[[], Awaitable[Any]]


class Watched:
    """A database that counts how it is written to, and lets others act between a batch's two trips."""

    dialect = "postgresql"

    def __init__(self, database: Database) -> None:
        self.trips = 0
        """To it without locks."""
        self.transactions = 0
        self.between: list[Act] = []
        """What others do after what a batch names was read, and before it is saved; once each."""
        self.after: list[Act] = []
        """What happens when a batch was saved, but before it is known."""
        self._database = database

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self._database.read(function, *args)

    async def write(self, function: Callable[..., Any], *args: Any) -> Any:
        self.transactions += 1
        return await self._database.write(function, *args)

    async def at_once(self, function: Callable[[Fetch], Awaitable[Any]]) -> Any:
        async def watched(fetch: Fetch) -> Any:
            async def counted(sql: str, *values: Any) -> Any:
                self.trips += 1
                is_saving = "json_populate_recordset" in sql
                if is_saving and self.between:
                    await self.between.pop(0)()
                found = await fetch(sql, *values)
                if is_saving and self.after:
                    await self.after.pop(0)()
                return found

            return await function(counted)

        return await self._database.at_once(watched)

    async def close(self) -> None: ...


@pytest.fixture
def watched(database: Database) -> Watched:
    return Watched(database)


@pytest.fixture
async def ledger(watched: Watched, clock: Clock) -> AsyncIterator[Ledger]:
    ledger = Ledger(watched, POLICY, clock=clock, deadline_seconds=30)
    await ledger.execute(issue(100_00))
    watched.transactions = 0
    yield ledger
    await ledger.close()


@pytest.fixture
async def other(database_url: str, clock: Clock) -> AsyncIterator[Ledger]:
    """Another process's ledger on the same database."""
    database = connect(database_url)
    ledger = Ledger(database, POLICY, clock=clock, deadline_seconds=30)
    yield ledger
    await ledger.close()
    await database.close()


async def reason(ledger: Ledger, command: Command) -> Reason:
    return (await ledger.execute(command)).outcomes[0].reason


async def kinds(database: Any) -> list[str]:
    def run(connection: Connection) -> list[str]:
        return list(connection.scalars(text("SELECT kind FROM ledger_entry ORDER BY line_id, seq")))

    found: list[str] = await database.read(run)
    return found


def acting(ledger: Ledger, *commands: Command) -> Act:
    async def act() -> None:
        for command in commands:
            await ledger.execute(command)

    return act


async def test_an_order_s_way_takes_two_trips_a_call(ledger: Ledger, watched: Watched) -> None:
    told = [
        await reason(ledger, authorize("60", session_id="s-1")),
        await reason(ledger, authorize("70", session_id="s-1")),
        await reason(ledger, release()),
        await reason(ledger, authorize("60", session_id="s-2")),
        await reason(ledger, deduct("60", session_id="s-2")),
        await reason(ledger, authorize("60", session_id="s-2")),
        await reason(ledger, authorize("60", session_id="s-3")),
    ]

    assert told == [
        *(Reason.APPROVED, Reason.HOLD_REPLACED, Reason.RELEASED, Reason.APPROVED, Reason.DEDUCTED),
        *(Reason.SESSION_COMPLETED, Reason.INSUFFICIENT_CREDIT),
    ]
    assert await kinds(watched) == ["issued", "held", "hold_changed", "released", "held", "deducted"]
    assert (watched.trips, watched.transactions) == (14, 0)


@pytest.mark.parametrize(
    ("theirs", "ours", "came"),
    [
        (authorize("60", session_id="theirs"), authorize("60"), Reason.INSUFFICIENT_CREDIT),
        (authorize("30", session_id="theirs"), authorize("60"), Reason.APPROVED),
        (deduct("60", "theirs", session_id=None), authorize("60"), Reason.INSUFFICIENT_CREDIT),
        (deduct("60", "ours"), deduct("60", "ours"), Reason.ALREADY_DEDUCTED),
        (give_back("ours", refunds={"r-1": "5"}), deduct("60", "ours"), Reason.DEDUCTED),
    ],
)
async def test_what_others_do_meanwhile_counts(
    ledger: Ledger, watched: Watched, other: Ledger, theirs: Command, ours: Command, came: Reason
) -> None:
    watched.between = [acting(other, theirs)]

    assert await reason(ledger, ours) == came
    assert (watched.trips, watched.transactions) == (2, 1)


async def test_a_return_that_comes_between_is_booked_with_its_deduction(
    ledger: Ledger, watched: Watched, other: Ledger
) -> None:
    watched.between = [acting(other, give_back("source-1", refunds={"r-1": "5"}))]

    await ledger.execute(deduct("60", "source-1"))

    assert await kinds(watched) == ["issued", "deducted", "returned"]


async def test_a_session_that_is_completed_meanwhile_holds_nothing_any_more(
    ledger: Ledger, watched: Watched, other: Ledger
) -> None:
    """Though no entry tells of it: its order was deducted before, without the session."""
    await ledger.execute(deduct("10", "source-1", session_id=None))
    watched.between = [acting(other, deduct("10", "source-1", session_id="session-1"))]

    assert await reason(ledger, authorize("10", session_id="session-1")) == Reason.SESSION_COMPLETED
    assert await kinds(watched) == ["issued", "deducted"]


async def test_a_line_that_is_locked_is_not_overtaken(
    ledger: Ledger, watched: Watched, database: Database
) -> None:
    locked, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def lock(connection: Connection) -> None:
        connection.execute(text("SELECT id FROM credit_line FOR UPDATE"))
        loop.call_soon(locked.set)
        while not go_on.is_set():
            connection.execute(text("SELECT pg_sleep(0.01)"))

    async def wait_for_nobody() -> None:
        go_on.set()
        await locking

    locking = asyncio.ensure_future(database.write(lock))
    await locked.wait()
    watched.after = [wait_for_nobody]

    assert await reason(ledger, authorize("60")) == Reason.APPROVED
    assert (watched.trips, watched.transactions) == (2, 1), "it waited, but only under locks"


async def test_after_a_conflict_some_batches_wait_for_locks(
    ledger: Ledger, watched: Watched, other: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store_credit.ledger.at_once.BATCHES_UNDER_LOCKS", 3)
    watched.between = [acting(other, authorize("1", session_id="theirs"))]

    for number in range(5):
        await ledger.execute(authorize("1", session_id=f"ours-{number}"))

    assert (watched.trips, watched.transactions) == (6, 3)


LOST = [
    ConnectionResetError("reset by peer"),
    TimeoutError("no answer"),
    asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
    asyncpg.AdminShutdownError("terminating connection due to administrator command"),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
]


def raising(error: Exception) -> Act:
    async def act() -> None:
        raise error

    return act


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_a_connection_that_is_lost_before_anything_was_written_is_replaced(
    ledger: Ledger, watched: Watched, error: Exception
) -> None:
    watched.between = [raising(error)]

    assert await reason(ledger, authorize("60")) == Reason.APPROVED
    assert await kinds(watched) == ["issued", "held"]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_when_the_answer_is_lost_the_marker_tells(
    ledger: Ledger, watched: Watched, error: Exception
) -> None:
    watched.after = [raising(error)]

    assert await reason(ledger, authorize("60")) == Reason.APPROVED
    assert await kinds(watched) == ["issued", "held"]
    assert (watched.trips, watched.transactions) == (2, 1)


async def test_a_connection_that_is_cut_before_it_is_saved_repeats_nothing(
    ledger: Ledger, watched: Watched, other: Ledger
) -> None:
    async def cut() -> None:
        def run(connection: Connection) -> None:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

        await other.database.write(run)

    watched.between = [cut]

    assert await reason(ledger, authorize("60")) == Reason.APPROVED
    assert await kinds(watched) == ["issued", "held"]


async def test_a_known_claim_gets_its_answer(ledger: Ledger, watched: Watched) -> None:
    claim = Claim("event:1", "f", lambda outcomes: f"{len(outcomes)} done")
    for _ in range(2):
        result = await ledger.execute(deduct("10", "source-1"), claim=claim)
    assert result.earlier_answer == "1 done"
    assert await kinds(watched) == ["issued", "deducted"]


async def test_a_claim_that_is_made_meanwhile_counts(
    ledger: Ledger, watched: Watched, other: Ledger
) -> None:
    claim = Claim("event:1", "f", lambda outcomes: f"{len(outcomes)} done")

    async def theirs() -> None:
        await other.execute(authorize("10", session_id="theirs"), claim=claim)

    watched.between = [theirs]
    result = await ledger.execute(authorize("20"), claim=claim)

    assert result.earlier_answer == "1 done"
    assert await kinds(watched) == ["issued", "held"]


async def test_holds_past_their_time_end_first_and_too_many_of_them_under_locks(
    ledger: Ledger, watched: Watched, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await ledger.execute(authorize("10", session_id=f"old-{number}"))
    clock.advance(2 * DAY)
    watched.trips = 0
    assert await reason(ledger, authorize("100", session_id="new")) == Reason.APPROVED
    assert (watched.trips, watched.transactions) == (2, 0)

    await ledger.execute(release())
    for number in range(3):
        await ledger.execute(authorize("10", session_id=f"old-{number}"))
    clock.advance(2 * DAY)
    monkeypatch.setattr(store, "DUE_HOLDS_MAX", 3)
    assert await reason(ledger, authorize("100", session_id="last")) == Reason.APPROVED
    assert watched.transactions == 1


async def test_records_that_take_several_statements_are_written_under_locks(
    ledger: Ledger, watched: Watched
) -> None:
    def record(_outcomes: Sequence[Outcome], _at: datetime) -> Iterable[Record]:
        row = {"id": "source-1", "told": None, "order_id": None, "parked_at": None}
        return [(source, row, "refuse"), (source, {"id": "source-1", "order_id": "o-1"}, "update")]

    await ledger.execute(authorize("10"), record=record)

    def order_id(connection: Connection) -> Any:
        return connection.execute(text("SELECT order_id FROM source")).scalar_one()

    assert await watched.read(order_id) == "o-1"


async def test_which_of_two_doubtful_tries_was_committed_is_not_guessed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, without locks, may have begun on the server when the second was over."""
    tries = [CommitFailed(["approved"], may_begin_later=True), CommitFailed(["declined"])]

    async def write(*_: Any) -> None:
        if tries:
            raise tries.pop(0)

    monkeypatch.setattr(ledger, "_write", write)

    with pytest.raises(Unavailable):
        await ledger.execute(authorize("60"))
