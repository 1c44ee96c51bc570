"""`POST /webhooks/digital-river`: stored once, applied once, refused when it proves nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from tests.http_fixtures import (
    JSON,
    SECRET,
    WEBHOOK,
    Shop,
    Start,
    decoded,
    order_event,
    problem_of,
    signature_of,
    source,
)
from tests.making import DAY, HOUR

pytest_plugins = ["tests.http_fixtures"]

MEBIBYTE = 1024 * 1024
HEADER = "DigitalRiver-Signature"


def now(shop: Shop) -> str:
    return str(int(shop.clock().timestamp()))


async def only_effect(shop: Shop) -> dict[str, Any]:
    """What became of the only source of the only event."""
    (event,) = await shop.events()
    (effect,) = event["effects"]
    shown: dict[str, Any] = effect
    return shown


async def metric(shop: Shop, sample: str) -> float:
    """The value of a line of the metrics; 0 when it is not there."""
    lines = (await shop.client.get("/metrics")).text.splitlines()
    found = [line.rpartition(" ")[2] for line in lines if line.rpartition(" ")[0] == sample]
    return float(found[0]) if found else 0.0


# Deducted once


async def test_an_order_deducts_what_it_spent(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(11.4)
    response = await shop.post_event(order_event(source()))
    assert decoded(response) == {"id": "event-1", "state": "applied"}
    assert await shop.figures() == (88.6, 0, 88.6)


async def test_a_deduction_is_listed(shop: Shop) -> None:
    line = await shop.issue(100)
    await shop.deliver(order_event(source()))
    (deduction,) = await shop.history("deductions")
    assert deduction.pop("id").startswith("ded_")
    assert deduction == {
        "creditLineId": line["id"],
        "sourceId": "source-1",
        "upstreamId": "line-1",
        "orderId": "order-1",
        "sessionId": "session-1",
        "amount": 11.4,
        "returned": 0,
        "createdTime": "2026-11-20T12:00:00Z",
    }


async def test_the_journal_names_the_event(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source()))
    entry = (await shop.history("entries"))[-1]
    assert (entry["kind"], entry["amount"], entry["balanceAfter"]) == ("deducted", -11.4, 88.6)
    assert (entry["eventId"], entry["actor"]) == ("event-1", "digital-river")


async def test_the_event_is_kept_with_its_effects(shop: Shop) -> None:
    line = await shop.issue(100)
    body = order_event(source()) | {"createdTime": "2026-11-20T11:59:59.952982Z[UTC]"}
    await shop.deliver(body)
    (deduction,) = await shop.history("deductions")
    event = await shop.get("/webhook-events/event-1")
    assert event.pop("receiptId").startswith("evt_")
    assert json.loads(event.pop("body")) == body
    assert event == {
        "id": "event-1",
        "type": "checkout_session.order.created",
        "state": "applied",
        "orderId": "order-1",
        "liveMode": False,
        "createdTime": "2026-11-20T11:59:59.952982Z",
        "receivedTime": "2026-11-20T12:00:00Z",
        "note": None,
        "email": None,
        "candidates": [],
        "conflicts": [],
        "effects": [
            {
                "kind": "deduct",
                "sourceId": "source-1",
                "upstreamId": "line-1",
                "amount": 11.4,
                "currency": "USD",
                "outcome": "deducted",
                "detail": None,
                "creditLineId": line["id"],
                "deductionId": deduction["id"],
            }
        ],
    }


async def test_the_same_delivery_again_changes_nothing(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source()))
    before = await shop.stored()
    assert await shop.deliver(order_event(source())) == "applied"
    assert await shop.stored() == before
    assert await shop.figures() == (88.6, 0, 88.6)


async def test_a_body_that_is_rendered_anew_is_the_same_event(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=11.4)))
    before = await shop.stored()
    again = order_event(source(amount=11.399999999999999), note="rendered anew")
    assert decoded(await shop.post_event(json.dumps(again, indent=2, sort_keys=True).encode()))
    assert await shop.stored() == before


async def test_five_deliveries_at_once_are_one_deduction(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(11.4)
    states = await asyncio.gather(*(shop.deliver(order_event(source())) for _ in range(5)))
    assert states == ["applied"] * 5
    assert len(await shop.history("deductions")) == 1
    assert len(await shop.events()) == 1
    assert await shop.figures() == (88.6, 0, 88.6)


async def test_five_events_of_one_source_at_once_are_one_deduction(shop: Shop) -> None:
    await shop.issue(100)
    events = [order_event(source(), event_id=f"event-{n}") for n in range(5)]
    assert set(await asyncio.gather(*(shop.deliver(event) for event in events))) == {"applied"}
    assert len(await shop.history("deductions")) == 1
    outcomes = sorted(event["effects"][0]["outcome"] for event in await shop.events())
    assert outcomes == ["already_deducted"] * 4 + ["deducted"]


async def test_the_other_spelling_of_the_type_deducts_too(shop: Shop) -> None:
    await shop.issue(100)
    event = order_event(source(), event_type="checkout_session.order.create")
    assert await shop.deliver(event) == "applied"
    assert await shop.figures() == (88.6, 0, 88.6)


async def test_two_sources_on_one_line(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(30)
    event = order_event(source("source-1", 10), source("source-2", 20))
    assert await shop.deliver(event) == "applied"
    assert await shop.figures() == (70, 0, 70)
    deducted = {d["sourceId"]: d["amount"] for d in await shop.history("deductions")}
    assert deducted == {"source-1": 10, "source-2": 20}


async def test_two_sources_on_two_lines(shop: Shop) -> None:
    await shop.issue(100, "line-1")
    await shop.issue(50, "line-2", currency="EUR")
    event = order_event(source("source-1", 10, "line-1"), source("source-2", 20, "line-2", "EUR"))
    assert await shop.deliver(event) == "applied"
    assert (await shop.figures("line-1"), await shop.figures("line-2")) == ((90, 0, 90), (30, 0, 30))


async def test_one_source_twice_in_one_event(shop: Shop) -> None:
    await shop.issue(100)
    assert await shop.deliver(order_event(source(), source())) == "applied"
    assert await shop.figures() == (88.6, 0, 88.6)


async def test_sources_at_the_top_of_the_order(shop: Shop) -> None:
    await shop.issue(100)
    assert await shop.deliver(order_event(payment=None, sources=[source()])) == "applied"
    assert await shop.figures() == (88.6, 0, 88.6)


# Holds


async def test_what_was_held_beyond_the_amount_is_available_again(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(50)
    await shop.deliver(order_event(source(amount=30)))
    assert await shop.figures() == (70, 0, 70)
    (hold,) = await shop.history("holds")
    (deduction,) = await shop.history("deductions")
    assert (hold["state"], hold["deductionId"]) == ("consumed", deduction["id"])


async def test_a_hold_of_another_session_stays(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(50, "session-2")
    await shop.deliver(order_event(source(amount=30)))
    assert await shop.figures() == (70, 50, 20)


async def test_an_event_without_a_session_touches_no_hold(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(50)
    await shop.deliver(order_event(source(amount=30), session_id=None))
    assert await shop.figures() == (70, 50, 20)


async def test_an_expired_hold_blocks_no_deduction(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(50)
    shop.clock.advance(2 * DAY)
    assert await shop.deliver(order_event(source(amount=50))) == "applied"
    assert await shop.figures() == (50, 0, 50)


async def test_an_expired_line_is_deducted_all_the_same(shop: Shop) -> None:
    await shop.issue(100, expiresTime="2026-11-20T13:00:00Z")
    shop.clock.advance(2 * HOUR)
    assert await shop.deliver(order_event(source(amount=30))) == "applied"
    assert await shop.figures() == (0, 0, 0)
    kinds = [entry["kind"] for entry in await shop.history("entries")]
    assert kinds == ["issued", "expired", "write_off_reversed", "deducted"]


async def test_more_than_there_is_is_deducted_and_reported(shop: Shop) -> None:
    await shop.issue(10)
    assert await shop.deliver(order_event(source(amount=11.4))) == "applied"
    line = await shop.line()
    assert (line["balance"], line["available"], line["flags"]) == (-1.4, 0, ["overdrawn"])
    assert await metric(shop, "store_credit_overdrawn_deductions_total") == 1
    assert await metric(shop, "store_credit_flagged_lines") == 1
    assert [found["id"] for found in (await shop.get("/credit-lines", flagged=True))["data"]] == [
        line["id"]
    ]


async def test_a_deduction_below_what_is_held_is_reported(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(90, "session-2")
    await shop.deliver(order_event(source(amount=30)))
    line = await shop.line()
    assert (line["balance"], line["held"], line["flags"]) == (70, 90, ["overdrawn"])


# Amounts and currencies


@pytest.mark.parametrize(
    ("currency", "amount"), [("JPY", 500), ("JPY", 500.0), ("KWD", 1.234), ("USD", 0.01)]
)
async def test_an_amount_has_the_decimals_of_its_currency(shop: Shop, currency: str, amount: float) -> None:
    await shop.issue(1000, currency=currency)
    assert await shop.deliver(order_event(source(amount=amount, currency=currency))) == "applied"
    assert (await shop.figures())[0] == round(1000 - amount, 3)


async def test_float_noise_is_rounded_away(shop: Shop) -> None:
    await shop.issue(100)
    assert await shop.deliver(order_event(source(amount=53.769999999999996))) == "applied"
    assert await shop.figures() == (46.23, 0, 46.23)


async def test_the_currency_of_the_order_counts_for_its_sources(shop: Shop) -> None:
    await shop.issue(100)
    assert await shop.deliver(order_event(source(currency=None), currency="USD")) == "applied"


async def test_without_a_currency_the_line_s_own_counts(shop: Shop) -> None:
    await shop.issue(100, currency="EUR")
    assert await shop.deliver(order_event(source(currency=None))) == "applied"
    assert await shop.figures() == (88.6, 0, 88.6)


# Unmatched and failed


@pytest.mark.parametrize(
    ("spent", "outcome"),
    [
        (source(upstream_id=None), "no_upstream_id"),
        (source(upstream_id=""), "no_upstream_id"),
        (source(upstream_id=5), "no_upstream_id"),
        (source(upstream_id="nobody's"), "unknown_line"),
        (source(currency="EUR"), "other_currency"),
        (source(currency="usd"), "other_currency"),
    ],
)
async def test_a_source_that_matches_no_line_is_kept(
    shop: Shop, spent: dict[str, Any], outcome: str
) -> None:
    await shop.issue(100)
    assert await shop.deliver(order_event(spent)) == "unmatched"
    assert (await only_effect(shop))["outcome"] == outcome
    assert len(await shop.events(state="unmatched")) == 1
    assert await metric(shop, "store_credit_unmatched_events") == 1
    assert await shop.figures() == (100, 0, 100)


async def test_an_upstream_id_that_is_absent_is_unmatched(shop: Shop) -> None:
    spent = source()
    del spent["upstreamId"]
    assert await shop.deliver(order_event(spent)) == "unmatched"
    assert (await only_effect(shop))["outcome"] == "no_upstream_id"


async def test_the_currency_of_the_order_may_be_another(shop: Shop) -> None:
    await shop.issue(100)
    assert await shop.deliver(order_event(source(currency=None), currency="EUR")) == "unmatched"


async def test_an_unmatched_source_keeps_no_other_from_its_line(shop: Shop) -> None:
    await shop.issue(100)
    event = order_event(source("source-1"), source("source-2", 5, "nobody's"))
    assert await shop.deliver(event) == "unmatched"
    assert await shop.figures() == (88.6, 0, 88.6)
    (kept,) = await shop.events()
    assert [effect["outcome"] for effect in kept["effects"]] == ["deducted", "unknown_line"]


@pytest.mark.parametrize("amount", [0, -11.4, 10.129, 1e15, 1e300, -1e300, 5e-324], ids=str)
async def test_a_number_that_is_no_amount_fails(shop: Shop, amount: float) -> None:
    await shop.issue(100)
    assert await shop.deliver(order_event(source(amount=amount))) == "failed"
    effect = await only_effect(shop)
    assert (effect["outcome"], effect["amount"]) == ("invalid_amount", amount)
    assert await shop.figures() == (100, 0, 100)


@pytest.mark.parametrize(
    "malformed",
    [
        {"amount": "11.4"},
        {"amount": None},
        {"amount": True},
        {"id": None},
        {"id": "x" * 256},
        {"currency": 5},
    ],
    ids=str,
)
async def test_a_malformed_source_fails_and_is_kept(shop: Shop, malformed: dict[str, Any]) -> None:
    await shop.issue(100)
    event = order_event(source("source-0", 5), source() | malformed)
    assert await shop.deliver(event) == "failed"
    (kept,) = await shop.events(state="failed")
    assert [effect["outcome"] for effect in kept["effects"]] == ["deducted", "malformed"]
    assert kept["effects"][1]["detail"]
    assert await shop.figures() == (95, 0, 95)


@pytest.mark.parametrize(
    "event_type", ["order.fulfilled", "order.complete", "subscription.created", "x" * 255, "тип/события"]
)
async def test_a_type_that_means_nothing_is_kept(shop: Shop, event_type: str) -> None:
    await shop.issue(100)
    assert await shop.deliver(order_event(source(), event_type=event_type)) == "ignored"
    (kept,) = await shop.events()
    assert (kept["type"], kept["state"], kept["effects"]) == (event_type, "ignored", [])
    assert await shop.figures() == (100, 0, 100)


async def test_an_order_without_store_credit_is_kept(shop: Shop) -> None:
    assert await shop.deliver(order_event(source(type="creditCard"))) == "ignored"
    assert await metric(shop, "store_credit_unmatched_events") == 0


@pytest.mark.parametrize(
    "event_id", ["a/b", "a%2Fb", "c d", "ereignis-ü", "a\nb", "?x=1#y", "x" * 255, ".."]
)
async def test_an_event_is_found_by_any_id(shop: Shop, event_id: str) -> None:
    await shop.deliver(order_event(event_id=event_id))
    encoded = "".join(f"%{byte:02X}" for byte in event_id.encode())
    assert (await shop.get(f"/webhook-events/{encoded}"))["id"] == event_id


# The same id, other effects


async def test_the_same_id_with_another_amount_is_a_conflict(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=11.4)))
    response = await shop.post_event(order_event(source(amount=50)))
    problem = problem_of(response, 409, "conflict")
    assert (problem["code"], problem["parameter"]) == ("already_exists", "id")
    assert await shop.figures() == (88.6, 0, 88.6)


async def test_the_same_id_with_another_source_is_a_conflict(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source("source-1")))
    problem_of(await shop.post_event(order_event(source("source-2"))), 409, "conflict")
    assert len(await shop.history("deductions")) == 1


async def test_a_conflict_is_kept_for_an_operator(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=11.4)))
    await shop.post_event(order_event(source(amount=50)))
    shown = await shop.get("/webhook-events/event-1")
    assert shown["state"] == "applied"
    (conflict,) = shown["conflicts"]
    assert (conflict["id"], conflict["state"]) == ("event-1", "conflict")
    assert conflict["effects"][0]["amount"] == 50
    assert [event["receiptId"] for event in await shop.events(state="conflict")] == [conflict["receiptId"]]
    assert await metric(shop, "store_credit_unmatched_events") == 1


async def test_a_conflict_is_kept_once(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=11.4)))
    for _ in range(3):
        assert (await shop.post_event(order_event(source(amount=50)))).status_code == 409
    assert len(await shop.events(state="conflict")) == 1


async def test_after_a_conflict_the_first_event_is_still_the_same(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=11.4)))
    await shop.post_event(order_event(source(amount=50)))
    assert await shop.deliver(order_event(source(amount=11.4))) == "applied"


async def test_of_two_with_one_id_at_once_one_is_a_conflict(shop: Shop) -> None:
    await shop.issue(100)
    events = [order_event(source(amount=amount)) for amount in (10, 20)]
    responses = await asyncio.gather(*(shop.post_event(event) for event in events))
    assert sorted(response.status_code for response in responses) == [200, 409]
    assert len(await shop.history("deductions")) == 1


async def test_another_event_with_the_same_source_deducts_nothing_more(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(), event_id="event-1"))
    assert await shop.deliver(order_event(source(), event_id="event-2")) == "applied"
    assert await shop.figures() == (88.6, 0, 88.6)


async def test_another_event_with_the_same_source_and_another_amount_is_flagged(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=11.4), event_id="event-1"))
    assert await shop.deliver(order_event(source(amount=50), event_id="event-2")) != "applied"
    line = await shop.line()
    assert (line["balance"], line["flags"]) == (88.6, ["source_conflict"])


# The signature


async def assert_refused(shop: Shop, response: Any) -> str:
    """401, and nothing was stored; returns the message."""
    problem = problem_of(response, 401, "unauthorized")
    assert SECRET not in response.text
    assert (await shop.stored())["webhook_event"] == 0
    assert await shop.figures() == (100, 0, 100)
    message: str = problem["message"]
    return message


async def test_a_missing_signature(shop: Shop) -> None:
    await shop.issue(100)
    message = await assert_refused(shop, await shop.post_event(order_event(source()), headers={}))
    assert HEADER in message


@pytest.mark.parametrize("header", ["", "x", "1763640000", "1763640000, x", ", ", "ü, ü"])
async def test_a_header_that_proves_nothing(shop: Shop, header: str) -> None:
    await shop.issue(100)
    raw: Any = {HEADER: header.encode()}
    await assert_refused(shop, await shop.post_event(order_event(source()), headers=raw))


async def test_a_signature_with_another_secret(shop: Shop) -> None:
    await shop.issue(100)
    await assert_refused(shop, await shop.post_event(order_event(source()), secret="another"))


async def test_a_signature_of_another_body(shop: Shop) -> None:
    await shop.issue(100)
    signed = {HEADER: signature_of(json.dumps(order_event(source(amount=1))).encode(), now(shop))}
    await assert_refused(shop, await shop.post_event(order_event(source(amount=100)), headers=signed))


@pytest.mark.parametrize("age", [timedelta(seconds=301), timedelta(seconds=-301)])
async def test_a_signature_from_another_time(shop: Shop, age: timedelta) -> None:
    await shop.issue(100)
    body = json.dumps(order_event(source())).encode()
    timestamp = str(int((shop.clock() - age).timestamp()))
    response = await shop.post_event(body, headers={HEADER: signature_of(body, timestamp)})
    assert "timestamp" in await assert_refused(shop, response)


async def test_a_setting_says_how_old_a_signature_may_be(start: Start) -> None:
    shop = await start(webhook_tolerance="1h")
    body = json.dumps(order_event()).encode()
    timestamp = str(int((shop.clock() - HOUR).timestamp()))
    decoded(await shop.post_event(body, headers={HEADER: signature_of(body, timestamp)}))


async def test_any_configured_secret_may_sign(start: Start) -> None:
    shop = await start(webhook_secrets="old, new")
    for secret in ("old", "new"):
        decoded(await shop.post_event(order_event(event_id=secret), secret=secret))


async def test_without_a_configured_secret_everything_is_refused(start: Start) -> None:
    shop = await start(webhook_secrets="")
    await shop.issue(100)
    for secret in (SECRET, ""):
        message = await assert_refused(shop, await shop.post_event(order_event(source()), secret=secret))
        assert "STORE_CREDIT_WEBHOOK_SECRETS" in message


async def test_unsigned_events_can_be_accepted_for_local_use(start: Start) -> None:
    shop = await start(webhook_secrets="", unsigned_webhooks="accept")
    await shop.issue(100)
    decoded(await shop.post_event(order_event(source()), headers={}))
    assert await shop.figures() == (88.6, 0, 88.6)


async def test_with_a_secret_unsigned_events_are_refused_all_the_same(start: Start) -> None:
    shop = await start(unsigned_webhooks="accept")
    await shop.issue(100)
    await assert_refused(shop, await shop.post_event(order_event(source()), headers={}))


# Bad input


@pytest.mark.parametrize(
    ("body", "code", "parameter"),
    [
        (b"", "invalid_format", None),
        (b"zebra", "invalid_format", None),
        (b"[]", "invalid_format", None),
        (b"\xff\xfe", "invalid_format", None),
        (b"[" * 100_000, "invalid_format", None),
        (b'{"id": "a", "id": "b"}', "invalid_format", "id"),
        (json.dumps(order_event(source(amount=float("nan")))).encode(), "invalid_format", None),
        (json.dumps(order_event(source(amount=float("inf")))).encode(), "invalid_format", None),
        (
            json.dumps(order_event(source(amount=0.5))).replace("0.5", "1e400").encode(),
            "invalid_format",
            None,
        ),
        (b'{"type": "t", "data": {"object": {}}}', "invalid_parameter", "id"),
        (b'{"id": "zebra", "data": {"object": {}}}', "invalid_parameter", "type"),
        (b'{"id": "zebra", "type": "t"}', "invalid_parameter", "data.object"),
        (b'{"id": "zebra\\u0000", "type": "t", "data": {"object": {}}}', "invalid_parameter", "id"),
        (b'{"id": "zebra\\ud800", "type": "t", "data": {"object": {}}}', "invalid_parameter", "id"),
    ],
)
async def test_a_signed_body_that_is_no_event(
    shop: Shop, body: bytes, code: str, parameter: str | None
) -> None:
    response = await shop.post_event(body)
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem.get("parameter")) == (code, parameter)
    assert "zebra" not in response.text
    assert (await shop.stored())["webhook_event"] == 0


async def test_lone_surrogates_and_nul_further_in_do_no_harm(shop: Shop) -> None:
    await shop.issue(100)
    event = order_event(source(note="\ud800\0"), note="\udfff\0")
    assert await shop.deliver(event) == "applied"
    assert json.loads((await shop.get("/webhook-events/event-1"))["body"]) == event


def padded(size: int) -> bytes:
    bare = json.dumps(order_event(source(), padding=""))
    return json.dumps(order_event(source(), padding="x" * (size - len(bare)))).encode()


async def test_a_body_of_1_mib(shop: Shop) -> None:
    await shop.issue(100)
    assert decoded(await shop.post_event(padded(MEBIBYTE)))["state"] == "applied"


async def test_a_body_over_1_mib(shop: Shop) -> None:
    problem = problem_of(await shop.post_event(padded(MEBIBYTE + 1)), 413, "bad_request")
    assert problem["code"] == "payload_too_large"
    assert (await shop.stored())["webhook_event"] == 0


async def test_a_body_without_a_length_is_cut_off(shop: Shop) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1_000):
            read += 1
            yield b" " * 65_536

    headers = JSON | {HEADER: f"{now(shop)}, x"}
    response = await shop.client.post(WEBHOOK, content=body(), headers=headers)
    problem_of(response, 413, "bad_request")
    assert read <= 18


async def test_a_body_without_a_signature_is_not_read(shop: Shop) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"{}"

    response = await shop.client.post(WEBHOOK, content=body(), headers=JSON)
    problem_of(response, 401, "unauthorized")
    assert read == 0


async def test_a_body_of_another_type(shop: Shop) -> None:
    signed = {HEADER: f"{now(shop)}, x", "Content-Type": "text/plain"}
    response = await shop.client.post(WEBHOOK, content=b"{}", headers=signed)
    assert problem_of(response, 415, "bad_request")["parameter"] == "Content-Type"


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_another_method(shop: Shop, method: str) -> None:
    response = await shop.client.request(method, WEBHOOK)
    problem_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
