"""What no callout may look like: a clear 400, nothing stored, never a fault of ours.

All tests share one application, and each sees to it that nothing was stored.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests.http_fixtures import AUTHORIZE, CALLOUT, Json, Shop, problem_of

pytest_plugins = ["tests.http_fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

MARK = "zebra"
"""Stands in wrong values: no answer may repeat it."""

GOOD: Json = {"sessionId": "session-1", "amount": 11.4, "upstreamId": "line-1"}
KIBIBYTE = 1024


def changed(**fields: Any) -> str:
    return json.dumps(GOOD | fields)


def without(field: str) -> str:
    return json.dumps({name: value for name, value in GOOD.items() if name != field})


def with_amount(literal: str) -> str:
    return f'{{"sessionId": "session-1", "amount": {literal}, "upstreamId": "line-1"}}'


def nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + closing * depth


@pytest_asyncio.fixture(loop_scope="module")
async def shop(lasting_shop: Shop) -> AsyncIterator[Shop]:
    """The application, in which a test must leave nothing behind."""
    before = await lasting_shop.stored()
    yield lasting_shop
    assert await lasting_shop.stored() == before


REQUIRED = ["sessionId", "amount", "upstreamId"]
TEXTS = ["sessionId", "upstreamId", "sessionUpstreamId", "name", "iconUrl", "lastFour"]
NOT_TEXTS = [5, 1.5, True, [], [MARK], {}, {MARK: MARK}]
NOT_NUMBERS = [f"{MARK}", "11.4", "", True, False, None, [], [11.4], {}, {"value": 11.4}]
NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e400000", "9" * 309, "-" + "9" * 9_000]
LENGTHS_MAX = {
    "sessionId": 255,
    "sessionUpstreamId": 255,
    "upstreamId": 1024,
    "name": 1024,
    "iconUrl": 1024,
    "lastFour": 1024,
}


@pytest.mark.parametrize("field", REQUIRED)
async def test_a_missing_field(shop: Shop, field: str) -> None:
    problem = problem_of(await shop.post_authorization(without(field)), 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("missing_parameter", field)


async def test_all_missing_fields_are_named(shop: Shop) -> None:
    response = await shop.post_authorization("{}")
    problem_of(response, 400, "bad_request")
    named = {(problem["code"], problem["parameter"]) for problem in response.json()["errors"]}
    assert named == {("missing_parameter", field) for field in REQUIRED}


@pytest.mark.parametrize("field", REQUIRED)
async def test_null_in_a_required_field(shop: Shop, field: str) -> None:
    problem = problem_of(await shop.post_authorization(changed(**{field: None})), 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", field)


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("value", NOT_TEXTS, ids=repr)
async def test_a_text_of_another_type(shop: Shop, field: str, value: Any) -> None:
    response = await shop.post_authorization(changed(**{field: value}))
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", field)
    assert MARK not in response.text


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
async def test_an_amount_of_another_type(shop: Shop, value: Any) -> None:
    response = await shop.post_authorization(changed(amount=value))
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", "amount")
    assert MARK not in response.text


@pytest.mark.parametrize("literal", NOT_FINITE, ids=lambda literal: literal[:12])
async def test_an_amount_that_is_not_finite(shop: Shop, literal: str) -> None:
    problem = problem_of(await shop.post_authorization(with_amount(literal)), 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", "amount")


@pytest.mark.parametrize("literal", NOT_FINITE, ids=lambda literal: literal[:12])
async def test_a_number_that_is_not_finite_in_an_unknown_field(shop: Shop, literal: str) -> None:
    body = changed()[:-1] + f', "unknown": [{literal}]}}'
    problem = problem_of(await shop.post_authorization(body), 400, "bad_request")
    assert problem["code"] == "invalid_format"


@pytest.mark.parametrize(
    "literal", ["01", "+1", ".5", "5.", "1_000", "0x10", "11,4", "1e", "--1", "\uff11"]
)
async def test_an_amount_that_is_no_json(shop: Shop, literal: str) -> None:
    problem = problem_of(await shop.post_authorization(with_amount(literal)), 400, "bad_request")
    assert problem["code"] == "invalid_format"


@pytest.mark.parametrize("field", ["sessionId", "upstreamId"])
async def test_an_empty_identifier(shop: Shop, field: str) -> None:
    problem = problem_of(await shop.post_authorization(changed(**{field: ""})), 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", field)


@pytest.mark.parametrize(("field", "length_max"), LENGTHS_MAX.items())
async def test_a_text_that_is_too_long(shop: Shop, field: str, length_max: int) -> None:
    response = await shop.post_authorization(changed(**{field: "x" * (length_max + 1)}))
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", field)
    assert "xx" not in response.text


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("escaped", ["\\u0000", "\\ud800", "\\udfff", "\\udc00\\ud800"])
async def test_a_text_that_can_not_be_stored(shop: Shop, field: str, escaped: str) -> None:
    body = changed(**{field: f"{MARK}@"}).replace("@", escaped)
    response = await shop.post_authorization(body)
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", field)
    assert MARK not in response.text


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b"  \n",
    "half an object": b'{"sessionId": "zebra',
    "plain text": b"zebra",
    "two objects": changed().encode() * 2,
    "a trailing comma": changed()[:-1].encode() + b",}",
    "single quotes": changed().replace('"', "'").encode(),
    "a comment": b"/* zebra */" + changed().encode(),
    "a list": b"[" + changed().encode() + b"]",
    "a string": b'"zebra"',
    "a number": b"5",
    "true": b"true",
    "null": b"null",
    "NaN": b"NaN",
    "broken UTF-8": changed(sessionId="@").encode().replace(b"@", b"\xff\xfe"),
    "cut UTF-8": changed(sessionId="@").encode().replace(b"@", b"\xc3"),
    "encoded surrogate": changed(sessionId="@").encode().replace(b"@", b"\xed\xa0\x80"),
    "overlong UTF-8": changed(sessionId="@").encode().replace(b"@", b"\xc0\xaf"),
    "raw NUL": changed(sessionId="@").encode().replace(b"@", b"\0"),
    "raw line feed": changed(sessionId="@").encode().replace(b"@", b"\n"),
    "byte order mark": b"\xef\xbb\xbf" + changed().encode(),
    "UTF-16": changed().encode("utf-16"),
    "UTF-32": changed().encode("utf-32"),
    "deep lists": nested(30_000, "[", "]").encode(),
    "open lists": b"[" * 60_000,
    "deep objects": nested(9_000, '{"a":', "}").replace(":}", ":1}").encode(),
    "deep in a field": (changed()[:-1] + ', "unknown": ' + nested(30_000, "[", "]") + "}").encode(),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_body_that_is_no_json_object(shop: Shop, body: bytes) -> None:
    response = await shop.post_authorization(body)
    problem = problem_of(response, 400, "bad_request")
    assert problem["code"] == "invalid_format"
    assert MARK not in response.text


@pytest.mark.parametrize("field", REQUIRED)
async def test_a_name_that_is_given_twice(shop: Shop, field: str) -> None:
    body = f'{{"{field}": {json.dumps(GOOD[field])}, ' + changed()[1:]
    problem = problem_of(await shop.post_authorization(body), 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_format", field)


async def test_a_name_that_is_given_twice_further_in(shop: Shop) -> None:
    body = changed()[:-1] + ', "unknown": [{"a": 1, "a": 1}]}'
    problem = problem_of(await shop.post_authorization(body), 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_format", "a")


async def test_a_long_name_that_is_given_twice_is_cut(shop: Shop) -> None:
    name = "ü\\ud800" + "x" * 5_000
    response = await shop.post_authorization(f'{{"{name}": 1, "{name}": 1}}')
    problem = problem_of(response, 400, "bad_request")
    assert len(problem["parameter"]) <= 64
    assert problem["parameter"].isascii()


# Size


def padded(size: int) -> bytes:
    body = changed(unknown="")
    return changed(unknown="x" * (size - len(body))).encode()


async def test_a_body_over_64_kib(shop: Shop) -> None:
    response = await shop.post_authorization(padded(64 * KIBIBYTE + 1))
    problem = problem_of(response, 413, "bad_request")
    assert problem["code"] == "payload_too_large"


async def test_a_body_that_is_announced_as_too_large_is_not_read(shop: Shop) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"x"

    headers = {"Content-Type": "application/json", "Content-Length": str(64 * KIBIBYTE + 1)}
    response = await shop.client.post(AUTHORIZE, content=body(), headers=headers, auth=CALLOUT)
    problem_of(response, 413, "bad_request")
    assert read == 0


@pytest.mark.parametrize("announced", ["9" * 30, "9" * 5_000])
async def test_a_body_that_is_announced_as_endless(shop: Shop, announced: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": announced}
    response = await shop.client.post(AUTHORIZE, content=b"{}", headers=headers, auth=CALLOUT)
    assert problem_of(response, 413, "bad_request")["code"] == "payload_too_large"


async def test_a_body_without_a_length_is_cut_off(shop: Shop) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1_000):
            read += 1
            yield b" " * KIBIBYTE

    headers = {"Content-Type": "application/json"}
    response = await shop.client.post(AUTHORIZE, content=body(), headers=headers, auth=CALLOUT)
    problem_of(response, 413, "bad_request")
    assert read <= 66


async def test_a_body_is_not_read_before_the_credentials(shop: Shop) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"{}"

    headers = {"Content-Type": "application/json"}
    response = await shop.client.post(AUTHORIZE, content=body(), headers=headers, auth=("nobody", "x"))
    problem_of(response, 401, "unauthorized")
    assert read == 0


async def test_a_body_that_never_comes(shop: Shop) -> None:
    soon = shop.service.settings.model_copy(update={"client_timeout": timedelta(milliseconds=10)})
    before = shop.service

    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    headers = {"Content-Type": "application/json"}
    shop.app.state.service = replace(before, settings=soon)
    try:
        response = await shop.client.post(AUTHORIZE, content=body(), headers=headers, auth=CALLOUT)
    finally:
        shop.app.state.service = before
    assert problem_of(response, 408, "request_timeout")["code"] == "request_timeout"
    assert response.headers["connection"] == "close"


# Type, method, path


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "*/*", "json"],
)
async def test_a_body_of_another_type(shop: Shop, content_type: str) -> None:
    response = await shop.post_authorization(changed(), headers={"Content-Type": content_type})
    problem = problem_of(response, 415, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_format", "Content-Type")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
async def test_another_method(shop: Shop, method: str) -> None:
    response = await shop.client.request(method, AUTHORIZE, auth=CALLOUT)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    if method != "HEAD":
        problem_of(response, 405, "method_not_allowed")


@pytest.mark.parametrize(
    "path",
    ["/", "/checkouts", "/checkouts/store-credit", "/checkouts/store-creditsx", "//x", "/%00", "/%FF"],
)
async def test_another_path(shop: Shop, path: str) -> None:
    response = await shop.client.post(f"http://test{path}", content=changed(), auth=CALLOUT)
    assert problem_of(response, 404, "not_found")["code"] == "not_found"


async def test_a_trailing_slash_is_not_redirected(shop: Shop) -> None:
    response = await shop.client.post(f"{AUTHORIZE}/", content=changed(), auth=CALLOUT)
    problem_of(response, 405, "method_not_allowed")
