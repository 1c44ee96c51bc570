"""When the fate of a transaction is in doubt: nothing twice, and no answer that is not true."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Connection, text

from store_credit.database import Database, connect
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.refusals import Unavailable
from store_credit.ledger.state import Reason
from tests.ledger.faulty import Fault, Faulty
from tests.making import POLICY, Clock, authorize, deduct, issue, release


def entries(connection: Connection) -> list[str]:
    return list(connection.scalars(text("SELECT kind FROM ledger_entry ORDER BY line_id, seq")))


async def test_a_lasting_error_after_an_unknown_commit_repeats_nothing(
    database: Database, clock: Clock
) -> None:
    faulty = Faulty(database)
    ledger = Ledger(faulty, POLICY, clock=clock, deadline_seconds=30)
    await ledger.execute(issue())
    await ledger.execute(authorize("10"))
    faulty.faults.extend([Fault.COMMITTED_AND_LOST, Fault.REFUSED])

    spent, taken_off = await asyncio.gather(
        ledger.execute(deduct("5", session_id=None)), ledger.execute(release())
    )

    assert [spent.outcomes[0].reason, taken_off.outcomes[0].reason] == [Reason.DEDUCTED, Reason.RELEASED]
    assert await database.read(entries) == ["issued", "held", "deducted", "released"]
    await ledger.close()


UNDONE, DONE = Fault.LOST_IN_COMMIT, Fault.COMMITTED_AND_LOST


@pytest.mark.parametrize("first", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "faults",
    [
        *([UNDONE], [DONE], [UNDONE, DONE], [UNDONE, UNDONE, DONE], [UNDONE, DONE, DONE]),
        *([DONE, UNDONE], [DONE, DONE], [DONE, UNDONE, DONE], [UNDONE, DONE, UNDONE]),
        *([UNDONE, DONE, UNDONE, DONE], [UNDONE, UNDONE, DONE, DONE], [UNDONE, Fault.AWAY, DONE, DONE]),
    ],
    ids=lambda faults: "-".join(fault.name.lower() for fault in faults),
)
async def test_of_several_tries_in_doubt_the_one_that_was_committed_is_the_answer(
    database: Database, clock: Clock, faults: list[Fault], first: int
) -> None:
    """Whenever somebody else takes the credit meanwhile, and so makes the next try decide otherwise."""
    other = Ledger(database, POLICY, clock=clock, deadline_seconds=30)
    faulty = Faulty(database, *faults)
    ledger = Ledger(faulty, POLICY, clock=clock, deadline_seconds=30)
    await other.execute(issue(100_00))
    faulty.before[first] = lambda: other.execute(authorize("60", session_id="theirs"))

    result = await ledger.execute(authorize("60", session_id="ours"))

    def sessions(connection: Connection) -> list[str]:
        return list(connection.scalars(text("SELECT session_id FROM hold ORDER BY id")))

    held = await database.read(sessions)
    assert result.outcomes[0].accepted == ("ours" in held)
    assert result.outcomes[0].reason in (Reason.APPROVED, Reason.INSUFFICIENT_CREDIT)
    assert len(held) <= 1
    await ledger.close()
    await other.close()


async def test_counting_that_fails_repeats_nothing(database: Database, clock: Clock) -> None:
    def count(_works: int, _seconds: float) -> None:
        raise OSError("no space left")

    ledger = Ledger(database, POLICY, clock=clock, deadline_seconds=30, on_commit=count)

    await ledger.execute(issue())
    result = await ledger.execute(authorize("10"))

    assert result.outcomes[0].reason == Reason.APPROVED
    assert await database.read(entries) == ["issued", "held"]
    await ledger.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_deadline_that_passes_while_a_lock_is_waited_for_leaves_nothing(
    database: Database, clock: Clock
) -> None:
    patient = Ledger(database, POLICY, clock=clock, deadline_seconds=30)
    await patient.execute(issue())
    hasty = Ledger(database, POLICY, clock=clock, deadline_seconds=0.2)
    locked, let_go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold_the_lock(connection: Connection) -> None:
        connection.execute(text("SELECT id FROM credit_line FOR UPDATE"))
        loop.call_soon(locked.set)
        while not let_go.is_set():
            connection.execute(text("SELECT pg_sleep(0.01)"))

    locking = asyncio.ensure_future(database.write(hold_the_lock))
    await locked.wait()
    with pytest.raises(Unavailable):
        await hasty.execute(authorize("10"))
    let_go.set()
    await locking
    await hasty.close()

    assert await database.read(entries) == ["issued"]
    await patient.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_readers_never_take_the_last_connection(database_url: str, clock: Clock) -> None:
    database = connect(database_url, connections=3)
    ledger = Ledger(database, POLICY, clock=clock, deadline_seconds=30)
    reading, let_go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def read_for_long(connection: Connection) -> None:
        loop.call_soon(reading.set)
        while not let_go.is_set():
            connection.execute(text("SELECT pg_sleep(0.01)"))

    readers = [asyncio.ensure_future(database.read(read_for_long)) for _ in range(2)]
    await reading.wait()
    result = await ledger.execute(issue())
    let_go.set()
    await asyncio.gather(*readers)

    assert result.outcomes[0].reason == Reason.ISSUED
    await ledger.close()
    await database.close()
