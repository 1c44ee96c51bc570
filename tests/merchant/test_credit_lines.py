"""Issuing and looking up credit lines: what goes in comes out, and figures are settled when shown."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from store_credit.credentials import Role
from tests.http_fixtures import CALLOUT, MERCHANT, Shop, decoded, order_event, problem_of, source
from tests.making import DAY, HOUR

pytest_plugins = ["tests.http_fixtures"]

SECOND = timedelta(seconds=1)
SMALLEST = {"customerId": "customer-1", "currency": "USD", "amount": 100}


async def post(shop: Shop, **body: Any) -> dict[str, Any]:
    response = await shop.client.post("/credit-lines", json=SMALLEST | body, auth=MERCHANT)
    return decoded(response, 201)


async def states(shop: Shop) -> list[str]:
    return [hold["state"] for hold in await shop.history("holds")]


# Issued


async def test_a_line_with_all_that_can_be_said(shop: Shop) -> None:
    line = await post(
        shop,
        upstreamId="gift/1",
        amount=100.5,
        name="Birthday",
        iconUrl="https://shop.test/i.png",
        lastFour="0042",
        expiresTime="2027-01-01T00:00:00+01:00",
        allowPartial=True,
        reason="refund of order 7",
        metadata={"note": "x", "count": 3, "share": 0.5, "vip": True, "none": None},
    )
    assert line.pop("id").startswith("cl_")
    assert line == {
        "upstreamId": "gift/1",
        "customerId": "customer-1",
        "currency": "USD",
        "status": "active",
        "balance": 100.5,
        "held": 0,
        "available": 100.5,
        "name": "Birthday",
        "iconUrl": "https://shop.test/i.png",
        "lastFour": "0042",
        "allowPartial": True,
        "expiresTime": "2026-12-31T23:00:00Z",
        "createdTime": "2026-11-20T12:00:00Z",
        "updatedTime": "2026-11-20T12:00:00Z",
        "flags": [],
        "metadata": {"note": "x", "count": 3, "share": 0.5, "vip": True, "none": None},
    }


async def test_a_line_with_the_least_that_must_be_said(shop: Shop) -> None:
    line = await post(shop)
    assert line["upstreamId"].startswith("sc_")
    empty = {name: line[name] for name in ("name", "iconUrl", "lastFour", "allowPartial", "expiresTime")}
    assert set(empty.values()) == {None}
    assert line["metadata"] == {}


async def test_an_issued_line_is_shown_as_it_was_answered(shop: Shop) -> None:
    line = await post(shop, amount=0.01, metadata={"count": 3}, expiresTime="2026-11-20T12:00:00.5Z")
    assert await shop.get(f"/credit-lines/{line['id']}") == line


async def test_each_line_without_an_upstream_id_gets_one_of_its_own(shop: Shop) -> None:
    minted = {(await post(shop))["upstreamId"] for _ in range(3)}
    assert len(minted) == 3


async def test_the_issue_is_the_first_entry(shop: Shop) -> None:
    line = await post(shop, upstreamId="line-1", reason="refund of order 7")
    (entry,) = await shop.history("entries")
    assert len(entry.pop("hash")) == len(entry.pop("previousHash")) == 64
    assert entry == {
        "id": f"{line['id']}.1",
        "seq": 1,
        "kind": "issued",
        "amount": 100,
        "held": 0,
        "balanceAfter": 100,
        "heldAfter": 0,
        "holdId": None,
        "deductionId": None,
        "eventId": None,
        "actor": "merchant",
        "reason": "refund of order 7",
        "idempotencyKey": None,
        "createdTime": "2026-11-20T12:00:00Z",
    }


@pytest.mark.parametrize(
    ("currency", "amount"),
    [
        ("USD", 0.01),
        ("USD", 9_999_999_999_999.99),
        ("JPY", 1),
        ("JPY", 999_999_999_999_999),
        ("KWD", 0.001),
    ],
)
async def test_the_smallest_and_the_largest_amount(shop: Shop, currency: str, amount: float) -> None:
    line = await post(shop, currency=currency, amount=amount, upstreamId="line-1")
    assert line["balance"] == amount
    assert await shop.figures() == (amount, 0, amount)


async def test_float_noise_is_rounded_away(shop: Shop) -> None:
    assert (await post(shop, amount=53.769999999999996))["balance"] == 53.77


@pytest.mark.parametrize("upstream_id", ["x" * 1024, "券/%00 ", " ", "\t\n"])
async def test_an_upstream_id_may_be_any_text(shop: Shop, upstream_id: str) -> None:
    await post(shop, upstreamId=upstream_id)
    assert (await shop.line(upstream_id))["upstreamId"] == upstream_id


async def test_an_upstream_id_is_taken_for_ever(shop: Shop) -> None:
    await post(shop, upstreamId="line-1")
    body = SMALLEST | {"upstreamId": "line-1", "customerId": "customer-2"}
    problem = problem_of(await shop.client.post("/credit-lines", json=body, auth=MERCHANT), 409, "conflict")
    assert (problem["code"], problem["parameter"]) == ("already_exists", "upstreamId")
    assert (await shop.stored())["credit_line"] == 1


async def test_the_expiry_must_be_in_the_future(shop: Shop) -> None:
    body = SMALLEST | {"expiresTime": "2026-11-20T12:00:00Z"}
    response = await shop.client.post("/credit-lines", json=body, auth=MERCHANT)
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", "expiresTime")
    assert (await shop.stored())["credit_line"] == 0


# Roles


async def test_a_reader_may_look(shop: Shop) -> None:
    await shop.issue(100)
    password = await shop.add_credential("auditor", Role.READER)
    assert len((await shop.get("/credit-lines", auth=("auditor", password)))["data"]) == 1


async def test_a_reader_may_not_issue(shop: Shop) -> None:
    password = await shop.add_credential("auditor", Role.READER)
    response = await shop.client.post("/credit-lines", json=SMALLEST, auth=("auditor", password))
    assert problem_of(response, 403, "forbidden")["code"] == "forbidden"
    assert (await shop.stored())["credit_line"] == 0


@pytest.mark.parametrize(
    "path",
    [
        "/credit-lines",
        "/credit-lines/x",
        "/credit-lines/x/entries",
        "/credit-lines/x/holds",
        "/credit-lines/x/deductions",
        "/credit-lines/x/decisions",
        "/decisions",
        "/webhook-events",
        "/webhook-events/x",
    ],
)
async def test_digital_river_may_not_look(shop: Shop, path: str) -> None:
    problem_of(await shop.client.get(path, auth=CALLOUT), 403, "forbidden")


# Shown


async def test_the_figures_after_each_step(shop: Shop) -> None:
    await shop.issue(100)
    assert await shop.figures() == (100, 0, 100)
    await shop.authorize(60)
    assert await shop.figures() == (100, 60, 40)
    await shop.deliver(order_event(source(amount=50)))
    assert await shop.figures() == (50, 0, 50)


async def test_a_hold_at_its_end_is_shown_as_expired_without_any_sweep(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(60)
    shop.clock.advance(DAY)
    assert await shop.figures() == (100, 0, 100)
    (hold,) = await shop.history("holds")
    assert (hold["state"], hold["endedTime"]) == ("expired", "2026-11-21T12:00:00Z")
    assert [entry["kind"] for entry in await shop.history("entries")] == ["issued", "held"]


async def test_a_hold_just_before_its_end_is_shown_as_open(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(60)
    shop.clock.advance(DAY - SECOND)
    assert await shop.figures() == (100, 60, 40)
    assert await states(shop) == ["open"]


async def test_a_line_at_its_expiry_is_worth_nothing_without_any_sweep(shop: Shop) -> None:
    await shop.issue(100, expiresTime="2026-11-20T13:00:00Z")
    shop.clock.advance(HOUR)
    line = await shop.line()
    assert (line["status"], line["balance"], line["available"]) == ("expired", 0, 0)
    assert [entry["kind"] for entry in await shop.history("entries")] == ["issued"]


async def test_an_expired_line_is_worth_what_it_holds(shop: Shop) -> None:
    await shop.issue(100, expiresTime="2026-11-20T13:00:00Z")
    await shop.authorize(30)
    shop.clock.advance(HOUR)
    line = await shop.line()
    assert (line["status"], line["balance"], line["held"], line["available"]) == ("expired", 30, 30, 0)


async def test_a_hold_and_its_line_that_are_both_past_their_time(shop: Shop) -> None:
    await shop.issue(100, expiresTime="2026-11-20T13:00:00Z")
    await shop.authorize(30)
    shop.clock.advance(DAY)
    assert await shop.figures() == (0, 0, 0)


@pytest.mark.parametrize("noun", ["", "/entries", "/holds", "/deductions", "/decisions"])
@pytest.mark.parametrize("line_id", ["cl_nobody", "x" * 300, "%00", "%FF", "a%20b", "%F0%9F%8E%81"])
async def test_a_line_that_nobody_knows(shop: Shop, noun: str, line_id: str) -> None:
    response = await shop.client.get(f"/credit-lines/{line_id}{noun}", auth=MERCHANT)
    problem = problem_of(response, 404, "not_found")
    assert (problem["code"], problem["parameter"]) == ("not_found", "id")


@pytest.mark.parametrize("event_id", ["nobody's", "x" * 300, "%00", "%FF", ""])
async def test_an_event_that_nobody_sent(shop: Shop, event_id: str) -> None:
    response = await shop.client.get(f"/webhook-events/{event_id}", auth=MERCHANT)
    assert problem_of(response, 404, "not_found")["code"] == "not_found"
