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
Told = list[int]


class Queue:
    """Stands for a ledger whose queue is as long as the test says."""

    def __init__(self) -> None:
        self.is_crowded = False
        self.others: Told = []

    def is_crowded_with(self, others: int) -> bool:
        self.others.append(others)
        return self.is_crowded


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, sent: bytes) -> Answer:
        self.writer.write(sent)
        return await self.answer()

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("ascii")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(first.split()[1]), headers, body)


class Serving:
    """The application behind the protocol, without a database, and a queue in the ledger's place."""

    def __init__(self, folder: Path) -> None:
        settings = Settings(**ordinary(f"sqlite:///{folder / 'unused.db'}"))
        self.queue = Queue()
        self.app = create_app(settings)
        self.service: Service = self.app.state.service
        self.service.crowd._ledger = self.queue  # type: ignore[assignment]
        self.state = ServerState()
        self._config = Config(self.app, log_config=None)
        self._config.load()

    def protocol(self) -> BoundedProtocol:
        return BoundedProtocol(self._config, self.state, {"service": self.service})

    def refused(self) -> float:
        found = self.service.metrics.registry.get_sample_value("store_credit_refused_total")
        assert found is not None
        return found

    def counted(self, method: str, path: str) -> float | None:
        labels = {"method": method, "path": path, "status": "503"}
        return self.service.metrics.registry.get_sample_value("store_credit_request_seconds_count", labels)


def serve(folder: Path, talk: Callable[[Serving, Client], Awaitable[None]]) -> None:
    async def run() -> None:
        serving = Serving(folder)
        server = await asyncio.get_running_loop().create_server(serving.protocol, "127.0.0.1", 0)
        async with asyncio.timeout(IN_TIME_SECONDS):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await talk(serving, Client(reader, writer))
            writer.close()
            while serving.state.connections or serving.state.tasks:  # noqa: ASYNC110
                await asyncio.sleep(0)
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


def test_who_leaves_before_the_refusal_is_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crowd, "seconds_to_turn", lambda _: 0.05)

    async def talk(serving: Serving, client: Client) -> None:
        serving.queue.is_crowded = True
        client.writer.write(ASKED)
        while not serving.queue.others:  # noqa: ASYNC110
            await asyncio.sleep(0)
        client.writer.close()
        while serving.state.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert serving.refused() == 0

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


class Nowhere(asyncio.Transport):
    """A transport to nowhere: what is read is up to the test."""

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


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
    monkeypatch.setattr(ledger._turns, "_seconds_per_work", 0.001)
    assert not ledger.is_crowded_with(100)
    assert ledger.is_crowded_with(101)
