"""What a closed connection leaves behind: nothing that only Python's rare collections would take away."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from uvicorn import Config
from uvicorn.server import ServerState

from store_credit.app import create_app
from store_credit.crowd import Crowd
from store_credit.protocol import BoundedProtocol
from store_credit.settings import Settings
from tests.http_fixtures import ordinary
from tests.raw_http import authorization, callout, request
from tests.server import CALLOUT_PATH

IN_TIME_SECONDS = 5.0
HEALTH = request("GET", "/healthz")
ANSWERED = {
    "served": HEALTH,
    "pipelined": 3 * HEALTH,
    "unauthorized": request("POST", CALLOUT_PATH, body=authorization("gift-1", "s-1")),
    "refused": request("GET", "/healthz", b"X-Large: " + b"a" * 40_000),
}
BROKEN = callout(b"", b"Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"") + b"zebra\r\n"
ANSWERED["refused behind another"] = HEALTH + BROKEN
UNANSWERED = {"nothing": b"", "half a head": HEALTH[:-4], "half a body": callout(b"{}")[:-1]}


@pytest.fixture
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("sent", list(ANSWERED.values()), ids=list(ANSWERED))
def test_a_refused_request_leaves_nothing(
    sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crowd, "refuses", lambda *_: True)
    settings = Settings(**ordinary(f"sqlite:///{tmp_path / 'unused.db'}"))
    assert uvloop.run(_left(sent, settings)) == 0
    monkeypatch.setattr(Crowd, "seconds_to_turn", lambda _: 0.05)
    assert uvloop.run(_left(sent, settings, is_patient=False)) == 0


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("sent", [*ANSWERED.values(), *UNANSWERED.values()], ids=[*ANSWERED, *UNANSWERED])
def test_a_closed_connection_leaves_nothing(sent: bytes, tmp_path: Path) -> None:
    settings = Settings(**ordinary(f"sqlite:///{tmp_path / 'unused.db'}"))
    assert uvloop.run(_left(sent, settings)) == 0


async def _left(sent: bytes, settings: Settings, *, is_patient: bool = True) -> int:
    """How many of some connections that sent this are still there when all are closed."""
    watched: list[weakref.ref[BoundedProtocol]] = []
    app = create_app(settings)
    config, state = Config(app, log_config=None), ServerState()
    config.load()

    def connected() -> BoundedProtocol:
        protocol = BoundedProtocol(config, state, {"service": app.state.service})
        watched.append(weakref.ref(protocol))
        return protocol

    server = await asyncio.get_running_loop().create_server(connected, "127.0.0.1", 0)
    async with asyncio.timeout(IN_TIME_SECONDS):
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(sent)
            await writer.drain()
            if sent in ANSWERED.values() and is_patient:
                assert await reader.readuntil(b"\r\n\r\n")
            writer.close()
        while state.connections or state.tasks or len(watched) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
    # What was scheduled with the last one's end has its turn.
    await asyncio.sleep(0)
    server.close()
    return sum(one() is not None for one in watched)
