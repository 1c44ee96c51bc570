"""`POST /webhooks/digital-river`: the signed events."""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from store_credit.body import WEBHOOK_BODY_BYTES_MAX, loads, read
from store_credit.errors import BadRequest, Conflict, Problem, Unauthorized
from store_credit.ledger.state import Flag, Outcome, Reason
from store_credit.openapi import answers
from store_credit.responses import Json
from store_credit.service import Service, service_of
from store_credit.telemetry import log
from store_credit.webhooks import events, inbox, signature
from store_credit.webhooks.effects import has_too_many_sources
from store_credit.webhooks.event_types import KNOWN_TYPES

_PATH = "/webhooks/digital-river"

_EXAMPLE = {
    "id": "4f0c1a52-6d0e-4a55-9d6a-5f1f6f0f7a11",
    "type": "checkout_session.order.created",
    "createdTime": "2026-11-20T12:00:00.123456Z",
    "data": {
        "object": {
            "id": "order-1001",
            "checkoutSessionId": "7765374748",
            "currency": "USD",
            "payment": {
                "sources": [
                    {
                        "id": "source-2002",
                        "type": "customerCredit",
                        "amount": 11.4,
                        "currency": "USD",
                        "upstreamId": "7654-2345-0987-123456",
                    }
                ]
            },
        }
    },
}
_TAKES = {
    "parameters": [
        {
            "name": signature.HEADER,
            "in": "header",
            "description": "`<timestamp>, <signature>`",
            "schema": {"type": "string", "default": ""},
        }
    ],
    "requestBody": {
        "required": True,
        "description": "An event of Digital River. Fields that are not named here are ignored.",
        "content": {
            "application/json": {
                "example": _EXAMPLE,
                "schema": {
                    "type": "object",
                    "required": ["id", "type", "data"],
                    "properties": {
                        "id": {"type": "string", "minLength": 1, "maxLength": 255},
                        "type": {"type": "string", "minLength": 1, "maxLength": 255},
                        "data": {
                            "type": "object",
                            "required": ["object"],
                            "properties": {"object": {"type": "object"}},
                        },
                    },
                },
            }
        },
    },
}


class Receipt(BaseModel):
    """What became of an event. `ignored` means kept, and nothing to do for store credit."""

    id: str = Field(description="Digital River's id of the event.")
    state: Literal["applied", "ignored", "parked", "unmatched", "failed", "dismissed"]


async def receive_event(request: Request) -> Json:
    """Take in an event, once: it is stored and applied in one transaction.

    The header is `<timestamp>, <signature>`: the Base64 HMAC-SHA256 of `<timestamp>.<body>`.
    """
    service, signed = service_of(request), request.headers.get(signature.HEADER, "")
    _check_configuration(service, signed)
    body = await read(request, WEBHOOK_BODY_BYTES_MAX)
    _check_signature(service, signed, body)
    event = _event(body)
    request.state.reason = await _receive(service, event, body.decode("utf-8"))
    return Json({"id": event.id, "state": request.state.reason})


def add_webhook(app: FastAPI) -> None:
    """Serve the webhook by a route of the application's own, as the callout is: `callouts.routes`."""
    app.add_api_route(
        _PATH,
        receive_event,
        methods=["POST"],
        tags=["Webhook"],
        response_model=Receipt,
        responses=answers(400, 401, 408, 409, 413, 415, 503),
        openapi_extra=_TAKES,
    )


def _check_configuration(service: Service, signed: str) -> None:
    """Refuses early what no body could make acceptable."""
    if not service.settings.webhook_secrets:
        if service.settings.unsigned_webhooks == "accept":
            return
        message = "No webhook secret is configured: set STORE_CREDIT_WEBHOOK_SECRETS."
        raise Unauthorized(Problem("unauthorized", message))
    if not signed:
        message = f"The header {signature.HEADER} is missing."
        raise Unauthorized(Problem("missing_parameter", message, signature.HEADER))


def _check_signature(service: Service, signed: str, body: bytes) -> None:
    secrets = [secret.get_secret_value() for secret in service.settings.webhook_secrets]
    if not secrets:
        return
    try:
        signature.verify(signed, body, secrets, service.clock(), service.settings.webhook_tolerance)
    except signature.SignatureRefused as refused:
        raise Unauthorized(Problem("unauthorized", str(refused), signature.HEADER)) from None


def _event(body: bytes) -> events.Event:
    document, finite = loads(body)
    if not finite:
        raise BadRequest(Problem("invalid_format", "The body holds a number that is not finite."))
    try:
        return events.read(document)
    except events.MalformedEvent as error:
        raise BadRequest.parameter(error.parameter, str(error)) from None


async def _receive(service: Service, event: events.Event, body: str) -> str:
    kind = event.type if event.type in KNOWN_TYPES else "other"
    try:
        receipt = await inbox.receive(service.ledger, event, body, aside=_other_mode(service, event))
    except inbox.EventConflict:
        service.metrics.webhook_event(kind, "conflict").inc()
        log.warning("event_conflict", event_id=event.id)
        message = "An event with this id and other effects was received before. This one is kept."
        raise Conflict(Problem("already_exists", message, "id")) from None
    service.metrics.webhook_event(kind, receipt.state.value).inc()
    if has_too_many_sources(event):
        log.warning("too_many_sources", event_id=event.id)
    for outcome in receipt.outcomes:
        _tell(service, event, outcome)
    return receipt.state.value


def _other_mode(service: Service, event: events.Event) -> str | None:
    """Why the event is not for us, when it is of the other mode."""
    wanted = service.settings.live_mode
    if wanted is None or event.live_mode in (None, wanted):
        return None
    return "a live event" if event.live_mode else "a test event"


def _tell(service: Service, event: events.Event, outcome: Outcome) -> None:
    """Count and log what an operator must know of."""
    if outcome.reason == Reason.DEDUCTED and outcome.line is not None:
        service.metrics.deductions.labels(outcome.line.currency).inc()
        short = outcome.line.balance < 0 or outcome.line.unheld < 0
        # Without the flag, what is short is only promised by holds past their time.
        if short and Flag.OVERDRAWN in outcome.line.flags:
            service.metrics.overdrawn.inc()
            log.warning("line_overdrawn", line_id=outcome.line.id, event_id=event.id)
    elif not outcome.accepted:
        log.warning("source_not_deducted", event_id=event.id, reason=outcome.reason.value)
