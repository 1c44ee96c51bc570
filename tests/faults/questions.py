"""What a client asked and was told, and the ledger held against it: the heart of these tests.

What was answered is in the ledger exactly once, what was never answered is there at most once, and
nothing else is.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from store_credit.database import connect
from tests.server import Json, minor

_DONE = {"issued": 201, "held": 200, "released": 204, "deducted": 200, "returned": 200}


@dataclass
class Attempt:
    """A question asked once."""

    request_id: str
    seconds: float
    status: int | None
    """None when no answer came."""
    answer: Json = field(default_factory=dict)


@dataclass
class Question:
    """Something asked for until it is answered. Its effect is an entry of `kind` for each amount.

    Entries are known by their `key`: the Idempotency-Key, the session, or Digital River's event id.
    """

    kind: str
    key: str
    amounts: list[float]
    method: str
    path: str
    body: Json | None = None
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def done_status(self) -> int:
        return _DONE[self.kind]

    @property
    def answered(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.status == self.done_status]

    @property
    def is_callout(self) -> bool:
        return self.kind in ("held", "released")

    @property
    def is_declined(self) -> bool:
        return self.kind == "held" and any(not found.answer["approval"] for found in self.answered)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the database holds, by what the client can name."""

    effects: dict[tuple[str, str], list[int]]
    """The amounts, in minor units, of the journal's entries by kind and key."""
    decisions: dict[str, list[str]]
    """The kept answers to Digital River, by request id."""
    events: dict[str, list[str]]
    """The states of the stored events, by Digital River's id."""
    expired: set[str]
    """The sessions whose hold ended by itself, so that a removal has nothing left to end."""


def check(questions: Sequence[Question], ledger: Ledger) -> None:
    """Every answer is in the ledger exactly once; what got none is there at most once; nothing else is."""
    for question in questions:
        effects = sorted(ledger.effects.pop((question.kind, question.key), []))
        once = sorted(map(minor, question.amounts))
        if question.is_declined or (question.kind == "released" and question.key in ledger.expired):
            once = []
        assert effects == once or not (effects or question.answered), f"{question} has {effects}"
        assert len({json.dumps(found.answer, sort_keys=True) for found in question.answered}) <= 1
        if question.is_callout:
            for attempt in question.attempts:
                kept = ledger.decisions.pop(attempt.request_id, [])
                least = 1 if attempt in question.answered else 0
                assert least <= len(kept) <= 1, f"{attempt} of {question} was decided as {kept}"
        elif question.kind != "issued":
            stored = ledger.events.pop(question.key, [])
            assert stored == ["applied"] or not (stored or question.answered), f"{question} is {stored}"
    assert not ledger.effects, "effects that nobody asked for"
    assert not ledger.decisions, "decisions that nobody asked for"
    assert not ledger.events, "events that nobody sent"


_EFFECTS = (
    "SELECT kind, idempotency_key, amount FROM ledger_entry WHERE kind = 'issued'",
    "SELECT kind, event_id, abs(amount) FROM ledger_entry WHERE kind IN ('deducted', 'returned')",
    "SELECT kind, session_id, abs(held) FROM ledger_entry JOIN hold ON hold.id = hold_id"
    " WHERE kind IN ('held', 'released')",
    # Who asks again for the same amount changes nothing.
    "SELECT kind, session_id, held FROM ledger_entry JOIN hold ON hold.id = hold_id"
    " WHERE kind = 'hold_changed' AND held <> 0",
)
_EXPIRED = "SELECT session_id FROM hold WHERE state = 'expired'"


def read_ledger(database_url: str) -> Ledger:
    async def work() -> Ledger:
        database = connect(database_url)
        try:
            return await database.read(_read)
        finally:
            await database.close()

    # In a thread of its own, so that no test's event loop is touched.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work()).result()


def _read(connection: Connection) -> Ledger:
    effects: dict[tuple[str, str], list[int]] = defaultdict(list)
    decisions: dict[str, list[str]] = defaultdict(list)
    events: dict[str, list[str]] = defaultdict(list)
    for sql in _EFFECTS:
        for kind, key, amount in connection.execute(text(sql)):
            effects[kind, key].append(amount)
    for request_id, reason in connection.execute(text("SELECT request_id, reason FROM decision")):
        decisions[request_id].append(reason)
    for event_id, state in connection.execute(text("SELECT event_id, state FROM webhook_event")):
        events[event_id].append(state)
    expired = set(connection.execute(text(_EXPIRED)).scalars())
    return Ledger(effects, decisions, events, expired)
