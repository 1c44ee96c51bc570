"""JSON answers, and the handlers that turn every exception into one of Digital River's shape."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from store_credit.errors import (
    ApiError,
    BadRequest,
    Conflict,
    InternalServerError,
    NotFound,
    Problem,
    ServiceUnavailable,
)
from store_credit.failures import DATABASE_ERRORS, is_passing
from store_credit.ledger.refusals import (
    AlreadyExists,
    KeyReused,
    OutOfRange,
    Refusal,
    Unavailable,
    UnknownLine,
)

PROBLEMS_MAX = 20
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_NAME_LENGTH_MAX = 64
_HTTP_ERRORS = {
    404: ("not_found", "There is nothing here."),
    405: ("method_not_allowed", "This path does not take this method."),
}


class Json(Response):
    """A JSON answer in plain ASCII: valid whatever the strings in it hold."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _encode(content).encode("ascii")


def error_response(error: ApiError) -> Json:
    return Json(error.as_json(), error.status, error.headers)


def validation_problems(errors: Any, *, skip: int = 0) -> BadRequest:
    """Pydantic's findings as one error; neither values nor long names are repeated.

    `skip` is the number of leading parts of each location that do not belong to the name.
    """
    problems = []
    for error in list(errors)[:PROBLEMS_MAX]:
        code = {"missing": "missing_parameter", "extra_forbidden": "unknown_parameter"}.get(error["type"])
        path = [str(part) for part in error["loc"][skip:]]
        message = error["msg"].removeprefix("Value error, ")
        problems.append(Problem(code or "invalid_parameter", _sentence(message), printable(".".join(path))))
    return BadRequest(*problems)


def printable(name: str) -> str:
    """A name from a request, safe to show: ASCII, and short."""
    return name.encode("ascii", "backslashreplace").decode("ascii")[:_NAME_LENGTH_MAX]


def install_error_handlers(app: FastAPI) -> None:
    """Every error that leaves the application has Digital River's shape."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(Refusal, _refusal)
    app.add_exception_handler(Unavailable, _unavailable)
    app.add_exception_handler(RequestValidationError, _invalid_query)
    app.add_exception_handler(HTTPException, _http_error)
    for fault in (*DATABASE_ERRORS, OSError, TimeoutError):
        app.add_exception_handler(fault, _database_fault)


def internal_error() -> Json:
    problem = Problem("internal_server_error", "Something went wrong on our side.")
    return error_response(InternalServerError(problem))


async def _api_error(_request: Request, error: Exception) -> Json:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _refusal(_request: Request, error: Exception) -> Json:
    assert isinstance(error, Refusal)
    if isinstance(error, OutOfRange):
        return error_response(BadRequest(Problem("invalid_parameter", error.message, error.parameter)))
    if isinstance(error, AlreadyExists):
        return error_response(Conflict(Problem("already_exists", error.message, error.parameter)))
    if isinstance(error, KeyReused):
        problem = Problem("idempotency_key_reused", error.message, "Idempotency-Key")
        return error_response(Conflict(problem))
    if isinstance(error, UnknownLine):
        return error_response(NotFound(Problem("not_found", error.message, error.parameter)))
    return error_response(Conflict(Problem("not_allowed", error.message, error.parameter)))


async def _unavailable(_request: Request, error: Exception) -> Json:
    assert isinstance(error, Unavailable)
    return error_response(ServiceUnavailable.retry_after(error.retry_after_seconds, error.message))


async def _invalid_query(_request: Request, error: Exception) -> Json:
    assert isinstance(error, RequestValidationError)
    return error_response(validation_problems(error.errors(), skip=1))


async def _http_error(request: Request, error: Exception) -> Json:
    assert isinstance(error, HTTPException)
    kind, message = _HTTP_ERRORS.get(error.status_code, ("bad_request", "The request is not valid."))
    body = {"type": kind, "errors": [{"code": kind, "message": message}]}
    return Json(body, error.status_code, {**(error.headers or {}), **_allow(request, error)})


def _allow(request: Request, error: HTTPException) -> dict[str, str]:
    """All methods of a path that does not take this one; Starlette names those of its first route."""
    if error.status_code != 405:
        return {}
    template = getattr(request.scope.get("route"), "path_format", None)
    methods = request.app.openapi()["paths"].get(template)
    return {"Allow": ", ".join(sorted(method.upper() for method in methods))} if methods else {}


async def _database_fault(_request: Request, error: Exception) -> Json:
    if not is_passing(error):
        raise error
    return error_response(ServiceUnavailable.retry_after(1, "The database does not answer."))


def _sentence(message: str) -> str:
    return message if message.endswith(".") else f"{message[:1].upper()}{message[1:]}."
