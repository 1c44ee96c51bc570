"""An order's whole life, as signed events: what comes back, and whatever arrives in the wrong order."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest
from sqlalchemy import Connection, text

from store_credit.ledger.audit import audit
from store_credit.webhooks import upkeep
from tests.http_fixtures import MERCHANT, Json, Shop, Start, order_event, source
from tests.making import DAY, HOUR
from tests.webhooks.payloads import (
    cancel_event,
    cancelled_charge_event,
    charge,
    order_told,
    parts,
    refund_event,
)

pytest_plugins = ["tests.http_fixtures"]


async def spend(shop: Shop, amount: Any = 20, balance: Any = 100, **line: Any) -> None:
    """A line of which an order spent this much."""
    await shop.issue(balance, **line)
    assert await shop.deliver(order_event(source(amount=amount))) == "applied"


async def balance(shop: Shop, upstream_id: str = "line-1") -> float:
    return (await shop.figures(upstream_id))[0]


async def kinds(shop: Shop) -> list[str]:
    return [entry["kind"] for entry in await shop.history("entries")]


async def put(shop: Shop, status: str) -> None:
    def change(connection: Connection) -> None:
        connection.execute(text("UPDATE credit_line SET status = :status"), {"status": status})

    await shop.service.database.write(change)


async def assert_sound(shop: Shop) -> None:
    assert await shop.service.database.read(lambda connection: list(audit(connection))) == []


# How Digital River splits money over sources


async def test_half_of_an_order_fulfilled_and_the_rest_cancelled_on_the_card(shop: Shop) -> None:
    await shop.issue(11)
    card = source("card", 15.89, None, type="creditCard")
    assert await shop.deliver(order_event(source(amount=11.0), card)) == "applied"
    captured = refund_event("event-2", {}, captures=[{"id": "c1", "amount": 11.0, "state": "complete"}])
    captured["type"] = "order.charge.capture.complete"
    assert await shop.deliver(captured) == "ignored"
    assert await shop.deliver(cancel_event("event-3", {"x1": 13.44}, "card")) == "parked"
    assert await shop.figures() == (0, 0, 0)


async def test_one_of_two_items_cancelled_comes_off_the_card(shop: Shop) -> None:
    await spend(shop, 5.0, 5)
    assert await shop.deliver(cancel_event("event-2", {"x1": 10.0}, "card")) == "parked"
    assert await shop.deliver(cancel_event("event-3", {})) == "ignored"
    assert await balance(shop) == 0


async def test_half_of_an_order_refunded_fills_the_card_first(shop: Shop) -> None:
    await spend(shop, 20.0, 20)
    assert await shop.deliver(refund_event("event-2", {"r1": 6.89}, "card")) == "parked"
    assert await shop.deliver(refund_event("event-3", {"r2": 6.56})) == "applied"
    assert await shop.figures() == (6.56, 0, 6.56)
    (deduction,) = await shop.history("deductions")
    assert (deduction["amount"], deduction["returned"]) == (20, 6.56)


# Orders in time


async def test_a_full_refund_in_three_parts(shop: Shop) -> None:
    await spend(shop, 26.89)
    told: dict[str, float] = {}
    for n, (amount, left) in enumerate([(8.97, 82.08), (8.96, 91.04), (8.96, 100)]):
        told[f"r{n}"] = amount
        assert await shop.deliver(refund_event(f"event-r{n}", dict(told))) == "applied"
        assert await balance(shop) == left
    await assert_sound(shop)


async def test_the_journal_names_the_refund_and_the_event(shop: Shop) -> None:
    await spend(shop)
    await shop.deliver(cancel_event("event-2", {"x1": 3}))
    await shop.deliver(refund_event("event-3", {"r1": 5, "r2": 1}))
    cancelled, refunded = (await shop.history("entries"))[-2:]
    assert (cancelled["kind"], cancelled["amount"], cancelled["eventId"]) == ("returned", 3, "event-2")
    assert cancelled["reason"] == "cancel x1"
    assert (refunded["amount"], refunded["eventId"]) == (6, "event-3")
    assert (refunded["reason"], refunded["actor"]) == ("refund r1, r2", "digital-river")
    (effect,) = (await shop.get("/webhook-events/event-3"))["effects"]
    assert (effect["kind"], effect["outcome"], effect["amount"]) == ("return", "returned", 6)


async def test_a_cancel_and_then_a_refund(shop: Shop) -> None:
    await spend(shop, 20)
    await shop.deliver(cancel_event("event-2", {"x1": 8}))
    await shop.deliver(
        refund_event("event-3", {"r1": 7}, cancels=[{"id": "x1", "amount": 8, "state": "complete"}])
    )
    assert await balance(shop) == 95


@pytest.mark.parametrize("state", ["pending", "failed", "processing", None])
async def test_only_what_is_complete_counts(shop: Shop, state: str | None) -> None:
    await spend(shop)
    pending = refund_event("event-2", {}, refunds=[{"id": "r1", "amount": 5, "state": state}])
    assert await shop.deliver(pending) == "ignored"
    assert await balance(shop) == 80


async def test_a_refund_before_its_order(shop: Shop) -> None:
    await shop.issue(100)
    assert await shop.deliver(refund_event("event-2", {"r1": 5})) == "parked"
    assert await shop.deliver(order_event(source(amount=20))) == "applied"
    assert await balance(shop) == 85
    entry = (await shop.history("entries"))[-1]
    assert (entry["kind"], entry["reason"], entry["eventId"]) == ("returned", "refund r1", "event-2")
    assert (await shop.get("/webhook-events/event-2"))["state"] == "applied"
    assert await shop.deliver(refund_event("event-2", {"r1": 5})) == "applied"
    assert await balance(shop) == 85


ENDS = ["order.cancelled", "order.blocked"]


@pytest.mark.parametrize("end", ENDS)
async def test_the_end_of_an_order_after_a_partial_refund(shop: Shop, end: str) -> None:
    await spend(shop)
    await shop.deliver(refund_event("event-2", {"r1": 5}))
    assert await shop.deliver(order_told(end, "event-3", sources=[source(amount=20)])) == "applied"
    entry = (await shop.history("entries"))[-1]
    assert (entry["amount"], entry["reason"]) == (15, end.replace(".", " "))
    await shop.deliver(refund_event("event-4", {"r1": 5, "r2": 15}))
    assert await shop.figures() == (100, 0, 100)


@pytest.mark.parametrize("end", ENDS)
async def test_the_end_of_an_order_that_lists_only_charges(shop: Shop, end: str) -> None:
    await spend(shop)
    assert await shop.deliver(order_told(end, "event-3", charges=[charge()])) == "applied"
    assert await balance(shop) == 100


async def test_a_cancelled_charge_gives_back_what_was_not_captured(shop: Shop) -> None:
    await spend(shop)
    assert await shop.deliver(cancelled_charge_event("event-2", {"c1": 12})) == "applied"
    assert await balance(shop) == 88
    assert await shop.deliver(refund_event("event-3", {"r1": 12})) == "applied"
    assert await balance(shop) == 100


def cancelled(name: str, amount: Any, captured: Any = (), cancels: Any = ()) -> Json:
    """`order.charge.cancelled` of one of several charges of a source."""
    told = cancelled_charge_event(f"event of {name}", captured)
    told["data"]["object"] |= {"id": name, "amount": amount, "cancels": parts(cancels)}
    return told


def partly_cancelled(name: str, amount: Any, cancels: Any) -> Json:
    return cancel_event(f"cancels of {name}", cancels, id=name, amount=amount)


LIVES_OF_TWO_CHARGES: dict[str, tuple[list[Json], Any]] = {
    "one is cancelled, the other was captured": ([cancelled("b", 8)], 88),
    "one was captured in part": ([cancelled("b", 8, {"c1": 3})], 85),
    "both are cancelled": ([cancelled("a", 12), cancelled("b", 8)], 100),
    "one is cancelled, the other in part": ([cancelled("b", 8), partly_cancelled("a", 12, {"x1": 5})], 93),
    "it was cancelled in part before": ([partly_cancelled("b", 8, {"x1": 5}), cancelled("b", 8)], 88),
    "and told so again": (
        [partly_cancelled("b", 8, {"x1": 5}), cancelled("b", 8, cancels={"x1": 5, "x2": 3})],
        88,
    ),
    "what was captured is refunded": ([cancelled("b", 8, {"c1": 3}), refund_event("r", {"r1": 2})], 87),
    "noise": ([cancelled("b", 8.200000000000001, {"c1": 0.2})], 88),
    "it says no amount": ([cancelled("b", None, {"c1": 12})], 88),
    "it was captured entirely": ([cancelled("b", 8, {"c1": 8})], 80),
}


@pytest.mark.parametrize(("told", "left"), LIVES_OF_TWO_CHARGES.values(), ids=LIVES_OF_TWO_CHARGES.keys())
async def test_a_cancelled_charge_of_several_gives_back_its_own(
    shop: Shop, told: list[Json], left: Any
) -> None:
    for n, events in enumerate(permutations([order_event(source(amount=20)), *told])):
        await shop.issue(100, f"line-{n}")
        for event in events:
            renamed = json.dumps(event).replace("source-1", f"source-{n}").replace("line-1", f"line-{n}")
            again: Json = json.loads(renamed)
            await shop.deliver(again | {"id": f"{n}: {again['id']}"})
        assert await balance(shop, f"line-{n}") == left, n
    await assert_sound(shop)


async def test_an_order_tells_of_its_cancelled_charges(shop: Shop) -> None:
    await spend(shop)
    charges = [
        charge(captures={"c1": 12}) | {"id": "a", "amount": 12, "state": "complete"},
        charge() | {"id": "b", "amount": 5, "state": "cancelled"},
        charge() | {"id": "c", "amount": 3, "state": "cancelled"},
    ]
    assert await shop.deliver(order_told("order.charge.cancelled", "event-2", charges=charges)) == "applied"
    assert await balance(shop) == 88


@pytest.mark.parametrize("state", ["blocked", "cancelled"])
@pytest.mark.parametrize("event_type", ["checkout_session.order.created", "order.accepted"])
async def test_an_order_that_ended_before_it_was_told_nets_to_nothing(
    shop: Shop, state: str, event_type: str
) -> None:
    await shop.issue(100)
    await shop.authorize(20)
    event = order_event(source(amount=20), state=state, event_type=event_type)
    assert await shop.deliver(event) == "applied"
    assert await shop.deliver(event | {"id": "event-2"}) == "applied"
    assert (await balance(shop), len(await shop.history("deductions"))) == (100, 1)
    assert await shop.figures() == (100, 0, 100)


# order.refunded


async def test_a_refunded_order_without_ids(shop: Shop) -> None:
    await spend(shop)
    told = order_told("order.refunded", "event-2", charges=[charge(refunds=[5])])
    assert await shop.deliver(told) == "applied"
    told = order_told("order.refunded", "event-3", charges=[charge(refunds=[5, 4])])
    assert await shop.deliver(told) == "applied"
    await shop.deliver(refund_event("event-4", {"r1": 5, "r2": 4}))
    assert await balance(shop) == 89


async def test_a_refunded_order_with_card_and_credit(shop: Shop) -> None:
    await spend(shop, 20)
    charges = [charge("card", refunds=[6.89]), charge(refunds=[6.56])]
    assert await shop.deliver(order_told("order.refunded", "event-2", charges=charges)) == "applied"
    assert await balance(shop) == 86.56
    sources = [source("card", 6.89, None, type="creditCard"), source(amount=20)]
    told = order_told("order.refunded", "event-3", charges=charges, sources=sources)
    assert await shop.deliver(told) == "applied"
    assert [effect["sourceId"] for effect in (await shop.get("/webhook-events/event-3"))["effects"]] == [
        "source-1"
    ]


async def test_several_charges_of_one_source_are_one_total(shop: Shop) -> None:
    await spend(shop, 20)
    charges = [charge(refunds=[3]), charge(refunds=[4])]
    assert await shop.deliver(order_told("order.refunded", "event-2", charges=charges)) == "applied"
    assert await balance(shop) == 87


async def test_charges_told_one_by_one_without_ids_add_up(shop: Shop) -> None:
    await spend(shop, 20)
    for event_id, charge_id, amounts in (("2", "A", [10]), ("3", "B", [4]), ("4", "A", [10, 1])):
        assert await shop.deliver(refund_event(event_id, amounts, id=charge_id)) == "applied"
    charges = [charge(refunds=[10, 1]) | {"id": "A"}, charge(refunds=[4]) | {"id": "B"}]
    assert await shop.deliver(order_told("order.refunded", "5", charges=charges)) == "applied"
    assert await balance(shop) == 95
    await assert_sound(shop)


async def test_a_charge_s_event_that_holds_an_order(shop: Shop) -> None:
    await spend(shop)
    told = order_told("order.charge.refund.complete", "event-2", charges=[charge(refunds={"r1": 5})])
    assert await shop.deliver(told) == "applied"
    assert await balance(shop) == 85


async def test_sources_and_charges_at_the_top_of_the_order(shop: Shop) -> None:
    await spend(shop)
    told = order_told("order.refunded", "event-2")
    del told["data"]["object"]["payment"]
    told["data"]["object"] |= {"sources": [source()], "charges": [charge(refunds=[5])]}
    assert await shop.deliver(told) == "applied"
    assert await balance(shop) == 85
    ended = order_told("order.cancelled", "event-3", payment=None, sources=[])
    ended["data"]["object"]["sources"] = [source()]
    assert await shop.deliver(ended) == "applied"
    assert await balance(shop) == 100


# Expired, suspended, closed


async def test_a_refund_revives_an_expired_line(start: Start) -> None:
    shop = await start(return_grace="2d")
    await spend(shop, expiresTime="2026-11-21T12:00:00Z")
    shop.clock.advance(2 * DAY)
    await shop.deliver(refund_event("event-2", {"r1": 5}))
    assert await shop.figures() == (5, 0, 5)
    assert (await shop.line())["expiresTime"] == "2026-11-24T12:00:00Z"
    assert "usable until 2026-11-24 12:00 UTC" in (await shop.history("entries"))[-1]["reason"]
    await assert_sound(shop)


async def test_without_grace_a_refund_to_an_expired_line_is_written_off(start: Start) -> None:
    shop = await start(return_grace="0s")
    await spend(shop, expiresTime="2026-11-21T12:00:00Z")
    shop.clock.advance(2 * DAY)
    assert await shop.deliver(refund_event("event-2", {"r1": 5})) == "applied"
    assert await shop.figures() == (0, 0, 0)
    assert (await kinds(shop))[-2:] == ["returned", "expired"]
    await assert_sound(shop)


async def test_a_refund_to_a_suspended_line(shop: Shop) -> None:
    await spend(shop)
    await put(shop, "suspended")
    assert await shop.deliver(refund_event("event-2", {"r1": 5})) == "applied"
    line = await shop.line()
    assert (line["balance"], line["available"], line["status"]) == (85, 0, "suspended")


async def test_a_refund_to_a_closed_line_is_flagged(shop: Shop) -> None:
    await spend(shop)
    await put(shop, "closed")
    assert await shop.deliver(refund_event("event-2", {"r1": 5})) == "applied"
    line = await shop.line()
    assert (line["balance"], line["status"], line["flags"]) == (85, "closed", ["return_to_closed"])


# One order, two events


async def test_accepted_and_then_created(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(30)
    accepted = order_event(source(amount=20), event_type="order.accepted", session_id=None)
    assert await shop.deliver(accepted) == "applied"
    assert await shop.figures() == (80, 30, 50)
    assert await shop.deliver(order_event(source(amount=20), event_id="event-2")) == "applied"
    assert await shop.figures() == (80, 0, 80)
    assert len(await shop.history("deductions")) == 1
    assert (await shop.authorize(5))["approval"] is False
    assert (await shop.decisions())[0]["reason"] == "session_completed"


async def test_created_and_then_accepted(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(30)
    assert await shop.deliver(order_event(source(amount=20))) == "applied"
    accepted = order_event(
        source(amount=20), event_id="event-2", event_type="order.accepted", session_id=None
    )
    assert await shop.deliver(accepted) == "applied"
    assert await shop.figures() == (80, 0, 80)
    assert len(await shop.history("deductions")) == 1


async def test_an_order_whose_line_only_the_second_event_names(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(30)
    assert await shop.deliver(order_event(source(amount=20, upstream_id=None))) == "unmatched"
    assert await shop.deliver(refund_event("event-3", {"r1": 5})) == "parked"
    accepted = order_event(
        source(amount=20), event_id="event-2", event_type="order.accepted", session_id=None
    )
    assert await shop.deliver(accepted) == "applied"
    assert await shop.figures() == (85, 0, 85)
    assert {event["state"] for event in await shop.events()} == {"applied"}
    await assert_sound(shop)


# Amounts


@pytest.mark.parametrize(
    ("currency", "issued", "spent", "back", "left"),
    [
        ("USD", 100, 53.769999999999996, 53.769999999999996, 100),
        ("USD", 100, 53.769999999999996, 0.1 + 0.2, 46.53),
        ("JPY", 5000, 1200, 199, 3999),
        ("KWD", 10, 1.235, 0.001, 8.766),
    ],
)
async def test_amounts_come_back_to_the_minor_unit(
    shop: Shop, currency: str, issued: Any, spent: Any, back: Any, left: float
) -> None:
    await shop.issue(issued, currency=currency)
    await shop.deliver(order_event(source(amount=spent, currency=currency)))
    assert await shop.deliver(refund_event("event-2", {"r1": back}, currency=currency)) == "applied"
    assert await balance(shop) == left


async def test_several_sources_two_of_them_on_one_line(shop: Shop) -> None:
    await shop.issue(100, "line-1")
    await shop.issue(50, "line-2")
    sources = [source("s1", 10), source("s2", 20), source("s3", 30, "line-2")]
    assert await shop.deliver(order_event(*sources)) == "applied"
    await shop.deliver(refund_event("event-2", {"r1": 4}, "s1"))
    await shop.deliver(refund_event("event-3", {"r1": 6}, "s2"))
    assert (await balance(shop), await balance(shop, "line-2")) == (80, 20)
    await shop.deliver(order_told("order.cancelled", "event-4", sources=sources))
    assert (await balance(shop), await balance(shop, "line-2")) == (100, 50)
    await assert_sound(shop)


@pytest.mark.parametrize("amount", [0, -5, 5.005, 1e15])
async def test_an_amount_that_is_none_fails_and_books_nothing(shop: Shop, amount: Any) -> None:
    await spend(shop)
    assert await shop.deliver(refund_event("event-2", {"r1": amount})) == "failed"
    assert await shop.deliver(refund_event("event-3", {"r2": 5})) == "applied"
    assert await balance(shop) == 85


async def test_another_currency_fails_and_books_nothing(shop: Shop) -> None:
    await spend(shop)
    assert await shop.deliver(refund_event("event-2", {"r1": 5}, currency="EUR")) == "failed"
    assert await balance(shop) == 80


async def test_any_order_of_a_whole_life(start: Start) -> None:
    life: list[Json] = [
        order_event(source(amount=20)),
        refund_event("event-2", {"r1": 5}),
        refund_event("event-3", {"r1": 5, "r2": 2}),
        cancel_event("event-4", {"x1": 4}),
    ]
    shop = await start()
    for n, events in enumerate(permutations(life)):
        name = f"line-{n}"
        await shop.issue(100, name)
        for told in events:
            renamed = json.dumps(told).replace("source-1", f"source-{n}").replace("line-1", name)
            again = json.loads(renamed.replace("event-", f"event-{n}-"))
            assert await shop.deliver(again) in ("applied", "parked")
        assert await balance(shop, name) == 91


# Parked


async def test_parked_returns_are_pruned_in_time(shop: Shop) -> None:
    await shop.deliver(refund_event("event-1", {"r1": 5}, "card"))
    shop.clock.advance(34 * DAY)
    await upkeep.tend(shop.service.ledger, shop.service.settings)
    assert (await shop.stored())["source"] == 1
    shop.clock.advance(DAY + HOUR)
    await upkeep.tend(shop.service.ledger, shop.service.settings)
    assert (await shop.stored())["source"] == 0
    event = await shop.get("/webhook-events/event-1")
    assert (event["state"], event["note"]) == ("ignored", "no deduction came")


async def test_parked_returns_stay_while_an_event_of_the_order_is_unmatched(shop: Shop) -> None:
    line = await shop.issue(100)
    await shop.deliver(order_event(source(amount=20, upstream_id=None)))
    await shop.deliver(refund_event("event-2", {"r1": 5}))
    shop.clock.advance(99 * DAY)
    await upkeep.tend(shop.service.ledger, shop.service.settings)
    assert (await shop.stored())["source"] == 1
    path = "/webhook-events/event-1/apply"
    applied = await shop.client.post(path, json={"creditLineId": line["id"]}, auth=MERCHANT)
    assert applied.json()["state"] == "applied"
    assert await balance(shop) == 85
    assert (await shop.get("/webhook-events/event-2"))["state"] == "applied"
