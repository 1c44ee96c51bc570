"""Reports for finance."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from store_credit.fields import time_text
from store_credit.ledger import reports
from store_credit.ledger.reports import Liability
from store_credit.merchant import report_schemas, schemas
from store_credit.money import to_number
from store_credit.openapi import answers
from store_credit.responses import Json
from store_credit.security import may_read
from store_credit.service import TheService

router = APIRouter(tags=["Reports"])

_FIGURES = (
    ("issued", "issued"),
    ("adjusted", "adjusted"),
    ("deducted", "deducted"),
    ("returned", "returned"),
    ("expired", "expired"),
    ("voided", "voided"),
    ("writeOffsReversed", "write_offs_reversed"),
    ("held", "held"),
    ("available", "available"),
    ("outstanding", "outstanding"),
)


@router.get(
    "/reports/liability",
    response_model=report_schemas.LiabilityReport,
    dependencies=[Depends(may_read)],
    responses=answers(400, 401, 403, 429, 503),
)
async def liability(service: TheService, query: Annotated[schemas.AsOfQuery, Query()]) -> Json:
    """What is owed to customers, per currency, at any past instant: exact, from the journal alone."""
    as_of = query.as_of or await service.ledger.now()
    rows = await service.database.read(reports.liability, as_of)
    return Json({"asOf": time_text(as_of), "data": [shown(row) for row in rows]})


def shown(row: Liability) -> dict[str, Any]:
    """One currency's figures as JSON numbers."""
    figures = {name: to_number(getattr(row, field), row.currency) for name, field in _FIGURES}
    return {"currency": row.currency, **figures}
