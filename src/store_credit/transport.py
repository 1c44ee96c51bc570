"""The end of a connection: closed so that the client can read the last answer, and always closed in time.

To close a socket while bytes of the client are still on their way resets the connection, and the reset may
overtake the answer. Then only our side is ended first, and what comes is thrown away for a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_SECONDS = 2.0
LINGER_BYTES_MAX = 16 * 1024 * 1024


class LingeringTransport(asyncio.Transport):
    """A transport whose `close` lets the client read what was written before.

    `is_read` says whether the client's request has been read to its end. An answer that the client does
    not take is thrown away after `unread_seconds`.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        is_read: Callable[[], bool],
        unread_seconds: float,
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._is_read = is_read
        self._unread_seconds = unread_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._is_ending = False
        self._thrown_away = 0

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._transport.write(data)

    def close(self) -> None:
        if self._is_ending:
            return
        self._is_ending = True
        self._cancel()
        if self._is_read() or self._transport.is_closing() or not self._transport.can_write_eof():
            self._transport.close()
            if self._transport.get_write_buffer_size() > 0:
                self._timer = self._loop.call_later(self._unread_seconds, self.abort)
        else:
            self._transport.write_eof()
            self._transport.resume_reading()
            self._timer = self._loop.call_later(LINGER_SECONDS, self.abort)

    def throw_away(self, size: int) -> None:
        """So many bytes came after the end."""
        self._thrown_away += size
        if self._thrown_away > LINGER_BYTES_MAX:
            self.abort()

    def expect_reading(self) -> None:
        """The client must make room for more of its answer in time."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._unread_seconds, self.abort)

    def read_again(self) -> None:
        """The client made room."""
        if not self._is_ending:
            self._cancel()

    def lost(self) -> None:
        """The connection is gone.

        The protocol and this know each other no more: what goes by itself need not wait for the rare
        collections, in which time a flood of connections would pile up.
        """
        self._is_ending = True
        self._is_read = _gone
        self._cancel()
        self._transport.close()

    def abort(self) -> None:
        self._is_ending = True
        self._cancel()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._is_ending or self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _gone() -> bool:
    """There is nobody left who could send more."""
    return True
