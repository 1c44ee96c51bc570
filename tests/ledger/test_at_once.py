"""In two trips to PostgreSQL and without locks: what nobody is in the way of, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
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
from store_credit.ledger.offers import PREFIX
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

    async def write_briefly(self, function: Callable[..., Any], *args: Any) -> Any:
        self.transactions += 1
        return await self._database.write_briefly(function, *args)

    async def at_once(self, function: Callable[[Fetch], Awaitable[Any]]) -> Any:
        async def watched(fetch: Fetch) -> Any:
            async def counted(sql: str, *values: Any) -> Any:
                self.trips += 1
                if is_saving(sql) and self.between:
                    await self.between.pop(0)()
                found = await fetch(sql, *values)
                if is_saving(sql) and self.after:
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


async def column(database: Any, sql: str) -> list[Any]:
    found: list[Any] = await database.read(lambda connection: list(connection.scalars(text(sql))))
    return found


async def kinds(database: Any) -> list[str]:
    return await column(database, "SELECT kind FROM ledger_entry ORDER BY line_id, seq")


async def run(database: Database, *statements: str) -> None:
    def execute(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement))

    await database.write(execute)


def is_saving(sql: str) -> bool:
    return "json_populate_recordset" in sql


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


async def test_what_takes_more_than_one_statement_keeps_nobody_else_under_locks(
    ledger: Ledger, watched: Watched
) -> None:
    """Such as an order on a line that nobody knows, which is kept with its source."""
    assert await reason(ledger, deduct("10", upstream_id="unknown")) == Reason.UNKNOWN_LINE
    assert (watched.trips, watched.transactions) == (1, 1)
    assert await reason(ledger, authorize("10")) == Reason.APPROVED
    assert (watched.trips, watched.transactions) == (3, 1)


async def test_records_that_take_several_statements_are_written_under_locks(
    ledger: Ledger, watched: Watched
) -> None:
    def record(_outcomes: Sequence[Outcome], _at: datetime) -> Iterable[Record]:
        row = {"id": "source-1", "told": None, "order_id": None, "parked_at": None}
        return [(source, row, "refuse"), (source, {"id": "source-1", "order_id": "o-1"}, "update")]

    await ledger.execute(authorize("10"), record=record)

    assert await column(watched, "SELECT order_id FROM source") == ["o-1"]


class TwoDoubts:
    """A database whose first two tries end in doubt, and whose server begins the first of them late."""

    dialect = "postgresql"

    def __init__(
        self, database: Database, meanwhile: Act, *, commits_second: bool, loses_third: bool = False
    ) -> None:
        self._database = database
        self._loses_third = loses_third
        self._meanwhile = meanwhile
        self._commits_second = commits_second
        self._is_second = True
        self._late: list[Act] = []

    async def at_once(self, function: Callable[[Fetch], Awaitable[Any]]) -> Any:
        async def lose(fetch: Fetch) -> Any:
            async def asked(sql: str, *values: Any) -> Any:
                if not is_saving(sql):
                    return await fetch(sql, *values)
                self._late.append(lambda: self._database.at_once(lambda begin: begin(sql, *values)))
                raise ConnectionResetError("reset by peer")

            return await function(asked)

        return await self._database.at_once(lose)

    async def write_briefly(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._is_second:
            self._is_second = False
            raise CommitFailed(await self._second(function, *args))
        for begin in self._late:
            with contextlib.suppress(asyncpg.UniqueViolationError):
                await begin()
        self._late.clear()
        answers = await self._database.write_briefly(function, *args)
        if self._loses_third:
            self._loses_third = False
            raise CommitFailed(answers)
        return answers

    async def _second(self, function: Callable[..., Any], *args: Any) -> Any:
        await self._meanwhile()
        if self._commits_second:
            return await self._database.write_briefly(function, *args)
        answers: list[Any] = []

        def undo(connection: Connection) -> None:
            answers.append(function(connection, *args))
            raise ZeroDivisionError

        with contextlib.suppress(ZeroDivisionError):
            await self._database.write_briefly(undo)
        return answers[0]


@pytest.mark.parametrize("commits_second", [False, True])
async def test_of_two_doubtful_tries_the_one_that_was_committed_is_the_answer(
    ledger: Ledger, other: Ledger, database: Database, clock: Clock, commits_second: bool
) -> None:
    """The first, without locks, may begin on the server only when the second is over: too late."""
    theirs = acting(other, authorize("60", session_id="theirs"))
    doubtful: Any = TwoDoubts(database, theirs, commits_second=commits_second)
    asking = Ledger(doubtful, POLICY, clock=clock, deadline_seconds=30)

    assert await reason(asking, authorize("60", session_id="ours")) == Reason.INSUFFICIENT_CREDIT

    assert await column(database, "SELECT session_id FROM hold") == ["theirs"]
    await asking.close()


@pytest.mark.parametrize("loses_third", [False, True])
async def test_of_two_doubtful_tries_the_first_may_be_the_one(
    ledger: Ledger, database: Database, clock: Clock, loses_third: bool
) -> None:
    """Nobody is in its way but time, by which the second decides otherwise, and is not committed."""
    await ledger.execute(issue(100_00, upstream_id="expiring", expires_at=clock.now + DAY))

    async def expire() -> None:
        clock.advance(2 * DAY)

    doubtful: Any = TwoDoubts(database, expire, commits_second=False, loses_third=loses_third)
    asking = Ledger(doubtful, POLICY, clock=clock, deadline_seconds=30)

    assert await reason(asking, authorize("60", upstream_id="expiring")) == Reason.APPROVED

    assert await column(database, "SELECT upstream_id FROM hold") == ["expiring"]
    await asking.close()


async def test_a_lasting_error_of_the_server_is_one_caller_s(ledger: Ledger, database: Database) -> None:
    await run(
        database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no'; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON hold FOR EACH ROW"
        " WHEN (NEW.session_id = 'poison') EXECUTE FUNCTION refuse()",
    )
    sessions = ["session-1", "poison", "session-2"]

    told = await asyncio.gather(
        *(ledger.execute(authorize("10", session_id=session)) for session in sessions),
        return_exceptions=True,
    )

    assert [type(one).__name__ for one in told] == ["Result", "RaiseError", "Result"]
    assert await kinds(database) == ["issued", "held", "held"]


async def test_what_others_commit_while_the_saving_statement_runs_counts(
    ledger: Ledger, watched: Watched, database: Database, other: Ledger, database_url: str
) -> None:
    """It sees the rows that were there when it began; the versions that it compares are the newest."""
    await run(
        database,
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END $$",
        "CREATE TRIGGER wait BEFORE INSERT ON source FOR EACH ROW EXECUTE FUNCTION wait()",
    )
    holder = await asyncpg.connect(database_url)
    await holder.execute("SELECT pg_advisory_lock(7)")
    saving = asyncio.ensure_future(ledger.execute(deduct("60", "source-1", session_id="theirs")))
    waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    while not await column(database, waits):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await other.execute(authorize("50", session_id="theirs"))
    await holder.close()

    outcome = (await saving).outcomes[0]

    assert outcome.hold is not None, "it ended the hold that came meanwhile"
    assert await kinds(database) == ["issued", "held", "deducted"]
    assert (watched.trips, watched.transactions) == (2, 1)


async def test_a_hold_that_is_released_meanwhile_is_not_released_again(
    ledger: Ledger, watched: Watched, other: Ledger
) -> None:
    await ledger.execute(authorize("60"))
    watched.between = [acting(other, release())]

    assert await reason(ledger, release()) == Reason.NOTHING_HELD
    assert await kinds(watched) == ["issued", "held", "released"]


async def test_a_hold_that_expires_meanwhile_is_not_ended_again(
    ledger: Ledger, watched: Watched, other: Ledger, clock: Clock
) -> None:
    async def later() -> None:
        clock.advance(2 * DAY)
        await other.execute(authorize("100", session_id="theirs"))

    await ledger.execute(authorize("60"))
    watched.between = [later]

    assert await reason(ledger, deduct("60")) == Reason.DEDUCTED
    assert await kinds(watched) == ["issued", "held", "hold_expired", "held", "deducted"]


async def test_an_offer_that_is_taken_meanwhile_is_taken(
    ledger: Ledger, watched: Watched, other: Ledger, database: Database
) -> None:
    minted = f"{PREFIX}1"
    await run(
        database,
        "INSERT INTO offer (upstream_id, line_id, amount, expires_at, created_at)"
        f" SELECT '{minted}', id, 5000, '2099-01-01', '2026-01-01' FROM credit_line",
    )
    watched.between = [acting(other, authorize("50", session_id="theirs", upstream_id=minted))]

    told = await ledger.execute(authorize("50", session_id="ours", upstream_id=minted))

    assert not told.outcomes[0].accepted
    assert await kinds(watched) == ["issued", "held"]
    assert (watched.trips, watched.transactions) == (2, 1)
