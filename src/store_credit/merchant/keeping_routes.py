"""The life of a credit line for merchants: change, adjust, suspend, close, flag, and release holds."""

from __future__ import annotations

import decimal
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request

from store_credit.body import parse
from store_credit.errors import NotFound
from store_credit.ledger import queries
from store_credit.ledger.commands import (
    Adjust,
    Cause,
    Command,
    Describe,
    ReleaseHolds,
    SetExpiry,
    SetFlag,
    SetStatus,
)
from store_credit.ledger.queries import HoldFilter
from store_credit.ledger.state import HoldState, Outcome
from store_credit.merchant import keeping_schemas as bodies
from store_credit.merchant import rendering, schemas
from store_credit.merchant.idempotency import IdempotencyKey, execute_once
from store_credit.merchant.paging import line_of, page_of, stored_id
from store_credit.openapi import answers, takes
from store_credit.responses import Json
from store_credit.security import Principal, may_read, may_sell, may_write
from store_credit.service import Service, TheService

router = APIRouter()

Writer = Annotated[Principal, Depends(may_write)]
Seller = Annotated[Principal, Depends(may_sell)]
Action = Literal["suspend", "resume", "close", "reopen"]

_AMOUNT = decimal.Context(prec=15)
"""As many digits as an amount can have: what differs further on is float noise, and no other request."""

_STATUSES = answers(400, 401, 403, 404, 408, 409, 413, 415, 429, 503)
_LINE: Any = {"tags": ["Credit lines"], "response_model": schemas.CreditLine, "responses": _STATUSES}
_HOLDS: Any = {"tags": ["Holds"], "response_model": bodies.Released, "responses": _STATUSES}


@router.patch("/credit-lines/{id}", openapi_extra=takes(bodies.LineChanges), **_LINE)
async def change_line(
    request: Request,
    writer: Writer,
    service: TheService,
    id: str,  # noqa: A002
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Change what a line is called and shown as, its expiry, and partial approval."""
    asked = await parse(request, bodies.LineChanges)
    cause = Cause(writer.name, asked.reason, idempotency_key=idempotency_key)
    named = asked.model_fields_set - {"reason"}
    changes = {name: getattr(asked, name) for name in sorted(named - {"expires_time"})}
    commands: list[Command] = [Describe(id, changes, cause)] if changes else []
    if "expires_time" in named:
        commands.append(SetExpiry(id, asked.expires_time, cause))
    # A name that is taken away is not a name that is not named.
    content = ("PATCH", id, asked.model_dump(exclude_unset=True))
    return await _change(service, id, commands, idempotency_key, content, changes)


@router.post("/credit-lines/{id}/adjustments", openapi_extra=takes(bodies.AdjustmentRequest), **_LINE)
async def adjust_line(
    request: Request,
    writer: Writer,
    service: TheService,
    id: str,  # noqa: A002
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Correct the balance by a signed amount. A decrease never goes below what is held."""
    asked = await parse(request, bodies.AdjustmentRequest)
    cause = Cause(writer.name, asked.reason, idempotency_key=idempotency_key)
    content = ("adjustments", id, str(_AMOUNT.normalize(asked.amount)), asked.reason)
    return await _change(service, id, [Adjust(id, asked.amount, cause)], idempotency_key, content)


@router.post("/credit-lines/{id}/flags", openapi_extra=takes(bodies.FlagRequest), **_LINE)
async def flag_line(
    request: Request,
    writer: Writer,
    service: TheService,
    id: str,  # noqa: A002
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Mark a line for an operator, or take the mark off."""
    asked = await parse(request, bodies.FlagRequest)
    cause = Cause(writer.name, asked.reason, idempotency_key=idempotency_key)
    command = SetFlag(id, asked.flag, asked.raised, cause)
    return await _change(service, id, [command], idempotency_key, ("flags", id, asked.model_dump()))


def _status_route(action: Action, summary: str) -> None:
    """The route of one change of status, such as `POST /credit-lines/{id}/suspend`."""

    @router.post(
        f"/credit-lines/{{id}}/{action}",
        name=f"{action}_line",
        description=summary,
        openapi_extra=takes(bodies.ReasonRequest),
        **_LINE,
    )
    async def set_status(
        request: Request,
        writer: Writer,
        service: TheService,
        id: str,  # noqa: A002
        idempotency_key: IdempotencyKey = None,
    ) -> Json:
        asked = await parse(request, bodies.ReasonRequest)
        cause = Cause(writer.name, asked.reason, idempotency_key=idempotency_key)
        command = SetStatus(id, action, cause)
        return await _change(service, id, [command], idempotency_key, (action, id, asked.model_dump()))


_status_route("suspend", "Take no new holds; open ones live on.")
_status_route("resume", "Take holds again.")
_status_route("close", "Void what is left. Refused while credit is held.")
_status_route("reopen", "Take holds again; what was voided does not come back.")


@router.get(
    "/holds",
    tags=["Holds"],
    response_model=schemas.Listed[schemas.Hold],
    dependencies=[Depends(may_read)],
    responses=answers(400, 401, 403, 429, 503),
)
async def list_all_holds(service: TheService, query: Annotated[bodies.HoldQuery, Query()]) -> Json:
    """The holds of all credit lines, newest first: those in one state, or of some age."""
    now = await service.ledger.now()
    wanted = HoldFilter(query.state, now - query.older_than if query.older_than is not None else None)
    rows, more = await service.database.read(queries.all_holds, wanted, page_of(query, "hold"), now)
    return Json(rendering.listed(rows, more, lambda row: rendering.hold(row, row["currency"])))


@router.post("/holds/{id}/release", openapi_extra=takes(bodies.ReleaseRequest), **_HOLDS)
async def release_hold(
    request: Request,
    writer: Writer,
    service: TheService,
    id: str,  # noqa: A002
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """End one hold; what it held becomes available again."""
    asked = await parse(request, bodies.ReleaseRequest)
    found = await service.database.read(queries.hold_places, hold_id=stored_id(id, "hold"))
    if not found:
        raise NotFound.of("hold")
    cause = Cause(writer.name, asked.reason or "hold released", idempotency_key=idempotency_key)
    return await _release(service, found, cause, ("hold", id))


@router.post("/sessions/{id:anything}/release", openapi_extra=takes(bodies.ReleaseRequest), **_HOLDS)
async def release_session(
    request: Request,
    writer: Seller,
    service: TheService,
    id: str,  # noqa: A002
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """End all open holds of a checkout session that is known to be dead."""
    asked = await parse(request, bodies.ReleaseRequest)
    found = await service.database.read(queries.hold_places, session_id=stored_id(id, "session"))
    cause = Cause(writer.name, asked.reason or "session released", idempotency_key=idempotency_key)
    return await _release(service, found, cause, ("session", id))


async def _change(
    service: Service,
    line_id: str,
    commands: Sequence[Command],
    key: str | None,
    content: Sequence[Any],
    changes: dict[str, Any] | None = None,
) -> Json:
    """Run the commands on one line and show it as they left it."""
    before = await line_of(service, line_id)
    shown = dict(changes or {})
    if "metadata" in shown:
        shown["metadata"] = json.dumps(shown["metadata"])

    def answer(outcomes: Sequence[Outcome]) -> dict[str, Any]:
        if not outcomes:
            return rendering.line(before)
        last = outcomes[-1]
        assert last.line is not None
        return rendering.changed_line(before, last.line, last.at, shown)

    return await execute_once(service.ledger, commands, key=key, request=content, answer=answer)


async def _release(
    service: Service, found: Sequence[tuple[str, str]], cause: Cause, content: Sequence[Any]
) -> Json:
    """End the holds of these (id, line id) and tell which of them were open."""
    holds = tuple(hold_id for hold_id, _ in found)
    command = ReleaseHolds(holds, tuple(dict.fromkeys(line_id for _, line_id in found)), cause)

    def answer(outcomes: Sequence[Outcome]) -> dict[str, Any]:
        ended = [hold.id for hold in outcomes[0].ended if hold.state == HoldState.RELEASED]
        return {"released": ended}

    return await execute_once(
        service.ledger,
        [command],
        key=cause.idempotency_key,
        request=("release", *content, cause.reason),
        answer=answer,
    )
