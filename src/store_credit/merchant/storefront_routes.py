"""For a shop's checkout page: what a customer can spend, ready for a Digital River checkout session.

The role `storefront` is for this, and for releasing sessions that the shop knows to be dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import Connection

from store_credit import ids, money
from store_credit.body import parse
from store_credit.credentials import Role
from store_credit.errors import BadRequest
from store_credit.ledger import queries
from store_credit.ledger.commands import Cause, ReleaseHolds, Settle
from store_credit.ledger.ledger import Claim, Record
from store_credit.ledger.offers import PREFIX
from store_credit.ledger.queries import LineFigures
from store_credit.ledger.state import Outcome
from store_credit.ledger.tables import offer
from store_credit.merchant import storefront_schemas
from store_credit.merchant.idempotency import (
    IdempotencyKey,
    answered_before,
    claim_of_step,
    execute_once,
)
from store_credit.merchant.paging import stored_id
from store_credit.openapi import answers, takes
from store_credit.responses import Json
from store_credit.security import Principal, RequireRole, may_sell
from store_credit.service import Service, TheService

router = APIRouter(tags=["Storefront"])

Seller = Annotated[Principal, Depends(may_sell)]
DEFAULT_NAME = "Store credit"
"""Digital River does not show an element without a name."""

may_look = RequireRole(Role.STOREFRONT, Role.MERCHANT, Role.READER)


@router.get(
    "/customers/{id:anything}/store-credits",
    response_model=storefront_schemas.StoreCredits,
    response_model_exclude_none=True,
    dependencies=[Depends(may_look)],
    responses=answers(400, 401, 403, 404, 429, 503),
)
async def list_store_credits(
    service: TheService,
    id: str,  # noqa: A002
    query: Annotated[storefront_schemas.SpendableQuery, Query()],
) -> Json:
    """What a customer can spend now, under the lines' own ids."""
    lines = await _spendable(service, id, query.currency)
    return Json(
        {"storeCredits": [_element(line, line.available, line.row["upstream_id"]) for line in lines]}
    )


@router.post(
    "/customers/{id:anything}/offers",
    status_code=201,
    response_model=storefront_schemas.StoreCredits,
    response_model_exclude_none=True,
    openapi_extra=takes(storefront_schemas.OfferRequest),
    responses=answers(400, 401, 403, 404, 408, 409, 413, 415, 429, 503),
)
async def make_offers(
    request: Request,
    seller: Seller,
    service: TheService,
    id: str,  # noqa: A002
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """The same, under ids minted for one session: a later removal is unambiguous."""
    asked = await parse(request, storefront_schemas.OfferRequest)
    wanted = _minor(asked)
    customer_id = stored_id(id, "customer")
    # Of the amount its minor units count: 100 and 100.0 are one request.
    content = ("offers", customer_id, asked.model_dump(exclude={"amount"}) | {"amount_minor": wanted})
    once: Any = {"key": idempotency_key, "request": content, "status": 201}
    if (earlier := await answered_before(service.ledger, **once)) is not None:
        return earlier
    if asked.supersede:
        cause = Cause(seller.name, "superseded by a new session", idempotency_key=idempotency_key)
        claim = claim_of_step("superseded", idempotency_key, content)
        await _release_earlier(service, customer_id, asked.currency, cause, claim)
    lines = await _spendable(service, customer_id, asked.currency)
    offers = [(line, amount, ids.mint(PREFIX.rstrip("_"))) for line, amount in _spread(lines, wanted)]
    shown = {"storeCredits": [_element(*made) for made in offers]}
    record = partial(_rows, offers, asked, service.settings.hold_ttl)
    # To settle a line is to lock it, in the order in which all lines are locked.
    settled = [Settle(line.row["id"]) for line, _, _ in offers]
    return await execute_once(
        service.ledger, settled, answer=lambda _outcomes: shown, record=record, **once
    )


def _minor(asked: storefront_schemas.OfferRequest) -> int | None:
    if asked.amount is None:
        return None
    try:
        return money.positive_minor(asked.amount, asked.currency)
    except money.InvalidAmount as error:
        raise BadRequest.parameter("amount", f"The amount {error}.") from None


async def _spendable(service: Service, customer_id: str, currency: str) -> list[LineFigures]:
    def read(connection: Connection) -> list[LineFigures]:
        now = service.ledger.now_within(connection)
        return queries.spendable(connection, customer_id, currency, now)

    stored_id(customer_id, "customer")
    return await service.database.read(read)


async def _release_earlier(
    service: Service, customer_id: str, currency: str, cause: Cause, claim: Claim | None
) -> None:
    """Under a claim once: what a retry finds may be a session that came of the first."""
    found = await service.database.read(queries.customer_holds, customer_id, currency)
    holds = tuple(hold_id for hold_id, _ in found)
    line_ids = tuple(dict.fromkeys(line_id for _, line_id in found))
    if holds or claim is not None:
        await service.ledger.execute(ReleaseHolds(holds, line_ids, cause), claim=claim)


def _spread(lines: list[LineFigures], wanted: int | None) -> list[tuple[LineFigures, int]]:
    """How much of each line to offer: all of it, or as much as is wanted in all."""
    spread: list[tuple[LineFigures, int]] = []
    for line in lines:
        amount = line.available if wanted is None else min(line.available, wanted)
        if amount > 0:
            spread.append((line, amount))
            wanted = None if wanted is None else wanted - amount
    return spread


def _rows(
    offers: list[tuple[LineFigures, int, str]],
    asked: storefront_schemas.OfferRequest,
    hold_ttl: timedelta,
    _outcomes: Sequence[Outcome],
    at: datetime,
) -> list[Record]:
    """What is kept of the offers. They live as long as a hold would, unless another time is asked."""
    ttl = timedelta(seconds=asked.ttl) if asked.ttl is not None else hold_ttl
    same = {"expires_at": at + ttl, "created_at": at, "session_upstream_id": asked.session_upstream_id}
    rows = [
        {"upstream_id": upstream_id, "line_id": line.row["id"], "amount": amount} | same
        for line, amount, upstream_id in offers
    ]
    return [(offer, row, "refuse") for row in rows]


def _element(line: LineFigures, amount: int, upstream_id: str) -> dict[str, Any]:
    row = line.row
    shown = {
        "amount": money.to_number(amount, row["currency"]),
        "upstreamId": upstream_id,
        "name": row["name"] or DEFAULT_NAME,
        "iconUrl": row["icon_url"],
        "lastFour": row["last_four"],
    }
    return {name: value for name, value in shown.items() if value is not None}
