"""Which connections have a place, and which can be closed for others: those that wait, or in vain.

Only a connection with a place is served. Those beyond are taken for a while, to be told so: see `protocol`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import chain
from typing import Protocol
from weakref import WeakKeyDictionary

from uvicorn.server import ServerState

EXTRA_CONNECTIONS = 50
"""So many may be without a place."""
IDLE_SECONDS = 0.1
"""A client that has been waited for so long is not just about to send its request."""
UNREAD_SECONDS = 2.0
"""A client that reads nothing for so long is not just slower than we are."""


class Closable(Protocol):
    def drop(self) -> None:
        """Close it at once."""


class Room:
    """The connections of one server."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._placed: set[Closable] = set()
        self._extra: dict[Closable, None] = {}
        """Those without a place, in the order in which they came."""
        self._told: dict[Closable, None] = {}
        """Those among them that were told so."""
        # Of those with a place, these can be closed, who waited longest first.
        self._idle: dict[Closable, float] = {}
        self._refused: dict[Closable, None] = {}
        self._unread: dict[Closable, float] = {}

    def come(self, connection: Closable) -> bool:
        """Take in a new connection. Returns whether it has a place.

        When there are too many without, one that was told so is closed. Else the oldest of them gets a
        place at the cost of whoever waits for a request, however short a time, or is closed.
        """
        self._extra[connection] = None
        has_place = self.find_place(connection)
        if len(self._extra) > EXTRA_CONNECTIONS:
            oldest = next(chain(self._told, self._extra))
            if oldest not in self._told and self.find_place(oldest, patient=False):
                self.wait_for_request(oldest)
            else:
                self._drop(oldest)
        return has_place

    def find_place(self, connection: Closable, *, patient: bool = True) -> bool:
        """See to it that it has a place: a free one, or that of a connection that can be closed.

        The `patient` spare those that have waited for a moment only. Returns whether it has one.
        """
        if connection in self._placed:
            return True
        if len(self._placed) >= self._places:
            if (other := self._closable(IDLE_SECONDS if patient else 0)) is None:
                return False
            self._drop(other)
        self._extra.pop(connection, None)
        self._placed.add(connection)
        return True

    def wait_for_request(self, connection: Closable) -> None:
        """From now on there is nothing to do but to wait for a request, or for the rest of one."""
        self.busy(connection)
        if connection in self._placed:
            self._idle[connection] = time.monotonic()

    def say_goodbye(self, connection: Closable) -> None:
        """From now on there is nothing to do but to wait until its client has read the last answer."""
        self.wait_for_request(connection)
        if connection in self._extra:
            self._told[connection] = None

    def wait_for_turn(self, connection: Closable) -> None:
        """Its request is to be refused, once it is its turn."""
        self.busy(connection)
        self._refused[connection] = None

    def wait_for_reader(self, connection: Closable) -> None:
        """From now on there is no room for more of its answers, until its client reads some of them."""
        self.read_again(connection)
        if connection in self._placed:
            self._unread[connection] = time.monotonic()

    def read_again(self, connection: Closable) -> None:
        self._unread.pop(connection, None)

    def busy(self, connection: Closable) -> None:
        """A request of it is being served."""
        self._idle.pop(connection, None)
        self._refused.pop(connection, None)

    def forget(self, connection: Closable) -> None:
        self.busy(connection)
        self.read_again(connection)
        self._placed.discard(connection)
        self._extra.pop(connection, None)
        self._told.pop(connection, None)

    def _closable(self, idle_seconds: float) -> Closable | None:
        """Rather one without a request than one whose request is to be refused, and rather that than one
        without a reader."""
        now = time.monotonic()
        return (
            _first(self._idle, now - idle_seconds)
            or next(iter(self._refused), None)
            or _first(self._unread, now - UNREAD_SECONDS)
        )

    def _drop(self, connection: Closable) -> None:
        self.forget(connection)
        connection.drop()


def _first(waiting: Mapping[Closable, float], since: float) -> Closable | None:
    """Who has waited longest, if they have since then. Those that came last are the last."""
    connection, at = next(iter(waiting.items()), (None, since))
    return connection if at <= since else None


_rooms: WeakKeyDictionary[ServerState, Room] = WeakKeyDictionary()


def room_of(server: ServerState, places: int) -> Room:
    return _rooms.setdefault(server, Room(places))
