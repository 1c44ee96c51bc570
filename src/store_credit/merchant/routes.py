"""The merchant API. Writing needs the role `merchant`; reading, `reader` or `merchant`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from sqlalchemy import Connection

from store_credit import ids, money
from store_credit.body import parse
from store_credit.callouts.queries import DecisionFilter, decisions
from store_credit.errors import BadRequest, NotFound
from store_credit.ledger import queries
from store_credit.ledger.commands import Cause, Issue
from store_credit.ledger.ledger import Claim
from store_credit.ledger.queries import LineFigures, LineFilter, Page
from store_credit.ledger.state import Outcome
from store_credit.merchant import rendering, schemas
from store_credit.merchant.paging import page_of, stored_id
from store_credit.openapi import answers, takes
from store_credit.responses import Json
from store_credit.security import Principal, may_read, may_write
from store_credit.service import Service, TheService

router = APIRouter()

Writer = Annotated[Principal, Depends(may_write)]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]

_READ: Any = {"dependencies": [Depends(may_read)]}
_LISTED: Any = {**_READ, "responses": answers(400, 401, 403, 404, 429, 503)}


@router.post(
    "/credit-lines",
    status_code=201,
    tags=["Credit lines"],
    response_model=schemas.CreditLine,
    responses=answers(400, 401, 403, 408, 409, 413, 415, 429, 503),
    openapi_extra=takes(schemas.CreditLineRequest),
)
async def issue(
    request: Request, writer: Writer, service: TheService, idempotency_key: IdempotencyKey = None
) -> Json:
    """Issue a credit line. With an `Idempotency-Key`, a retry gets the first answer again."""
    asked = await parse(request, schemas.CreditLineRequest)
    command = _issue(asked, Cause(writer.name, asked.reason, idempotency_key=idempotency_key))

    def answer(outcomes: Sequence[Outcome]) -> str:
        outcome = outcomes[0]
        assert outcome.line is not None
        return json.dumps(rendering.issued_line(command, outcome.line, outcome.at))

    result = await service.ledger.execute(command, claim=_claim(idempotency_key, asked, command, answer))
    if result.earlier_answer is not None:
        return Json(json.loads(result.earlier_answer), 201, {"Idempotent-Replayed": "true"})
    return Json(json.loads(answer(result.outcomes)), 201)


@router.get(
    "/credit-lines",
    tags=["Credit lines"],
    response_model=schemas.Listed[schemas.CreditLine],
    dependencies=[Depends(may_read)],
    responses=answers(400, 401, 403, 429, 503),
)
async def list_lines(service: TheService, query: Annotated[schemas.LineQuery, Query()]) -> Json:
    """Credit lines, newest first."""
    wanted = LineFilter(query.upstream_id, query.customer_id, query.status, query.currency, query.flagged)
    now = await service.ledger.now()
    rows, more = await service.database.read(queries.lines, wanted, page_of(query), now)
    return Json(rendering.listed(rows, more, rendering.line))


@router.get("/credit-lines/{id}", tags=["Credit lines"], response_model=schemas.CreditLine, **_LISTED)
async def show_line(service: TheService, id: str) -> Json:  # noqa: A002
    """One credit line."""
    return Json(rendering.line(await _line(service, id)))


@router.get(
    "/credit-lines/{id}/entries",
    tags=["Credit lines"],
    response_model=schemas.Listed[schemas.Entry],
    **_LISTED,
)
async def list_entries(
    service: TheService,
    id: str,  # noqa: A002
    query: Annotated[schemas.PageQuery, Query()],
) -> Json:
    """The journal of a credit line, oldest entry first."""
    line = await _line(service, id)
    page = Page(
        query.limit,
        _seq("startingAfter", query.starting_after, line),
        _seq("endingBefore", query.ending_before, line),
    )
    rows, more = await service.database.read(queries.entries, line.row["id"], page)
    return Json(rendering.listed(rows, more, lambda row: rendering.entry(row, line.row["currency"])))


@router.get(
    "/credit-lines/{id}/holds",
    tags=["Credit lines"],
    response_model=schemas.Listed[schemas.Hold],
    **_LISTED,
)
async def list_holds(
    service: TheService,
    id: str,  # noqa: A002
    query: Annotated[schemas.PageQuery, Query()],
) -> Json:
    """The holds of a credit line, newest first, ended ones included."""
    line = await _line(service, id)
    now = await service.ledger.now()
    rows, more = await service.database.read(queries.holds, line.row["id"], page_of(query), now)
    return Json(rendering.listed(rows, more, lambda row: rendering.hold(row, line.row["currency"])))


@router.get(
    "/credit-lines/{id}/deductions",
    tags=["Credit lines"],
    response_model=schemas.Listed[schemas.Deduction],
    **_LISTED,
)
async def list_deductions(
    service: TheService,
    id: str,  # noqa: A002
    query: Annotated[schemas.PageQuery, Query()],
) -> Json:
    """The deductions of a credit line, newest first."""
    line = await _line(service, id)
    rows, more = await service.database.read(queries.deductions, line.row["id"], page_of(query))
    return Json(rendering.listed(rows, more, lambda row: rendering.deduction(row, line.row["currency"])))


@router.get(
    "/credit-lines/{id}/decisions",
    tags=["Credit lines"],
    response_model=schemas.Listed[schemas.Decision],
    **_LISTED,
)
async def list_line_decisions(
    service: TheService,
    id: str,  # noqa: A002
    query: Annotated[schemas.PageQuery, Query()],
) -> Json:
    """Every answer given to Digital River about a credit line, newest first."""
    line = await _line(service, id)
    wanted = DecisionFilter(line_id=line.row["id"])
    rows, more = await service.database.read(decisions, wanted, page_of(query))
    return Json(rendering.listed(rows, more, rendering.decision))


@router.get(
    "/decisions",
    tags=["Decisions"],
    response_model=schemas.Listed[schemas.Decision],
    dependencies=[Depends(may_read)],
    responses=answers(400, 401, 403, 429, 503),
)
async def list_decisions(service: TheService, query: Annotated[schemas.DecisionQuery, Query()]) -> Json:
    """Every answer given to Digital River, newest first, also for ids that no line has."""
    wanted = DecisionFilter(upstream_id=query.upstream_id, session_id=query.session_id)
    rows, more = await service.database.read(decisions, wanted, page_of(query))
    return Json(rendering.listed(rows, more, rendering.decision))


def _issue(asked: schemas.CreditLineRequest, cause: Cause) -> Issue:
    try:
        amount_minor = money.positive_minor(asked.amount, asked.currency)
    except money.InvalidAmount as error:
        raise BadRequest.parameter("amount", f"The amount {error}.") from None
    return Issue(
        line_id=ids.mint("cl"),
        upstream_id=asked.upstream_id or ids.mint("sc"),
        customer_id=asked.customer_id,
        currency=asked.currency,
        amount_minor=amount_minor,
        cause=cause,
        name=asked.name,
        icon_url=asked.icon_url,
        last_four=asked.last_four,
        expires_at=asked.expires_time,
        allow_partial=asked.allow_partial,
        metadata=dict(asked.metadata),
    )


def _claim(
    key: str | None,
    asked: schemas.CreditLineRequest,
    command: Issue,
    answer: Callable[[Sequence[Outcome]], str],
) -> Claim | None:
    """Of the amount its minor units count: 100 and 100.0 are one request."""
    if key is None:
        return None
    request = asked.model_dump(exclude={"amount"}) | {"amount_minor": command.amount_minor}
    content = json.dumps(["POST /credit-lines", request], sort_keys=True, default=str)
    return Claim(f"key:{key}", hashlib.sha256(content.encode()).hexdigest(), answer)


def _seq(parameter: str, cursor: str | None, line: LineFigures) -> int | None:
    """The sequence number that a cursor names: `<line id>.<seq>`, or the number alone."""
    if cursor is None:
        return None
    number = cursor.removeprefix(f"{line.row['id']}.")
    if not (number.isascii() and number.isdigit() and len(number) <= 18):
        raise BadRequest.parameter(parameter, "The cursor names no entry of this line.")
    return int(number)


async def _line(service: Service, line_id: str) -> LineFigures:
    def read(connection: Connection) -> LineFigures | None:
        return queries.line(connection, line_id, service.ledger.now_within(connection))

    stored_id(line_id, "credit line")
    found = await service.database.read(read)
    if found is None:
        raise NotFound.of("credit line")
    return found
