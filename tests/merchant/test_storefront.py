"""What a shop's checkout page asks for: what can be spent, and offers for one session each."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from store_credit.credentials import Role
from store_credit.merchant import storefront_routes
from tests.http_fixtures import (
    CALLOUT,
    MERCHANT,
    Auth,
    Json,
    Shop,
    decoded,
    order_event,
    problem_of,
    source,
)
from tests.making import DAY, HOUR

pytest_plugins = ["tests.http_fixtures"]

ODD_CUSTOMERS = ["customer-1", "a/b", "a/offers", "a/store-credits", "/", "ü ?#%2F\n", "x" * 255]


def of_customer(customer_id: str, noun: str) -> str:
    return f"/customers/{quote(customer_id, safe='')}/{noun}"


async def spendable(
    shop: Shop, customer_id: str = "customer-1", currency: str = "USD", auth: Auth = MERCHANT
) -> list[Json]:
    """The elements as they would be pasted into a checkout session."""
    answer = await shop.get(of_customer(customer_id, "store-credits"), auth, currency=currency)
    elements: list[Json] = answer["storeCredits"]
    return elements


async def post_offers(
    shop: Shop, key: str | None = None, customer_id: str = "customer-1", auth: Auth = MERCHANT, **body: Any
) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    path = of_customer(customer_id, "offers")
    return await shop.client.post(path, json={"currency": "USD"} | body, headers=headers, auth=auth)


async def offers(shop: Shop, **body: Any) -> list[Json]:
    elements: list[Json] = decoded(await post_offers(shop, **body), 201)["storeCredits"]
    return elements


async def offer(shop: Shop, **body: Any) -> str:
    """The upstream id of the only offer that is made."""
    (made,) = await offers(shop, **body)
    upstream_id: str = made["upstreamId"]
    return upstream_id


def amounts(elements: list[Json]) -> list[float]:
    return [element["amount"] for element in elements]


async def last_reason(shop: Shop) -> str:
    reason: str = (await shop.decisions())[0]["reason"]
    return reason


# What can be spent


async def test_an_element_has_what_digital_river_takes(shop: Shop) -> None:
    await shop.issue(11.4, name="Gift card", iconUrl="https://example.com/i.png", lastFour="7831")
    assert await spendable(shop) == [
        {
            "amount": 11.4,
            "upstreamId": "line-1",
            "name": "Gift card",
            "iconUrl": "https://example.com/i.png",
            "lastFour": "7831",
        }
    ]


async def test_an_element_has_a_name_and_no_nulls(shop: Shop) -> None:
    await shop.issue(100)
    assert await spendable(shop) == [{"amount": 100, "upstreamId": "line-1", "name": "Store credit"}]


async def test_the_soonest_expiry_comes_first_then_the_oldest(shop: Shop) -> None:
    await shop.issue(1, "never, older")
    await shop.issue(2, "late", expiresTime="2026-11-20T15:00:00Z")
    await shop.issue(3, "never, newer")
    await shop.issue(4, "soon", expiresTime="2026-11-20T13:00:00Z")
    await shop.issue(5, "late, newer", expiresTime="2026-11-20T15:00:00Z")
    names = [element["upstreamId"] for element in await spendable(shop)]
    assert names == ["soon", "late", "late, newer", "never, older", "never, newer"]


async def test_only_what_can_be_spent_is_there(shop: Shop) -> None:
    await shop.issue(100, "partly held")
    await shop.issue(100, "all held")
    await shop.issue(100, "spent")
    await shop.issue(100, "expired", expiresTime="2026-11-20T13:00:00Z")
    await shop.issue(100, "another customer's", customerId="customer-2")
    await shop.issue(100, "euros", currency="EUR")
    for action in ("suspend", "close"):
        line = await shop.issue(100, action)
        path = f"/credit-lines/{line['id']}/{action}"
        decoded(await shop.client.post(path, json={"reason": "why"}, auth=MERCHANT))
    await shop.authorize(60, upstream_id="partly held")
    await shop.authorize(100, upstream_id="all held")
    await shop.deliver(order_event(source(amount=100, upstream_id="spent")))
    shop.clock.advance(HOUR)

    found = await spendable(shop)

    assert [(element["upstreamId"], element["amount"]) for element in found] == [("partly held", 40)]


async def test_a_hold_past_its_time_gives_its_credit_back_at_once(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(60)
    shop.clock.advance(DAY)
    assert amounts(await spendable(shop)) == [100]


async def test_lines_that_are_used_up_hide_no_others(shop: Shop) -> None:
    for n in range(101):
        await shop.issue(1, f"empty-{n}", expiresTime="2026-11-20T13:00:00Z")
    spent = [source(f"source-{n}", 1, f"empty-{n}") for n in range(101)]
    await shop.deliver(order_event(*spent))
    await shop.issue(100)
    assert [element["upstreamId"] for element in await spendable(shop)] == ["line-1"]


@pytest.mark.parametrize("customer_id", ODD_CUSTOMERS)
async def test_customers_have_any_id(shop: Shop, customer_id: str) -> None:
    await shop.issue(100, customerId=customer_id)
    assert amounts(await spendable(shop, customer_id)) == [100]
    assert amounts(await offers(shop, customer_id=customer_id)) == [100]


async def test_a_customer_without_credit_has_none(shop: Shop) -> None:
    assert await spendable(shop) == []
    assert await offers(shop) == []


@pytest.mark.parametrize(
    "query", [{}, {"currency": "usd"}, {"currency": ""}, {"currency": "USD", "x": "1"}]
)
async def test_a_look_that_can_not_be_answered(shop: Shop, query: Json) -> None:
    path = of_customer("customer-1", "store-credits")
    problem_of(await shop.client.get(path, params=query, auth=MERCHANT), 400, "bad_request")


# Offers


async def test_an_offer_can_be_held_removed_and_spent_like_a_line(shop: Shop) -> None:
    await shop.issue(100)
    name = await offer(shop)
    assert name != "line-1"

    answer = await shop.authorize(60, upstream_id=name)
    assert (answer["approval"], answer["upstreamId"], answer["amount"]) == (True, name, 60)
    assert await shop.figures() == (100, 60, 40)
    assert (await shop.remove(name)).status_code == 204
    assert await shop.figures() == (100, 0, 100)
    await shop.authorize(70, upstream_id=name)
    assert await shop.deliver(order_event(source(amount=70, upstream_id=name))) == "applied"
    assert await shop.figures() == (30, 0, 30)
    (deduction,) = await shop.history("deductions")
    assert deduction["upstreamId"] == name


async def test_an_amount_is_spread_over_lines_and_caps_each(shop: Shop) -> None:
    await shop.issue(30, "soon", expiresTime="2026-11-20T13:00:00Z")
    await shop.issue(100, "later")
    await shop.issue(100, "unneeded")

    made = await offers(shop, amount=50.5)

    assert amounts(made) == [30, 20.5]
    second = made[1]["upstreamId"]
    assert (await shop.authorize(20.51, upstream_id=second))["approval"] is False
    assert (await shop.authorize(20.5, upstream_id=second))["approval"] is True
    assert (await shop.figures("later"))[1] == 20.5


async def test_more_than_there_is_offers_what_there_is(shop: Shop) -> None:
    await shop.issue(30)
    assert amounts(await offers(shop, amount=50)) == [30]


async def test_a_cap_holds_under_partial_approval(shop: Shop) -> None:
    await shop.issue(100, allowPartial=True)
    name = await offer(shop, amount=40)
    assert (await shop.authorize(60, upstream_id=name))["amount"] == 40


async def test_an_offer_expires_with_its_own_reason(shop: Shop) -> None:
    await shop.issue(100)
    name = await offer(shop, ttl=60)
    shop.clock.advance(HOUR)

    assert (await shop.authorize(10, upstream_id=name))["approval"] is False
    assert await last_reason(shop) == "offer_expired"


async def test_an_offer_lives_as_long_as_a_hold_by_default(shop: Shop) -> None:
    await shop.issue(100)
    first, second = await offer(shop), await offer(shop)
    shop.clock.advance(DAY - HOUR)
    assert (await shop.authorize(10, upstream_id=first))["approval"] is True
    shop.clock.advance(HOUR)
    assert (await shop.authorize(10, upstream_id=second))["approval"] is False


async def test_an_offer_is_spent_once(shop: Shop) -> None:
    await shop.issue(100)
    name = await offer(shop)
    await shop.deliver(order_event(source(amount=10, upstream_id=name)))

    assert (await shop.authorize(10, "session-2", name))["approval"] is False
    assert await last_reason(shop) == "offer_spent"


async def test_an_offer_is_of_the_session_that_used_it_first(shop: Shop) -> None:
    await shop.issue(100)
    name = await offer(shop)
    await shop.authorize(10, "session-1", name)

    assert (await shop.authorize(10, "session-2", name))["approval"] is False
    assert await last_reason(shop) == "offer_of_another_session"


async def test_sessions_that_race_for_an_offer_share_nothing(shop: Shop) -> None:
    await shop.issue(100)
    name = await offer(shop)
    answers = await asyncio.gather(*(shop.authorize(10, f"session-{n}", name) for n in range(10)))
    assert sorted(answer["approval"] for answer in answers) == [False] * 9 + [True]
    assert await shop.figures() == (100, 10, 90)


async def test_an_order_of_an_expired_offer_is_booked(shop: Shop) -> None:
    await shop.issue(100)
    name = await offer(shop, ttl=60)
    shop.clock.advance(2 * DAY)
    assert await shop.deliver(order_event(source(amount=10, upstream_id=name))) == "applied"
    assert await shop.figures() == (90, 0, 90)


async def test_two_offers_on_one_line_in_one_session_are_two_holds(shop: Shop) -> None:
    await shop.issue(100)
    first, second = await offer(shop, amount=60), await offer(shop, amount=60)
    assert (await shop.authorize(60, upstream_id=first))["approval"] is True
    assert (await shop.authorize(60, upstream_id=second))["approval"] is False
    assert (await shop.authorize(40, upstream_id=second))["approval"] is True

    await shop.remove(first)

    (still_open,) = [hold for hold in await shop.history("holds") if hold["state"] == "open"]
    assert (still_open["upstreamId"], still_open["amount"]) == (second, 40)


async def test_removals_of_offers_are_never_ambiguous(shop: Shop) -> None:
    await shop.issue(100)
    names = [await offer(shop, amount=10) for _ in range(3)]
    for n, name in enumerate(names):
        await shop.authorize(10, f"session-{n}", name)

    await shop.remove(names[1])

    states = {hold["upstreamId"]: hold["state"] for hold in await shop.history("holds")}
    assert states == {names[0]: "open", names[1]: "released", names[2]: "open"}
    assert await last_reason(shop) == "released"


async def test_earlier_sessions_are_superseded_when_the_shop_says_so(shop: Shop) -> None:
    await shop.issue(100)
    await shop.issue(50, "line-2")
    await shop.issue(100, "euros", currency="EUR")
    await shop.issue(100, "of another", customerId="customer-2")
    for name in ("line-1", "line-2", "euros", "of another"):
        await shop.authorize(40, upstream_id=name)
    assert amounts(await offers(shop)) == [60, 10]

    assert amounts(await offers(shop, supersede=True)) == [100, 50]

    assert await shop.figures("euros") == (100, 40, 60)
    assert await shop.figures("of another") == (100, 40, 60)
    entry = (await shop.history("entries"))[-1]
    assert (entry["kind"], entry["actor"]) == ("released", "merchant")
    assert entry["reason"] == "superseded by a new session"


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({"currency": "usd"}, "currency"),
        ({"amount": 0}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": 0.001}, "amount"),
        ({"amount": "1"}, "amount"),
        ({"ttl": 59}, "ttl"),
        ({"ttl": 60.5}, "ttl"),
        ({"ttl": 2_592_001}, "ttl"),
        ({"supersede": "yes"}, "supersede"),
        ({"sessionUpstreamId": ""}, "sessionUpstreamId"),
        ({"zebra": 1}, "zebra"),
    ],
)
async def test_an_offer_that_can_not_be_made(shop: Shop, body: Json, parameter: str) -> None:
    await shop.issue(100)
    problem = problem_of(await post_offers(shop, **body), 400, "bad_request")
    assert problem["parameter"] == parameter


async def test_a_customer_that_can_not_be(shop: Shop) -> None:
    for customer_id in ("x" * 256, "a\0"):
        problem_of(await post_offers(shop, customer_id=customer_id), 404, "not_found")
        path = of_customer(customer_id, "store-credits")
        problem_of(await shop.client.get(path, params={"currency": "USD"}, auth=MERCHANT), 404, "not_found")


# Idempotency-Key


async def test_a_key_makes_offers_once(shop: Shop) -> None:
    await shop.issue(100)
    first = await post_offers(shop, "key-1", amount=50)
    again = await post_offers(shop, "key-1", amount=50.0)

    assert decoded(again, 201) == decoded(first, 201)
    assert again.headers["idempotent-replayed"] == "true"
    for other in ({"amount": 51}, {"amount": 50, "ttl": 60}, {"amount": 50, "customer_id": "customer-2"}):
        problem = problem_of(await post_offers(shop, "key-1", **other), 409, "conflict")
        assert problem["code"] == "idempotency_key_reused"


async def test_a_retry_supersedes_nothing_of_the_session_that_came_of_it(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(30)
    first = decoded(await post_offers(shop, "key-1", supersede=True), 201)
    name = first["storeCredits"][0]["upstreamId"]
    await shop.authorize(70, "session-2", name)

    assert decoded(await post_offers(shop, "key-1", supersede=True), 201) == first
    assert await shop.figures() == (100, 70, 30)


@pytest.mark.parametrize("earlier", [True, False])
async def test_a_retry_that_began_before_the_first_was_answered_supersedes_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    await shop.issue(100)
    if earlier:
        await shop.authorize(30)
    first = decoded(await post_offers(shop, "key-1", supersede=True), 201)
    await shop.authorize(70, "session-2", first["storeCredits"][0]["upstreamId"])

    async def too_early(*_: object, **__: object) -> None:
        """What the retry saw when it looked for an answer."""

    monkeypatch.setattr(storefront_routes, "answered_before", too_early)
    assert decoded(await post_offers(shop, "key-1", supersede=True), 201) == first
    assert await shop.figures() == (100, 70, 30)


async def test_retries_at_once_make_the_same_offers(shop: Shop) -> None:
    await shop.issue(100)
    answers = await asyncio.gather(*(post_offers(shop, "key-1") for _ in range(10)))
    names = {decoded(answer, 201)["storeCredits"][0]["upstreamId"] for answer in answers}
    assert len(names) == 1


# Roles


async def test_a_storefront_may_look_and_offer(shop: Shop) -> None:
    await shop.issue(100)
    auth = ("shop-page", await shop.add_credential("shop-page", Role.STOREFRONT))
    assert amounts(await spendable(shop, auth=auth)) == [100]
    decoded(await post_offers(shop, auth=auth, supersede=True), 201)


async def test_a_reader_may_look_and_not_offer(shop: Shop) -> None:
    await shop.issue(100)
    auth = ("reader", await shop.add_credential("reader", Role.READER))
    assert amounts(await spendable(shop, auth=auth)) == [100]
    problem_of(await post_offers(shop, auth=auth), 403, "forbidden")


async def test_digital_river_may_neither(shop: Shop) -> None:
    path = of_customer("customer-1", "store-credits")
    query = {"currency": "USD"}
    problem_of(await shop.client.get(path, params=query, auth=CALLOUT), 403, "forbidden")
    problem_of(await post_offers(shop, auth=CALLOUT), 403, "forbidden")
    problem_of(await shop.client.get(path, params=query), 401, "unauthorized")


async def test_a_storefront_writes_nothing_else(shop: Shop) -> None:
    auth = ("shop-page", await shop.add_credential("shop-page", Role.STOREFRONT))
    for path in ("/credit-lines", "/webhook-events/event-1/apply", "/checkouts/store-credits"):
        problem_of(await shop.client.post(path, json={}, auth=auth), 403, "forbidden")
    problem_of(await shop.client.delete("/checkouts/store-credits/line-1", auth=auth), 403, "forbidden")
