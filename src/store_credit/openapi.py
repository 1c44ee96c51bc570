"""The OpenAPI document: what FastAPI can not see, because bodies are read after the credentials."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
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


_LINE = {"id": "$response.body#/id"}
_CUSTOMER = {"id": "$response.body#/customerId"}
_HISTORY = ("entries", "holds", "deductions", "decisions")
_ACTIONS = ("adjustments", "flags", "suspend", "resume", "close", "reopen")
_OF_LINE: dict[str, dict[str, str]] = {
    "GET /credit-lines/{id}": _LINE,
    **{f"GET /credit-lines/{{id}}/{noun}": _LINE for noun in _HISTORY},
    "PATCH /credit-lines/{id}": _LINE,
    **{f"POST /credit-lines/{{id}}/{action}": _LINE for action in _ACTIONS},
    "DELETE /checkouts/store-credits/{upstream_id}": {"upstream_id": "$response.body#/upstreamId"},
    "GET /customers/{id}/store-credits": _CUSTOMER | {"currency": "$response.body#/currency"},
    "POST /customers/{id}/offers": _CUSTOMER,
}
LINKS: dict[str, dict[str, dict[str, str]]] = {
    "POST /checkouts/store-credits": {
        "DELETE /checkouts/store-credits/{upstream_id}": {"upstream_id": "$response.body#/upstreamId"},
        "GET /decisions": {"sessionId": "$request.body#/sessionId"},
        "POST /sessions/{id}/release": {"id": "$request.body#/sessionId"},
    },
    "POST /webhooks/digital-river": {
        "GET /webhook-events/{id}": {"id": "$response.body#/id"},
        "POST /webhook-events/{id}/apply": {"id": "$response.body#/id"},
        "POST /webhook-events/{id}/dismiss": {"id": "$response.body#/id"},
    },
    "POST /credit-lines": _OF_LINE,
    "GET /credit-lines/{id}": _OF_LINE,
    "PATCH /credit-lines/{id}": _OF_LINE,
    **{f"POST /credit-lines/{{id}}/{action}": _OF_LINE for action in _ACTIONS},
}
"""What can be called after an operation succeeded, and where its parameters come from."""


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
    """Serve the description: with links, and without FastAPI's own validation answer, which is never given.

    It is made once: anybody may ask for it.
    """
    generate = app.openapi

    @cache
    def described() -> dict[str, Any]:
        document = generate()
        for schema in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(schema, None)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        _add_links(document)
        return document

    @cache
    def rendered() -> bytes:
        return bytes(JSONResponse(described()).body)

    async def document(_request: Request) -> Response:
        return Response(rendered(), media_type="application/json")

    app.openapi = described  # type: ignore[method-assign]
    app.add_route("/openapi.json", document, include_in_schema=False)


def _add_links(document: dict[str, Any]) -> None:
    """Each successful answer names what can be called next."""

    def operation(label: str) -> dict[str, Any]:
        method, path = label.lower().split(" ", 1)
        found: dict[str, Any] = document["paths"][path][method]
        return found

    for source, links in LINKS.items():
        targets = {label: operation(label) for label in links if label != source}
        answer = next(found for code, found in operation(source)["responses"].items() if code < "300")
        answer["links"] = {
            target["summary"].replace(" ", ""): {
                "operationId": target["operationId"],
                "parameters": links[label],
                "description": target["description"],
            }
            for label, target in targets.items()
        }
