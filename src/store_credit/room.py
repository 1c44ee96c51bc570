"""Which connections can be closed to make room for others: those that wait for their clients or in vain."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Protocol
from weakref import WeakKeyDictionary

from uvicorn.server import ServerState

IDLE_SECONDS = 0.1
"""A client from which nothing came for so long is not just about to send its request."""
UNREAD_SECONDS = 2.0
"""A client that reads nothing for so long is not just slower than we are."""


class Closable(Protocol):
    def drop(self) -> None:
        """Close it at once."""


class Room:
    """The connections of one server that can be closed, those that have waited longest first."""

    def __init__(self) -> None:
        self._idle: dict[Closable, float] = {}
        self._refused: dict[Closable, None] = {}
        self._unread: dict[Closable, float] = {}

    def wait_for_request(self, connection: Closable) -> None:
        """From now on there is nothing to do but to wait for a request, or for the rest of one."""
        self.busy(connection)
        self._idle[connection] = time.monotonic()

    def wait_for_reader(self, connection: Closable) -> None:
        """From now on there is no room for more of its answers, until its client reads some of them."""
        self._unread[connection] = time.monotonic()

    def read_again(self, connection: Closable) -> None:
        self._unread.pop(connection, None)

    def wait_for_turn(self, connection: Closable) -> None:
        """Its request is to be refused, once it is its turn."""
        self.busy(connection)
        self._refused[connection] = None

    def busy(self, connection: Closable) -> None:
        """A request of it is being served."""
        self._idle.pop(connection, None)
        self._refused.pop(connection, None)

    def forget(self, connection: Closable) -> None:
        self.busy(connection)
        self.read_again(connection)

    def make(self, *, patient: bool = True) -> bool:
        """Close a connection, if one can be: rather one without a request than one whose request is to be
        refused, and rather that than one without a reader.

        Returns whether one was closed. The `patient` spare those that have waited for a moment only.
        """
        now = time.monotonic()
        since = now - IDLE_SECONDS if patient else now
        idle, unread = _longest(self._idle, since), _longest(self._unread, now - UNREAD_SECONDS)
        longest = next(chain(idle, self._refused, unread), None)
        if longest is None:
            return False
        self.forget(longest)
        longest.drop()
        return True


def _longest(waiting: Mapping[Closable, float], since: float) -> Iterator[Closable]:
    """The one that has waited longest, if it has since then. Those that came last are the last."""
    for connection, at in waiting.items():
        if at <= since:
            yield connection
        return


_rooms: WeakKeyDictionary[ServerState, Room] = WeakKeyDictionary()


def room_of(server: ServerState) -> Room:
    return _rooms.setdefault(server, Room())
