"""`Idempotency-Key`: the same key and request issue one line, and get one answer."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from store_credit.credentials import Role
from tests.http_fixtures import JSON, MERCHANT, Shop, decoded, order_event, problem_of
from tests.making import DAY

pytest_plugins = ["tests.http_fixtures"]

BODY = '{"customerId": "customer-1", "currency": "USD", "amount": 100, "metadata": {"a": 1, "b": 2}}'


async def post(
    shop: Shop, body: str = BODY, key: str | bytes | None = "key-1", auth: tuple[str, str] = MERCHANT
) -> httpx.Response:
    headers: Any = JSON if key is None else JSON | {"Idempotency-Key": key}
    return await shop.client.post("/credit-lines", content=body, headers=headers, auth=auth)


async def count(shop: Shop) -> int:
    return (await shop.stored())["credit_line"]


async def test_the_same_request_again_gets_the_first_answer(shop: Shop) -> None:
    first, second = await post(shop), await post(shop)
    assert decoded(second, 201) == decoded(first, 201)
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert await count(shop) == 1


async def test_without_a_key_each_request_is_another(shop: Shop) -> None:
    first, second = await post(shop, key=None), await post(shop, key=None)
    assert decoded(first, 201)["id"] != decoded(second, 201)["id"]


async def test_another_key_is_another_request(shop: Shop) -> None:
    first, second = await post(shop, key="key-1"), await post(shop, key="key-2")
    assert decoded(first, 201)["id"] != decoded(second, 201)["id"]


async def test_the_answer_is_the_first_even_after_a_change(shop: Shop) -> None:
    first = decoded(await post(shop, BODY[:-1] + ', "upstreamId": "line-1"}'), 201)
    await shop.authorize(60)
    shop.clock.advance(DAY)
    assert decoded(await post(shop, BODY[:-1] + ', "upstreamId": "line-1"}'), 201) == first


async def test_a_retry_may_come_after_the_expiry(shop: Shop) -> None:
    body = BODY[:-1] + ', "expiresTime": "2026-11-20T13:00:00Z"}'
    first = decoded(await post(shop, body), 201)
    shop.clock.advance(DAY)
    assert decoded(await post(shop, body), 201) == first


@pytest.mark.parametrize(
    "again",
    [
        BODY.replace('{"customerId": "customer-1", ', '{\n\t"customerId":"customer\\u002d1",'),
        '{"amount": 100, "metadata": {"b": 2, "a": 1}, "currency": "USD", "customerId": "customer-1"}',
        BODY.replace("100", "100.0"),
        BODY.replace("100", "1e2"),
        BODY.replace("100", "99.99999999999999"),
        BODY[:-1] + ', "name": null}',
    ],
    ids=["blanks and escapes", "another order", "a decimal point", "an exponent", "float noise", "a null"],
)
async def test_a_body_that_is_rendered_anew_is_the_same_request(shop: Shop, again: str) -> None:
    first = decoded(await post(shop), 201)
    assert decoded(await post(shop, again), 201) == first
    assert await count(shop) == 1


@pytest.mark.parametrize(
    "other",
    [
        BODY.replace("100", "100.01"),
        BODY.replace("USD", "EUR"),
        BODY.replace("customer-1", "customer-2"),
        BODY.replace('"b": 2', '"b": 3'),
        BODY[:-1] + ', "reason": "x"}',
        BODY[:-1] + ', "upstreamId": "line-1"}',
        BODY[:-1] + ', "expiresTime": "2027-01-01T00:00:00Z"}',
        BODY[:-1] + ', "allowPartial": false}',
    ],
)
async def test_the_same_key_with_another_request_is_a_conflict(shop: Shop, other: str) -> None:
    await post(shop)
    problem = problem_of(await post(shop, other), 409, "conflict")
    assert (problem["code"], problem["parameter"]) == ("idempotency_key_reused", "Idempotency-Key")
    assert await count(shop) == 1


async def test_after_a_conflict_the_first_request_is_still_the_same(shop: Shop) -> None:
    first = decoded(await post(shop), 201)
    await post(shop, BODY.replace("100", "200"))
    assert decoded(await post(shop), 201) == first


async def test_a_refused_request_stores_nothing(shop: Shop) -> None:
    taken = BODY[:-1] + ', "upstreamId": "line-1"}'
    decoded(await post(shop, taken, key=None), 201)
    before = await shop.stored()
    problem_of(await post(shop, taken, key="key-1"), 409, "conflict")
    assert await shop.stored() == before
    decoded(await post(shop, key="key-1"), 201)


async def test_a_malformed_request_stores_nothing(shop: Shop) -> None:
    problem_of(await post(shop, BODY.replace("100", "-100")), 400, "bad_request")
    decoded(await post(shop), 201)


async def test_keys_are_one_space_for_all_credentials(shop: Shop) -> None:
    first = decoded(await post(shop), 201)
    password = await shop.add_credential("merchant-2", Role.MERCHANT)
    again = await post(shop, auth=("merchant-2", password))
    assert decoded(again, 201) == first


async def test_twenty_at_once_are_one_line(shop: Shop) -> None:
    answers = await asyncio.gather(*(post(shop) for _ in range(20)))
    assert len({decoded(answer, 201)["id"] for answer in answers}) == 1
    assert await count(shop) == 1


async def test_the_journal_names_the_key(shop: Shop) -> None:
    await post(shop, BODY[:-1] + ', "upstreamId": "line-1"}')
    (entry,) = await shop.history("entries")
    assert entry["idempotencyKey"] == "key-1"


async def test_a_key_is_not_the_id_of_an_event(shop: Shop) -> None:
    await shop.deliver(order_event(event_id="key-1"))
    decoded(await post(shop, key="key-1"), 201)


@pytest.mark.parametrize("key", ["x" * 255, "a/b:c;d=e", "!~"])
async def test_a_key_may_be_any_visible_text(shop: Shop, key: str) -> None:
    first = decoded(await post(shop, key=key), 201)
    assert decoded(await post(shop, key=key), 201) == first


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", b"\xfc", "a\tb", b"\xed\xa0\x80"])
async def test_a_key_that_is_none(shop: Shop, key: str | bytes) -> None:
    problem = problem_of(await post(shop, key=key), 400, "bad_request")
    assert (problem["code"], problem["parameter"].lower()) == ("invalid_parameter", "idempotency-key")
    assert await count(shop) == 0
