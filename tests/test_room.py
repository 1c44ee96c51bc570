"""Who has a place, and who is closed when there is none left for another connection."""

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
    """A room, connections by their names, and those that were dropped, in their order."""

    def __init__(self, *placed: str) -> None:
        """All places are taken by these."""
        self.room = Room(len(placed))
        self.dropped: list[str] = []
        self._connections: dict[str, Connection] = {}
        assert all(self.come(name) for name in placed)

    def __getitem__(self, name: str) -> Connection:
        return self._connections.setdefault(name, Connection(name, self.dropped))

    def come(self, name: str) -> bool:
        return self.room.come(self[name])

    def closed_for(self, *others: str) -> list[str]:
        """Who was closed for others to have their places, and who of them got none."""
        for name in others:
            before = len(self.dropped)
            assert self.come(name) == (len(self.dropped) > before)
        return self.dropped


def test_when_all_are_served_none_is_dropped() -> None:
    rooms = Rooms("a")
    rooms.room.wait_for_request(rooms["a"])
    rooms.room.busy(rooms["a"])
    assert rooms.closed_for("new") == []


def test_who_waits_longest_for_a_request_goes_first() -> None:
    rooms = Rooms("a", "b", "c")
    for name in ("a", "b", "c"):
        rooms.room.wait_for_request(rooms[name])
    rooms.room.busy(rooms["a"])
    rooms.room.wait_for_request(rooms["a"])
    assert rooms.closed_for("1", "2", "3", "4") == ["b", "c", "a"]


def test_who_has_waited_for_a_moment_only_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "IDLE_SECONDS", 60)
    rooms = Rooms("a", "b")
    for name in ("a", "b"):
        rooms.room.wait_for_request(rooms[name])
    assert rooms.closed_for("new") == []
    monkeypatch.setattr(room, "IDLE_SECONDS", 0)
    assert rooms.closed_for("newer") == ["a"]


def test_who_has_nothing_to_do_goes_before_who_is_behind() -> None:
    rooms = Rooms("behind", "idle", "served")
    rooms.room.wait_for_reader(rooms["behind"])
    rooms.room.wait_for_request(rooms["idle"])
    assert rooms.closed_for("1", "2", "3") == ["idle", "behind"]


def test_who_is_to_be_refused_goes_before_who_is_behind() -> None:
    rooms = Rooms("behind", "first", "second", "idle", "served")
    rooms.room.wait_for_reader(rooms["behind"])
    for name in ("first", "second"):
        rooms.room.wait_for_request(rooms[name])
        rooms.room.wait_for_turn(rooms[name])
    rooms.room.wait_for_request(rooms["idle"])
    rooms.room.wait_for_turn(rooms["served"])
    rooms.room.busy(rooms["served"])
    assert rooms.closed_for(*"12345") == ["idle", "first", "second", "behind"]


def test_who_is_only_slower_than_we_are_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "UNREAD_SECONDS", 60)
    rooms = Rooms("slow")
    rooms.room.wait_for_reader(rooms["slow"])
    assert rooms.closed_for("new") == []


def test_who_reads_again_is_spared_and_goes_to_the_end() -> None:
    rooms = Rooms("a", "b", "c")
    for name in ("a", "b", "c"):
        rooms.room.wait_for_reader(rooms[name])
    rooms.room.read_again(rooms["a"])
    rooms.room.read_again(rooms["b"])
    rooms.room.wait_for_reader(rooms["a"])
    assert rooms.closed_for("1", "2", "3") == ["c", "a"]


def test_who_is_gone_leaves_a_place() -> None:
    rooms = Rooms("a")
    rooms.room.wait_for_request(rooms["a"])
    rooms.room.wait_for_reader(rooms["a"])
    rooms.room.forget(rooms["a"])
    assert rooms.come("b")
    assert not rooms.come("c")
    assert rooms.dropped == []


# Beyond the places


def test_a_place_that_is_free_is_found_later_too() -> None:
    rooms = Rooms("a", "b")
    assert not rooms.come("silent")
    assert not rooms.come("new")
    rooms.room.forget(rooms["a"])
    assert rooms.room.find_place(rooms["new"])
    assert not rooms.room.find_place(rooms["silent"])
    rooms.room.wait_for_request(rooms["b"])
    assert rooms.room.find_place(rooms["silent"])
    assert rooms.dropped == ["b"]


def test_who_has_no_place_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else of every two newcomers, one of them silent, the other would be served, however many are."""
    monkeypatch.setattr(room, "EXTRA_CONNECTIONS", 2)
    rooms = Rooms("a")
    for name in ("1", "2", "3", "4"):
        assert not rooms.come(name)
        rooms.room.wait_for_request(rooms[name])
        rooms.room.wait_for_reader(rooms[name])
    assert not rooms.room.find_place(rooms["4"])
    assert rooms.dropped == ["1", "2"], "no more are kept than there may be without a place"


def test_of_too_many_without_a_place_the_oldest_gets_that_of_who_is_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "IDLE_SECONDS", 60)
    monkeypatch.setattr(room, "EXTRA_CONNECTIONS", 1)
    rooms = Rooms("a", "b")
    rooms.room.wait_for_request(rooms["a"])
    for name in ("1", "2", "3", "4"):
        assert not rooms.come(name)
    assert rooms.dropped == ["a", "1", "2"], "each has had a place, and then made room itself"
    assert rooms.room.find_place(rooms["3"])
    assert not rooms.room.find_place(rooms["4"])


def test_who_was_told_that_there_is_no_place_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who keeps refused connections open would have those of others closed."""
    monkeypatch.setattr(room, "IDLE_SECONDS", 60)
    monkeypatch.setattr(room, "EXTRA_CONNECTIONS", 2)
    rooms = Rooms("live")
    rooms.room.wait_for_request(rooms["live"])
    for name in ("1", "2"):
        assert not rooms.come(name)
    rooms.room.say_goodbye(rooms["2"])
    assert not rooms.come("new")
    assert rooms.dropped == ["2"]


def test_who_found_a_place_is_not_closed_for_those_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "EXTRA_CONNECTIONS", 1)
    rooms = Rooms("a")
    assert not rooms.come("b")
    rooms.room.forget(rooms["a"])
    assert rooms.room.find_place(rooms["b"])
    assert not rooms.come("c")
    assert not rooms.come("d")
    assert rooms.dropped == ["c"]
