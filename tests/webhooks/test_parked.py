"""Returns that arrive before the order that they belong to: what the inbox tells of them afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, update

from store_credit.webhooks import inbox, upkeep
from store_credit.webhooks.tables import webhook_event
from tests.http_fixtures import Json, Shop, order_event, source
from tests.making import HOUR
from tests.webhooks.payloads import charge, order_told, refund_event

pytest_plugins = ["tests.http_fixtures"]


async def balance(shop: Shop, upstream_id: str = "line-1") -> float:
    return (await shop.figures(upstream_id))[0]


async def effects_of(shop: Shop, event_id: str) -> list[tuple[str | None, str | None]]:
    """The source and the outcome of each effect."""
    effects: list[Json] = (await shop.get(f"/webhook-events/{event_id}"))["effects"]
    return [(effect["sourceId"], effect["outcome"]) for effect in effects]


async def state_of(shop: Shop, event_id: str) -> str:
    state: str = (await shop.get(f"/webhook-events/{event_id}"))["state"]
    return state


async def test_what_waited_says_that_it_is_booked(shop: Shop) -> None:
    line = await shop.issue(100)
    assert await shop.deliver(refund_event("event-2", {"r1": 5})) == "parked"
    assert await effects_of(shop, "event-2") == [("source-1", "parked")]
    await shop.deliver(order_event(source(amount=20)))
    shown = await shop.get("/webhook-events/event-2")
    (effect,) = shown["effects"]
    (deduction,) = await shop.history("deductions")
    assert (shown["state"], shown["note"]) == ("applied", None)
    assert (effect["outcome"], effect["detail"]) == ("returned", "booked with its deduction")
    assert (effect["creditLineId"], effect["deductionId"]) == (line["id"], deduction["id"])
    assert [entry["kind"] for entry in await shop.history("entries")] == ["issued", "deducted", "returned"]


async def test_what_still_waits_says_so(shop: Shop) -> None:
    await shop.issue(100)
    charges = [charge(refunds={"r1": 5}), charge("card", refunds={"r2": 7})]
    await shop.deliver(order_told("order.refunded", "event-2", charges=charges))
    await shop.deliver(order_event(source(amount=20)))
    assert await effects_of(shop, "event-2") == [("source-1", "returned"), ("card", "parked")]
    assert await state_of(shop, "event-2") == "applied"
    assert await balance(shop) == 85


async def test_what_waited_for_an_operator_s_line_says_that_it_is_booked(shop: Shop) -> None:
    line = await shop.issue(100)
    await shop.deliver(order_event(source(amount=20, upstream_id=None)))
    await shop.deliver(refund_event("event-2", {"r1": 5}))
    path = "/webhook-events/event-1/apply"
    await shop.client.post(path, json={"creditLineId": line["id"]}, auth=("merchant", "merchant-password"))
    assert await effects_of(shop, "event-2") == [("source-1", "returned")]
    assert await balance(shop) == 85


async def test_what_waited_in_the_same_event_says_that_it_is_booked(shop: Shop) -> None:
    """An order that was blocked before its line was known."""
    line = await shop.issue(100)
    sources = [source("source-1", 20, None), source("source-2", 30, None)]
    assert await shop.deliver(order_event(*sources, state="blocked")) == "unmatched"
    path = "/webhook-events/event-1/apply"
    for n in ("source-1", "source-2"):
        body = {"creditLineId": line["id"], "sourceId": n}
        await shop.client.post(path, json=body, auth=("merchant", "merchant-password"))
    outcomes = ["deducted", "deducted", "returned", "returned"]
    assert [outcome for _, outcome in await effects_of(shop, "event-1")] == outcomes
    assert await balance(shop) == 100


async def test_what_waited_in_another_currency_failed(shop: Shop) -> None:
    await shop.issue(100)
    assert await shop.deliver(refund_event("event-2", {"r1": 5}, currency="EUR")) == "parked"
    assert await shop.deliver(order_event(source(amount=20))) == "applied"
    assert await balance(shop) == 80
    assert await state_of(shop, "event-2") == "failed"
    assert await effects_of(shop, "event-2") == [("source-1", "other_currency")]
    waiting = await shop.client.get("/metrics")
    assert "store_credit_unmatched_events 1.0" in waiting.text


@pytest.mark.parametrize("first", ["EUR", "USD"])
async def test_of_two_currencies_the_right_one_is_booked(shop: Shop, first: str) -> None:
    """Whichever came first: which of them is right is known with the deduction, and no sooner."""
    second = "USD" if first == "EUR" else "EUR"
    await shop.issue(100)
    await shop.deliver(refund_event(f"event-{first}", {f"r-{first}": 5}, currency=first))
    await shop.deliver(refund_event(f"event-{second}", {f"r-{second}": 7}, currency=second))
    await shop.deliver(order_event(source(amount=20)))
    shop.clock.advance(HOUR)
    await upkeep.tend(shop.service.ledger, shop.service.settings)
    assert await balance(shop) == 80 + (5 if first == "USD" else 7)
    assert (await state_of(shop, "event-USD"), await state_of(shop, "event-EUR")) == ("applied", "failed")


async def test_what_a_crash_left_untold_is_told_later(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deduction and the return are committed; only then the process ends."""
    await shop.issue(100)
    await shop.deliver(refund_event("event-2", {"r1": 5}))

    async def ended(*_given: Any) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(inbox, "apply_again", ended)
        with pytest.raises(asyncio.CancelledError):
            await shop.deliver(order_event(source(amount=20)))
    assert await balance(shop) == 85
    assert await state_of(shop, "event-2") == "applied"
    await upkeep.tend(shop.service.ledger, shop.service.settings)
    assert await effects_of(shop, "event-2") == [("source-1", "returned")]
    assert await balance(shop) == 85


async def test_what_waited_without_its_body_is_applied_and_left_alone(shop: Shop) -> None:
    def forget(connection: Connection) -> None:
        named = webhook_event.c.event_id == "event-2"
        connection.execute(update(webhook_event).where(named).values(body=None))

    await shop.issue(100)
    await shop.deliver(refund_event("event-2", {"r1": 5}))
    await shop.service.database.write(forget)
    assert await shop.deliver(order_event(source(amount=20))) == "applied"
    assert await balance(shop) == 85
    for _ in range(3):
        shop.clock.advance(HOUR)
        await upkeep.tend(shop.service.ledger, shop.service.settings)
    shown = await shop.get("/webhook-events/event-2")
    assert (shown["state"], shown["note"]) == ("applied", None)
