"""Reading a request's body: bounded, strictly JSON, and into a model.

The body is read after the credentials were checked, never further than its limit, and not for ever;
only so many large ones arrive at the same time. What is not JSON (NaN, Infinity, numbers beyond a
double, duplicate keys, broken UTF-8) is refused cheaply and named; the input is never repeated.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from store_credit.errors import (
    BadRequest,
    PayloadTooLarge,
    Problem,
    RequestTimeout,
    ServiceUnavailable,
    UnsupportedMediaType,
)
from store_credit.responses import printable, validation_problems
from store_credit.service import service_of

API_BODY_BYTES_MAX = 64 * 1024
WEBHOOK_BODY_BYTES_MAX = 1024 * 1024
LARGE_BODIES_MAX = 64
"""Bodies larger than those of the API that may arrive at the same time: they take memory."""
_INTEGER_DIGITS_MAX = 308
"""Integers of more digits are beyond a double, as `1e400` is."""

M = TypeVar("M", bound=BaseModel)

_large_bodies = asyncio.Semaphore(LARGE_BODIES_MAX)


class _NotANumber:
    """Stands for NaN, Infinity and numbers beyond a double until its parameter is known."""


async def parse(request: Request, model: type[M], *, bytes_max: int = API_BODY_BYTES_MAX) -> M:
    """The body as a model. Raises BadRequest, PayloadTooLarge or UnsupportedMediaType."""
    document, finite = loads(await read(request, bytes_max))
    try:
        parsed = model.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise validation_problems(found) from None
    if not finite:
        _malformed("The body holds a number that is not finite.")
    return parsed


async def read(request: Request, bytes_max: int) -> bytes:
    """The raw body of a request that says it is JSON; a larger one is cut off."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType(
            Problem("invalid_format", "The body must be application/json.", "Content-Type")
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType(
            Problem("invalid_format", "The body must not be compressed.", "Content-Encoding")
        )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > bytes_max:
        raise PayloadTooLarge.over(bytes_max)
    try:
        async with asyncio.timeout(service_of(request).settings.client_timeout.total_seconds()):
            return await _read_bounded(request, bytes_max)
    except TimeoutError:
        problem = Problem("request_timeout", "The body did not arrive in time.")
        raise RequestTimeout(problem, headers={"Connection": "close"}) from None
    except ClientDisconnect:
        _malformed("The body broke off.")


async def _read_bounded(request: Request, bytes_max: int) -> bytes:
    body = bytearray()
    is_large = False
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > bytes_max:
                raise PayloadTooLarge.over(bytes_max)
            if len(body) > API_BODY_BYTES_MAX and not is_large:
                await _take_room()
                is_large = True
    finally:
        if is_large:
            _large_bodies.release()
    return bytes(body)


async def _take_room() -> None:
    if _large_bodies.locked():
        raise ServiceUnavailable.retry_after(1, "Too many large bodies arrive at the same time.")
    await _large_bodies.acquire()


def loads(raw: bytes) -> tuple[dict[str, Any], bool]:
    """A JSON object, and whether all its numbers are finite. Raises BadRequest."""
    finite = True

    def not_finite(_text: str = "") -> _NotANumber:
        nonlocal finite
        finite = False
        return _NotANumber()

    def decimal(text: str) -> float | _NotANumber:
        number = float(text)
        return number if abs(number) != float("inf") else not_finite()

    def integer(text: str) -> int | _NotANumber:
        return int(text) if len(text) <= _INTEGER_DIGITS_MAX else not_finite()

    try:
        document = json.loads(
            raw.decode("utf-8"),
            parse_float=decimal,
            parse_int=integer,
            parse_constant=not_finite,
            object_pairs_hook=_without_duplicates,
        )
    except UnicodeDecodeError:
        _malformed("The body is not UTF-8.")
    except RecursionError:
        _malformed("The body is nested too deeply.")
    except ValueError:
        _malformed("The body is not JSON.")
    if not isinstance(document, dict):
        _malformed("The body is not a JSON object.")
    return document, finite


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise BadRequest(
            Problem("invalid_format", "A name is given twice in one object.", printable(twice))
        )
    return document


def _malformed(message: str) -> NoReturn:
    raise BadRequest(Problem("invalid_format", message))
