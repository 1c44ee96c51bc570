"""The application's table of contents: `create_app` puts the parts together.

`uvicorn --factory store_credit.app:create_app` serves it, `store-credit serve` does so with the right
settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import FastAPI

from store_credit import __version__, credentials, health, process, schema, settings
from store_credit.callouts.routes import add_callout
from store_credit.credentials import Credential, Role, hashed, hasher
from store_credit.crowd import Crowd
from store_credit.database import InvalidUrl, connect
from store_credit.failures import is_passing
from store_credit.ledger.commands import Policy
from store_credit.ledger.ledger import Clock, Ledger
from store_credit.ledger.refusals import Unavailable
from store_credit.ledger.sweeper import keep_sweeping
from store_credit.merchant import (
    export_routes,
    inbox_routes,
    keeping_routes,
    report_routes,
    storefront_routes,
)
from store_credit.merchant import routes as merchant_routes
from store_credit.openapi import install_openapi
from store_credit.responses import install_error_handlers
from store_credit.security import Authenticator
from store_credit.service import Service
from store_credit.settings import CALLOUT_PATH, InvalidSettings, Settings
from store_credit.telemetry import Metrics, Telemetry, configure_logging, log
from store_credit.webhooks import upkeep
from store_credit.webhooks.routes import add_webhook

CREDENTIALS_SECONDS = 1.0
"""A credential that was disabled elsewhere is refused after this time at the latest."""

_OF_SETTINGS = "setting:"
"""How the ids of the environment's credentials begin."""

_TAKEN_PATHS = (
    *("/credit-lines", "/customers", "/decisions", "/exports", "/holds", "/reports", "/sessions"),
    *("/webhook-events", "/webhooks", "/healthz", "/readyz", "/metrics", "/openapi.json"),
)


def create_app(given: Settings | None = None, *, clock: Clock | None = None) -> FastAPI:
    """The application. Settings come from the environment unless they are given.

    Raises InvalidSettings. A `clock` replaces the database's and the system's, for tests.
    """
    chosen = given if given is not None else settings.load()
    _check_callout_paths(chosen)
    configure_logging(chosen.log_level)
    service = _build(chosen, clock)
    app = FastAPI(
        title="Store credit",
        version=__version__,
        summary="Store credit for Digital River checkouts.",
        lifespan=_lifespan,
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    app.state.probes = health.Probes()
    add_callout(app, chosen.callout_paths)
    add_webhook(app)
    app.include_router(merchant_routes.router)
    app.include_router(keeping_routes.router)
    app.include_router(inbox_routes.router)
    app.include_router(report_routes.router)
    app.include_router(export_routes.router)
    app.include_router(storefront_routes.router)
    app.include_router(health.router)
    app.add_middleware(Telemetry, metrics=service.metrics)
    install_error_handlers(app)
    install_openapi(app)
    return app


def _build(chosen: Settings, clock: Clock | None) -> Service:
    try:
        database = connect(chosen.database_url, connections=chosen.database_connections)
    except InvalidUrl as error:
        raise InvalidSettings(f"STORE_CREDIT_DATABASE_URL: {error}.") from None
    metrics = Metrics()
    policy = Policy(chosen.hold_ttl, chosen.partial_approval, chosen.return_grace)
    deadline = chosen.deadline / timedelta(seconds=1)
    ledger = Ledger(database, policy, clock=clock, deadline_seconds=deadline, on_commit=metrics.committed)
    authenticator = Authenticator(clock, on_throttled=metrics.password_throttled)
    own_clock = clock or _system_time
    return Service(chosen, database, ledger, authenticator, metrics, own_clock, Crowd(ledger))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Gives the service to the server: it has limits to keep before a request reaches the application."""
    service: Service = app.state.service
    stopped = asyncio.Event()
    async with contextlib.AsyncExitStack() as cleanup:
        cleanup.push_async_callback(service.database.close)
        cleanup.push_async_callback(service.ledger.close)
        cleanup.callback(service.authenticator.close)
        process.spare_memory()
        await _check_schema(service)
        of_settings = _credentials_of(service.settings)
        await _load_credentials(service, of_settings)
        _check_credentials(service)
        _tell_unknown_settings()
        cleanup.callback(process.stop_with_parent())
        tasks = [
            asyncio.create_task(_keep_credentials(service, of_settings, stopped)),
            asyncio.create_task(keep_sweeping(service.ledger, service.settings.sweep_interval, stopped)),
            asyncio.create_task(_keep_inbox(service, stopped)),
        ]
        process.spare_the_collector()
        yield {"service": service}
        stopped.set()
        await asyncio.gather(*tasks)


def _tell_unknown_settings() -> None:
    """A typo in a setting must be seen, most of all where it leaves something less safe."""
    for name in settings.unknown(os.environ):
        log.warning("unknown_setting", name=name)


async def _check_schema(service: Service) -> None:
    """A SQLite database is brought to head; PostgreSQL must be there: migrating is a step of its own."""
    if service.database.dialect == "sqlite":
        await service.database.write(schema.upgrade_if_behind)
    await service.database.read(schema.check)


def _credentials_of(chosen: Settings) -> list[Credential]:
    """The credentials that the environment gives."""
    pairs = (
        (chosen.callout_username, chosen.callout_password, Role.CALLOUT),
        (chosen.merchant_username, chosen.merchant_password, Role.MERCHANT),
    )
    return [
        Credential(f"{_OF_SETTINGS}{role}", name, role, hashed(password.get_secret_value(), hasher))
        for name, password, role in pairs
        if name is not None and password is not None
    ]


async def _load_credentials(service: Service, of_settings: list[Credential]) -> None:
    kept = await service.database.read(credentials.active)
    service.authenticator.replace([*of_settings, *kept])


async def _note_uses(service: Service) -> None:
    """Keep the last use of the database's credentials, and hashes that were renewed by it.

    Those of the environment have no row.
    """
    uses = service.authenticator.unnoted_uses()
    kept = {id_: used for id_, used in uses.items() if not id_.startswith(_OF_SETTINGS)}
    if kept:
        await service.database.write(credentials.note_uses, kept)
    service.authenticator.noted(uses)
    if renewed := service.authenticator.renewed_hashes():
        await service.database.write(credentials.renew, renewed)


def _check_credentials(service: Service) -> None:
    if not service.authenticator.has_role(Role.CALLOUT):
        raise InvalidSettings(
            "No credentials for the callout: set STORE_CREDIT_CALLOUT_USERNAME and"
            " STORE_CREDIT_CALLOUT_PASSWORD, or run `store-credit credentials add NAME --role callout`."
        )
    if service.settings.webhook_secrets:
        return
    if service.settings.unsigned_webhooks == "accept":
        log.warning("unsigned_webhooks_accepted", note="for local use only")
    else:
        log.warning("no_webhook_secret", note="every event is refused: set STORE_CREDIT_WEBHOOK_SECRETS")


async def _keep_credentials(
    service: Service, of_settings: list[Credential], stopped: asyncio.Event
) -> None:
    """Notice credentials that are added or disabled by another process, and note when ours were used."""
    while not stopped.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), CREDENTIALS_SECONDS)
        try:
            await _load_credentials(service, of_settings)
            await _note_uses(service)
        except Exception as error:
            # It outlives whatever goes wrong: a credential that is disabled later must still go.
            tell = log.warning if is_passing(error) else log.error
            tell("credentials_not_read", error=type(error).__name__)


async def _keep_inbox(service: Service, stopped: asyncio.Event) -> None:
    """Tend the inbox; the next round may do better than one that failed."""
    interval = service.settings.sweep_interval.total_seconds()
    while not stopped.is_set():
        try:
            await upkeep.tend(service.ledger, service.settings)
        except Unavailable as error:
            log.warning("inbox_put_off", reason=error.message)
        except Exception as error:
            tell = log.warning if is_passing(error) else log.error
            tell("inbox_not_tended", error=type(error).__name__)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), interval)


def _check_callout_paths(chosen: Settings) -> None:
    """Each path takes whatever lies below it for an id: none may lie below another."""
    paths = [CALLOUT_PATH, *chosen.callout_paths]
    for path in chosen.callout_paths:
        if any(_is_at_or_below(path, taken) for taken in _TAKEN_PATHS):
            raise InvalidSettings(f"STORE_CREDIT_CALLOUT_PATHS: {path} is a path of the service itself.")
        if any(_is_at_or_below(path, other) for other in paths if other != path):
            raise InvalidSettings(f"STORE_CREDIT_CALLOUT_PATHS: {path} lies below another callout path.")
        if _is_at_or_below(CALLOUT_PATH, path):
            raise InvalidSettings(f"STORE_CREDIT_CALLOUT_PATHS: {CALLOUT_PATH} lies below {path}.")


def _is_at_or_below(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}/")


def _system_time() -> datetime:
    return datetime.now(UTC)
