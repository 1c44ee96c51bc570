"""The liability report: exact at any past instant, from the journal alone, to the minor unit."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from store_credit.credentials import Role
from store_credit.fields import instant, time_text
from store_credit.money import to_number
from tests.http_fixtures import CALLOUT, MERCHANT, Json, Shop, decoded, order_event, problem_of, source
from tests.making import DAY, HOUR, NOON, settle

pytest_plugins = ["tests.http_fixtures"]

WHY = {"reason": "a good reason"}
DIGITS = {"USD": 2, "JPY": 0, "KWD": 3}
SIGNS = {
    "issued": ("issued", 1),
    "adjusted": ("adjusted", 1),
    "deducted": ("deducted", -1),
    "returned": ("returned", 1),
    "expired": ("expired", -1),
    "voided": ("voided", -1),
    "write_off_reversed": ("writeOffsReversed", 1),
}
"""The report's name of the entries of each kind that move the balance, and the sign it shows them with."""


async def liability(shop: Shop, as_of: datetime | None = None) -> dict[str, Json]:
    """The report's rows by currency."""
    query = {} if as_of is None else {"asOf": time_text(as_of)}
    report = await shop.get("/reports/liability", **query)
    if as_of is not None:
        assert instant(report["asOf"]) == as_of
    rows: dict[str, Json] = {row["currency"]: row for row in report["data"]}
    assert len(rows) == len(report["data"])
    return rows


def minor(figure: float, currency: str) -> int:
    return round(figure * 10 ** DIGITS[currency])


def assert_balanced(row: Json) -> None:
    """The equation that holds for each currency at every instant, to the minor unit."""
    of = {name: minor(figure, row["currency"]) for name, figure in row.items() if name != "currency"}
    assert of["issued"] + of["adjusted"] == (
        of["deducted"]
        - of["returned"]
        + of["expired"]
        + of["voided"]
        - of["writeOffsReversed"]
        + of["outstanding"]
    )
    assert of["available"] == of["outstanding"] - of["held"]


async def post(shop: Shop, path: str, body: Json, *refusals: int) -> None:
    response = await shop.client.post(path, json=body, auth=MERCHANT)
    assert response.status_code in (200, 201, *refusals), response.text


async def test_nothing_is_owed_before_the_first_line(shop: Shop) -> None:
    assert await liability(shop) == {}
    await shop.issue(100)
    assert await liability(shop, NOON - timedelta(microseconds=1)) == {}


async def test_every_figure_of_a_history(shop: Shop) -> None:
    line = await shop.issue(100, expiresTime="2026-11-23T12:00:00Z")
    await post(shop, f"/credit-lines/{line['id']}/adjustments", {"amount": -10, **WHY})
    await shop.deliver(order_event(source(amount=30)))
    await shop.authorize(20, "session-2")
    closed = await shop.issue(5.05, "line-2")
    await post(shop, f"/credit-lines/{closed['id']}/close", WHY)

    assert (await liability(shop))["USD"] == {
        "currency": "USD",
        "issued": 105.05,
        "adjusted": -10,
        "deducted": 30,
        "returned": 0,
        "expired": 0,
        "voided": 5.05,
        "writeOffsReversed": 0,
        "held": 20,
        "available": 40,
        "outstanding": 60,
    }


async def test_an_expired_line_whose_order_came_late(shop: Shop) -> None:
    line = await shop.issue(100, expiresTime="2026-11-20T13:00:00Z")
    shop.clock.advance(HOUR)
    await shop.service.ledger.execute(settle(line["id"]))
    assert (await liability(shop))["USD"]["expired"] == 100

    await shop.deliver(order_event(source(amount=30)))

    row = (await liability(shop))["USD"]
    assert (row["expired"], row["writeOffsReversed"], row["deducted"]) == (100, 30, 30)
    assert row["outstanding"] == 0
    assert_balanced(row)


async def test_the_instant_itself_is_included(shop: Shop) -> None:
    await shop.issue(100)
    shop.clock.advance(HOUR)
    await shop.issue(1, "line-2")

    assert (await liability(shop, NOON))["USD"]["outstanding"] == 100
    assert (await liability(shop, NOON + HOUR - timedelta(microseconds=1)))["USD"]["outstanding"] == 100
    assert (await liability(shop, NOON + HOUR))["USD"]["outstanding"] == 101
    assert (await liability(shop))["USD"]["outstanding"] == 101


async def test_currencies_are_never_added_together(shop: Shop) -> None:
    await shop.issue(100)
    await shop.issue(500, "yen", currency="JPY")
    await shop.issue(1.234, "dinars", currency="KWD")

    rows = await liability(shop)

    assert {currency: row["outstanding"] for currency, row in rows.items()} == {
        "JPY": 500,
        "KWD": 1.234,
        "USD": 100,
    }


@pytest.mark.parametrize("as_of", ["yesterday", "", "2026-11-20T12:00:00", "2026-11-20"])
async def test_an_instant_that_is_none(shop: Shop, as_of: str) -> None:
    response = await shop.client.get("/reports/liability", params={"asOf": as_of}, auth=MERCHANT)
    assert problem_of(response, 400, "bad_request")["parameter"] == "asOf"


async def test_readers_may_see_it_and_others_not(shop: Shop) -> None:
    reader = ("reader", await shop.add_credential("reader", Role.READER))
    decoded(await shop.client.get("/reports/liability", auth=reader))
    problem_of(await shop.client.get("/reports/liability", auth=CALLOUT), 403, "forbidden")


class Year:
    """A random history of several lines, made over HTTP; what is refused is part of it."""

    def __init__(self, shop: Shop, seed: int) -> None:
        self._shop = shop
        self._random = random.Random(seed)
        self._lines: list[tuple[str, str, str]] = []
        """Id, upstream id and currency of each."""
        self._orders: list[tuple[str, str, str, int]] = []

    async def live(self, steps: int) -> None:
        for n in range(3):
            await self._issue(n)
        for n in range(steps):
            self._shop.clock.advance(self._random.choice((0, 0, 1, 5, 30)) * HOUR)
            step = self._random.choice(
                (self._issue, self._hold, self._order, self._order, self._back, self._keep, self._keep)
            )
            await step(n)

    async def _issue(self, n: int) -> None:
        currency = self._random.choice(list(DIGITS))
        upstream_id = f"line-{len(self._lines)}"
        ends = self._shop.clock() + self._random.choice((3, 40, 400)) * HOUR
        expires = time_text(ends) if self._random.random() < 0.7 else None
        line = await self._shop.issue(
            self._amount(currency, 5_000), upstream_id, currency=currency, expiresTime=expires
        )
        self._lines.append((line["id"], upstream_id, currency))

    async def _hold(self, n: int) -> None:
        _, upstream_id, currency = self._random.choice(self._lines)
        await self._shop.authorize(self._amount(currency, 3_000), f"session-{n % 7}", upstream_id)

    async def _order(self, n: int) -> None:
        _, upstream_id, currency = self._random.choice(self._lines)
        amount = self._random.randrange(1, 3_000)
        spent = source(f"source-{n}", to_number(amount, currency), upstream_id, currency)
        session_id = self._random.choice((None, f"session-{n % 7}"))
        await self._shop.deliver(
            order_event(spent, event_id=f"e-{n}", order_id=f"o-{n}", session_id=session_id)
        )
        self._orders.append((f"o-{n}", f"source-{n}", currency, amount))

    async def _back(self, n: int) -> None:
        if not self._orders:
            return
        order_id, source_id, currency, _ = self._random.choice(self._orders)
        event = order_event(
            source(source_id, 1, None, currency),
            event_id=f"back-{n}",
            order_id=order_id,
            event_type="order.cancelled",
        )
        await self._shop.deliver(event)

    async def _keep(self, n: int) -> None:
        line_id, _, currency = self._random.choice(self._lines)
        action = self._random.choice(("adjustments", "adjustments", "suspend", "resume", "close", "reopen"))
        amount = self._random.choice((-1, 1)) * self._amount(currency, 500)
        body = {**WHY, "amount": amount} if action == "adjustments" else WHY
        await post(self._shop, f"/credit-lines/{line_id}/{action}", body, 409)

    def _amount(self, currency: str, most: int) -> float:
        return to_number(self._random.randrange(1, most), currency)


async def test_liability_at_random_instants_is_a_replay_of_the_journal(shop: Shop) -> None:
    await Year(shop, seed=4).live(90)
    journal = await shop.service.database.read(_journal)
    kinds = {kind for _, kind, _, _, _ in journal}
    assert SIGNS.keys() <= kinds, SIGNS.keys() - kinds
    times = sorted({at for *_, at in journal})
    chosen = random.Random(5)
    edges = chosen.sample(times, 8)
    between = [NOON + chosen.random() * (times[-1] + DAY - NOON) for _ in range(12)]

    for as_of in (NOON - DAY, *edges, *between, times[-1]):
        rows = await liability(shop, as_of)
        assert rows == _replayed(journal, as_of)
        for row in rows.values():
            assert_balanced(row)


_Entry = tuple[str, str, int, int, datetime]


def _journal(connection: Connection) -> list[_Entry]:
    """Currency, kind, amount, held and time of each entry, by time."""
    rows = connection.execute(
        text(
            "SELECT currency, kind, amount, ledger_entry.held, ledger_entry.created_at FROM ledger_entry"
            " JOIN credit_line ON credit_line.id = line_id ORDER BY ledger_entry.created_at"
        )
    )
    return [(*row[:4], _time(row[4])) for row in rows]


def _time(stored: Any) -> datetime:
    """SQLite keeps times as text."""
    return stored if isinstance(stored, datetime) else instant(f"{stored}Z".replace(" ", "T"))


def _replayed(journal: list[_Entry], as_of: datetime) -> dict[str, Json]:
    """The report, made by adding up the entries one by one."""
    sums: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for currency, kind, amount, held, at in journal:
        if at > as_of:
            continue
        of = sums[currency]
        of["held"] += held
        of["outstanding"] += amount
        if kind in SIGNS:
            name, sign = SIGNS[kind]
            of[name] += sign * amount
        else:
            assert amount == 0
    names = [name for name, _ in SIGNS.values()] + ["held", "outstanding"]
    return {
        currency: {
            "currency": currency,
            "available": to_number(of["outstanding"] - of["held"], currency),
            **{name: to_number(of[name], currency) for name in names},
        }
        for currency, of in sums.items()
    }
