"""The server is told to stop: what runs is finished, nothing new is begun, and it ends in time."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import time
from pathlib import Path

import pytest

from store_credit.cli.workers import GRACE_SECONDS
from tests.faults.recorder import Recorder
from tests.faults.sizes import LONG, RESTARTS, seeded
from tests.server import ANSWER_SECONDS_MAX, CALLOUT, CALLOUT_PATH, Json, calling, poll, running

WORKERS = [("sqlite", "1"), ("postgresql", "2"), *([("postgresql", "1")] if LONG else [])]
QUIET = {"LOG_LEVEL": "warning"}


@pytest.fixture(params=WORKERS, ids="-workers-".join)
def of_kind(request: pytest.FixtureRequest) -> tuple[str, tuple[str, str]]:
    """A fresh database, and arguments for the server."""
    kind, workers = request.param
    url: str = request.getfixturevalue(f"{kind}_url")
    return url, ("--workers", workers)


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


async def test_a_running_request_is_finished(of_kind: tuple[str, tuple[str, str]], tmp_path: Path) -> None:
    url, arguments = of_kind
    with running(url, tmp_path, *arguments) as [server]:
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
    with running(url, tmp_path) as [server]:
        async with calling(server) as service:
            books = await service.books(line["id"])
    assert books.hold_of("slow")["amount"] == 11.4


def test_under_load(of_kind: tuple[str, tuple[str, str]], tmp_path: Path) -> None:
    url, arguments = of_kind
    with running(url, tmp_path, *arguments, **QUIET) as [server]:
        recorder = Recorder([server], seeded())
        with recorder.shopping():
            for _ in range(RESTARTS):
                recorder.wait_for_answers()
                told = time.monotonic()
                assert server.stop() == 0
                assert time.monotonic() - told < GRACE_SECONDS
                server.start()
            recorder.wait_for_answers()
        assert server.stop() == 0
        recorder.check(url)


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
