"""The one way in: what is durable, what shares a transaction, what happens once, what fails alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.util import await_only

from store_credit.database import Database, connect
from store_credit.ledger import ledger as ledger_module
from store_credit.ledger import store
from store_credit.ledger.commands import Command, Policy
from store_credit.ledger.ledger import Claim, Ledger, Record
from store_credit.ledger.refusals import AlreadyExists, KeyReused, Refusal, Unavailable
from store_credit.ledger.state import Outcome, Reason
from store_credit.ledger.tables import source
from tests.ledger.faulty import Fault, Faulty
from tests.making import DAY, HOUR, POLICY, Clock, authorize, deduct, issue, release, settle


async def select(database: Database, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
    def run(connection: Connection) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in connection.execute(text(sql), parameters)]

    return await database.read(run)


async def figures(database: Database, upstream_id: str = "line-1") -> tuple[int, int]:
    """Balance and held, as a look-up would find them."""
    sql = "SELECT balance, held FROM credit_line WHERE upstream_id = :upstream_id"
    ((balance, held),) = await select(database, sql, upstream_id=upstream_id)
    return balance, held


async def kinds(database: Database) -> list[str]:
    return [
        kind for (kind,) in await select(database, "SELECT kind FROM ledger_entry ORDER BY line_id, seq")
    ]


async def reasons(ledger: Ledger, *commands: Command) -> list[Reason]:
    """Execute the commands as works of their own, at once, and tell why each came out as it did."""
    results = await asyncio.gather(*(ledger.execute(command) for command in commands))
    return [result.outcomes[0].reason for result in results]


def claim(fingerprint: str = "f", key: str = "key:1") -> Claim:
    return Claim(key, fingerprint, answer=lambda outcomes: json.dumps([o.reason for o in outcomes]))


def fail(_outcomes: Sequence[Outcome], _at: datetime) -> Iterable[Record]:
    raise ZeroDivisionError


@pytest.fixture
async def other_ledger(database_url: str, clock: Clock) -> AsyncIterator[Ledger]:
    """Another process's ledger on the same database."""
    database = connect(database_url)
    ledger = Ledger(database, POLICY, clock=clock, deadline_seconds=30)
    yield ledger
    await ledger.close()
    await database.close()


@pytest.fixture
def faulty(database: Database) -> Faulty:
    return Faulty(database)


@pytest.fixture
async def shaken(faulty: Faulty, clock: Clock) -> AsyncIterator[Ledger]:
    """A ledger on the faulty database."""
    ledger = Ledger(faulty, POLICY, clock=clock, deadline_seconds=30)
    yield ledger
    await ledger.close()


# Durability


async def test_what_was_answered_is_there_for_everyone(ledger: Ledger, other_ledger: Ledger) -> None:
    await ledger.execute(issue())
    (outcome,) = (await ledger.execute(authorize("60"))).outcomes

    assert outcome.line is not None
    assert await figures(other_ledger.database) == (100_00, 60_00)
    assert (outcome.line.balance, outcome.line.held) == (100_00, 60_00)


async def test_what_was_answered_outlives_the_process(database_url: str, clock: Clock) -> None:
    for command, reason in ((issue(), Reason.ISSUED), (authorize("60"), Reason.APPROVED)):
        database = connect(database_url)
        ledger = Ledger(database, POLICY, clock=clock)
        assert await reasons(ledger, command) == [reason]
        await ledger.close()
        await database.close()

    database = connect(database_url)
    assert await figures(database) == (100_00, 60_00)
    await database.close()


async def test_a_line_remembers_its_time_over_a_restart(
    ledger: Ledger, other_ledger: Ledger, clock: Clock
) -> None:
    await ledger.execute(issue(expires_at=clock.now + HOUR))
    clock.advance(HOUR)
    assert await reasons(ledger, authorize("1")) == [Reason.LINE_EXPIRED]
    clock.advance(-HOUR)

    assert await reasons(other_ledger, authorize("1")) == [Reason.LINE_EXPIRED]


async def test_without_a_clock_of_its_own_a_ledger_on_postgresql_goes_by_the_database(
    postgresql_url: str,
) -> None:
    database = connect(postgresql_url)
    ledger = Ledger(database, POLICY)

    before = await select(database, "SELECT clock_timestamp()")
    (outcome,) = (await ledger.execute(issue())).outcomes
    after = await select(database, "SELECT clock_timestamp()")

    assert before[0][0] <= outcome.at <= after[0][0]
    await ledger.close()
    await database.close()


# Group commit


async def test_works_that_arrive_together_share_a_transaction(database: Database, clock: Clock) -> None:
    committed: list[int] = []
    ledger = Ledger(database, POLICY, clock=clock, on_commit=lambda works, _: committed.append(works))
    await ledger.execute(issue())

    await reasons(ledger, *(authorize("10", f"session-{n}") for n in range(8)))

    assert committed == [1, 8]
    assert await figures(database) == (100_00, 80_00)
    assert await kinds(database) == ["issued"] + ["held"] * 8


async def test_works_that_arrive_during_a_transaction_share_the_next(faulty: Faulty, clock: Clock) -> None:
    committed: list[int] = []
    ledger = Ledger(faulty, POLICY, clock=clock, on_commit=lambda works, _: committed.append(works))
    faulty.gate.clear()
    first = asyncio.ensure_future(ledger.execute(issue()))
    await faulty.asked.wait()

    later = asyncio.gather(*(ledger.execute(authorize("10", f"session-{n}")) for n in range(5)))
    await asyncio.sleep(0)
    faulty.gate.set()
    await asyncio.gather(first, later)

    assert committed == [1, 5]


async def test_works_are_decided_in_the_order_of_their_arrival(ledger: Ledger) -> None:
    await ledger.execute(issue())

    found = await reasons(ledger, authorize("60"), authorize("60", "b"), release(), authorize("60", "b"))

    assert found == [Reason.APPROVED, Reason.INSUFFICIENT_CREDIT, Reason.RELEASED, Reason.APPROVED]


async def test_a_line_can_be_used_in_the_transaction_that_opens_it(
    ledger: Ledger, database: Database
) -> None:
    found = await reasons(ledger, issue(), authorize("60"), deduct("50"), authorize("1", "b"), release())

    assert found == [
        Reason.ISSUED, Reason.APPROVED, Reason.DEDUCTED, Reason.APPROVED, Reason.RELEASED
    ]  # fmt: skip
    assert await figures(database) == (50_00, 0)


async def test_a_session_may_end_and_open_its_hold_in_one_transaction(
    ledger: Ledger, database: Database
) -> None:
    await reasons(ledger, issue(), authorize("60"))

    found = await reasons(ledger, release(), authorize("70"), release(), authorize("80"))

    assert found == [Reason.RELEASED, Reason.APPROVED, Reason.RELEASED, Reason.APPROVED]
    assert await figures(database) == (100_00, 80_00)
    open_holds = "SELECT amount FROM hold WHERE state = 'open'"
    assert await select(database, open_holds) == [(80_00,)]


async def test_commands_of_one_work_happen_together(ledger: Ledger, database: Database) -> None:
    result = await ledger.execute(issue(), authorize("60"), deduct("60"))

    assert [o.reason for o in result.outcomes] == [Reason.ISSUED, Reason.APPROVED, Reason.DEDUCTED]
    assert await figures(database) == (40_00, 0)


async def test_commands_of_one_work_happen_together_or_not_at_all(
    ledger: Ledger, database: Database
) -> None:
    await ledger.execute(issue())

    works = (ledger.execute(authorize("60"), issue()), ledger.execute(authorize("30", "b")))
    refused, neighbour = await asyncio.gather(*works, return_exceptions=True)

    assert isinstance(refused, AlreadyExists)
    assert not isinstance(neighbour, BaseException)
    assert neighbour.outcomes[0].reason == Reason.APPROVED
    assert await figures(database) == (100_00, 30_00)


async def test_a_refusal_does_not_hurt_its_neighbours(ledger: Ledger, database: Database) -> None:
    await ledger.execute(issue())

    works = (ledger.execute(c) for c in (authorize("10", "a"), issue(), authorize("10", "b")))
    first, refused, last = await asyncio.gather(*works, return_exceptions=True)

    assert isinstance(refused, AlreadyExists)
    assert not isinstance(first, BaseException)
    assert not isinstance(last, BaseException)
    assert await figures(database) == (100_00, 20_00)


async def test_an_error_does_not_hurt_its_neighbours(ledger: Ledger, database: Database) -> None:
    await ledger.execute(issue())

    works = (
        ledger.execute(authorize("10", "a")),
        ledger.execute(authorize("10", "b"), record=fail),
        ledger.execute(authorize("10", "c")),
    )
    first, failed, last = await asyncio.gather(*works, return_exceptions=True)

    assert isinstance(failed, ZeroDivisionError)
    assert not isinstance(first, BaseException)
    assert not isinstance(last, BaseException)
    assert await figures(database) == (100_00, 20_00)
    assert await kinds(database) == ["issued", "held", "held"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_an_error_of_the_database_does_not_hurt_neighbours(
    ledger: Ledger, database: Database
) -> None:
    await ledger.execute(issue())
    too_long = authorize("10", "b")
    broken = Claim("key:1", "f" * 65, lambda _: "null")

    works = (ledger.execute(too_long, claim=broken), ledger.execute(authorize("10", "a")))
    failed, neighbour = await asyncio.gather(*works, return_exceptions=True)

    assert isinstance(failed, Exception)
    assert not isinstance(neighbour, BaseException)
    assert await figures(database) == (100_00, 10_00)


async def test_rows_of_the_caller_s_room_are_written_along(ledger: Ledger, database: Database) -> None:
    def record(outcomes: Sequence[Outcome], _at: datetime) -> Iterable[Record]:
        return [(source, {"id": outcome.reason.value}, "skip") for outcome in outcomes]

    await ledger.execute(issue(), record=record)
    with pytest.raises(Refusal):
        await ledger.execute(issue(), record=record)

    assert await select(database, "SELECT id FROM source") == [("issued",)]


# Claims


async def test_the_same_claim_gets_the_first_answer_again(ledger: Ledger, database: Database) -> None:
    first = await ledger.execute(issue(), claim=claim())
    again = await ledger.execute(issue(upstream_id="another"), claim=claim())

    assert (first.earlier_answer, len(first.outcomes)) == (None, 1)
    assert (again.earlier_answer, again.outcomes) == ('["issued"]', ())
    assert await kinds(database) == ["issued"]


async def test_the_same_claim_twice_in_one_transaction_happens_once(
    ledger: Ledger, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    works = (ledger.execute(issue(upstream_id=name), claim=claim()) for name in ("a", "b"))
    first, again = await asyncio.gather(*works)

    assert (first.earlier_answer, again.earlier_answer) == (None, '["issued"]')
    assert await kinds(database) == ["issued"]
    assert caplog.messages == []


async def test_a_claim_with_another_content_is_refused(ledger: Ledger, database: Database) -> None:
    await ledger.execute(issue(), claim=claim("one"))

    with pytest.raises(KeyReused):
        await ledger.execute(issue(upstream_id="another"), claim=claim("two"))

    assert await kinds(database) == ["issued"]


async def test_a_refused_work_leaves_no_claim(ledger: Ledger) -> None:
    await ledger.execute(issue())
    with pytest.raises(AlreadyExists):
        await ledger.execute(issue(), claim=claim("one"))

    result = await ledger.execute(issue(upstream_id="another"), claim=claim("two"))

    assert result.earlier_answer is None


async def test_a_claim_raced_by_another_process_gets_the_first_answer(
    ledger: Ledger, other_ledger: Ledger, database: Database
) -> None:
    for n in range(10):
        works = (
            each.execute(issue(upstream_id=f"{name} {n}"), claim=claim(key=f"key:{n}"))
            for name, each in (("a", ledger), ("b", other_ledger))
        )
        results = await asyncio.gather(*works)

        earlier = [result.earlier_answer for result in results]
        assert set(earlier) == {None, '["issued"]'}

    assert await kinds(database) == ["issued"] * 10


# Faults


@pytest.mark.parametrize(
    "faults",
    [
        [Fault.AWAY],
        [Fault.LOST],
        [Fault.LOST_IN_COMMIT],
        [Fault.COMMITTED_AND_LOST],
        [Fault.AWAY, Fault.LOST, Fault.LOST_IN_COMMIT],
        [Fault.LOST_IN_COMMIT, Fault.COMMITTED_AND_LOST],
        [Fault.COMMITTED_AND_LOST, Fault.AWAY, Fault.LOST_IN_COMMIT],
    ],
    ids=lambda faults: "-".join(fault.name.lower() for fault in faults),
)
async def test_what_fails_in_passing_happens_once(
    shaken: Ledger, faulty: Faulty, database: Database, faults: list[Fault]
) -> None:
    await reasons(shaken, issue(), authorize("10", "a"))
    faulty.faults.extend(faults)

    found = await reasons(shaken, release(), authorize("60", "b"), authorize("60", "c"), deduct("5"))

    assert found == [Reason.RELEASED, Reason.APPROVED, Reason.INSUFFICIENT_CREDIT, Reason.DEDUCTED]
    assert not faulty.faults
    assert await figures(database) == (95_00, 60_00)
    assert await kinds(database) == ["issued", "held", "released", "held", "deducted"]


async def test_a_database_that_stays_away_is_unavailable(
    shaken: Ledger, faulty: Faulty, database: Database
) -> None:
    faulty.faults.extend([Fault.AWAY] * ledger_module.TRIES_MAX)

    with pytest.raises(Unavailable):
        await shaken.execute(issue())

    assert await kinds(database) == []
    assert faulty.begun == ledger_module.TRIES_MAX


async def test_service_resumes_by_itself(shaken: Ledger, faulty: Faulty) -> None:
    faulty.faults.extend([Fault.AWAY] * ledger_module.TRIES_MAX)
    with pytest.raises(Unavailable):
        await shaken.execute(issue())

    assert await reasons(shaken, issue()) == [Reason.ISSUED]


async def test_connections_that_the_server_ended_are_replaced(postgresql_url: str, clock: Clock) -> None:
    database, operator = connect(postgresql_url), connect(postgresql_url)
    ledger = Ledger(database, POLICY, clock=clock, deadline_seconds=30)
    await ledger.execute(issue())
    await select(
        operator,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )

    assert await reasons(ledger, authorize("10")) == [Reason.APPROVED]
    assert await figures(database) == (100_00, 10_00)
    for opened in (database, operator):
        await opened.close()


async def test_a_lasting_error_reaches_its_caller_and_is_not_tried_again(
    shaken: Ledger, faulty: Faulty
) -> None:
    with pytest.raises(ZeroDivisionError):
        await shaken.execute(issue(), record=fail)

    assert faulty.begun == 1


# Deadlines and bounds


@pytest.fixture
async def hasty(faulty: Faulty, clock: Clock) -> AsyncIterator[Ledger]:
    """A ledger that gives up soon, on a database that does not answer until its gate is set."""
    ledger = Ledger(faulty, POLICY, clock=clock, deadline_seconds=0.1)
    faulty.gate.clear()
    yield ledger
    faulty.gate.set()
    await ledger.close()


async def test_works_that_are_done_are_not_kept_until_their_deadline(ledger: Any) -> None:
    for number in range(5):
        await ledger.execute(issue(upstream_id=f"line-{number}"))

    assert len(ledger._deadlines._kept) == 1


async def test_a_work_past_its_deadline_is_not_run(
    hasty: Ledger, faulty: Faulty, database: Database
) -> None:
    first = asyncio.ensure_future(hasty.execute(issue()))
    await faulty.asked.wait()

    with pytest.raises(Unavailable):
        await hasty.execute(issue(upstream_id="late"))
    with pytest.raises(Unavailable):
        await first
    faulty.gate.set()
    await hasty.close()

    assert await select(database, "SELECT upstream_id FROM credit_line") == []


@pytest.mark.parametrize("fault", [Fault.AWAY, Fault.LOST])
async def test_a_work_past_its_deadline_is_not_run_again(
    hasty: Ledger, faulty: Faulty, database: Database, fault: Fault
) -> None:
    faulty.faults.append(fault)

    with pytest.raises(Unavailable):
        await hasty.execute(issue())
    faulty.gate.set()
    await hasty.close()

    assert await kinds(database) == []


async def test_a_work_past_its_deadline_is_not_run_alone(
    hasty: Ledger, faulty: Faulty, database: Database
) -> None:
    works = (hasty.execute(issue()), hasty.execute(issue(upstream_id="b"), record=fail))
    found = await asyncio.gather(*works, return_exceptions=True)
    faulty.gate.set()
    await hasty.close()

    assert [type(each) for each in found] == [Unavailable, Unavailable]
    assert await kinds(database) == []


async def test_a_caller_that_went_away_is_not_served(
    shaken: Ledger, faulty: Faulty, database: Database
) -> None:
    faulty.gate.clear()
    first = asyncio.ensure_future(shaken.execute(issue()))
    await faulty.asked.wait()
    gone = asyncio.ensure_future(shaken.execute(issue(upstream_id="gone")))
    await asyncio.sleep(0)

    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    faulty.gate.set()
    await first

    assert await select(database, "SELECT upstream_id FROM credit_line") == [("line-1",)]


async def test_the_queue_is_bounded(
    shaken: Ledger, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "QUEUE_MAX", 2)
    faulty.gate.clear()
    first = asyncio.ensure_future(shaken.execute(issue()))
    await faulty.asked.wait()
    waiting = [asyncio.ensure_future(shaken.execute(authorize("1", name))) for name in "ab"]
    await asyncio.sleep(0)

    with pytest.raises(Unavailable):
        await shaken.execute(authorize("1", "c"))

    faulty.gate.set()
    await asyncio.gather(first, *waiting)


# Races between processes


async def test_two_processes_never_promise_the_same_credit(
    ledger: Ledger, other_ledger: Ledger, database: Database
) -> None:
    await ledger.execute(issue(100_00))

    works = (
        each.execute(authorize("10", f"session {n} of {name}"))
        for n in range(12)
        for name, each in (("a", ledger), ("b", other_ledger))
    )
    results = await asyncio.gather(*works)

    assert sum(result.outcomes[0].accepted for result in results) == 10
    assert await figures(database) == (100_00, 100_00)


async def test_two_processes_open_one_hold_for_one_session(
    ledger: Ledger, other_ledger: Ledger, database: Database
) -> None:
    await ledger.execute(issue(100_00))

    works = (each.execute(authorize("60")) for _ in range(10) for each in (ledger, other_ledger))
    results = await asyncio.gather(*works)

    assert all(result.outcomes[0].accepted for result in results)
    assert await select(database, "SELECT amount, state FROM hold") == [(60_00, "open")]


async def test_two_processes_deduct_a_source_once_also_from_two_lines(
    ledger: Ledger, other_ledger: Ledger, database: Database
) -> None:
    await reasons(ledger, issue(upstream_id="a"), issue(upstream_id="b"))

    for n in range(10):
        works = (
            each.execute(deduct("1", f"source-{n}", None, upstream_id))
            for upstream_id, each in (("a", ledger), ("b", other_ledger))
        )
        found = {result.outcomes[0].reason for result in await asyncio.gather(*works)}
        assert found == {Reason.DEDUCTED, Reason.SOURCE_CONFLICT}

    a, b = await figures(database, "a"), await figures(database, "b")
    assert a[0] + b[0] == 2 * 100_00 - 10_00


async def test_two_processes_issue_a_name_once(ledger: Ledger, other_ledger: Ledger) -> None:
    for n in range(10):
        works = (each.execute(issue(upstream_id=f"line {n}")) for each in (ledger, other_ledger))
        results = await asyncio.gather(*works, return_exceptions=True)

        refused = [result for result in results if isinstance(result, BaseException)]
        assert [type(refusal) for refusal in refused] == [AlreadyExists]


async def test_batches_that_name_the_same_lines_in_another_order_do_not_block_each_other(
    ledger: Ledger, other_ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"line {n}" for n in range(10)]
    await reasons(ledger, *(issue(upstream_id=name) for name in names))

    for n in range(5):
        ones = [deduct("1", f"source {n} a {name}", None, name) for name in names]
        others = [deduct("1", f"source {n} b {name}", None, name) for name in reversed(names)]
        found = await asyncio.gather(reasons(ledger, *ones), reasons(other_ledger, *others))
        assert set(found[0]) | set(found[1]) == {Reason.DEDUCTED}

    assert caplog.messages == [], "a deadlock was met and survived, where none should be"


async def nothing() -> None:
    pass


async def meanwhile(
    database: Database,
    ledger: Ledger,
    sql: str,
    *commands: Command,
    waiting: str,
    look: Callable[[], Awaitable[None]] = nothing,
) -> Outcome:
    """Execute the commands while another transaction has done `sql`, and has yet to commit.

    It commits once the ledger waits in a statement like `waiting`, and after a `look` at that moment.
    """
    done, go_on = asyncio.Event(), asyncio.Event()

    def other(connection: Connection) -> None:
        connection.execute(text(sql))
        done.set()
        await_only(go_on.wait())

    blocking = asyncio.ensure_future(database.write(other))
    await done.wait()
    executing = asyncio.ensure_future(ledger.execute(*commands))
    waits = (
        "SELECT query FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :query"
        " AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    while not await select(database, waits, query=f"%{waiting}%"):
        assert not executing.done(), "the ledger did not wait"
    await look()
    go_on.set()
    await blocking
    return (await executing).outcomes[0]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_line_is_read_only_when_others_are_done_with_it(ledger: Ledger, database: Database) -> None:
    await ledger.execute(issue(100_00))
    other = "UPDATE credit_line SET flags = 'seen', held = 70_00"

    outcome = await meanwhile(
        database, ledger, other, authorize("60"), waiting="FROM credit_line%FOR UPDATE"
    )

    assert outcome.reason == Reason.INSUFFICIENT_CREDIT
    assert await select(database, "SELECT flags, held FROM credit_line") == [("seen", 70_00)]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_source_is_looked_up_only_when_others_are_done_with_it(
    ledger: Ledger, database: Database
) -> None:
    await reasons(ledger, issue(100_00), deduct("1", "source-1"))
    other = "SELECT id FROM source WHERE id = 'source-1' FOR UPDATE"

    outcome = await meanwhile(
        database, ledger, other, deduct("1", "source-1"), waiting="INSERT INTO source%"
    )

    assert outcome.reason == Reason.ALREADY_DEDUCTED


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("telling", [True, False])
async def test_of_a_batch_only_what_is_on_a_locked_line_is_refused(
    ledger: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch, telling: bool
) -> None:
    """Also when the database fails just as it is asked which lines are locked."""
    await reasons(ledger, *(issue(upstream_id=name, line_id=f"cl_{name}") for name in "ab"))
    locked, go_on = asyncio.Event(), asyncio.Event()

    def lock(connection: Connection) -> None:
        connection.execute(text("SELECT id FROM credit_line WHERE id = 'cl_a' FOR UPDATE"))
        locked.set()
        await_only(go_on.wait())

    def fail(*_: object) -> set[str]:
        raise ConnectionResetError

    if not telling:
        monkeypatch.setattr(ledger_module.store, "locked_names", fail)
    stranger = asyncio.ensure_future(database.write(lock))
    await locked.wait()
    asked = [ledger.execute(authorize("1", f"session-{name}", upstream_id=name)) for name in "ab"]
    async with asyncio.timeout(10):  # The ledger's own deadline is later.
        refused, approved = await asyncio.gather(*asked, return_exceptions=True)
    go_on.set()
    await stranger

    assert isinstance(refused, Unavailable)
    assert not isinstance(approved, BaseException)
    assert approved.outcomes[0].accepted


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_lines_are_locked_in_the_order_of_their_ids(ledger: Ledger, database: Database) -> None:
    """While a batch waits for line 5, it has locked all before it and none after it."""
    await reasons(ledger, *(issue(upstream_id=f"{n}", line_id=f"cl_{n}") for n in range(10)))
    blocking = "SELECT id FROM credit_line WHERE id = 'cl_5' FOR UPDATE"
    unlocked: list[str] = []

    async def look() -> None:
        free = text("SELECT id FROM credit_line ORDER BY id FOR UPDATE SKIP LOCKED")
        unlocked.extend(await database.write(lambda connection: list(connection.scalars(free))))

    commands = [authorize("1", upstream_id=f"{n}") for n in reversed(range(10))]
    await meanwhile(database, ledger, blocking, *commands, waiting="FROM credit_line%FOR UPDATE", look=look)

    assert unlocked == ["cl_6", "cl_7", "cl_8", "cl_9"]


# What a batch loads


async def test_all_holds_past_their_time_are_released(
    ledger: Ledger, database: Database, clock: Clock
) -> None:
    await ledger.execute(issue(100_00))
    await reasons(ledger, *(authorize("1", f"session-{n}") for n in range(100)))
    clock.advance(DAY)

    assert await reasons(ledger, authorize("100", "another")) == [Reason.APPROVED]
    assert await figures(database) == (100_00, 100_00)
    assert (await kinds(database)).count("hold_expired") == 100


async def test_holds_that_ended_long_ago_do_not_count(ledger: Ledger, database: Database) -> None:
    await ledger.execute(issue(100_00))
    for _ in range(20):
        await reasons(ledger, authorize("1", "a"), release())
    await ledger.execute(authorize("1", "b"))

    assert await reasons(ledger, release()) == [Reason.RELEASED]
    assert await figures(database) == (100_00, 0)


@pytest.mark.parametrize("count", [2, 3, 10])
async def test_of_several_open_holds_none_is_released(
    ledger: Ledger, database: Database, count: int
) -> None:
    await ledger.execute(issue(100_00))
    for n in range(count):
        await ledger.execute(authorize("1", f"session-{n}"))

    assert await reasons(ledger, release()) == [Reason.SEVERAL_HOLDS]
    assert await figures(database) == (100_00, count * 1_00)


@pytest.mark.parametrize("past", [1, 2, 3, 10])
async def test_holds_past_their_time_do_not_hide_that_there_are_several(
    ledger: Ledger, database: Database, clock: Clock, past: int
) -> None:
    await ledger.execute(issue(100_00))
    for n in range(past):
        await ledger.execute(authorize("1", f"past-{n}"))
    clock.advance(HOUR)
    await ledger.execute(authorize("1", "a"))
    await ledger.execute(authorize("1", "b"))
    clock.advance(DAY - HOUR)

    assert await reasons(ledger, release()) == [Reason.SEVERAL_HOLDS]
    assert await figures(database) == (100_00, 2_00)


async def test_a_clock_that_jumps_back_does_not_hide_that_there_are_several(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule goes by the line's last entry, which is later than what the statement is asked with."""
    monkeypatch.setattr(store, "DUE_HOLDS_MAX", 2)
    short, lasting = (Ledger(database, Policy(ttl), clock=clock) for ttl in (HOUR, DAY))
    await short.execute(issue(100_00))
    for name in "abcd":
        await short.execute(authorize("1", name))
    for name in "ef":
        await lasting.execute(authorize("1", name))
    clock.advance(2 * HOUR)
    await lasting.execute(authorize("1", "e"))
    clock.advance(-HOUR * 1.5)

    assert await reasons(short, release()) == [Reason.SEVERAL_HOLDS]
    for ledger in (short, lasting):
        await ledger.close()


@pytest.mark.parametrize("past", [1, 3, 10])
async def test_holds_past_their_time_do_not_hide_the_one_to_release(
    ledger: Ledger, database: Database, clock: Clock, past: int
) -> None:
    await ledger.execute(issue(100_00))
    for n in range(past):
        await ledger.execute(authorize("1", f"past-{n}"))
    clock.advance(HOUR)
    await ledger.execute(authorize("1", "open"))
    clock.advance(DAY - HOUR)

    assert await reasons(ledger, release()) == [Reason.RELEASED]
    assert await figures(database) == (100_00, 0)


async def test_removal_notices_of_one_transaction_see_all_that_it_leaves_open(
    ledger: Ledger, database: Database
) -> None:
    await ledger.execute(issue(100_00))
    await reasons(ledger, *(authorize("1", f"session-{n}") for n in range(6)))

    spending = [deduct("1", f"source-{n}", f"session-{n}") for n in range(4)]
    found = await reasons(ledger, *spending, release(), deduct("1", "source-4", "session-4"), release())

    assert found[4:] == [Reason.SEVERAL_HOLDS, Reason.DEDUCTED, Reason.RELEASED]
    assert await figures(database) == (95_00, 0)


async def test_a_session_is_completed_also_for_later_batches(ledger: Ledger) -> None:
    await reasons(ledger, issue(), deduct("10"))

    assert await reasons(ledger, authorize("10"), authorize("10", "b")) == [
        Reason.SESSION_COMPLETED,
        Reason.APPROVED,
    ]


@pytest.mark.parametrize("upstream_id", ["line-1", None])
async def test_a_source_that_comes_again_with_a_session_ends_its_hold(
    ledger: Ledger, database: Database, upstream_id: str | None
) -> None:
    await reasons(ledger, issue(), authorize("60"))
    await ledger.execute(deduct("40", session_id=None))

    again = deduct("40", upstream_id=upstream_id)

    assert await reasons(ledger, again) == [Reason.ALREADY_DEDUCTED]
    assert await figures(database) == (60_00, 0)
    assert await reasons(ledger, authorize("1")) == [Reason.SESSION_COMPLETED]


async def test_a_source_that_comes_twice_in_one_transaction_ends_its_session_s_hold(
    ledger: Ledger, database: Database
) -> None:
    await reasons(ledger, issue(), authorize("60"))

    found = await reasons(ledger, deduct("40", session_id=None), deduct("40", upstream_id=None))

    assert found == [Reason.DEDUCTED, Reason.ALREADY_DEDUCTED]
    assert await figures(database) == (60_00, 0)


async def test_settling_writes_off_what_no_one_touched(
    ledger: Ledger, database: Database, clock: Clock
) -> None:
    command = issue(100_00, expires_at=clock.now + timedelta(hours=2))
    await reasons(ledger, command, authorize("60"))
    clock.advance(DAY)

    assert await reasons(ledger, settle(command.line_id)) == [Reason.SETTLED]
    assert await figures(database) == (0, 0)
    assert await kinds(database) == ["issued", "held", "hold_expired", "expired"]
