"""`/healthz`, `/readyz` and `/metrics`: for the container platform and for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy import Connection
from starlette.responses import Response

from store_credit import schema
from store_credit.errors import ServiceUnavailable
from store_credit.failures import DATABASE_ERRORS
from store_credit.ledger import queries
from store_credit.openapi import answers
from store_credit.responses import Json
from store_credit.security import may_read
from store_credit.service import Service, TheService
from store_credit.webhooks import queries as inbox

ANSWER_SECONDS_MAX = 1.0
"""What asks for our health gives up soon: it is told that the database is silent before that."""

router = APIRouter(tags=["Operations"])


class Health(BaseModel):
    status: str


class Probes:
    """Reads of the database that anybody may ask for: those who ask at the same time share one.

    A read that takes too long goes on for those who ask later, until the database itself gives up.
    """

    def __init__(self) -> None:
        self._reading: dict[Callable[..., None], asyncio.Task[None]] = {}

    async def read(self, service: Service, function: Callable[..., None], *args: Any) -> None:
        """Run the function in a read transaction. Raises TimeoutError, and whatever it raises."""
        reading = self._reading.get(function)
        if reading is None:
            reading = asyncio.create_task(service.database.read(function, *args))
            self._reading[function] = reading
            reading.add_done_callback(lambda done: self._done(function, done))
        await asyncio.wait([reading], timeout=ANSWER_SECONDS_MAX)
        if not reading.done():
            raise TimeoutError
        reading.result()

    def _done(self, function: Callable[..., None], reading: asyncio.Task[None]) -> None:
        del self._reading[function]
        if not reading.cancelled():
            reading.exception()  # It may be that nobody is left to look at it.


def probes_of(request: Request) -> Probes:
    probes: Probes = request.app.state.probes
    return probes


@router.head("/healthz", response_model=Health)
@router.get("/healthz", response_model=Health)
async def healthz() -> Json:
    """The process is alive."""
    return Json({"status": "ok"})


@router.head("/readyz", response_model=Health, responses=answers(503))
@router.get("/readyz", response_model=Health, responses=answers(503))
async def readyz(request: Request, service: TheService) -> Json:
    """The database can be reached, and this version can work on its schema."""
    try:
        await probes_of(request).read(service, schema.check)
    except schema.SchemaMismatch as mismatch:
        raise ServiceUnavailable.retry_after(5, str(mismatch)) from None
    return Json({"status": "ready"})


@router.get(
    "/metrics",
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Metrics."},
        **answers(401, 403, 429),
    },
    response_class=Response,
)
async def metrics(request: Request, service: TheService) -> Response:
    """Prometheus metrics of all workers. Credentials are needed when a setting asks for them."""
    if service.settings.metrics_role == "reader":
        await may_read(request)
    try:
        await probes_of(request).read(service, _take_stock, service)
        service.metrics.database_up.set(1)
    except (*DATABASE_ERRORS, OSError, TimeoutError):
        # The counters matter most while the database is away; the gauges keep their last values.
        service.metrics.database_up.set(0)
        request.state.reason = "database_away"
    content, media_type = service.metrics.exposition()
    return Response(content, headers={"Content-Type": media_type})


def _take_stock(connection: Connection, service: Service) -> None:
    metrics = service.metrics
    now = service.ledger.now_within(connection)
    metrics.clock_offset.set((service.clock() - now).total_seconds())
    metrics.open_holds.set(queries.count_open_holds(connection, now))
    metrics.settle_lag.set(_age(queries.oldest_due_at(connection, now), now))
    metrics.flagged_lines.set(queries.count_flagged_lines(connection))
    waiting, since = inbox.waiting(connection)
    metrics.unmatched_events.set(waiting)
    metrics.unmatched_age.set(_age(since, now))
    newest = inbox.last_received_at(connection)
    metrics.last_event.set(newest.timestamp() if newest is not None else 0)


def _age(since: datetime | None, now: datetime) -> float:
    """Seconds since a moment; 0 when there is none."""
    return max(0.0, (now - since).total_seconds()) if since is not None else 0.0
