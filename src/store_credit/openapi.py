"""The OpenAPI document: what FastAPI can not see, because bodies are read after the credentials."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field

ErrorType = Literal[
    "bad_request",
    "not_found",
    "request_timeout",
    "unauthorized",
    "conflict",
    "internal_server_error",
    "too_many_requests",
    "method_not_allowed",
    "not_acceptable",
    "forbidden",
    "bad_gateway",
    "service_unavailable",
    "gateway_timeout",
]


class ErrorItem(BaseModel):
    """One problem."""

    code: str = Field(examples=["invalid_parameter"])
    parameter: str | None = Field(default=None, json_schema_extra={"type": "string"}, examples=["amount"])
    message: str = Field(examples=["Must be a finite number."])


class Errors(BaseModel):
    """Every error has this shape."""

    type: ErrorType
    errors: list[ErrorItem]


_DESCRIPTIONS = {
    400: "A parameter is missing, malformed or out of range.",
    401: "No valid credentials.",
    403: "The credentials have another role.",
    404: "There is no such thing.",
    405: "The path does not take this method.",
    408: "The body did not arrive in time.",
    409: "The name is taken, or the key was used for another request.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many wrong passwords, or too many wait to be checked. The right one still passes.",
    500: "Something went wrong on our side.",
    503: "The database does not answer, or there is too much to do. Nothing was approved; a change that"
    " was under way may still take effect.",
}
_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
_CHALLENGE = {"WWW-Authenticate": {"schema": {"type": "string"}}}
_HEADERS = {401: _CHALLENGE, 429: _RETRY_AFTER, 503: _RETRY_AFTER}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route."""
    return {
        status: {
            "model": Errors,
            "description": _DESCRIPTIONS[status],
            **({"headers": _HEADERS[status]} if status in _HEADERS else {}),
        }
        for status in (*statuses, 500)
    }


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """Documents the JSON body that a route reads by itself."""
    content = {"application/json": {"schema": model.model_json_schema(by_alias=True)}}
    return {"requestBody": {"required": True, "content": content}}


def install_openapi(app: FastAPI) -> None:
    """Take out FastAPI's own validation answer, which this application never gives."""
    generate = app.openapi

    def without_422() -> dict[str, Any]:
        document = generate()
        for schema in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(schema, None)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        return document

    app.openapi = without_422  # type: ignore[method-assign]
