"""The running application for tests, and Digital River's and the merchant's part played over HTTP.

A test module uses it with `pytest_plugins = ["tests.http_fixtures"]`, and may import the builders too
(PYTEST_DONT_REWRITE: it may be imported before it is registered).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from store_credit import credentials, settings
from store_credit.app import _credentials_of, _load_credentials, create_app
from store_credit.credentials import Role
from store_credit.service import Service
from tests.making import Clock

CALLOUT = ("digital-river", "callout-password")
MERCHANT = ("merchant", "merchant-password")
SECRET = "webhook-secret"
AUTHORIZE = "/checkouts/store-credits"
WEBHOOK = "/webhooks/digital-river"

Json = dict[str, Any]
Auth = tuple[str, str]


def source(
    source_id: str = "source-1",
    amount: Any = 11.4,
    upstream_id: Any = "line-1",
    currency: Any = "USD",
    **more: Any,
) -> Json:
    """A payment source of type `customerCredit`."""
    named = {"id": source_id, "type": "customerCredit", "amount": amount, "currency": currency}
    return named | {"upstreamId": upstream_id} | more


def order_event(
    *sources: Json,
    event_id: str = "event-1",
    order_id: str = "order-1",
    session_id: str | None = "session-1",
    event_type: str = "checkout_session.order.created",
    **more: Any,
) -> Json:
    """The event of a new order that was paid from these sources."""
    order = {"id": order_id, "checkoutSessionId": session_id, "payment": {"sources": list(sources)}} | more
    return {"id": event_id, "type": event_type, "liveMode": False, "data": {"object": order}}


def signature_of(body: bytes, timestamp: str, secret: str = SECRET) -> str:
    """The header of a signed event, made independently of the code under test."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).digest()
    return f"{timestamp}, {base64.b64encode(digest).decode()}"


def removal_path(upstream_id: str, path: str = AUTHORIZE) -> str:
    return f"{path}/{quote(upstream_id, safe='')}"


@dataclass(frozen=True, slots=True)
class Shop:
    """One running application and everybody who calls it."""

    app: FastAPI
    client: httpx.AsyncClient
    clock: Clock

    @property
    def service(self) -> Service:
        service: Service = self.app.state.service
        return service

    async def issue(self, amount: Any = 100, upstream_id: str = "line-1", **more: Any) -> Json:
        """A new credit line, by the merchant."""
        body = {"customerId": "customer-1", "currency": "USD", "amount": amount, "upstreamId": upstream_id}
        response = await self.client.post("/credit-lines", json=body | more, auth=MERCHANT)
        return decoded(response, 201)

    async def post_authorization(self, content: bytes | str | Json, **more: Any) -> httpx.Response:
        """What Digital River may send to the callout, sensible or not."""
        raw = json.dumps(content) if isinstance(content, dict) else content
        return await self.client.post(AUTHORIZE, content=raw, **{"auth": CALLOUT, "headers": JSON} | more)

    async def authorize(
        self, amount: Any, session_id: str = "session-1", upstream_id: str = "line-1", **more: Any
    ) -> Json:
        """The callout's answer to a well-formed question."""
        asked = {"sessionId": session_id, "amount": amount, "upstreamId": upstream_id} | more
        return decoded(await self.post_authorization(asked))

    async def remove(self, upstream_id: str = "line-1") -> httpx.Response:
        return await self.client.delete(removal_path(upstream_id), auth=CALLOUT)

    async def post_event(
        self, event: Json | bytes, *, secret: str = SECRET, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """A delivery of Digital River, signed now unless the headers are given."""
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        timestamp = str(int(self.clock().timestamp()))
        signed = {"DigitalRiver-Signature": signature_of(body, timestamp, secret)}
        return await self.client.post(
            WEBHOOK, content=body, headers=JSON | (signed if headers is None else headers)
        )

    async def deliver(self, event: Json) -> str:
        """Deliver an event that must be taken in; returns its state."""
        state: str = decoded(await self.post_event(event))["state"]
        return state

    async def get(self, path: str, auth: Auth = MERCHANT, **query: Any) -> Json:
        return decoded(await self.client.get(path, params=query, auth=auth))

    async def line(self, upstream_id: str = "line-1") -> Json:
        (found,) = (await self.get("/credit-lines", upstreamId=upstream_id))["data"]
        shown: Json = found
        return shown

    async def figures(self, upstream_id: str = "line-1") -> tuple[float, float, float]:
        """Balance, held and available."""
        line = await self.line(upstream_id)
        return line["balance"], line["held"], line["available"]

    async def history(self, noun: str, upstream_id: str = "line-1") -> list[Json]:
        """The `entries`, `holds`, `deductions` or `decisions` of a line."""
        line = await self.line(upstream_id)
        listed: list[Json] = (await self.get(f"/credit-lines/{line['id']}/{noun}", limit=100))["data"]
        return listed

    async def decisions(self, **query: Any) -> list[Json]:
        listed: list[Json] = (await self.get("/decisions", limit=100, **query))["data"]
        return listed

    async def events(self, **query: Any) -> list[Json]:
        listed: list[Json] = (await self.get("/webhook-events", limit=100, **query))["data"]
        return listed

    async def stored(self) -> dict[str, int]:
        """How many rows each table has, but for markers that are pruned."""
        return await self.service.database.read(_count_rows)

    async def add_credential(self, name: str, role: Role) -> str:
        """A credential of the table, in force at once; returns its password."""
        _, password = await self.service.database.write(credentials.add, name, role, self.clock())
        await self.reload_credentials()
        return password

    async def reload_credentials(self) -> None:
        """What the application does every second by itself."""
        await _load_credentials(self.service, _credentials_of(self.service.settings))


JSON = {"Content-Type": "application/json"}

_TABLES = (
    "claim",
    "credit_line",
    "decision",
    "deduction",
    "hold",
    "ledger_entry",
    "source",
    "webhook_event",
)


def decoded(response: httpx.Response, status: int = 200) -> Json:
    """The body of an answer that must have this status."""
    assert response.status_code == status, (response.status_code, response.text)
    body: Json = response.json()
    return body


def problem_of(response: httpx.Response, status: int, kind: str) -> Json:
    """The first problem of an error, whose shape must be Digital River's."""
    assert response.status_code == status, (response.status_code, response.text)
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"type", "errors"}, body
    assert body["type"] == kind, body
    assert body["errors"], body
    for problem in body["errors"]:
        assert {"code", "message"} <= problem.keys() <= {"code", "message", "parameter"}, problem
        assert all(isinstance(value, str) and value for value in problem.values()), problem
    first: Json = body["errors"][0]
    return first


Start = Callable[..., Awaitable[Shop]]


@pytest.fixture
async def start(database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts the application with these settings, on the test's database and clock.

    The passwords of the settings are hashed cheaply: it is done anew for each test.
    """
    monkeypatch.setattr("store_credit.app.hasher", credentials.hasher.using(memory_cost=8, rounds=1))
    async with contextlib.AsyncExitStack() as stack:

        async def started(**given: Any) -> Shop:
            return await stack.enter_async_context(running(database_url, clock, **given))

        yield started


@pytest.fixture
async def shop(start: Start) -> Shop:
    """The application with ordinary settings."""
    return await start()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgresql"])
async def lasting_shop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shop]:
    """One application for a whole module: for tests that must not change what is stored.

    Its module runs in one event loop: `pytestmark = pytest.mark.asyncio(loop_scope="module")`.
    """
    if request.param == "sqlite":
        template = request.getfixturevalue("sqlite_template")
        copied = shutil.copy(template, tmp_path_factory.mktemp("lasting") / "store-credit.db")
        async with running(f"sqlite:///{copied}", Clock()) as shop:
            yield shop
        return
    server = make_url(request.getfixturevalue("postgresql_server"))
    template, name = request.getfixturevalue("postgresql_template"), f"lasting_{uuid4().hex}"
    engine = create_async_engine(
        server.set(drivername="postgresql+asyncpg"), isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    async with engine.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        url = server.set(database=name).render_as_string(hide_password=False)
        async with running(url, Clock()) as shop:
            yield shop
        await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@contextlib.asynccontextmanager
async def running(database_url: str, clock: Clock, **given: Any) -> AsyncIterator[Shop]:
    """The application, with its lifespan, from its start to its end."""
    app = create_app(settings.load(**ordinary(database_url) | given), clock=clock)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield Shop(app, client, clock)


def ordinary(database_url: str) -> Json:
    """Settings for a busy machine, whose sweeper stays away."""
    return {
        "database_url": database_url,
        "callout_username": CALLOUT[0],
        "callout_password": CALLOUT[1],
        "merchant_username": MERCHANT[0],
        "merchant_password": MERCHANT[1],
        "webhook_secrets": SECRET,
        "deadline": "30s",
        "sweep_interval": "1h",
    }


def _count_rows(connection: Connection) -> dict[str, int]:
    return {
        table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in _TABLES
    }
