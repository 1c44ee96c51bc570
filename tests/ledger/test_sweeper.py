"""The sweeper, and how works gather for a transaction."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from store_credit.database import Database
from store_credit.ledger import sweeper
from store_credit.ledger.ledger import Ledger
from tests.making import DAY, HOUR, NOON, POLICY, Clock, authorize, issue


def rows(connection: Connection, query: str) -> list[Any]:
    return [tuple(row) for row in connection.execute(text(query))]


async def test_a_hold_past_its_time_is_released(ledger: Ledger, database: Database, clock: Clock) -> None:
    await ledger.execute(issue())
    await ledger.execute(authorize("10"))
    clock.advance(DAY)

    assert await sweeper.sweep(ledger) == 1

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

    assert await sweeper.sweep(ledger) == 0
    assert await database.read(rows, "SELECT count(*) FROM ledger_entry") == [(2,)]


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
