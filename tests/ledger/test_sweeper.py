"""The sweeper, and how works gather for a transaction."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from store_credit import bulk
from store_credit.database import Database
from store_credit.ledger import audit, rules, store, sweeper
from store_credit.ledger.commands import Command
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.refusals import NotAllowed, Refusal
from store_credit.ledger.state import Line, Reason
from tests.making import (
    DAY,
    HOUR,
    NOON,
    POLICY,
    Clock,
    Desk,
    adjust,
    authorize,
    deduct,
    issue,
    release,
)


def rows(connection: Connection, query: str) -> list[Any]:
    return [tuple(row) for row in connection.execute(text(query))]


async def test_a_hold_past_its_time_is_released(ledger: Ledger, database: Database, clock: Clock) -> None:
    await ledger.execute(issue())
    await ledger.execute(authorize("10"))
    clock.advance(DAY)

    assert (await sweeper.sweep(ledger)).lines == 1

    assert await database.read(rows, "SELECT state FROM hold") == [("expired",)]
    assert await database.read(rows, "SELECT held FROM credit_line") == [(0,)]


async def test_a_line_past_its_expiry_is_written_off(
    ledger: Ledger, database: Database, clock: Clock
) -> None:
    await ledger.execute(issue(expires_at=NOON + HOUR))
    clock.advance(HOUR)

    await sweeper.sweep(ledger)

    assert await database.read(rows, "SELECT balance, due_at FROM credit_line") == [(0, None)]


async def test_what_is_settled_is_left_alone(ledger: Ledger, database: Database, clock: Clock) -> None:
    await ledger.execute(issue(expires_at=NOON + HOUR))
    clock.advance(HOUR)
    await sweeper.sweep(ledger)

    assert (await sweeper.sweep(ledger)).lines == 0
    assert await database.read(rows, "SELECT count(*) FROM ledger_entry") == [(2,)]


async def test_an_expired_line_without_anything_to_write_off_is_looked_at_once(
    ledger: Ledger, database: Database, clock: Clock
) -> None:
    await ledger.execute(issue(expires_at=NOON + HOUR))
    await ledger.execute(deduct("100"))
    clock.advance(HOUR)

    assert (await sweeper.sweep(ledger)).lines == 1
    assert (await sweeper.sweep(ledger)).lines == 0
    assert await database.read(rows, "SELECT due_at FROM credit_line") == [(None,)]


async def overdue_holds(ledger: Ledger, clock: Clock, count: int) -> None:
    """A line worth 100 USD whose so many holds, of a cent each, are past their time."""
    await ledger.execute(issue())
    for start in range(0, count, 100):
        some = range(start, min(start + 100, count))
        await asyncio.gather(*(ledger.execute(authorize("0.01", f"dead-{number}")) for number in some))
    clock.advance(DAY)


async def test_more_holds_than_one_transaction_ends_are_ended_in_several(
    ledger: Ledger, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DUE_HOLDS_MAX", 3)
    monkeypatch.setattr(sweeper, "LINES_PER_ROUND", 3)
    await overdue_holds(ledger, clock, 8)

    states = []
    while (swept := await sweeper.sweep(ledger)).more:
        states.append(await database.read(rows, "SELECT count(*) FROM hold WHERE state = 'expired'"))

    assert states == [[(3,)], [(6,)]]
    assert swept.lines == 1
    assert await database.read(rows, "SELECT held, seq FROM credit_line") == [(0, 17)]
    assert (await sweeper.sweep(ledger)).lines == 0
    await assert_books_agree(database)


async def test_holds_past_their_time_promise_nothing_though_not_all_are_ended_yet(
    ledger: Ledger, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DUE_HOLDS_MAX", 3)
    await overdue_holds(ledger, clock, 8)

    approved = await ledger.execute(authorize("100", "living"))
    declined = await ledger.execute(authorize("0.01", "late"))

    assert [result.outcomes[0].reason for result in (approved, declined)] == [
        Reason.APPROVED,
        Reason.INSUFFICIENT_CREDIT,
    ]
    # Eight holds, of which each of the two authorizations ended three.
    assert await database.read(rows, "SELECT held, balance FROM credit_line") == [(100_02, 100_00)]
    await sweeper.sweep(ledger)
    assert await database.read(rows, "SELECT held, balance FROM credit_line") == [(100_00, 100_00)]
    await assert_books_agree(database)


async def test_an_order_beside_holds_past_their_time_takes_nothing_short(
    ledger: Ledger, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DUE_HOLDS_MAX", 3)
    await overdue_holds(ledger, clock, 8)

    # The session's own hold is one of those that are past their time.
    result = await ledger.execute(deduct("100", session_id="dead-7"))

    assert result.outcomes[0].line is not None
    assert result.outcomes[0].line.flags == frozenset()
    assert result.outcomes[0].hold is None
    states = "SELECT state, count(*) FROM hold GROUP BY state ORDER BY state"
    assert await database.read(rows, states) == [("expired", 4), ("open", 4)]
    await assert_books_agree(database)


async def test_a_session_takes_its_own_dead_hold_for_no_living_one(
    ledger: Ledger, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DUE_HOLDS_MAX", 1)
    await overdue_holds(ledger, clock, 5)
    asking = (ledger.execute(authorize("0.01", f"dead-{number}")) for number in range(5))

    results = await asyncio.gather(*asking)

    assert {result.outcomes[0].reason for result in results} == {Reason.APPROVED}
    states = "SELECT state, count(*) FROM hold GROUP BY state ORDER BY state"
    assert await database.read(rows, states) == [("expired", 5), ("open", 5)]
    await assert_books_agree(database)


async def test_a_removal_finds_the_living_hold_among_the_dead(
    ledger: Ledger, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DUE_HOLDS_MAX", 1)
    await overdue_holds(ledger, clock, 5)
    await ledger.execute(authorize("5", "living"))

    result = await ledger.execute(release())

    assert result.outcomes[0].hold is not None
    assert result.outcomes[0].hold.session_id == "living"
    await assert_books_agree(database)


async def test_a_decrease_counts_holds_past_their_time_as_nothing(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DUE_HOLDS_MAX", 1)
    await overdue_holds(ledger, clock, 5)
    line = (await ledger.execute(authorize("1", "living"))).outcomes[0].line
    assert line is not None

    assert isinstance(await refused(ledger, adjust(line, "-99.01")), NotAllowed)
    assert (await ledger.execute(adjust(line, "-99"))).outcomes[0].accepted


async def refused(ledger: Ledger, command: Command) -> Refusal:
    with pytest.raises(Refusal) as raised:
        await ledger.execute(command)
    return raised.value


async def assert_books_agree(database: Database) -> None:
    """An audit finds nothing."""
    assert await database.read(lambda connection: list(audit.audit(connection))) == []


def hold_much(connection: Connection, holds: int) -> Line:
    """A line with so many open holds of a cent each, as the ledger would keep them."""
    desk = Desk()
    changes = [rules.decide(desk.book, issue(10**9), NOON, POLICY)]
    desk.book.apply(changes[0])
    for number in range(holds):
        change = rules.decide(desk.book, authorize("0.01", f"dead-{number}"), NOON, POLICY)
        desk.book.apply(change)
        desk.book.open_holds.clear()  # No rule needs them here, and each would look through all.
        changes.append(change)
    bulk.write(connection, store.changed(changes, {}, NOON))
    return desk.line()


async def sweep_all(ledger: Ledger) -> None:
    while (await sweeper.sweep(ledger)).more:
        pass


async def test_no_transaction_is_long_while_very_many_holds_are_ended(
    database: Database, clock: Clock
) -> None:
    seconds: list[float] = []
    ledger = Ledger(
        database, POLICY, clock=clock, deadline_seconds=30, on_commit=lambda _, s: seconds.append(s)
    )
    await database.write(hold_much, 20_000)
    clock.advance(DAY)

    sweeping = asyncio.create_task(sweep_all(ledger))
    approved = await ledger.execute(authorize(10**7, "living"))
    asked_while_sweeping = len(seconds)
    await sweeping

    assert approved.outcomes[0].reason == Reason.APPROVED
    assert asked_while_sweeping < 20_000 / store.DUE_HOLDS_MAX <= len(seconds)
    assert max(seconds) < sum(seconds) / 4
    await assert_books_agree(database)
    await ledger.close()


async def test_old_markers_are_pruned_and_new_ones_kept(
    ledger: Ledger, database: Database, clock: Clock
) -> None:
    await ledger.execute(issue())
    clock.advance(2 * DAY)
    await ledger.execute(issue(upstream_id="line-2"))

    await sweeper.sweep(ledger)

    assert len(await database.read(rows, "SELECT id FROM ledger_batch")) == 1


async def test_a_full_round_is_followed_by_another_at_once(
    ledger: Ledger, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "LINES_PER_ROUND", 2)
    for number in range(5):
        await ledger.execute(issue(upstream_id=f"line-{number}", expires_at=NOON + HOUR))
    clock.advance(HOUR)
    stopped = asyncio.Event()
    sweeping = asyncio.create_task(sweeper.keep_sweeping(ledger, timedelta(days=1), stopped))

    async with asyncio.timeout(20):
        while await database.read(rows, "SELECT id FROM credit_line WHERE balance > 0"):
            pass
    stopped.set()
    await sweeping


async def test_those_who_ask_again_together_share_a_transaction(database: Database, clock: Clock) -> None:
    sizes: list[int] = []
    ledger = Ledger(
        database, POLICY, clock=clock, deadline_seconds=30, on_commit=lambda works, _: sizes.append(works)
    )
    await ledger.execute(issue(10**9))

    async def ask(session: int) -> None:
        for round_ in range(3):
            for _ in range(session if round_ else 0):
                await asyncio.sleep(0)  # Over a network, they ask one after the other.
            await ledger.execute(authorize("1", f"session-{session}-{round_}"))

    await asyncio.gather(*(ask(session) for session in range(8)))

    assert sizes == [1, 8, 8, 8]
    await ledger.close()
