"""The inbox for operators: look through it, apply an event again or to a named line, dismiss it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import Connection, RowMapping

from store_credit.body import parse
from store_credit.errors import BadRequest, Conflict, NotFound, Problem
from store_credit.ledger.commands import Cause
from store_credit.ledger.pages import Page
from store_credit.ledger.refusals import OutOfRange
from store_credit.merchant import rendering, schemas
from store_credit.merchant.paging import stored_id
from store_credit.openapi import answers, takes
from store_credit.responses import Json
from store_credit.security import Principal, may_read, may_write
from store_credit.service import Service, TheService
from store_credit.webhooks import candidates, inbox, queries
from store_credit.webhooks.effects import Assignment, EventState

router = APIRouter(tags=["Webhook events"])

Writer = Annotated[Principal, Depends(may_write)]
_READ: Any = {"dependencies": [Depends(may_read)]}
_WRITE: Any = {
    "response_model": schemas.WebhookEventDetail,
    "responses": answers(400, 401, 403, 404, 408, 409, 413, 415, 429, 503),
}


@router.get(
    "/webhook-events",
    response_model=schemas.Listed[schemas.WebhookEvent],
    responses=answers(400, 401, 403, 429, 503),
    **_READ,
)
async def list_events(service: TheService, query: Annotated[schemas.EventQuery, Query()]) -> Json:
    """The inbox, newest first. `unmatched`, `failed` and `conflict` wait for an operator."""
    page = Page(query.limit, query.starting_after, query.ending_before)
    wanted = queries.EventFilter(query.state, query.type, query.order_id)
    rows, more = await service.database.read(queries.events, wanted, page)
    return Json(rendering.listed(rows, more, rendering.event))


@router.get(
    "/webhook-events/{id:anything}",
    response_model=schemas.WebhookEventDetail,
    responses=answers(400, 401, 403, 404, 429, 503),
    **_READ,
)
async def show_event(service: TheService, id: str) -> Json:  # noqa: A002
    """One event by Digital River's id or its receipt's, with its body as delivered."""
    return await _shown(service, id)


@router.post("/webhook-events/{id:anything}/apply", openapi_extra=takes(schemas.ApplyRequest), **_WRITE)
async def apply_event(request: Request, writer: Writer, service: TheService, id: str) -> Json:  # noqa: A002
    """Apply an event again, or to a named line. A source on the wrong line moves to the named one."""
    asked = await parse(request, schemas.ApplyRequest)
    if asked.source_id is not None and asked.credit_line_id is None:
        raise BadRequest.parameter("creditLineId", "A source is assigned to a line: name it.")
    first = (await _rows(service, id))[0]
    _refuse(first, EventState.DISMISSED, EventState.CONFLICT)
    cause = Cause(writer.name, asked.reason, event_id=first["event_id"])
    to = None
    if asked.credit_line_id is not None:
        if not await service.database.read(candidates.line_exists, asked.credit_line_id):
            raise OutOfRange("There is no such credit line.", "creditLineId")
        to = Assignment(asked.credit_line_id, asked.source_id)
    await inbox.apply_by_hand(service.ledger, first, cause, to)
    return await _shown(service, id)


@router.post("/webhook-events/{id:anything}/dismiss", openapi_extra=takes(schemas.DismissRequest), **_WRITE)
async def dismiss_event(request: Request, writer: Writer, service: TheService, id: str) -> Json:  # noqa: A002
    """Set an event aside that asks for nothing to be booked; a conflict by its `receiptId`."""
    asked = await parse(request, schemas.DismissRequest)
    meant = queries.to_dismiss(await _rows(service, id))
    _refuse(meant, EventState.APPLIED)
    await inbox.dismiss(service.ledger, meant, writer.name, asked.reason)
    return await _shown(service, id)


def _refuse(row: RowMapping, *states: EventState) -> None:
    if row["state"] in states:
        raise Conflict(Problem("refused", f"The event is {row['state']}.", "id"))


async def _rows(service: Service, event_id: str) -> list[RowMapping]:
    rows = await service.database.read(queries.event, stored_id(event_id, "event"))
    if not rows:
        raise NotFound.of("event")
    return rows


async def _shown(service: Service, event_id: str) -> Json:
    first, *others = await _rows(service, event_id)
    email = candidates.email_of(first)

    def suggested(connection: Connection) -> list[Any]:
        now = service.ledger.now_within(connection)
        return candidates.candidates(connection, first, email, now)

    waiting = first["state"] in (EventState.UNMATCHED, EventState.FAILED)
    lines = await service.database.read(suggested) if waiting else []
    detail = {
        "body": first["body"],
        "email": email,
        "candidates": [rendering.line(line) for line in lines],
        "conflicts": [rendering.event(row) for row in others],
    }
    return Json({**rendering.event(first), **detail})
