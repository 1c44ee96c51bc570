"""Which connections can be closed to make room for others: those that wait for their clients or in vain."""

from __future__ import annotations

import time
from itertools import chain
from typing import Protocol
from weakref import WeakKeyDictionary

from uvicorn.server import ServerState

UNREAD_SECONDS = 2.0
"""A client that reads nothing for so long is not just slower than we are."""


class Closable(Protocol):
    def drop(self) -> None:
        """Close it at once."""


class Room:
    """The connections of one server that can be closed, those that have waited longest first."""

    def __init__(self) -> None:
        self._idle: dict[Closable, None] = {}
        self._refused: dict[Closable, None] = {}
        self._unread: dict[Closable, float] = {}

    def wait_for_request(self, connection: Closable) -> None:
        """From now on there is nothing to do but to wait for a request, or for the rest of one."""
        self.busy(connection)
        self._idle[connection] = None

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

    def make(self) -> None:
        """Close a connection, if one can be: rather one without a request than one whose request is to be
        refused, and rather that than one without a reader."""
        since = time.monotonic() - UNREAD_SECONDS
        unread = (connection for connection, at in self._unread.items() if at <= since)
        longest = next(chain(self._idle, self._refused, unread), None)
        if longest is not None:
            self.forget(longest)
            longest.drop()


_rooms: WeakKeyDictionary[ServerState, Room] = WeakKeyDictionary()


def room_of(server: ServerState) -> Room:
    return _rooms.setdefault(server, Room())
