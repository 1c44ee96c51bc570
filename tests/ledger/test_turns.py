"""Many callers take turns in two groups; few share a transaction; a lone one waits for nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from sqlalchemy import Connection, text

from store_credit.database import Database
from store_credit.direct import Fetch
from store_credit.ledger import turns as module
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.refusals import Unavailable
from store_credit.ledger.turns import BATCH_MAX, CALLERS_MIN, GROUP_MAX, Turns
from store_credit.ledger.works import Pending, Result, Work
from tests.making import POLICY, Clock, authorize, issue

PATIENCE = 60.0
QUICK, SLOW = 1e-9, 1e9
"""Seconds of a transaction, next to what requests cost."""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing happens because time goes by."""
    monkeypatch.setattr(module, "JOIN_SECONDS_MAX", PATIENCE)


def pendings(count: int, *, seconds_left: float = 60) -> list[Pending]:
    loop = asyncio.get_running_loop()
    deadline = time.monotonic() + seconds_left
    return [Pending(Work(()), deadline, loop.create_future()) for _ in range(count)]


def add(turns: Turns, works: Iterable[Pending]) -> None:
    for pending in works:
        turns.add(pending)


def serve(turns: Turns, works: list[Pending], seconds: float = QUICK) -> None:
    turns.took(len(works), seconds)
    turns.served([(pending, Unavailable("tried")) for pending in works])


def answered(works: list[Pending]) -> int:
    for pending in works:
        if pending.future.done():
            pending.future.exception()  # Or its loss would be complained of.
    return sum(pending.future.done() for pending in works)


async def busy_turns(callers: int = 40) -> tuple[Turns, list[Pending]]:
    """Turns that know what requests cost, and the first group of so many callers in a transaction."""
    turns = Turns()
    first = pendings(callers)
    add(turns, first)
    serve(turns, await turns.next(), SLOW)
    assert answered(first) == callers
    first = pendings(callers)
    add(turns, first)
    batch = await turns.next()
    assert batch == first
    serve(turns, batch)
    assert answered(first) == callers
    first = pendings(callers // 2)
    add(turns, first)
    assert await turns.next() == first
    return turns, first


async def test_a_lone_caller_waits_for_nobody(patient: None) -> None:
    turns = Turns()
    for _ in range(3):
        alone = pendings(1)
        add(turns, alone)
        batch = await asyncio.wait_for(turns.next(), PATIENCE / 2)
        serve(turns, batch)
        assert answered(alone) == 1


async def test_few_callers_share_a_transaction_and_are_answered_at_once(patient: None) -> None:
    turns = Turns()
    few = pendings(CALLERS_MIN - 1)
    add(turns, few[:-1])
    batch = await turns.next()
    assert batch == few[:-1]
    turns.add(few[-1])

    serve(turns, batch)

    assert answered(batch) == len(batch)


async def test_after_several_a_transaction_waits_for_as_many(patient: None) -> None:
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


async def test_it_does_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JOIN_SECONDS_MAX", 0)
    turns = Turns()
    first, second = pendings(3), pendings(1)
    add(turns, first)
    serve(turns, await turns.next())
    answered(first)
    add(turns, second)
    assert await asyncio.wait_for(turns.next(), PATIENCE) == second


async def test_many_callers_take_turns_in_two_groups(patient: None) -> None:
    turns, first = await busy_turns()
    others = pendings(20)
    add(turns, others)
    serve(turns, first)
    assert answered(first) == 0, "they wait until the others are taken"

    second = await turns.next()

    assert second == others
    assert answered(first) == 20
    assert answered(second) == 0


async def test_very_many_callers_take_turns_in_more_groups(patient: None) -> None:
    turns, first = await busy_turns()
    others = pendings(3 * GROUP_MAX)
    add(turns, others)
    serve(turns, first)

    for begin in range(0, len(others), GROUP_MAX):
        group = await turns.next()
        assert group == others[begin : begin + GROUP_MAX]
        serve(turns, group)


async def test_a_group_that_is_not_complete_keeps_nobody_waiting(patient: None) -> None:
    turns, first = await busy_turns()
    add(turns, pendings(10))

    serve(turns, first)

    assert answered(first) == 20


async def test_all_are_served_together_while_the_database_is_slow(patient: None) -> None:
    turns, first = await busy_turns()
    others = pendings(20)
    add(turns, others)

    serve(turns, first, SLOW)

    assert answered(first) == 20
    taking = asyncio.ensure_future(turns.next())
    again = pendings(20)
    for pending in again:
        await asyncio.sleep(0)
        assert not taking.done()
        turns.add(pending)
    assert await taking == others + again


async def test_without_groups_all_are_served_together(patient: None) -> None:
    turns = Turns(groups=False)
    for _ in range(3):
        many = pendings(40)
        add(turns, many)
        batch = await turns.next()
        assert batch == many
        serve(turns, batch)
        assert answered(many) == 40


async def test_when_nobody_asks_any_more_the_groups_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, first = await busy_turns()
    serve(turns, first)
    answered(first)
    monkeypatch.setattr(module, "JOIN_SECONDS_MAX", 0)
    assert await turns.next() == []

    burst = pendings(BATCH_MAX + 1)
    add(turns, burst)

    assert await turns.next() == burst[:-1]


async def test_a_caller_who_comes_after_a_pause_does_not_tell_what_a_request_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(module, "JOIN_SECONDS_MAX", 0)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    turns = Turns()
    many = pendings(40)
    add(turns, many)
    serve(turns, await turns.next())
    answered(many)
    assert await turns.next() == []

    now = 3_600.0
    add(turns, pendings(40))
    batch = await turns.next()
    add(turns, pendings(40))
    serve(turns, batch, 1.0)

    assert answered(batch) == 40, "a transaction of a second is slow, and no reason for two groups"


async def test_those_past_their_deadline_take_no_place(patient: None) -> None:
    turns = Turns()
    late, in_time = pendings(5, seconds_left=-1), pendings(5)
    add(turns, late + in_time)
    assert await turns.next() == in_time


class Hanging:
    """A database whose transactions are at their ends for as long as the test says."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.dialect = database.dialect
        self.written = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def write_briefly(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self._hang(self._database.write_briefly(function, *args))

    async def at_once(self, function: Callable[[Fetch], Awaitable[Any]]) -> Any:
        return await self._hang(self._database.at_once(function))

    async def _hang(self, writing: Awaitable[Any]) -> Any:
        result = await writing
        self.written.set()
        await self.go_on.wait()
        return result

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        return await self._database.read(function, *args)

    async def close(self) -> None: ...


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_one_group_is_answered_while_the_other_s_transaction_goes_on(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Turns, "_are_groups_faster", lambda *_: True)
    hanging = Hanging(database)
    ledger = Ledger(hanging, POLICY, clock=clock, deadline_seconds=60)
    await ledger.execute(issue(1000_00))
    hanging.go_on.clear()
    hanging.written.clear()

    def ask(group: str) -> list[asyncio.Task[Result]]:
        sessions = [f"{group}-{n}" for n in range(10)]
        return [asyncio.ensure_future(ledger.execute(authorize("1", session_id=one))) for one in sessions]

    first = ask("first")
    await hanging.written.wait()
    second = ask("second")
    await asyncio.sleep(0)
    hanging.written.clear()
    hanging.go_on.set()
    hanging.go_on = asyncio.Event()
    await hanging.written.wait()
    await asyncio.sleep(0)

    assert all(task.done() for task in first)
    assert not any(task.done() for task in second)
    hanging.go_on.set()
    assert all(result.outcomes[0].accepted for result in await asyncio.gather(*first, *second))
    await ledger.close()


async def test_callers_that_ask_again_and_again_are_all_answered(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the real thing: each caller asks when it was answered; the groups overlap."""
    monkeypatch.setattr(Turns, "_are_groups_faster", lambda *_: True)
    ledger = Ledger(database, POLICY, clock=clock, deadline_seconds=60)
    await ledger.execute(issue(1000_00))
    results: list[Result] = []

    async def caller(number: int) -> None:
        for turn in range(5):
            results.append(await ledger.execute(authorize("1", session_id=f"{number}-{turn}")))

    await asyncio.gather(*(caller(number) for number in range(3 * CALLERS_MIN)))
    await ledger.close()

    def held(connection: Connection) -> int:
        return connection.execute(text("SELECT held FROM credit_line")).scalar_one()

    assert all(result.outcomes[0].accepted for result in results)
    assert len({result.outcomes[0].hold.id for result in results if result.outcomes[0].hold}) == 240
    assert await database.read(held) == 100 * len(results) == 240_00
