"""What no new credit line may look like: a clear 400, nothing stored, never a fault of ours.

All tests share one application, and each sees to it that nothing was stored.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.http_fixtures import JSON, MERCHANT, Json, Shop, problem_of

pytest_plugins = ["tests.http_fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

MARK = "zebra"
"""Stands in wrong values: no answer may repeat it."""

GOOD: Json = {"customerId": "customer-1", "currency": "USD", "amount": 100}
KIBIBYTE = 1024


@pytest_asyncio.fixture(loop_scope="module")
async def shop(lasting_shop: Shop) -> AsyncIterator[Shop]:
    """The application, in which a test must leave nothing behind."""
    before = await lasting_shop.stored()
    yield lasting_shop
    assert await lasting_shop.stored() == before


async def post(shop: Shop, body: bytes | str | Json, **headers: str) -> httpx.Response:
    raw = json.dumps(GOOD | body) if isinstance(body, dict) else body
    return await shop.client.post("/credit-lines", content=raw, headers=JSON | headers, auth=MERCHANT)


def with_amount(literal: str, currency: str = "USD") -> str:
    return f'{{"customerId": "customer-1", "currency": "{currency}", "amount": {literal}}}'


async def assert_invalid(response: httpx.Response, parameter: str) -> str:
    """400 that names the parameter and repeats nothing; returns the message."""
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", parameter)
    assert MARK not in response.text
    message: str = problem["message"]
    return message


REQUIRED = ["customerId", "currency", "amount"]
TEXTS = ["customerId", "currency", "upstreamId", "name", "iconUrl", "lastFour", "reason", "expiresTime"]
LENGTHS_MAX = {
    "customerId": 255,
    "upstreamId": 1024,
    "name": 1024,
    "iconUrl": 1024,
    "lastFour": 1024,
    "reason": 1024,
}


@pytest.mark.parametrize("field", REQUIRED)
async def test_a_missing_field(shop: Shop, field: str) -> None:
    body = json.dumps({name: value for name, value in GOOD.items() if name != field})
    problem = problem_of(await post(shop, body), 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("missing_parameter", field)


@pytest.mark.parametrize("field", [*REQUIRED, "metadata"])
async def test_null_in_a_field_that_needs_a_value(shop: Shop, field: str) -> None:
    await assert_invalid(await post(shop, {field: None}), field)


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("value", [5, 1.5, True, [MARK], {MARK: 1}], ids=repr)
async def test_a_text_of_another_type(shop: Shop, field: str, value: Any) -> None:
    await assert_invalid(await post(shop, {field: value}), field)


@pytest.mark.parametrize("field", ["customerId", "currency", "upstreamId", "expiresTime"])
async def test_an_empty_text(shop: Shop, field: str) -> None:
    await assert_invalid(await post(shop, {field: ""}), field)


@pytest.mark.parametrize(("field", "length_max"), LENGTHS_MAX.items())
async def test_a_text_that_is_too_long(shop: Shop, field: str, length_max: int) -> None:
    await assert_invalid(await post(shop, {field: "x" * (length_max + 1)}), field)


@pytest.mark.parametrize("field", LENGTHS_MAX)
@pytest.mark.parametrize("value", [f"{MARK}\0", f"{MARK}\ud800"], ids=["NUL", "lone surrogate"])
async def test_a_text_that_can_not_be_stored(shop: Shop, field: str, value: str) -> None:
    await assert_invalid(await post(shop, {field: value}), field)


# Amounts


@pytest.mark.parametrize("value", ["100", f"{MARK}", "", True, False, [], [100], {}], ids=repr)
async def test_an_amount_of_another_type(shop: Shop, value: Any) -> None:
    await assert_invalid(await post(shop, {"amount": value}), "amount")


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 400])
async def test_an_amount_that_is_not_finite(shop: Shop, literal: str) -> None:
    await assert_invalid(await post(shop, with_amount(literal)), "amount")


@pytest.mark.parametrize(
    ("literal", "currency", "told"),
    [
        ("0", "USD", "zero"),
        ("0.0", "USD", "zero"),
        ("-0.0", "USD", "zero"),
        ("1e-7", "USD", "zero"),
        ("-1", "USD", "negative"),
        ("-0.01", "USD", "negative"),
        ("9" * 20, "USD", "large"),
        ("9" * 300, "USD", "large"),
        ("1e13", "USD", "large"),
        ("1e300", "USD", "large"),
        ("1e15", "JPY", "large"),
        ("1e12", "KWD", "large"),
        ("1.234", "USD", "decimals"),
        ("0.001", "USD", "decimals"),
        ("10.129", "USD", "decimals"),
        ("1.5", "JPY", "decimals"),
        ("0.1", "JPY", "decimals"),
        ("1.2345", "KWD", "decimals"),
    ],
)
async def test_a_number_that_is_no_amount(shop: Shop, literal: str, currency: str, told: str) -> None:
    message = await assert_invalid(await post(shop, with_amount(literal, currency)), "amount")
    assert told in message


# Currency, time, switches, metadata


@pytest.mark.parametrize("currency", ["usd", "US", "USDX", "XXX", "XAU", "ZEB", MARK, " USD", "US\u0130"])
async def test_a_currency_that_is_none(shop: Shop, currency: str) -> None:
    assert "4217" in await assert_invalid(await post(shop, {"currency": currency}), "currency")


@pytest.mark.parametrize(
    "time",
    [
        "2027-01-01",
        "2027-01-01T00:00:00",
        "2027-13-01T00:00:00Z",
        "2027-02-29T00:00:00Z",
        "9999-12-31T23:59:59-01:00",
        "1800000000",
        MARK,
        "2027-01-01T00:00:00Z[UTC]",
        "2027-01-01T00:00:00Z" + " " * 100,
    ],
)
async def test_a_time_that_is_none(shop: Shop, time: str) -> None:
    await assert_invalid(await post(shop, {"expiresTime": time}), "expiresTime")


@pytest.mark.parametrize(
    "time",
    ["2026-11-20T12:00:00Z", "2026-11-20T11:59:59Z", "0001-01-01T00:00:00Z", "2026-11-20T13:00:00+01:00"],
)
async def test_an_expiry_that_is_not_in_the_future(shop: Shop, time: str) -> None:
    assert "future" in await assert_invalid(await post(shop, {"expiresTime": time}), "expiresTime")


@pytest.mark.parametrize("value", ["true", 1, 0, "", [], {}], ids=repr)
async def test_a_switch_that_is_no_boolean(shop: Shop, value: Any) -> None:
    await assert_invalid(await post(shop, {"allowPartial": value}), "allowPartial")


@pytest.mark.parametrize("value", [[], "x", 5, True], ids=repr)
async def test_metadata_that_is_no_object(shop: Shop, value: Any) -> None:
    await assert_invalid(await post(shop, {"metadata": value}), "metadata")


@pytest.mark.parametrize(
    "value",
    [
        {str(n): n for n in range(51)},
        {"x" * 501: 1},
        {"key": "x" * 501},
        {"key\0": 1},
        {"key": "\0"},
        {"key": "\ud800"},
        {"\ud800": 1},
    ],
    ids=["many keys", "long key", "long text", "NUL key", "NUL", "surrogate", "surrogate key"],
)
async def test_metadata_that_is_too_much_or_can_not_be_stored(shop: Shop, value: Any) -> None:
    await assert_invalid(await post(shop, {"metadata": value}), "metadata")


@pytest.mark.parametrize("value", [{"key": [MARK]}, {"key": {MARK: MARK}}, {"key": [[[]]]}], ids=repr)
async def test_metadata_with_a_value_that_is_not_plain(shop: Shop, value: Any) -> None:
    await assert_invalid(await post(shop, {"metadata": value}), "metadata.key")


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 400])
async def test_metadata_with_a_number_that_is_not_finite(shop: Shop, literal: str) -> None:
    body = json.dumps(GOOD)[:-1] + f', "metadata": {{"key": {literal}}}}}'
    await assert_invalid(await post(shop, body), "metadata.key")


# The body as a whole


@pytest.mark.parametrize("name", ["balance", "customer_id", "upstreamid", "status", "ids"])
async def test_an_unknown_field(shop: Shop, name: str) -> None:
    response = await post(shop, {name: MARK})
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("unknown_parameter", name)
    assert MARK not in response.text


async def test_a_long_unknown_name_is_cut_and_made_plain(shop: Shop) -> None:
    problem = problem_of(await post(shop, {"ü" + "x" * 5_000: 1}), 400, "bad_request")
    assert problem["code"] == "unknown_parameter"
    assert len(problem["parameter"]) <= 64
    assert problem["parameter"].isascii()


async def test_an_unknown_name_that_is_no_text(shop: Shop) -> None:
    response = await post(shop, {f"{MARK}\ud800": 1})
    assert problem_of(response, 400, "bad_request")["code"] == "invalid_parameter"
    assert MARK not in response.text


async def test_only_so_many_problems_are_told(shop: Shop) -> None:
    response = await post(shop, {f"unknown-{n}": n for n in range(1_000)})
    problem_of(response, 400, "bad_request")
    assert len(response.json()["errors"]) <= 20


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "half an object": b'{"customerId": "zebra',
    "a list": json.dumps([GOOD]).encode(),
    "null": b"null",
    "broken UTF-8": b'{"customerId": "zebra\xff"}',
    "encoded surrogate": b'{"customerId": "zebra\xed\xa0\x80"}',
    "deep lists": b"[" * 30_000 + b"]" * 30_000,
    "deep metadata": (
        json.dumps(GOOD)[:-1] + ', "metadata": ' + '{"a":' * 9_000 + "1" + "}" * 9_001
    ).encode(),
    "a name twice": b'{"amount": 1, ' + json.dumps(GOOD)[1:].encode(),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_body_that_is_no_json_object(shop: Shop, body: bytes) -> None:
    response = await post(shop, body)
    assert problem_of(response, 400, "bad_request")["code"] == "invalid_format"
    assert MARK not in response.text


async def test_a_body_over_64_kib(shop: Shop) -> None:
    body = json.dumps(GOOD).encode().ljust(64 * KIBIBYTE + 1)
    assert problem_of(await post(shop, body), 413, "bad_request")["code"] == "payload_too_large"


async def test_a_body_without_a_length_is_cut_off(shop: Shop) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1_000):
            read += 1
            yield b" " * KIBIBYTE

    response = await shop.client.post("/credit-lines", content=body(), headers=JSON, auth=MERCHANT)
    problem_of(response, 413, "bad_request")
    assert read <= 66


async def test_a_body_of_another_type(shop: Shop) -> None:
    response = await post(shop, GOOD, **{"Content-Type": "application/x-www-form-urlencoded"})
    assert problem_of(response, 415, "bad_request")["parameter"] == "Content-Type"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "path", ["/credit-lines", "/credit-lines/x/entries", "/decisions", "/webhook-events"]
)
async def test_another_method(shop: Shop, method: str, path: str) -> None:
    response = await shop.client.request(method, path, auth=MERCHANT)
    problem_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == ("GET, POST" if path == "/credit-lines" else "GET")


@pytest.mark.parametrize(
    "path", ["/credit-lines/", "/credit-lines/x/", "/credit-lines/x/nothing", "/decisions/"]
)
async def test_another_path(shop: Shop, path: str) -> None:
    response = await shop.client.get(path, auth=MERCHANT)
    problem_of(response, 404, "not_found")
