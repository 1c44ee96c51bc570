"""A network between the service and PostgreSQL that can fall silent, and lose answers to COMMIT."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from tests.server import poll


@contextlib.contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    """A wire to PostgreSQL's port, carried by a thread of its own."""
    wire = Wire(port)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(wire.open(), loop).result()
        yield wire
    finally:
        asyncio.run_coroutine_threadsafe(wire.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Wire:
    """Carries connections to PostgreSQL; its faults are made from any thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._losing: set[asyncio.Task[None]] = set()
        self._armed = False
        self.lost = 0

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def fall_silent(self) -> None:
        """Nothing gets through any more, and nothing is closed."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._open.clear)

    def come_back(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._open.set)

    def lose_commit(self) -> None:
        """The next COMMIT gets through, and the connection breaks before PostgreSQL's answer does."""
        lost = self.lost
        self._armed = True
        poll(lambda: self.lost > lost)

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
