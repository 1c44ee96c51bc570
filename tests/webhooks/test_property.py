"""However a true history is told, the line ends at the same, right balance.

And the race of a deduction and its return, made in two ledgers on one PostgreSQL.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from sqlalchemy import Connection, text

from store_credit.database import Database, connect
from store_credit.ledger.audit import audit
from store_credit.ledger.ledger import Ledger
from store_credit.webhooks import inbox
from store_credit.webhooks.events import read
from tests.http_fixtures import Json, order_event, source
from tests.making import POLICY, Clock, issue
from tests.webhooks.payloads import cancel_event, cancelled_charge_event, charge, order_told, refund_event

HISTORIES = 40
RACES = 120
ISSUED = 1_000_00


@dataclass
class History:
    """What truly became of one source of one order, and the events that may tell it."""

    number: int
    spent: int
    came_back: int
    events: list[Json]


class Teller:
    """Random true histories of orders, each told by charges, orders or both."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def history(self, number: int) -> History:
        spent = self._random.randint(3, 90_00)
        cancels, left = self._some(spent, "x")
        refunds, left = self._some(left, "r")
        events = [*self._deductions(number, spent), *self._told(number, cancels, refunds)]
        end = self._random.choice((None, None, "order.cancelled", "order.blocked", "charge"))
        if end == "charge":
            captured = {"c": sum(refunds.values()) / 100} if refunds else {}
            events.append(cancelled_charge_event(f"{number}-end", captured, f"s{number}"))
        elif end is not None:
            events.append(order_told(end, f"{number}-end", sources=[self._source(number, spent)]))
        for event in events:
            about = event["data"]["object"]
            about["orderId" if "orderId" in about else "id"] = f"o{number}"
        left = 0 if end is not None else left
        return History(number, spent, spent - left, self._deliveries(events))

    def _some(self, most: int, name: str) -> tuple[dict[str, int], int]:
        """Up to four amounts that together are at most this much, and what remains."""
        amounts: dict[str, int] = {}
        for n in range(self._random.randint(0, 4)):
            if most > 0:
                amounts[f"{name}{n}"] = self._random.randint(1, most)
                most -= amounts[f"{name}{n}"]
        return amounts, most

    def _source(self, number: int, spent: int) -> Json:
        return source(f"s{number}", spent / 100)

    def _deductions(self, number: int, spent: int) -> list[Json]:
        told = self._source(number, spent)
        created = order_event(told, event_id=f"{number}-created", session_id=f"session-{number}")
        accepted = order_event(
            told, event_id=f"{number}-accepted", session_id=None, event_type="order.accepted"
        )
        return self._random.choice(([created], [accepted], [created, accepted]))

    def _told(self, number: int, cancels: dict[str, int], refunds: dict[str, int]) -> list[Json]:
        by_charge = [
            *self._growing(cancels, lambda n, told: cancel_event(f"{number}-x{n}", told, f"s{number}")),
            *self._growing(refunds, lambda n, told: refund_event(f"{number}-r{n}", told, f"s{number}")),
        ]

        def refunded(n: int, told: dict[str, float]) -> Json:
            charges = [charge(f"s{number}", refunds=list(told.values()))]
            return order_told("order.refunded", f"{number}-o{n}", charges=charges)

        by_order = self._growing(refunds, refunded)
        cancelled = self._growing(
            cancels, lambda n, told: cancel_event(f"{number}-x{n}", told, f"s{number}")
        )
        choices = (by_charge, [*cancelled, *by_order], [*by_charge, *by_order])
        return self._random.choice(choices)

    def _growing(
        self, amounts: dict[str, int], event: Callable[[int, dict[str, float]], Json]
    ) -> list[Json]:
        """Cumulative events; any but the last may be dropped."""
        named = [(name, minor / 100) for name, minor in amounts.items()]
        told = [event(n, dict(named[: n + 1])) for n in range(len(named))]
        return [e for n, e in enumerate(told) if n == len(told) - 1 or self._random.random() < 0.6]

    def _deliveries(self, events: list[Json]) -> list[Json]:
        repeated = [event for event in events for _ in range(self._random.choice((1, 1, 2, 3)))]
        self._random.shuffle(repeated)
        return repeated


async def deliver(ledger: Ledger, event: Json) -> str:
    body = json.dumps(event)
    return (await inbox.receive(ledger, read(json.loads(body)), body)).state


async def assert_told(database: Database, histories: list[History]) -> None:
    expected = ISSUED + sum(history.came_back - history.spent for history in histories)

    def figures(connection: Connection) -> tuple[int, dict[str, int]]:
        balance = connection.execute(text("SELECT balance FROM credit_line")).scalar_one()
        rows = connection.execute(text("SELECT source_id, returned FROM deduction"))
        return balance, {row.source_id: row.returned for row in rows}

    balance, returned = await database.read(figures)
    assert returned == {f"s{history.number}": history.came_back for history in histories}
    assert balance == expected
    assert await database.read(lambda connection: list(audit(connection))) == []


@pytest.mark.parametrize("seed", range(4))
async def test_however_it_is_told_the_balance_is_right(
    ledger: Ledger, database: Database, seed: int
) -> None:
    teller = Teller(seed)
    await ledger.execute(issue(ISSUED))
    histories = [teller.history(number) for number in range(HISTORIES)]
    for history in histories:
        half = len(history.events) // 2
        states = [
            *await asyncio.gather(*(deliver(ledger, event) for event in history.events[:half])),
            *[await deliver(ledger, event) for event in history.events[half:]],
        ]
        assert set(states) <= {"applied", "parked"}
    await assert_told(database, histories)


async def test_orders_told_all_at_once_come_out_right(ledger: Ledger, database: Database) -> None:
    teller = Teller(99)
    await ledger.execute(issue(ISSUED))
    histories = [teller.history(number) for number in range(HISTORIES)]
    events = [event for history in histories for event in history.events]
    random.Random(99).shuffle(events)
    await asyncio.gather(*(deliver(ledger, event) for event in events))
    await assert_told(database, histories)


@pytest.fixture
async def two_ledgers(postgresql_url: str) -> AsyncIterator[tuple[Ledger, Ledger]]:
    """As in two processes: nothing is shared but the database."""
    databases = [connect(postgresql_url), connect(postgresql_url)]
    first, second = (Ledger(database, POLICY, clock=Clock(), deadline_seconds=30) for database in databases)
    yield first, second
    for ledger, database in zip((first, second), databases, strict=True):
        await ledger.close()
        await database.close()


async def test_a_deduction_and_its_return_in_two_processes_never_miss_each_other(
    two_ledgers: tuple[Ledger, Ledger],
) -> None:
    first, second = two_ledgers
    await first.execute(issue(ISSUED))
    for n in range(RACES):
        order = order_event(source(f"s{n}", 5), event_id=f"{n}-order", order_id=f"o{n}", session_id=None)
        refund = refund_event(f"{n}-refund", {"r": 2}, f"s{n}", orderId=f"o{n}")
        ledgers = (first, second) if n % 2 else (second, first)
        await asyncio.gather(deliver(ledgers[0], order), deliver(ledgers[1], refund))
    histories = [History(n, 5_00, 2_00, []) for n in range(RACES)]
    await assert_told(first.database, histories)


async def test_histories_told_to_two_processes_come_out_right(
    two_ledgers: tuple[Ledger, Ledger],
) -> None:
    teller = Teller(7)
    await two_ledgers[0].execute(issue(ISSUED))
    histories = [teller.history(number) for number in range(HISTORIES)]
    for history in histories:
        told = (deliver(two_ledgers[n % 2], event) for n, event in enumerate(history.events))
        await asyncio.gather(*told)
    await assert_told(two_ledgers[0].database, histories)
