"""What is large is taken in small steps, or by an operator: nobody waits for it."""

from __future__ import annotations

from typing import Any

import pytest

from store_credit.webhooks import effects, upkeep
from tests.http_fixtures import MERCHANT, Shop, Start, order_event, source
from tests.making import DAY
from tests.webhooks.payloads import charge, order_told, refund_event

pytest_plugins = ["tests.http_fixtures"]


def order_of(sources: int, **more: Any) -> dict[str, Any]:
    """The event of an order that was paid from so many sources, a cent each."""
    return order_event(*(source(f"source-{number}", 0.01) for number in range(sources)), **more)


async def test_an_event_with_as_many_sources_as_are_booked_is_applied(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "SOURCES_MAX", 3)
    await shop.issue(100)

    assert await shop.deliver(order_of(3)) == "applied"
    assert await shop.figures() == (99.97, 0, 99.97)


async def test_an_event_with_more_sources_waits_for_an_operator(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    line = await shop.issue(100)
    event = order_of(effects.SOURCES_MAX + 1)

    assert await shop.deliver(event) == "unmatched"

    assert "too_many_sources" in capsys.readouterr().out
    assert await shop.figures() == (100, 0, 100)
    (kept,) = await shop.events(state="unmatched")
    (effect,) = kept["effects"]
    assert effect["outcome"] == "too_many_sources"
    assert effect["detail"] == "501 sources, and at most 500 are booked: an operator must see to them"
    assert "store_credit_unmatched_events 1.0" in (await shop.client.get("/metrics")).text
    # Neither delivered nor applied again, nor on a named line.
    assert await shop.deliver(event) == "unmatched"
    for body, status in (({}, 200), ({"creditLineId": line["id"]}, 400)):
        applied = await shop.client.post("/webhook-events/event-1/apply", json=body, auth=MERCHANT)
        assert applied.status_code == status, applied.text
    assert await shop.figures() == (100, 0, 100)
    dismissed = {"json": {"reason": "booked by hand"}, "auth": MERCHANT}
    await shop.client.post("/webhook-events/event-1/dismiss", **dismissed)
    assert await shop.events(state="unmatched") == []


async def test_a_return_of_more_sources_waits_for_an_operator(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "SOURCES_MAX", 2)
    await shop.issue(100)
    assert await shop.deliver(order_of(2)) == "applied"
    charges = [charge(f"source-{number}", refunds=[0.01]) for number in range(3)]

    assert await shop.deliver(order_told("order.refunded", "refunded", charges=charges)) == "unmatched"
    assert await shop.figures() == (99.98, 0, 99.98)


@pytest.mark.parametrize(("steps", "left"), [(2, 3), (50, 0)])
async def test_bodies_are_pruned_in_steps(
    start: Start, monkeypatch: pytest.MonkeyPatch, steps: int, left: int
) -> None:
    monkeypatch.setattr(upkeep, "PER_ROUND", 2)
    monkeypatch.setattr(upkeep, "STEPS_PER_ROUND", steps)
    shop = await start(event_retention="1d")
    for number in range(7):
        await shop.deliver(order_event(event_id=f"event-{number}"))
    shop.clock.advance(2 * DAY)

    await upkeep.tend(shop.service.ledger, shop.service.settings)

    bodies = [(await shop.get(f"/webhook-events/event-{number}"))["body"] for number in range(7)]
    assert [body is None for body in bodies] == [True] * (7 - left) + [False] * left


@pytest.mark.parametrize(("steps", "left"), [(2, 3), (50, 0)])
async def test_parked_returns_are_pruned_in_steps(
    start: Start, monkeypatch: pytest.MonkeyPatch, steps: int, left: int
) -> None:
    monkeypatch.setattr(upkeep, "PER_ROUND", 2)
    monkeypatch.setattr(upkeep, "STEPS_PER_ROUND", steps)
    shop = await start(parked_retention="1d")
    for number in range(7):
        assert await shop.deliver(refund_event(f"event-{number}", [1], f"card-{number}")) == "parked"
    shop.clock.advance(2 * DAY)

    await upkeep.tend(shop.service.ledger, shop.service.settings)

    assert len(await shop.events(state="parked")) == left
    assert (await shop.stored())["source"] == left
