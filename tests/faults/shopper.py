"""A shopper, with the merchant and Digital River behind: asks until there is an answer, or gives up."""

from __future__ import annotations

import base64
import http.client
import json
import random
import threading
import time
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import quote
from uuid import uuid4

from tests.faults.questions import Attempt, Question
from tests.server import (
    CALLOUT,
    CALLOUT_PATH,
    MERCHANT,
    WEBHOOK_PATH,
    Json,
    Server,
    order_event,
    signed,
    source,
)

GIVE_UP = 0.2
"""How often something that failed is not asked again."""
ASK_AGAIN_SECONDS = 0.05
INSIST_SECONDS_MAX = 60.0
"""Whatever the fault was: some time after it, there must be answers again."""
ANSWER_SECONDS_MAX = 30.0


class Shop(Protocol):
    """Where shoppers shop, and what they keep."""

    servers: Sequence[Server]
    shared_lines: Sequence[str]
    questions: list[Question]


class Shopper:
    """A shopper, the merchant and Digital River: what they ask, one after the other."""

    def __init__(self, shop: Shop, chance: random.Random) -> None:
        self._shop = shop
        self._chance = chance
        self._connections: dict[int, http.client.HTTPConnection] = {}

    def shop_until(self, stopped: threading.Event) -> None:
        while not stopped.is_set():
            plenty, little = self._shop.shared_lines
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
        others = [other for other in self._shop.shared_lines if other != upstream_id]
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
            if attempt.status == question.done_status or given_up:
                break
            assert time.monotonic() < deadline, f"there are no answers any more: {question}"
            time.sleep(ASK_AGAIN_SECONDS)
        if not known:
            self._shop.questions.append(question)
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
        port = self._chance.choice(self._shop.servers).port
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
            assert response.status == question.done_status, (question, response.status, content)
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
