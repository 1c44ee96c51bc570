"""How the server listens."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvicorn
import uvloop

from store_credit.cli import workers

CONNECTIONS = 128
TURNS = 8
"""Of the event loop: half of them may be for other things than new connections."""


def test_who_comes_between_the_port_and_listening_on_it_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the server would run on, and nobody could reach it."""
    ours, theirs = socket.socket(), socket.socket()
    for one in (ours, theirs):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    ours.bind(("127.0.0.1", 0))
    theirs.bind(ours.getsockname())
    theirs.listen()
    monkeypatch.setattr(uvicorn.Config, "bind_socket", lambda _: ours)
    with pytest.raises(SystemExit) as ended:
        workers.listeners(uvicorn.Config("nothing", log_config=None))
    assert ended.value.code not in (0, None)
    for one in (ours, theirs):
        one.close()


def test_many_new_connections_are_taken_in_few_turns_of_the_loop() -> None:
    """A turn is long in an overload: one connection a turn would be ten a second."""
    assert uvloop.run(_taken()) == CONNECTIONS


async def _taken() -> int:
    loop = asyncio.get_running_loop()
    taken: list[asyncio.BaseTransport] = []

    class Taken(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            taken.append(transport)

    sockets = workers.listeners(uvicorn.Config("nothing", host="127.0.0.1", port=0, log_config=None))
    servers = [await loop.create_server(Taken, sock=one, backlog=2 * CONNECTIONS) for one in sockets]
    clients = [socket.create_connection(sockets[0].getsockname()) for _ in range(CONNECTIONS)]
    for _ in range(TURNS):
        await asyncio.sleep(0)
    for one in clients + sockets:
        one.close()
    for server in servers:
        server.close()
    return len(taken)
