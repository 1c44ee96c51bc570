"""The merchant API. Writing needs the role `merchant`; reading, `reader` or `merchant`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from store_credit import ids, money
from store_credit.body import parse
from store_credit.callouts.queries import DecisionFilter, decisions
from store_credit.errors import BadRequest, NotFound
from store_credit.ledger import queries, reports
from store_credit.ledger.commands import Cause, Issue
from store_credit.ledger.pages import Page
from store_credit.ledger.queries import LineFigures, LineFilter
from store_credit.ledger.state import Outcome
from store_credit.merchant import rendering, schemas
from store_credit.merchant.idempotency import IdempotencyKey, execute_once
from store_credit.merchant.paging import line_of, page_of
from store_credit.openapi import answers, takes
from store_credit.responses import Json
from store_credit.security import Principal, may_read, may_write
from store_credit.service import TheService

router = APIRouter()

Writer = Annotated[Principal, Depends(may_write)]

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

    def answer(outcomes: Sequence[Outcome]) -> dict[str, Any]:
        outcome = outcomes[0]
        assert outcome.line is not None
        return rendering.issued_line(command, outcome.line, outcome.at)

    # Of the amount its minor units count: 100 and 100.0 are one request.
    content = asked.model_dump(exclude={"amount"}) | {"amount_minor": command.amount_minor}
    return await execute_once(
        service.ledger,
        [command],
        key=idempotency_key,
        request=("POST /credit-lines", content),
        answer=answer,
        status=201,
    )


@router.get(
    "/credit-lines",
    tags=["Credit lines"],
    response_model=schemas.Listed[schemas.CreditLine],
    dependencies=[Depends(may_read)],
    responses=answers(400, 401, 403, 429, 503),
)
async def list_lines(service: TheService, query: Annotated[schemas.LineQuery, Query()]) -> Json:
    """Credit lines, newest first."""
    wanted = LineFilter(**query.model_dump(exclude={"limit", "starting_after", "ending_before"}))
    now = await service.ledger.now()
    rows, more = await service.database.read(queries.lines, wanted, page_of(query, "cl"), now)
    return Json(rendering.listed(rows, more, rendering.line))


@router.get("/credit-lines/{id}", tags=["Credit lines"], response_model=schemas.CreditLine, **_LISTED)
async def show_line(
    service: TheService,
    id: str,  # noqa: A002
    query: Annotated[schemas.AsOfQuery, Query()],
) -> Json:
    """One credit line; with `asOf`, its status and figures as its journal had them then."""
    line = await line_of(service, id)
    if query.as_of is None:
        return Json(rendering.line(line))
    then = await service.database.read(reports.line_as_of, id, query.as_of)
    if then is None:
        raise NotFound.of("credit line")
    return Json(rendering.past_line(line, then))


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
    line = await line_of(service, id)
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
    line = await line_of(service, id)
    now = await service.ledger.now()
    rows, more = await service.database.read(queries.holds, line.row["id"], page_of(query, "hold"), now)
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
    line = await line_of(service, id)
    rows, more = await service.database.read(queries.deductions, line.row["id"], page_of(query, "ded"))
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
    line = await line_of(service, id)
    wanted = DecisionFilter(line_id=line.row["id"])
    rows, more = await service.database.read(decisions, wanted, page_of(query, "dec"))
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
    wanted = DecisionFilter(None, query.upstream_id, query.session_id, query.since, query.until)
    rows, more = await service.database.read(decisions, wanted, page_of(query, "dec"))
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


def _seq(parameter: str, cursor: str | None, line: LineFigures) -> int | None:
    """The sequence number that a cursor names: `<line id>.<seq>`, or the number alone."""
    if cursor is None:
        return None
    number = cursor.removeprefix(f"{line.row['id']}.")
    if not (number.isascii() and number.isdigit() and len(number) <= 18):
        raise BadRequest.parameter(parameter, "The cursor names no entry of this line.")
    return int(number)
