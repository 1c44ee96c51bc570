"""The service dies under load, or is told to stop: every answer that was given stays true."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from store_credit.cli.serve import GRACE_SECONDS
from tests.server import (
    ANSWER_SECONDS_MAX,
    CALLOUT,
    CALLOUT_PATH,
    Json,
    Server,
    Service,
    calling,
    check_books,
    order_event,
    poll,
    running,
    source,
    until,
)

PATIENT = {"DEADLINE": "30s", "LOG_LEVEL": "warning"}
ENDS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
CALLERS = 8
ANSWERS_BEFORE_END = 100


@dataclass
class Record:
    """What callers were told; of what was asked without an answer, they can know nothing."""

    customer_id: str
    answers: int = 0
    approved: dict[str, float] = field(default_factory=dict)
    """Amounts by session."""
    released: set[str] = field(default_factory=set)
    """Sessions."""
    events: dict[str, Json] = field(default_factory=dict)
    """Every order event that was sent, by the id of its source."""
    deducted: set[str] = field(default_factory=set)
    """The sources whose event was answered 2xx."""


class Caller:
    """Authorizes, removes and orders without a pause, until the connection breaks."""

    def __init__(self, service: Service, record: Record, shared_line: str) -> None:
        self._service = service
        self._record = record
        self._shared_line = shared_line

    async def call_until_it_breaks(self) -> None:
        try:
            own_line = await self._service.issued(1_000.00, customerId=self._record.customer_id)
            while True:
                await self._order(self._shared_line)
                await self._change_of_mind(own_line["upstreamId"])
                await self._authorize(self._shared_line, 0.75)
        except httpx.TransportError:
            return

    async def _order(self, upstream_id: str) -> None:
        session = await self._authorize(upstream_id, 1.25)
        spent = source(upstream_id, 1.00)
        self._record.events[spent["id"]] = order_event(session, spent)
        await deliver(self._service, self._record, spent["id"])

    async def _change_of_mind(self, upstream_id: str) -> None:
        """On a line of this caller's own, so that the removal can mean no other session."""
        session = await self._authorize(upstream_id, 2.00)
        assert await self._answered(self._service.release(upstream_id)) is None
        self._record.released.add(session)

    async def _authorize(self, upstream_id: str, amount: float) -> str:
        session = f"session-{uuid4().hex}"
        answer = await self._answered(self._service.authorize(upstream_id, session, amount))
        assert answer == {"approval": True, "upstreamId": upstream_id, "amount": amount}
        self._record.approved[session] = amount
        return session

    async def _answered(self, request: Awaitable[httpx.Response]) -> Json | None:
        response = await request
        assert response.status_code in (200, 204), response.text
        self._record.answers += 1
        answer: Json | None = response.json() if response.content else None
        return answer


async def deliver(service: Service, record: Record, source_id: str) -> None:
    response = await service.deliver(record.events[source_id])
    assert (response.status_code, response.json()["state"]) == (200, "applied"), response.text
    record.answers += 1
    record.deducted.add(source_id)


async def load_until_ended(
    servers: list[Server], record: Record, shared_line: str, by: signal.Signals
) -> int:
    """Call all servers at once; end the last of them when enough was answered. Returns its exit status."""
    wanted = record.answers + ANSWERS_BEFORE_END

    async def enough() -> bool:
        return record.answers >= wanted or any(caller.done() for caller in callers)

    async with calling(*servers) as service:
        callers = [
            asyncio.create_task(Caller(service, record, shared_line).call_until_it_breaks())
            for _ in range(CALLERS)
        ]
        await until(enough)
        servers[-1].signal(by)
        await asyncio.gather(*callers)
        status = await asyncio.to_thread(servers[-1].wait)
    assert record.answers >= wanted
    return status


async def check_answers(service: Service, record: Record) -> None:
    """Everything that was answered is in the books, and nothing is there twice."""
    lines = await service.listed("/credit-lines", customerId=record.customer_id)
    books = [await service.books(line["id"]) for line in lines]
    for found in books:
        found.check()
    holds = [hold for found in books for hold in found.holds]
    by_session = {hold["sessionId"]: hold for hold in holds}
    assert len(by_session) == len(holds), "a session holds twice"
    assert {session: by_session[session]["amount"] for session in record.approved} == record.approved
    assert {by_session[session]["state"] for session in record.released} == {"released"}
    decided = Counter(d["sessionId"] for found in books for d in found.approved())
    assert {decided[session] for session in record.approved} == {1}
    deducted = Counter(d["sourceId"] for found in books for d in found.deductions)
    assert set(deducted.values()) == {1}
    assert record.deducted <= set(deducted) <= set(record.events)


async def redeliver(service: Service, record: Record) -> None:
    """Digital River delivers again what was not answered."""
    lost = set(record.events) - record.deducted
    await asyncio.gather(*(deliver(service, record, source_id) for source_id in lost))
    assert record.deducted == set(record.events)


async def test_what_was_answered_survives_the_end_of_the_process(database_url: str, tmp_path: Path) -> None:
    """It is killed twice and then told to stop, each time under load, and started again."""
    record, shared_line = Record("customer-1"), "shared-line"
    for round_, by in enumerate(ENDS):
        with running(database_url, tmp_path, **PATIENT) as servers:
            async with calling(*servers) as service:
                if round_ == 0:
                    await service.issued(100_000.00, upstreamId=shared_line)
                else:
                    await check_answers(service, record)
                    await redeliver(service, record)
            status = await load_until_ended(servers, record, shared_line, by)
            assert status == (0 if by == signal.SIGTERM else -by)
            assert "Traceback" not in servers[-1].log
    with running(database_url, tmp_path, **PATIENT) as servers:
        async with calling(*servers) as service:
            await check_answers(service, record)
            await redeliver(service, record)
            await redeliver(service, Record(record.customer_id, events=record.events))
            await check_answers(service, record)
    check_books(database_url)


async def test_a_process_that_survives_another_goes_on(postgresql_url: str, tmp_path: Path) -> None:
    """Two processes share the load, and one of them is killed in the middle of it."""
    record, shared_line = Record("customer-1"), "shared-line"
    with running(postgresql_url, tmp_path, processes=2, **PATIENT) as servers:
        survivor = servers[0]
        async with calling(survivor) as service:
            await service.issued(100_000.00, upstreamId=shared_line)
            await load_until_ended(servers, record, shared_line, signal.SIGKILL)
            await check_answers(service, record)
            await redeliver(service, record)
            await check_answers(service, record)
        assert survivor.is_running
        assert "Traceback" not in survivor.log
    check_books(postgresql_url)


class SlowRequest:
    """An authorization whose body comes in two parts, so that it is running for as long as wanted."""

    def __init__(self, port: int, upstream_id: str) -> None:
        body = json.dumps({"sessionId": "slow", "amount": 11.4, "upstreamId": upstream_id}).encode()
        self._first, self._rest = body[:10], body[10:]
        self._connection = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS_MAX)
        credentials = base64.b64encode(":".join(CALLOUT).encode()).decode()
        head = (
            f"POST {CALLOUT_PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {credentials}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        )
        self._connection.sendall(head.encode())
        # The server asks for the body when the application begins to read it.
        assert self._connection.recv(100).startswith(b"HTTP/1.1 100 ")
        self._connection.sendall(self._first)

    def finish(self) -> tuple[int, Json]:
        self._connection.sendall(self._rest)
        with self._connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            while answer.readline().strip():
                continue
            return status, json.loads(answer.read())

    def close(self) -> None:
        self._connection.close()


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS_MAX).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_sigterm_lets_a_running_request_finish(database_url: str, tmp_path: Path) -> None:
    with running(database_url, tmp_path) as [server]:
        async with calling(server) as service:
            line = await service.issued(100.00)
        slow = SlowRequest(server.port, line["upstreamId"])
        try:
            server.signal(signal.SIGTERM)
            poll(lambda: refuses_connections(server.port))
            answer = {"approval": True, "upstreamId": line["upstreamId"], "amount": 11.4}
            assert slow.finish() == (200, answer)
        finally:
            slow.close()
        assert server.wait() == 0
    with running(database_url, tmp_path) as [server]:
        async with calling(server) as service:
            books = await service.books(line["id"])
    assert books.hold_of("slow")["amount"] == 11.4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_idle_connections_do_not_hold_up_the_end(
    sqlite_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    with running(sqlite_url, tmp_path) as [server]:
        async with calling(server) as service:
            await service.issued(100.00)
            told = time.monotonic()
            server.signal(number)
            assert await asyncio.to_thread(server.wait) == 0
            assert time.monotonic() - told < GRACE_SECONDS
    assert "Traceback" not in server.log
