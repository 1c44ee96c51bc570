"""`POST /checkouts/store-credits`: what is approved, what is declined and why, and what is kept of it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.http_fixtures import AUTHORIZE, CALLOUT, Shop, Start, decoded, order_event, removal_path, source
from tests.making import DAY, HOUR, NOON

pytest_plugins = ["tests.http_fixtures"]

SECOND = timedelta(seconds=1)
DECLINED = {"approval": False, "upstreamId": "line-1"}

UPSTREAM_IDS = {
    "plain": "7654-2345-0987-123456",
    "slash": "gift/card/1",
    "leading slash": "/card",
    "trailing slash": "card/",
    "two slashes": "card//1",
    "dots": "../card",
    "percent": "100%",
    "percent-encoded text": "a%2Fb",
    "blanks": " a b ",
    "plus": "a+b",
    "question and hash": "a?b=c#d&e;f",
    "quotes": "\"'\\<>`",
    "accents": "Übergröße",
    "kanji": "商品券",
    "emoji": "🎁",
    "control characters": "a\tb\nc",
    "1,024 characters": "x" * 1024,
    "1,024 wide characters": "券" * 1024,
}


async def set_status(shop: Shop, status: str) -> None:
    """Suspend or close the line: there is no call for it yet."""

    def run(connection: Connection) -> None:
        connection.execute(text("UPDATE credit_line SET status = :status"), {"status": status})

    await shop.service.database.write(run)


async def last_reason(shop: Shop) -> str:
    reason: str = (await shop.decisions())[0]["reason"]
    return reason


# Approved


async def test_credit_that_is_there_is_approved(shop: Shop) -> None:
    await shop.issue(100)
    assert await shop.authorize(11.4) == {"approval": True, "upstreamId": "line-1", "amount": 11.4}
    assert await shop.figures() == (100, 11.4, 88.6)


async def test_all_that_is_there_can_be_approved(shop: Shop) -> None:
    await shop.issue(100)
    assert (await shop.authorize(100))["approval"] is True
    assert await shop.figures() == (100, 100, 0)


@pytest.mark.parametrize(
    ("asked", "shown"),
    [("11.4", "11.4"), ("11.40", "11.4"), ("5", "5"), ("5.0", "5"), ("1e1", "10"), ("0.01", "0.01")],
)
async def test_the_amount_leaves_as_a_json_number(shop: Shop, asked: str, shown: str) -> None:
    await shop.issue(100)
    response = await shop.post_authorization(
        f'{{"sessionId": "session-1", "amount": {asked}, "upstreamId": "line-1"}}'
    )
    assert response.headers["content-type"] == "application/json"
    assert response.text == f'{{"approval":true,"upstreamId":"line-1","amount":{shown}}}'


async def test_float_noise_is_no_amount_of_its_own(shop: Shop) -> None:
    await shop.issue(100)
    assert (await shop.authorize(53.769999999999996))["amount"] == 53.77
    assert await shop.figures() == (100, 53.77, 46.23)


@pytest.mark.parametrize(("currency", "amount"), [("JPY", 500), ("KWD", 1.234), ("CLF", 0.0001)])
async def test_an_amount_has_the_decimals_of_its_currency(shop: Shop, currency: str, amount: float) -> None:
    await shop.issue(1000, currency=currency)
    assert (await shop.authorize(amount))["amount"] == amount
    assert (await shop.figures())[1] == amount


@pytest.mark.parametrize("upstream_id", UPSTREAM_IDS.values(), ids=UPSTREAM_IDS.keys())
async def test_any_upstream_id_can_be_authorized_and_removed(shop: Shop, upstream_id: str) -> None:
    await shop.issue(100, upstream_id)
    answer = await shop.authorize(40, upstream_id=upstream_id)
    assert answer == {"approval": True, "upstreamId": upstream_id, "amount": 40}
    assert await shop.figures(upstream_id) == (100, 40, 60)
    assert (await shop.remove(upstream_id)).status_code == 204
    assert await shop.figures(upstream_id) == (100, 0, 100)


@pytest.mark.parametrize("asked_for", ["card", "card/", "CARD/", "card%2F", "card/ "])
async def test_upstream_ids_are_told_apart_exactly(shop: Shop, asked_for: str) -> None:
    await shop.issue(100, "Card/")
    assert (await shop.authorize(1, upstream_id=asked_for))["approval"] is False
    assert await last_reason(shop) == "unknown_line"


async def test_every_documented_field_may_be_given(shop: Shop) -> None:
    await shop.issue(100)
    answer = await shop.authorize(
        5, sessionUpstreamId="cart-9", name="Birthday", iconUrl="https://shop.test/i.png", lastFour="0042"
    )
    assert answer["approval"] is True
    (hold,) = await shop.history("holds")
    assert hold["sessionUpstreamId"] == "cart-9"


@pytest.mark.parametrize("field", ["sessionUpstreamId", "name", "iconUrl", "lastFour"])
@pytest.mark.parametrize("value", [None, ""])
async def test_an_optional_field_may_be_empty(shop: Shop, field: str, value: str | None) -> None:
    await shop.issue(100)
    given: dict[str, Any] = {field: value}
    assert (await shop.authorize(5, **given))["approval"] is True


async def test_unknown_fields_are_ignored(shop: Shop) -> None:
    await shop.issue(100)
    assert (await shop.authorize(5, currency="EUR", customer={"id": 1}, items=[None]))["approval"] is True


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
async def test_a_content_type_may_be_spelled_in_any_way(shop: Shop, content_type: str) -> None:
    await shop.issue(100)
    body = {"sessionId": "session-1", "amount": 5, "upstreamId": "line-1"}
    response = await shop.post_authorization(body, headers={"Content-Type": content_type})
    assert decoded(response)["approval"] is True


async def test_a_configured_path_serves_the_callout_too(start: Start) -> None:
    shop = await start(callout_paths="/checkout/store-credit, /dr/credit")
    await shop.issue(100, "gift/card")
    body = {"sessionId": "session-1", "amount": 5, "upstreamId": "gift/card"}
    for path in (AUTHORIZE, "/checkout/store-credit", "/dr/credit"):
        answer = decoded(await shop.client.post(path, json=body, auth=CALLOUT))
        assert answer == {"approval": True, "upstreamId": "gift/card", "amount": 5}
        removed = await shop.client.delete(removal_path("gift/card", path), auth=CALLOUT)
        assert removed.status_code == 204
        assert await shop.figures("gift/card") == (100, 0, 100)


async def test_other_paths_serve_nothing(shop: Shop) -> None:
    body = {"sessionId": "session-1", "amount": 5, "upstreamId": "line-1"}
    response = await shop.client.post("/checkout/store-credit", json=body, auth=CALLOUT)
    assert response.status_code == 404


# The same session again


async def test_the_same_question_again_replaces_its_hold(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(60)
    (first,) = await shop.history("holds")
    shop.clock.advance(HOUR)
    assert (await shop.authorize(70))["amount"] == 70
    (second,) = await shop.history("holds")
    assert second["id"] == first["id"]
    assert (first["expiresTime"], second["expiresTime"]) == ("2026-11-21T12:00:00Z", "2026-11-21T13:00:00Z")
    assert await shop.figures() == (100, 70, 30)


async def test_an_earlier_hold_stays_when_more_is_declined(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(60)
    assert await shop.authorize(100.01) == DECLINED
    assert await shop.figures() == (100, 60, 40)


async def test_another_session_has_a_hold_of_its_own(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(60, "session-1")
    assert (await shop.authorize(40, "session-2"))["approval"] is True
    assert await shop.figures() == (100, 100, 0)


async def test_credit_that_was_removed_can_be_used_again(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(100)
    await shop.remove()
    assert (await shop.authorize(100, "session-2"))["approval"] is True


# Declined


async def test_a_line_that_nobody_knows(shop: Shop) -> None:
    assert await shop.authorize(5, upstream_id="nobody's") == {"approval": False, "upstreamId": "nobody's"}
    assert await last_reason(shop) == "unknown_line"


@pytest.mark.parametrize("status", ["suspended", "closed"])
async def test_a_line_that_is_not_active(shop: Shop, status: str) -> None:
    await shop.issue(100)
    await set_status(shop, status)
    assert await shop.authorize(5) == DECLINED
    assert await last_reason(shop) == f"line_{status}"


async def test_a_line_at_its_expiry(shop: Shop) -> None:
    await shop.issue(100, expiresTime="2026-11-20T13:00:00Z")
    shop.clock.advance(HOUR)
    assert await shop.authorize(5) == DECLINED
    assert await last_reason(shop) == "line_expired"


async def test_a_line_just_before_its_expiry(shop: Shop) -> None:
    await shop.issue(100, expiresTime="2026-11-20T13:00:00Z")
    shop.clock.advance(HOUR - SECOND)
    assert (await shop.authorize(5))["approval"] is True


@pytest.mark.parametrize(
    ("currency", "amount"),
    [
        ("USD", "0"),
        ("USD", "-0.0"),
        ("USD", "-5"),
        ("USD", "10.129"),
        ("USD", "0.001"),
        ("USD", "5e-324"),
        ("USD", "1e13"),
        ("USD", "1e15"),
        ("USD", "1e300"),
        ("USD", "-1e300"),
        ("USD", "9" * 20),
        ("USD", "9" * 300),
        ("JPY", "1.5"),
        ("KWD", "1.2345"),
    ],
)
async def test_a_number_that_is_no_amount(shop: Shop, currency: str, amount: str) -> None:
    await shop.issue(100, currency=currency)
    response = await shop.post_authorization(
        f'{{"sessionId": "session-1", "amount": {amount}, "upstreamId": "line-1"}}'
    )
    assert decoded(response) == DECLINED
    (decision,) = await shop.decisions()
    assert decision["reason"] == "invalid_amount"
    assert decision["amountAsked"] == float(amount)
    assert await shop.figures() == (100, 0, 100)


async def test_a_session_whose_order_was_deducted(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(11.4)
    await shop.deliver(order_event(source()))
    assert await shop.authorize(5) == DECLINED
    assert await last_reason(shop) == "session_completed"


async def test_more_than_there_is(shop: Shop) -> None:
    await shop.issue(100)
    assert await shop.authorize(100.01) == DECLINED
    assert await last_reason(shop) == "insufficient_credit"


async def test_what_others_hold_is_not_there(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(60, "session-1")
    assert await shop.authorize(40.01, "session-2") == DECLINED
    assert await shop.figures() == (100, 60, 40)


async def test_a_blocked_line_is_named_before_a_wrong_amount(shop: Shop) -> None:
    await shop.issue(100)
    await set_status(shop, "suspended")
    await shop.authorize(-1)
    assert await last_reason(shop) == "line_suspended"


async def test_a_wrong_amount_is_named_before_a_completed_session(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source()))
    await shop.authorize(0)
    assert await last_reason(shop) == "invalid_amount"


# Partial approval


@pytest.mark.parametrize(
    ("of_service", "of_line", "approved"),
    [
        (False, None, None),
        (False, False, None),
        (False, True, 40),
        (True, None, 40),
        (True, False, None),
        (True, True, 40),
    ],
)
async def test_the_line_then_the_service_allow_a_part(
    start: Start, of_service: bool, of_line: bool | None, approved: int | None
) -> None:
    shop = await start(partial_approval=of_service)
    await shop.issue(100, allowPartial=of_line)
    await shop.authorize(60, "session-1")
    answer = await shop.authorize(50, "session-2")
    assert answer.get("amount") == approved
    assert await last_reason(shop) == ("approved_partially" if approved else "insufficient_credit")
    assert (await shop.figures())[2] == (0 if approved else 40)


async def test_no_part_of_nothing_is_approved(start: Start) -> None:
    shop = await start(partial_approval=True)
    await shop.issue(100)
    await shop.authorize(100, "session-1")
    assert await shop.authorize(1, "session-2") == DECLINED
    assert await last_reason(shop) == "insufficient_credit"


# Time


async def test_a_hold_just_before_its_end_is_a_promise(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(100, "session-1")
    shop.clock.advance(DAY - SECOND)
    assert await shop.authorize(0.01, "session-2") == DECLINED


async def test_a_hold_at_its_end_holds_nothing(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(100, "session-1")
    shop.clock.advance(DAY)
    assert (await shop.authorize(100, "session-2"))["approval"] is True
    assert [hold["state"] for hold in await shop.history("holds")] == ["open", "expired"]


async def test_a_setting_says_how_long_a_hold_lives(start: Start) -> None:
    shop = await start(hold_ttl="15m")
    await shop.issue(100)
    await shop.authorize(100)
    (hold,) = await shop.history("holds")
    assert hold["expiresTime"] == "2026-11-20T12:15:00Z"


async def test_a_hold_outlives_its_line(shop: Shop) -> None:
    await shop.issue(100, expiresTime="2026-11-20T13:00:00Z")
    await shop.authorize(30)
    shop.clock.advance(2 * HOUR)
    assert await shop.figures() == (30, 30, 0)


async def test_a_clock_that_jumps_back_revives_nothing(shop: Shop) -> None:
    await shop.issue(100, expiresTime="2026-11-20T13:00:00Z")
    shop.clock.advance(HOUR)
    await shop.authorize(5)
    shop.clock.now = NOON
    assert await shop.authorize(5) == DECLINED


# What is kept


async def test_an_approval_is_kept_with_its_reason(shop: Shop) -> None:
    line = await shop.issue(100)
    response = await shop.post_authorization(
        {"sessionId": "session-1", "sessionUpstreamId": "cart-9", "amount": 11.4, "upstreamId": "line-1"},
        headers={"X-Request-Id": "request-7"},
    )
    assert response.headers["x-request-id"] == "request-7"
    (hold,) = await shop.history("holds")
    (decision,) = await shop.history("decisions")
    assert decision.pop("id").startswith("dec_")
    assert decision == {
        "kind": "authorize",
        "creditLineId": line["id"],
        "upstreamId": "line-1",
        "sessionId": "session-1",
        "sessionUpstreamId": "cart-9",
        "amountAsked": 11.4,
        "amount": 11.4,
        "currency": "USD",
        "accepted": True,
        "reason": "approved",
        "detail": None,
        "holdId": hold["id"],
        "actor": CALLOUT[0],
        "requestId": "request-7",
        "createdTime": "2026-11-20T12:00:00Z",
    }


async def test_a_refusal_is_kept_with_what_was_wrong(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(10.129)
    (decision,) = await shop.history("decisions")
    assert decision["accepted"] is False
    assert decision["amountAsked"] == 10.129
    assert decision["amount"] is None
    assert "decimals" in decision["detail"]
    assert decision["holdId"] is None


async def test_an_answer_about_an_unknown_line_is_listed(shop: Shop) -> None:
    await shop.authorize(5, upstream_id="nobody's")
    (decision,) = await shop.decisions(upstreamId="nobody's")
    assert (decision["creditLineId"], decision["currency"]) == (None, None)
    assert decision["amountAsked"] == 5


async def test_decisions_are_listed_newest_first(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(60, "session-1")
    await shop.authorize(60, "session-2")
    await shop.remove()
    reasons = [decision["reason"] for decision in await shop.history("decisions")]
    assert reasons == ["released", "insufficient_credit", "approved"]


async def test_an_approval_writes_one_entry(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(11.4)
    issued, held = await shop.history("entries")
    assert (issued["kind"], issued["amount"], issued["actor"]) == ("issued", 100, "merchant")
    changes: dict[str, Any] = {
        name: held[name] for name in ("kind", "amount", "held", "balanceAfter", "heldAfter")
    }
    expected = {"kind": "held", "amount": 0, "held": 11.4, "balanceAfter": 100, "heldAfter": 11.4}
    assert changes == expected
    assert held["actor"] == CALLOUT[0]
    assert held["previousHash"] == issued["hash"]


async def test_a_refusal_writes_no_entry(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(500)
    assert [entry["kind"] for entry in await shop.history("entries")] == ["issued"]


async def test_a_wide_upstream_id_comes_back_as_asked(shop: Shop) -> None:
    response = await shop.post_authorization(
        json.dumps({"sessionId": "s", "amount": 1, "upstreamId": "券/%"}, ensure_ascii=False).encode()
    )
    assert decoded(response)["upstreamId"] == "券/%"
