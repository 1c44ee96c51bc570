"""Many callers take turns in two groups; few share a transaction; a lone one waits for nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from sqlalchemy import Connection, text

from store_credit.database import Database
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.refusals import Unavailable
from store_credit.ledger.turns import BATCH_MAX, GROUPS_MIN, KEPT_SECONDS_MAX, Turns
from store_credit.ledger.works import Pending, Result, Work
from tests.making import POLICY, Clock, authorize, issue


def pendings(count: int, *, seconds_left: float = 60) -> list[Pending]:
    loop = asyncio.get_running_loop()
    deadline = time.monotonic() + seconds_left
    return [Pending(Work(()), deadline, loop.create_future()) for _ in range(count)]


def add(turns: Turns, works: Iterable[Pending]) -> None:
    for pending in works:
        turns.add(pending)


def serve(turns: Turns, works: list[Pending]) -> None:
    turns.served([(pending, Unavailable("tried")) for pending in works])


def answered(works: list[Pending]) -> int:
    for pending in works:
        if pending.future.done():
            pending.future.exception()  # Or its loss would be complained of.
    return sum(pending.future.done() for pending in works)


async def test_a_lone_caller_waits_for_nobody() -> None:
    turns = Turns()
    for _ in range(3):
        alone = pendings(1)
        add(turns, alone)
        taking = asyncio.ensure_future(turns.next())
        await asyncio.sleep(0)
        assert taking.done()
        serve(turns, taking.result())
        assert answered(alone) == 1


async def test_few_callers_share_a_transaction_and_are_answered_at_once() -> None:
    turns = Turns()
    few = pendings(GROUPS_MIN - 1)
    add(turns, few[:-1])
    batch = await turns.next()
    assert batch == few[:-1]
    turns.add(few[-1])

    serve(turns, batch)

    assert answered(batch) == len(batch)


async def test_after_several_a_transaction_waits_for_as_many_but_not_for_long() -> None:
    turns = Turns()
    first, second = pendings(3), pendings(3)
    add(turns, first)
    serve(turns, await turns.next())
    answered(first)
    taking = asyncio.ensure_future(turns.next())
    for pending in second:
        await asyncio.sleep(0)
        assert not taking.done()
        turns.add(pending)
    assert await taking == second
    serve(turns, second[:2])
    turns.add(second[2])
    assert await asyncio.wait_for(turns.next(), 5) == second[2:]
    answered(second)


async def test_many_callers_take_turns_in_two_groups() -> None:
    turns = Turns()
    many = pendings(40)
    add(turns, many[:20])
    first = await turns.next()
    add(turns, many[20:])
    serve(turns, first)
    assert answered(first) == 0, "they wait until the rows of the others are on their way"

    second = await turns.next()
    assert second == many[20:]
    turns.tell()

    assert answered(first) == 20
    assert answered(second) == 0


async def test_a_group_that_is_not_complete_keeps_nobody_waiting() -> None:
    turns = Turns()
    many = pendings(40)
    add(turns, many[:30])
    first = await turns.next()
    add(turns, many[30:])

    serve(turns, first)

    assert answered(first) == 30


async def test_answers_are_not_kept_for_long_when_the_next_transaction_hangs() -> None:
    turns = Turns()
    many = pendings(40)
    add(turns, many[:20])
    first = await turns.next()
    add(turns, many[20:])
    serve(turns, first)

    results = await asyncio.wait_for(
        asyncio.gather(*(pending.future for pending in first), return_exceptions=True),
        100 * KEPT_SECONDS_MAX,
    )

    assert len(results) == 20


async def test_a_group_has_a_largest_size() -> None:
    turns = Turns(group_max=8)
    many = pendings(60)
    add(turns, many[:20])
    first = await turns.next()
    assert len(first) == 20, "nobody was known to ask together"
    add(turns, many[20:])
    serve(turns, first)
    assert await turns.next() == many[20:28]
    answered(first)


async def test_when_nobody_asks_any_more_the_groups_are_forgotten() -> None:
    turns = Turns()
    many = pendings(40)
    add(turns, many)
    serve(turns, await turns.next())
    answered(many)
    assert await turns.next() == []

    burst = pendings(BATCH_MAX + 1)
    add(turns, burst)

    assert await turns.next() == burst[:-1]


async def test_those_past_their_deadline_take_no_place() -> None:
    turns = Turns()
    late, in_time = pendings(5, seconds_left=-1), pendings(5)
    add(turns, late + in_time)
    assert await turns.next() == in_time


async def test_callers_that_ask_again_and_again_are_all_answered(database: Database, clock: Clock) -> None:
    """In the real thing: each caller asks when it was answered; groups of them overlap."""
    batches: list[int] = []
    ledger = Ledger(
        database, POLICY, clock=clock, deadline_seconds=60, on_commit=lambda works, _: batches.append(works)
    )
    await ledger.execute(issue(1000_00))
    results: list[Result] = []

    async def caller(number: int) -> None:
        for turn in range(5):
            results.append(await ledger.execute(authorize("1", session_id=f"{number}-{turn}")))

    await asyncio.gather(*(caller(number) for number in range(3 * GROUPS_MIN)))
    await ledger.close()

    def held(connection: Connection) -> int:
        return connection.execute(text("SELECT held FROM credit_line")).scalar_one()

    assert all(result.outcomes[0].accepted for result in results)
    assert await database.read(held) == 100 * len(results) == 100 * 5 * 3 * GROUPS_MIN
    assert any(GROUPS_MIN // 2 <= works < 3 * GROUPS_MIN for works in batches[2:])
