"""How the service is run: its connections are bounded, its workers end with their parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import make_url

from store_credit.body import LARGE_BODIES_MAX
from store_credit.room import EXTRA_CONNECTIONS, IDLE_SECONDS
from tests.raw_http import SECONDS_MAX, Answer, Connection, authorization, callout, is_held, request
from tests.server import WEBHOOK_PATH, Server, poll, running

HEALTH = request("GET", "/healthz")
CONNECTIONS_MAX = 100
KEEP_ALIVE_SECONDS = 1
FEW = 10


class Uvicorn(Server):
    """The service as uvicorn's own command serves it."""

    def _command_line(self, arguments: Sequence[str]) -> list[str]:
        protocol = "store_credit.protocol:BoundedProtocol"
        keep_alive = str(KEEP_ALIVE_SECONDS)
        options = ["--factory", "--http", protocol, "--timeout-keep-alive", keep_alive, *arguments]
        return [sys.executable, "-m", "uvicorn", *options, "store_credit.app:create_app"]


@pytest.fixture(scope="module")
def server(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the whole module that takes few connections and drops idle ones soon."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "store-credit.db").write_bytes(sqlite_template.read_bytes())
    url = f"sqlite:///{folder / 'store-credit.db'}"
    server = Uvicorn(url, folder, CONNECTIONS=str(CONNECTIONS_MAX), CLIENT_TIMEOUT="5s", DEADLINE="20s")
    try:
        yield server.start()
        assert server.is_running
        assert "Traceback" not in server.log
    finally:
        server.kill()


def assert_too_busy(answer: Answer) -> None:
    assert (answer.status, answer.json["type"]) == (503, "service_unavailable")
    assert int(answer.headers["retry-after"]) > 0


# Under uvicorn's own command


def test_an_idle_connection_is_closed(server: Server) -> None:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        silent, used, fed = [stack.enter_context(Connection(server)) for _ in range(3)]
        assert used.send(HEALTH).answer().status == 200
        fed.trickle(b"\r\n" * 50, 0.1, SECONDS_MAX)
        for connection in (silent, used, fed):
            assert connection.is_closed()
    assert KEEP_ALIVE_SECONDS * 0.9 < time.monotonic() - started < SECONDS_MAX


def test_its_limits_are_those_of_the_service(server: Server) -> None:
    with Connection(server) as connection:
        answer = connection.send(request("GET", "/" + "a" * 9_000)).answer()
        assert (answer.status, answer.json["type"]) == (414, "bad_request")


def test_idle_connections_make_room_for_new_ones(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server)) for _ in range(CONNECTIONS_MAX * 3)]
        poll(lambda: is_held(server, connections[-1]), SECONDS_MAX)
        time.sleep(2 * IDLE_SECONDS)  # Who has waited for less is spared.
        for connection in reversed(connections[-CONNECTIONS_MAX:]):
            assert connection.send(HEALTH).answer().status == 200
        assert is_gone(connections[0])


def test_more_requests_than_connections_are_told_to_come_back(server: Server) -> None:
    """Requests that are under way keep their connections: here until the database is unlocked."""
    path = make_url(server.environment["STORE_CREDIT_DATABASE_URL"]).database
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(contextlib.closing(sqlite3.connect(str(path), isolation_level=None)))
        lock.execute("BEGIN IMMEDIATE")
        busy = [stack.enter_context(Connection(server)) for _ in range(CONNECTIONS_MAX)]
        for number, connection in enumerate(busy):
            connection.send(callout(authorization("gift-1", f"busy-{number}")))
        poll(lambda: is_too_busy(server), SECONDS_MAX)
        for _ in range(3):
            with Connection(server) as connection:
                assert_too_busy(connection.send(callout(authorization("gift-1", "busy"))).answer())
                assert connection.is_closed()
        lock.execute("ROLLBACK")
        for connection in busy:
            assert connection.answer().status == 200
    with Connection(server) as connection:
        assert connection.send(HEALTH).answer().status == 200


def test_silent_connections_make_no_room_for_more_requests(sqlite_url: str, tmp_path: Path) -> None:
    """A newcomer gets the place of one that was served, and not that of one that never had any."""
    path = make_url(sqlite_url).database
    with (
        running(sqlite_url, tmp_path, CONNECTIONS=str(FEW), DEADLINE="20s") as [small],
        contextlib.ExitStack() as stack,
        contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as lock,
    ):
        lock.execute("BEGIN IMMEDIATE")
        busy = [stack.enter_context(Connection(small)) for _ in range(FEW)]
        for number, connection in enumerate(busy):
            connection.send(callout(authorization("gift-1", f"busy-{number}")))
        poll(lambda: is_too_busy(small), SECONDS_MAX)
        for _ in range(EXTRA_CONNECTIONS + FEW):
            silent = stack.enter_context(Connection(small))
            poll(lambda silent=silent: is_held(small, silent), SECONDS_MAX)
            with Connection(small) as connection:
                assert_too_busy(connection.send(callout(authorization("gift-1", "busy"))).answer())
        lock.execute("ROLLBACK")
        for connection in busy:
            assert connection.answer().status == 200
        # Now there is room, also for one that came when there was none.
        poll(lambda: not is_too_busy(small), SECONDS_MAX)
        assert silent.send(HEALTH).answer().status == 200


def test_next_to_no_request_is_lost_to_a_newer_connection(sqlite_url: str, tmp_path: Path) -> None:
    """Far more clients than there is room for, each with a new connection for each request."""
    answered, lost = Counter[int](), 0

    async def ask_again_and_again(port: int, until: float) -> None:
        nonlocal lost
        while time.monotonic() < until:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(HEALTH)
                try:
                    head = await reader.readuntil(b"\r\n")
                except (ConnectionError, asyncio.IncompleteReadError):
                    lost += 1
                else:
                    answered[int(head.split()[1])] += 1

    async def flood(port: int) -> None:
        until = time.monotonic() + 2
        await asyncio.gather(*(ask_again_and_again(port, until) for _ in range(5 * FEW)))

    with running(sqlite_url, tmp_path, CONNECTIONS=str(FEW)) as [small]:
        asyncio.run(flood(small.port))
    assert set(answered) <= {200, 503}
    assert answered[200] > answered[503] / 20, "there is room again and again, and it is given"
    assert lost <= sum(answered.values()) / 20


def test_clients_that_do_not_read_make_room_for_others(sqlite_url: str, tmp_path: Path) -> None:
    with (
        running(sqlite_url, tmp_path, CONNECTIONS=str(FEW)) as [server],
        contextlib.ExitStack() as stack,
    ):
        deaf = [stack.enter_context(Connection(server)) for _ in range(FEW)]
        for connection in deaf:
            # More than sockets hold: the server's part of it waits for the client.
            connection.send(request("GET", "/openapi.json") * 60)
        # While their answers are still being made, they are as good as others.
        poll(lambda: not is_too_busy(server), SECONDS_MAX)
        for _ in range(3):
            assert not is_too_busy(server)
        assert any(is_held(server, connection) for connection in deaf), "no more go than there is need for"


def is_too_busy(server: Server) -> bool:
    with Connection(server) as connection:
        return connection.send(HEALTH).answer().status == 503


def is_gone(connection: Connection) -> bool:
    with contextlib.suppress(ConnectionError):
        return connection.is_closed()
    return True


def test_large_bodies_do_not_fill_the_memory(server: Server) -> None:
    """Unsigned ones, as anybody may send them; the callout's small ones go on being read."""
    event = request("POST", WEBHOOK_PATH, b"DigitalRiver-Signature: 1, a", b"Content-Length: 1000000")
    with contextlib.ExitStack() as stack:
        for _ in range(LARGE_BODIES_MAX):
            stack.enter_context(Connection(server)).send(event + b"a" * 100_000)

        def is_full() -> bool:
            with Connection(server) as connection:
                connection.send(event + b"a" * 100_000)
                connection.socket.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    assert_too_busy(connection.answer())
                    return True
            return False

        poll(is_full, SECONDS_MAX)
        with Connection(server) as connection:
            body = authorization("gift-1", "beside") + b" " * 60_000
            assert connection.send(callout(body)).answer().status == 200


# Workers


def test_workers_finish_and_stop_when_their_parent_is_killed(postgresql_url: str, tmp_path: Path) -> None:
    with running(postgresql_url, tmp_path, "--workers", "2") as [server]:
        workers = workers_of(server)
        assert len(workers) == 2
        assert list(tmp_path.glob("store-credit-metrics-*")), "the workers' metrics meet there"
        asked = callout(authorization("gift-1", "last"))
        with Connection(server) as connection:
            connection.send(asked[:-5])
            server.kill()
            poll(lambda: "Waiting for connections to close" in server.log, SECONDS_MAX)
            assert connection.send(asked[-5:]).answer().json["approval"] is False
            assert connection.is_closed()
        poll(lambda: not any(is_alive(worker) for worker in workers), SECONDS_MAX)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), SECONDS_MAX)
        assert [line["event"] for line in server.logged].count("parent_gone") == 2


def workers_of(server: Server) -> list[int]:
    """The processes below the server's that serve; others of them keep resources."""
    assert server._process is not None
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            arguments = (status.parent / "cmdline").read_bytes()
            if parent == server._process.pid and b"spawn_main" in arguments:
                found.append(int(status.parent.name))
    return found


def is_alive(process: int) -> bool:
    """A process that has ended, and that nobody waited for, is not."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
