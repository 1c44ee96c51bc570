"""Who is closed when there is no room left for another connection."""

from __future__ import annotations

import pytest

from store_credit import room
from store_credit.room import Room


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "IDLE_SECONDS", 0)
    monkeypatch.setattr(room, "UNREAD_SECONDS", 0)


class Connection:
    def __init__(self, name: str, dropped: list[str]) -> None:
        self.name = name
        self._dropped = dropped

    def drop(self) -> None:
        self._dropped.append(self.name)


class Rooms:
    """A room, connections in it by their names, and those that were dropped, in their order."""

    def __init__(self) -> None:
        self.room = Room()
        self.dropped: list[str] = []
        self._connections: dict[str, Connection] = {}

    def __getitem__(self, name: str) -> Connection:
        return self._connections.setdefault(name, Connection(name, self.dropped))

    def make(self, times: int = 1, *, patient: bool = True) -> list[str]:
        for _ in range(times):
            before = len(self.dropped)
            assert self.room.make(patient=patient) == (len(self.dropped) > before)
        return self.dropped


def test_when_all_are_served_none_is_dropped() -> None:
    rooms = Rooms()
    rooms.room.wait_for_request(rooms["a"])
    rooms.room.busy(rooms["a"])
    assert rooms.make() == []


def test_who_waits_longest_for_a_request_goes_first() -> None:
    rooms = Rooms()
    for name in ("a", "b", "c"):
        rooms.room.wait_for_request(rooms[name])
    rooms.room.busy(rooms["a"])
    rooms.room.wait_for_request(rooms["a"])
    assert rooms.make(4) == ["b", "c", "a"]


def test_who_has_waited_for_a_moment_only_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "IDLE_SECONDS", 60)
    rooms = Rooms()
    for name in ("a", "b"):
        rooms.room.wait_for_request(rooms[name])
    assert rooms.make() == []
    assert rooms.make(patient=False) == ["a"]


def test_who_has_nothing_to_do_goes_before_who_is_behind() -> None:
    rooms = Rooms()
    rooms.room.wait_for_reader(rooms["behind"])
    rooms.room.wait_for_request(rooms["idle"])
    assert rooms.make(3) == ["idle", "behind"]


def test_who_is_to_be_refused_goes_before_who_is_behind() -> None:
    rooms = Rooms()
    rooms.room.wait_for_reader(rooms["behind"])
    for name in ("first", "second"):
        rooms.room.wait_for_request(rooms[name])
        rooms.room.wait_for_turn(rooms[name])
    rooms.room.wait_for_request(rooms["idle"])
    rooms.room.wait_for_turn(rooms["served"])
    rooms.room.busy(rooms["served"])
    assert rooms.make(5) == ["idle", "first", "second", "behind"]


def test_who_is_only_slower_than_we_are_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "UNREAD_SECONDS", 60)
    rooms = Rooms()
    rooms.room.wait_for_reader(rooms["slow"])
    assert rooms.make() == []


def test_who_reads_again_is_spared_and_goes_to_the_end() -> None:
    rooms = Rooms()
    for name in ("a", "b", "c"):
        rooms.room.wait_for_reader(rooms[name])
    rooms.room.read_again(rooms["a"])
    rooms.room.read_again(rooms["b"])
    rooms.room.wait_for_reader(rooms["a"])
    assert rooms.make(3) == ["c", "a"]


def test_who_is_gone_is_forgotten() -> None:
    rooms = Rooms()
    rooms.room.wait_for_request(rooms["a"])
    rooms.room.wait_for_reader(rooms["a"])
    rooms.room.forget(rooms["a"])
    assert rooms.make() == []
