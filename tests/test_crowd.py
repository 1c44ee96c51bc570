"""What is refused while the ledger has too much to do, and how: by a real protocol over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from uvicorn import Config
from uvicorn.server import ServerState

from store_credit import crowd
from store_credit.app import create_app
from store_credit.crowd import Crowd
from store_credit.ledger.ledger import Ledger
from store_credit.protocol import BoundedProtocol
from store_credit.service import Service
from store_credit.settings import Settings
from tests.http_fixtures import ordinary
from tests.raw_http import Answer, authorization, request
from tests.server import CALLOUT_PATH

IN_TIME_SECONDS = 10.0
HEALTH = request("GET", "/healthz")
ASKED = request("POST", CALLOUT_PATH, body=authorization("gift-1", "s-1"))
LAST = request("POST", CALLOUT_PATH, b"Connection: close", body=authorization("gift-1", "s-1"))
NAMED = request("DELETE", f"{CALLOUT_PATH}/gift-1", b"X-Request-Id: of-the-caller")
SERVED_WITHOUT_CREDENTIALS = 401
CONNECTIONS = 10
TURNS = 20
"""Of the event loop: more than what is due takes."""


class Queue:
    """Stands for a ledger whose queue is as long as the test says."""

    def __init__(self) -> None:
        self.is_crowded = False
        self.others: list[int] = []

    def is_crowded_with(self, others: int) -> bool:
        self.others.append(others)
        return self.is_crowded


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def another(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Another connection to the same server."""
        return await asyncio.open_connection(*self.writer.get_extra_info("peername"))

    async def ask(self, sent: bytes) -> Answer:
        self.writer.write(sent)
        return await self.answer()

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("ascii")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(first.split()[1]), headers, body)


class Nowhere(asyncio.Transport):
    """A transport to nowhere: what is read is up to the test."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class Serving:
    """The application behind the protocol, without a database, and a queue in the ledger's place."""

    def __init__(self, folder: Path, **given: Any) -> None:
        settings = Settings(**ordinary(f"sqlite:///{folder / 'unused.db'}"), **given)
        self.queue = Queue()
        self.keep_alive_seconds = 5.0
        self.app = create_app(settings)
        self.service: Service = self.app.state.service
        self.service.crowd._ledger = self.queue  # type: ignore[assignment]
        self.state = ServerState()
        self._config = Config(self.app, log_config=None)
        self._config.load()

    def protocol(self) -> BoundedProtocol:
        made = BoundedProtocol(self._config, self.state, {"service": self.service})
        made.timeout_keep_alive = self.keep_alive_seconds  # type: ignore[assignment]
        return made

    async def is_left(self) -> None:
        """Wait until there is no connection, and nothing to do."""
        while self.state.connections or self.state.tasks:  # noqa: ASYNC110
            await asyncio.sleep(0)

    def refused(self) -> float:
        found = self.service.metrics.registry.get_sample_value("store_credit_refused_total")
        assert found is not None
        return found

    def counted(self, method: str, path: str) -> float | None:
        labels = {"method": method, "path": path, "status": "503"}
        return self.service.metrics.registry.get_sample_value("store_credit_request_seconds_count", labels)


def serve(folder: Path, talk: Callable[[Serving, Client], Awaitable[None]], **given: Any) -> None:
    async def run() -> None:
        serving = Serving(folder, **given)
        server = await asyncio.get_running_loop().create_server(serving.protocol, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            async with asyncio.timeout(IN_TIME_SECONDS):
                await talk(serving, Client(reader, writer))
                writer.close()
                await serving.is_left()
        finally:
            writer.close()
            server.close()

    uvloop.run(run())


def test_what_would_change_something_is_refused_and_the_connection_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def talk(serving: Serving, client: Client) -> None:
        serving.queue.is_crowded = True
        for sent in (ASKED, NAMED):
            refused = await client.ask(sent)
            assert refused.status == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.json["type"] == "service_unavailable"
            assert "connection" not in refused.headers
        assert refused.headers["x-request-id"] == "of-the-caller"
        assert (await client.ask(HEALTH)).status == 200
        assert serving.refused() == 2
        assert serving.counted("POST", "other") == serving.counted("DELETE", "other") == 1
        serving.queue.is_crowded = False
        assert (await client.ask(ASKED)).status == SERVED_WITHOUT_CREDENTIALS

    serve(tmp_path, talk)
    told = [line for line in capsys.readouterr().out.splitlines() if '"status": 503' in line]
    assert len(told) == 2
    assert '"request_id": "of-the-caller"' in told[1]


def test_answers_keep_their_order_and_the_last_one_ends_the_connection(tmp_path: Path) -> None:
    async def talk(serving: Serving, client: Client) -> None:
        serving.queue.is_crowded = True
        client.writer.write(HEALTH + ASKED + HEALTH + NAMED + LAST + HEALTH)
        answers = [await client.answer() for _ in range(5)]
        assert [answer.status for answer in answers] == [200, 503, 200, 503, 503]
        assert answers[-1].headers["connection"] == "close"
        assert await client.reader.read() == b""

    serve(tmp_path, talk)


def test_a_refusal_does_not_wait_for_the_rest_of_a_body(tmp_path: Path) -> None:
    async def talk(serving: Serving, client: Client) -> None:
        serving.queue.is_crowded = True
        assert (await client.ask(ASKED[:-10])).status == 503
        client.writer.write(ASKED[-10:])
        assert (await client.ask(HEALTH)).status == 200

    serve(tmp_path, talk)


def test_who_leaves_before_the_refusal_is_not_answered(tmp_path: Path) -> None:
    async def talk(serving: Serving, _client: Client) -> None:
        serving.queue.is_crowded = True
        protocol, nowhere = serving.protocol(), Nowhere()
        protocol.connection_made(nowhere)
        protocol.data_received(ASKED)
        protocol.connection_lost(None)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert (nowhere.written, serving.refused()) == ([], 0)

    serve(tmp_path, talk)


def test_when_there_is_no_room_the_oldest_refusal_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else refusals could take all connections, and a probe would find no room."""
    monkeypatch.setattr(Crowd, "seconds_to_turn", lambda _: 3_600.0)

    async def talk(serving: Serving, client: Client) -> None:
        client.writer.close()
        await serving.is_left()
        serving.queue.is_crowded = True
        waiting = [(serving.protocol(), Nowhere()) for _ in range(CONNECTIONS)]
        for protocol, nowhere in waiting:
            protocol.connection_made(nowhere)
            protocol.data_received(ASKED)
        for number in range(2):
            probe, seen = serving.protocol(), Nowhere()
            probe.connection_made(seen)
            probe.data_received(HEALTH)
            for _ in range(TURNS):
                await asyncio.sleep(0)
            assert seen.written[0].startswith(b"HTTP/1.1 200 ")
            (answer,) = waiting[number][1].written
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"connection: close" in answer
            assert waiting[number][1].is_closed
            assert waiting[number + 1][1].written == []
            probe.connection_lost(None)
            waiting[number][0].connection_lost(None)
            waiting.append((serving.protocol(), Nowhere()))
            waiting[-1][0].connection_made(waiting[-1][1])
            waiting[-1][0].data_received(ASKED)
        for protocol, _ in waiting[2:]:
            protocol.connection_lost(None)

    serve(tmp_path, talk, connections=CONNECTIONS)


def test_a_client_that_reads_nothing_is_not_answered_for_ever(tmp_path: Path) -> None:
    async def talk(serving: Serving, _client: Client) -> None:
        serving.queue.is_crowded = True
        protocol, nowhere = serving.protocol(), Nowhere()
        protocol.connection_made(nowhere)
        protocol.pause_writing()
        protocol.data_received(3 * ASKED)
        for _ in range(TURNS):
            await asyncio.sleep(0.001)
        assert len(nowhere.written) == 1
        assert nowhere.is_closed
        protocol.connection_lost(None)

    serve(tmp_path, talk)


def test_what_can_not_be_told_is_answered_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("store_credit.protocol.tell", fail)

    async def talk(serving: Serving, client: Client) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        serving.queue.is_crowded = True
        client.writer.write(ASKED + HEALTH)
        assert [(await client.answer()).status for _ in range(2)] == [503, 200]

    serve(tmp_path, talk)


def test_who_ends_a_request_late_has_as_long_for_the_next_as_anybody(tmp_path: Path) -> None:
    async def talk(serving: Serving, client: Client) -> None:
        serving.queue.is_crowded = True
        serving.keep_alive_seconds = 0.05
        reader, writer = await client.another()
        late = Client(reader, writer)
        assert (await late.ask(ASKED[:-10])).status == 503
        writer.write(ASKED[-10:])
        assert await reader.read() == b"", "closed, as no request came"
        writer.close()

    serve(tmp_path, talk)


def test_what_was_read_and_does_not_run_yet_is_counted(tmp_path: Path) -> None:
    """Else a thousand connections that are read at once would all be let in."""

    async def talk(serving: Serving, _client: Client) -> None:
        protocols = [serving.protocol() for _ in range(3)]
        for protocol in protocols:
            protocol.connection_made(Nowhere())
            protocol.data_received(ASKED)
        assert serving.queue.others == [0, 1, 2]
        while serving.state.tasks:  # noqa: ASYNC110
            await asyncio.sleep(0)
        protocols[0].data_received(ASKED)
        assert serving.queue.others == [0, 1, 2, 0]
        for protocol in protocols:
            protocol.connection_lost(None)

    serve(tmp_path, talk)


def test_who_only_reads_is_refused_when_too_many_come_at_once() -> None:
    """Also a stranger: each costs a part of the turn that every callout waits for."""

    async def app(*_: Any) -> None: ...

    refusing = Crowd(Queue())  # type: ignore[arg-type]
    started = []
    for _ in range(crowd.READING_MAX):
        assert not refusing.refuses("GET")
        started.append(refusing.starting(app))
    assert refusing.refuses("GET")
    assert not refusing.refuses("POST")
    started.pop()({}, None, None).close()  # type: ignore[arg-type, attr-defined]
    assert not refusing.refuses("GET")


def crowd_at(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> Crowd:
    monkeypatch.setattr(crowd.time, "monotonic", lambda: now[0])
    return Crowd(Queue())  # type: ignore[arg-type]


def test_a_single_refusal_goes_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    refusing = crowd_at(monkeypatch, now)
    assert refusing.seconds_to_turn() == 0.0
    now[0] += 1.0
    assert refusing.seconds_to_turn() == 0.0


def test_refusals_go_out_at_a_steady_pace_and_none_waits_for_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusing = crowd_at(monkeypatch, [1_000.0])
    turns = [refusing.seconds_to_turn() for _ in range(10_000)]
    pace = 1 / crowd.REFUSALS_PER_SECOND
    assert turns[:3] == pytest.approx([0.0, pace, 2 * pace], abs=1e-9)
    assert sorted(turns) == turns
    assert turns[-1] == pytest.approx(crowd.REFUSAL_SECONDS_MAX)


def test_the_ledger_counts_what_was_started_as_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(**ordinary(f"sqlite:///{tmp_path / 'unused.db'}"))
    ledger: Ledger = create_app(settings).state.service.ledger
    monkeypatch.setattr(ledger._turns, "_seconds_per_work", 0.000_5)
    assert not ledger.is_crowded_with(200)
    assert ledger.is_crowded_with(201)


def test_what_fits_into_the_next_batch_is_no_crowd_however_slow_the_last_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(**ordinary(f"sqlite:///{tmp_path / 'unused.db'}"))
    ledger: Ledger = create_app(settings).state.service.ledger
    monkeypatch.setattr(ledger._turns, "_seconds_per_work", 1.0)
    assert not ledger.is_crowded_with(128)
    assert ledger.is_crowded_with(129)
