"""A client that records every answer, and holds the ledger against what it was told.

Shoppers are threads that shop, and Digital River behind them: what gets no answer or a 503 is asked
again, or, at times, given up. Afterwards `check` compares the questions with the ledger's own rows:
what was answered is there exactly once, and what was never answered is there at most once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import quote
from uuid import uuid4

from sqlalchemy import Connection, text

from store_credit.database import connect
from tests.faults.sizes import ANSWERS_BETWEEN
from tests.server import (
    CALLOUT,
    CALLOUT_PATH,
    MERCHANT,
    WEBHOOK_PATH,
    Json,
    Server,
    check_books,
    minor,
    order_event,
    poll,
    signed,
    source,
)

SHOPPERS = 8
GIVE_UP = 0.2
"""How often something that failed is not asked again."""
ASK_AGAIN_SECONDS = 0.05
INSIST_SECONDS_MAX = 60.0
"""Whatever the fault was: some time after it, there must be answers again."""
ANSWER_SECONDS_MAX = 30.0
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
    def answered(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.status == _DONE[self.kind]]

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
        if not question.answered:
            assert effects in ([], once), f"{question} has the effects {effects}"
        else:
            assert effects == ([] if question.is_declined else once), (
                f"{question} has the effects {effects}"
            )
            assert len({json.dumps(found.answer, sort_keys=True) for found in question.answered}) == 1
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


class Recorder:
    """Shoppers who shop at these servers, each in a thread of its own, and what all were told."""

    def __init__(self, servers: Sequence[Server], chance: random.Random, shoppers: int = SHOPPERS) -> None:
        self.servers = servers
        self.questions: list[Question] = []
        """Those that are over: answered, or given up."""
        self._chance = chance
        self._stopped = threading.Event()
        self._threads = ThreadPoolExecutor(shoppers)
        self._shopping: list[Future[None]] = []
        self._shoppers = [Shopper(self, random.Random(chance.random())) for _ in range(shoppers)]
        self.shared_lines = [self._shoppers[0].issue(amount) for amount in (100_000.00, 150.00)]
        """On the second, credit runs out."""

    @contextlib.contextmanager
    def shopping(self) -> Iterator[None]:
        """All shop meanwhile. At the end they finish what they began: there are answers again."""
        self._shopping = [self._threads.submit(s.shop_until, self._stopped) for s in self._shoppers]
        try:
            yield
        finally:
            self._stopped.set()
            self._threads.shutdown()
            _results(self._shopping)

    def wait_for_answers(self) -> None:
        """Until a random number of further questions was answered, at a random moment."""
        wanted = len(self.questions) + self._chance.randint(*ANSWERS_BETWEEN)
        poll(lambda: len(self.questions) >= wanted or any(shopper.done() for shopper in self._shopping))
        time.sleep(self._chance.random() * 0.01)  # Anywhere between two answers.

    def attempts(self, status: int | None) -> list[Attempt]:
        """All that ended like this; None for those without an answer."""
        return [found for asked in self.questions for found in asked.attempts if found.status == status]

    def slowest(self) -> float:
        """The seconds of the attempt that took the longest."""
        return max(found.seconds for asked in self.questions for found in asked.attempts)

    def deliver_again(self) -> None:
        """Digital River delivers all events again, also those that were given up."""
        events = [asked for asked in self.questions if asked.kind in ("deducted", "returned")]
        of_each = len(self._shoppers)
        with ThreadPoolExecutor(of_each) as threads:
            delivered = [
                threads.submit(shopper.insist, events[n::of_each])
                for n, shopper in enumerate(self._shoppers)
            ]
        _results(delivered)

    def check(self, database_url: str) -> None:
        """Hold the ledger against all that was asked, and then against itself."""
        check(self.questions, read_ledger(database_url))
        check_books(database_url)
        for server in self.servers:
            assert "Traceback" not in server.log


class Shopper:
    """A shopper, the merchant and Digital River: what they ask, one after the other."""

    def __init__(self, recorder: Recorder, chance: random.Random) -> None:
        self._recorder = recorder
        self._chance = chance
        self._connections: dict[int, http.client.HTTPConnection] = {}

    def shop_until(self, stopped: threading.Event) -> None:
        while not stopped.is_set():
            plenty, little = self._recorder.shared_lines
            self._chance.choice([self._order, self._order, self._change_of_mind, self._leave])(
                self._chance.choice([plenty, plenty, little])
            )
        self.close()

    def issue(self, amount: float) -> str | None:
        """A new credit line's upstream id, which is its Idempotency-Key too."""
        upstream_id = f"line-{uuid4().hex}"
        body = {"customerId": "customer-1", "currency": "USD", "amount": amount, "upstreamId": upstream_id}
        question = Question("issued", upstream_id, [amount], "POST", "/credit-lines", body)
        return upstream_id if self._ask(question) else None

    def insist(self, questions: Sequence[Question]) -> None:
        """Ask again what is over already, until it is answered."""
        for question in questions:
            self._ask(question, give_up=0.0)
        self.close()

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def _order(self, upstream_id: str) -> None:
        """An order, at times paid from both shared lines, and half of the time what comes back of it."""
        session = self._authorize(upstream_id, 1.25)
        if session is None:
            return
        others = [other for other in self._recorder.shared_lines if other != upstream_id]
        paid_from = [upstream_id, *self._chance.choice([[], [], others])]
        spent = [source(paying, 1.00) for paying in paid_from]
        event = order_event(session, *spent)
        if self._deliver("deducted", event, [1.00] * len(spent)) and self._chance.random() < 0.5:
            order_id = event["data"]["object"]["id"]
            self._deliver("returned", *self._chance.choice([cancelled, refunded])(order_id, spent))

    def _change_of_mind(self, _upstream_id: str) -> None:
        """On a line of its own, so that the removal can mean no other session."""
        upstream_id = self.issue(5.00)
        session = self._authorize(upstream_id, 2.00) if upstream_id else None
        if upstream_id and session:
            path = f"{CALLOUT_PATH}/{quote(upstream_id, safe='')}"
            self._ask(Question("released", session, [2.00], "DELETE", path))

    def _leave(self, upstream_id: str) -> None:
        self._authorize(upstream_id, 0.75)

    def _authorize(self, upstream_id: str, amount: float) -> str | None:
        """The session, when it was approved."""
        session = f"session-{uuid4().hex}"
        body = {"sessionId": session, "amount": amount, "upstreamId": upstream_id}
        question = Question("held", session, [amount], "POST", CALLOUT_PATH, body)
        answer = self._ask(question)
        return session if answer and answer.answer["approval"] else None

    def _deliver(self, kind: str, event: Json, amounts: list[float]) -> Attempt | None:
        return self._ask(Question(kind, event["id"], amounts, "POST", WEBHOOK_PATH, event))

    def _ask(self, question: Question, give_up: float = GIVE_UP) -> Attempt | None:
        """Ask until there is an answer, or, at times, give up: then None."""
        known = bool(question.attempts)
        deadline = time.monotonic() + INSIST_SECONDS_MAX
        while True:
            attempt = self._attempt(question)
            question.attempts.append(attempt)
            given_up = attempt.status in (None, 503) and self._chance.random() < give_up
            if attempt.status == _DONE[question.kind] or given_up:
                break
            assert time.monotonic() < deadline, f"there are no answers any more: {question}"
            time.sleep(ASK_AGAIN_SECONDS)
        if not known:
            self._recorder.questions.append(question)
        return None if given_up else attempt

    def _attempt(self, question: Question) -> Attempt:
        request_id = f"attempt-{uuid4().hex}"
        headers = {"X-Request-Id": request_id}
        body = None
        if question.path == WEBHOOK_PATH:
            assert question.body is not None
            body, signature = signed(question.body)
            headers |= signature
        else:
            name = MERCHANT if question.kind == "issued" else CALLOUT
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(name).encode()).decode()
        if question.kind == "issued":
            headers["Idempotency-Key"] = question.key
        if body is None and question.body is not None:
            body = json.dumps(question.body).encode()
            headers["Content-Type"] = "application/json"
        port = self._chance.choice(self._recorder.servers).port
        started = time.monotonic()
        try:
            status, answer = self._call(port, question, body, headers)
        except (OSError, http.client.HTTPException):
            self._connections.pop(port).close()
            return Attempt(request_id, time.monotonic() - started, None)
        return Attempt(request_id, time.monotonic() - started, status, answer)

    def _call(
        self, port: int, question: Question, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, Json]:
        connection = self._connections.get(port)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS_MAX)
            self._connections[port] = connection
        connection.request(question.method, question.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        answer: Json = json.loads(content) if content else {}
        if response.status == 503:
            assert int(response.headers["Retry-After"]) > 0
            assert answer["type"] == "service_unavailable"
        else:
            assert response.status == _DONE[question.kind], (question, response.status, content)
        return response.status, answer


def cancelled(order_id: str, spent: list[Json]) -> tuple[Json, list[float]]:
    """`order.cancelled`, and what comes back by it."""
    about = {"id": order_id, "currency": "USD", "payment": {"sources": spent}}
    event = {"id": f"event-{uuid4().hex}", "type": "order.cancelled", "data": {"object": about}}
    return event, [1.00] * len(spent)


def refunded(order_id: str, spent: list[Json]) -> tuple[Json, list[float]]:
    """`order.refunded` with a complete refund of each charge, and what comes back by it."""
    refund = {"amount": 0.40, "state": "complete"}
    charges = [
        {"id": f"charge-{uuid4().hex}", "sourceId": paid["id"], "refunds": [refund]} for paid in spent
    ]
    about = {"id": order_id, "currency": "USD", "payment": {"sources": spent, "charges": charges}}
    event = {"id": f"event-{uuid4().hex}", "type": "order.refunded", "data": {"object": about}}
    return event, [0.40] * len(spent)


def _results(done: Sequence[Future[None]]) -> None:
    """Raise what any of them raised; all of them are over."""
    for future in done:
        future.result()
