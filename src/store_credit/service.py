"""What the routes share: the application's parts, put together once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from store_credit.crowd import Crowd
from store_credit.database import Database
from store_credit.ledger.ledger import Clock, Ledger
from store_credit.security import Authenticator
from store_credit.settings import Settings
from store_credit.telemetry import Metrics


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of one application."""

    settings: Settings
    database: Database
    ledger: Ledger
    authenticator: Authenticator
    metrics: Metrics
    clock: Clock
    """For what has no line to go by, such as the age of a signature."""
    crowd: Crowd


def service_of(request: Request) -> Service:
    """The service, where the cost of a dependency shows: in the callout."""
    service: Service = request.app.state.service
    return service


async def _service(request: Request) -> Service:
    return service_of(request)


TheService = Annotated[Service, Depends(_service)]
