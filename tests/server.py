"""The real service in processes of its own, over real TCP: for tests that race, kill and restart it.

A `Server` is one process; a `Service` calls one or several of them in turn, as Digital River and the
merchant would; `Books` is what the merchant API tells of one credit line, with what must always hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import httpx
from sqlalchemy import make_url

from store_credit.webhooks import signature

T = TypeVar("T")
Json = dict[str, Any]

CALLOUT = ("digital-river", "the callout's password")
MERCHANT = ("merchant", "the merchant's password")
WEBHOOK_SECRET = "the webhook's secret"
CALLOUT_PATH = "/checkouts/store-credits"
WEBHOOK_PATH = "/webhooks/digital-river"

START_SECONDS_MAX = 60
"""Generous: the machine may have much else to do."""
ANSWER_SECONDS_MAX = 60
PORT_TRIES_MAX = 5
_PROJECT = Path(__file__).parents[1]
_ENDINGS = {"released": "released", "expired": "hold_expired", "consumed": "deducted"}


class NeverHappened(AssertionError):
    """A condition did not come true before its deadline."""


def environment(database_url: str, **settings: str) -> dict[str, str]:
    """An environment for the service: throw-away credentials and these settings, and none inherited."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STORE_CREDIT_")}
    given = {
        "DATABASE_URL": database_url,
        "CALLOUT_USERNAME": CALLOUT[0],
        "CALLOUT_PASSWORD": CALLOUT[1],
        "MERCHANT_USERNAME": MERCHANT[0],
        "MERCHANT_PASSWORD": MERCHANT[1],
        "WEBHOOK_SECRETS": WEBHOOK_SECRET,
        **settings,
    }
    own = {f"STORE_CREDIT_{name}": value for name, value in given.items() if value}
    return inherited | own | {"PYTHONPATH": str(_PROJECT / "src"), "PYTHONUNBUFFERED": "1"}


def command(
    *arguments: str, env: dict[str, str], stdout: Any = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "store_credit", *arguments],
        env=env,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=START_SECONDS_MAX,
        check=False,
    )


def check_books(database_url: str) -> None:
    """`store-credit audit` must find nothing."""
    done = command("audit", env=environment(database_url))
    assert (done.returncode, done.stdout, done.stderr) == (0, "The books are right.\n", "")


class Server:
    """One server process. What it prints goes to a file."""

    def __init__(self, database_url: str, folder: Path, *arguments: str, **settings: str) -> None:
        # Temporary files go where pytest removes them: a killed process can not.
        self.environment = environment(database_url, **settings) | {"TMPDIR": str(folder)}
        self.log_path = folder / f"server-{uuid4().hex}.log"
        self._arguments = arguments
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def logged(self) -> list[Json]:
        """The structured log lines of the process."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def start(self) -> Server:
        """Start it, and wait until it is ready. Another process may take a free port first: try again."""
        for _ in range(PORT_TRIES_MAX):
            self.port = free_port()
            self.launch()
            if self._becomes_ready():
                return self
            assert "Address already in use" in self.log, self.log
        raise AssertionError("no port was free for long enough")

    def launch(self) -> None:
        """Start the process without waiting for anything."""
        arguments = [*self._arguments, "--port", str(self.port)]
        with self.log_path.open("ab") as output:
            self._process = subprocess.Popen(
                self._command_line(arguments), env=self.environment, stdout=output, stderr=output
            )

    def kill(self) -> None:
        """SIGKILL: the process gets no chance to tidy up."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        return self._end(signal.SIGTERM)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once it ends by itself."""
        assert self._process is not None
        return self._process.wait(START_SECONDS_MAX)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _command_line(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "store_credit", "serve", *arguments]

    def _becomes_ready(self) -> bool:
        with http_client(self.url) as client:

            def is_ready() -> bool:
                if not self.is_running:
                    return True
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/readyz").status_code == 200
                return False

            try:
                poll(is_ready, START_SECONDS_MAX)
            except NeverHappened:
                self.kill()
                raise AssertionError(f"the server did not become ready:\n{self.log}") from None
        return self.is_running

    def _end(self, number: int) -> int:
        if self.is_running:
            self.signal(number)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.wait()
            raise


@contextlib.contextmanager
def running(
    database_url: str, folder: Path, *arguments: str, processes: int = 1, **settings: str
) -> Iterator[list[Server]]:
    """Servers on one database, killed at the end unless they ended before."""
    servers = [Server(database_url, folder, *arguments, **settings) for _ in range(processes)]
    try:
        yield [server.start() for server in servers]
    finally:
        for server in servers:
            if server.is_running:
                server.kill()


@contextlib.contextmanager
def postgresql_database(server_url: str, template: str) -> Iterator[str]:
    """A copy of a template database, for tests that share one; `postgresql_url` is for a single test."""
    name = f"shared_{uuid4().hex}"
    administer(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def administer(database_url: str, *statements: str) -> list[Any]:
    """Run statements on PostgreSQL, each by itself; the first values of the last one's rows."""

    async def work() -> list[Any]:
        connection = await asyncpg.connect(database_url)
        try:
            *first, last = statements
            for statement in first:
                await connection.execute(statement)
            return [row[0] for row in await connection.fetch(last)]
        finally:
            await connection.close()

    # In a thread of its own, so that no test's event loop is touched.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work()).result()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def http_client(url: str, auth: tuple[str, str] | None = None) -> httpx.Client:
    return httpx.Client(base_url=url, auth=auth, timeout=ANSWER_SECONDS_MAX, trust_env=False, verify=False)


def poll(condition: Callable[[], T], seconds: float = ANSWER_SECONDS_MAX) -> T:
    """The condition's first value that is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise NeverHappened(condition)
        time.sleep(0.02)
    return value


async def until(
    condition: Callable[[], Awaitable[T]], seconds: float = ANSWER_SECONDS_MAX, every: float = 0.02
) -> T:
    """The first value of an awaited condition that is true."""
    deadline = time.monotonic() + seconds
    while not (value := await condition()):
        if time.monotonic() > deadline:
            raise NeverHappened(condition)
        await asyncio.sleep(every)
    return value


def source(upstream_id: str | None, amount: float, source_id: str | None = None, **more: Any) -> Json:
    """A payment source of an order: store credit that was spent."""
    named = {} if upstream_id is None else {"upstreamId": upstream_id}
    given = {"id": source_id or f"source-{uuid4().hex}", "type": "customerCredit", "amount": amount}
    return given | {"currency": "USD"} | named | more


def order_event(session_id: str | None, *sources: Json, event_id: str | None = None, **more: Any) -> Json:
    """`checkout_session.order.created`, as Digital River sends it."""
    order: Json = {"id": f"order-{uuid4().hex}", "payment": {"sources": list(sources)}}
    if session_id is not None:
        order["checkoutSessionId"] = session_id
    return {
        "id": event_id or f"event-{uuid4().hex}",
        "type": "checkout_session.order.created",
        "data": {"object": order | more},
    }


def signed(event: Json, secret: str = WEBHOOK_SECRET) -> tuple[bytes, dict[str, str]]:
    """An event's body, and the headers that sign it now."""
    body = json.dumps(event).encode()
    timestamp = str(int(time.time()))
    header = f"{timestamp}, {signature.sign(timestamp, body, secret)}"
    return body, {signature.HEADER: header, "Content-Type": "application/json"}


class Service:
    """Digital River and the merchant, calling one or several processes in turn."""

    def __init__(self, urls: Iterable[str], answer_seconds: float = ANSWER_SECONDS_MAX) -> None:
        limits = httpx.Limits(max_connections=40, max_keepalive_connections=40)
        self._clients = [
            httpx.AsyncClient(
                base_url=url, timeout=answer_seconds, limits=limits, trust_env=False, verify=False
            )
            for url in urls
        ]
        self._turns = cycle(self._clients)

    async def close(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self._clients))

    async def authorize(self, upstream_id: str, session_id: str, amount: float) -> httpx.Response:
        body = {"sessionId": session_id, "amount": amount, "upstreamId": upstream_id}
        return await next(self._turns).post(CALLOUT_PATH, json=body, auth=CALLOUT)

    async def release(self, upstream_id: str) -> httpx.Response:
        path = f"{CALLOUT_PATH}/{quote(upstream_id, safe='')}"
        return await next(self._turns).delete(path, auth=CALLOUT)

    async def deliver(self, event: Json) -> httpx.Response:
        body, headers = signed(event)
        return await next(self._turns).post(WEBHOOK_PATH, content=body, headers=headers)

    async def issue(self, amount: float, key: str | None = None, **more: Any) -> httpx.Response:
        body = {"customerId": "customer-1", "currency": "USD", "amount": amount} | more
        headers = {"Idempotency-Key": key} if key is not None else {}
        return await next(self._turns).post("/credit-lines", json=body, headers=headers, auth=MERCHANT)

    async def issued(self, amount: float, **more: Any) -> Json:
        """A new credit line."""
        response = await self.issue(amount, **more)
        assert response.status_code == 201, response.text
        line: Json = response.json()
        return line

    async def get(
        self, path: str, auth: tuple[str, str] | None = MERCHANT, **params: Any
    ) -> httpx.Response:
        given = httpx.BasicAuth(*auth) if auth is not None else None
        return await next(self._turns).get(path, params=params, auth=given)

    async def listed(self, path: str, **params: Any) -> list[Json]:
        """All pages of a list."""
        found: list[Json] = []
        more = True
        while more:
            after = {"startingAfter": found[-1]["id"]} if found else {}
            response = await self.get(path, limit=100, **after, **params)
            assert response.status_code == 200, response.text
            page = response.json()
            more = page["hasMore"]
            found.extend(page["data"])
        return found

    async def books(self, line_id: str) -> Books:
        path = f"/credit-lines/{line_id}"
        line = await self.get(path)
        assert line.status_code == 200, line.text
        return Books(
            line=line.json(),
            entries=await self.listed(f"{path}/entries"),
            holds=await self.listed(f"{path}/holds"),
            deductions=await self.listed(f"{path}/deductions"),
            decisions=await self.listed(f"{path}/decisions"),
        )


@contextlib.asynccontextmanager
async def calling(*servers: Server, answer_seconds: float = ANSWER_SECONDS_MAX) -> AsyncIterator[Service]:
    service = Service([server.url for server in servers], answer_seconds)
    try:
        yield service
    finally:
        await service.close()


@dataclass(frozen=True, slots=True)
class Books:
    """What the merchant API tells of one credit line in USD."""

    line: Json
    entries: list[Json]
    holds: list[Json]
    deductions: list[Json]
    decisions: list[Json]

    def hold_of(self, session_id: str) -> Json:
        """The only hold that this session ever had."""
        (found,) = [hold for hold in self.holds if hold["sessionId"] == session_id]
        return found

    def deductions_of(self, source_id: str) -> list[Json]:
        return [deduction for deduction in self.deductions if deduction["sourceId"] == source_id]

    def approved(self) -> list[Json]:
        return [d for d in self.decisions if d["kind"] == "authorize" and d["accepted"]]

    def check(self) -> None:
        """What must hold whatever happened in whatever order."""
        self._check_figures()
        for hold in self.holds:
            self._check_hold(hold)
        for deduction in self.deductions:
            booked = [e for e in self.entries if e["deductionId"] == deduction["id"]]
            amounts = [minor(e["amount"]) for e in booked if e["kind"] == "deducted"]
            assert amounts == [-minor(deduction["amount"])]

    def _check_figures(self) -> None:
        balance = held = 0
        for seq, entry in enumerate(self.entries, 1):
            balance += minor(entry["amount"])
            held += minor(entry["held"])
            after = (minor(entry["balanceAfter"]), minor(entry["heldAfter"]))
            assert (entry["seq"], *after) == (seq, balance, held)
            assert held >= 0
            if entry["kind"] == "held":
                assert held <= balance, "more was promised than was there"
        open_holds = sum(minor(hold["amount"]) for hold in self.holds if hold["state"] == "open")
        shown = [minor(self.line[name]) for name in ("balance", "held", "available")]
        assert shown == [balance, held, max(0, balance - held)]
        assert held == open_holds

    def _check_hold(self, hold: Json) -> None:
        """It began once, and ended at most once, as its state says."""
        told = [entry for entry in self.entries if entry["holdId"] == hold["id"]]
        kinds = [entry["kind"] for entry in told if entry["kind"] != "hold_changed"]
        ending = [] if hold["state"] == "open" else [_ENDINGS[hold["state"]]]
        if kinds[1:] == ["released"] and hold["state"] == "consumed":
            assert hold["deductionId"] is not None  # Its source was deducted before it was named.
        else:
            assert kinds == ["held", *ending]
        assert told[0]["kind"] == "held"
        left = sum(minor(entry["held"]) for entry in told)
        assert left == (minor(hold["amount"]) if hold["state"] == "open" else 0)


def minor(amount: float) -> int:
    """An amount in USD as cents."""
    return round(amount * 100)
