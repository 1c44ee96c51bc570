"""A sender that keeps its schedule whatever comes back; run as a process of its own.

    python -m tests.faults.open_loop PORT RATE SECONDS CONNECTIONS

Opens all connections, prints a line, and then sends RATE authorizations a second, each over a
connection that waits for nothing; what is due while all of them wait is not sent, and counted. A rate
of 0 closes the loop: each connection sends again once it is answered. Prints another line when it stops
sending, waits for the last answers, and prints what came back as JSON.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import cast
from uuid import uuid4

import uvloop

from tests.server import CALLOUT, CALLOUT_PATH

LINES = [f"overloaded-{number}" for number in range(100)]
LAST_ANSWERS_SECONDS_MAX = 10.0


@dataclass
class Outcome:
    """What came back."""

    due: int = 0
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    """Connections that broke with a request under way."""
    unanswered: int = 0
    without_retry_after: int = 0
    served: int = 0
    """Answered 200 before the sending ended."""
    answered_200: list[float] = field(default_factory=list)
    """Seconds from sending to the answer."""
    answered_503: list[float] = field(default_factory=list)


class Sender:
    def __init__(self, port: int, connections: int, *, closed: bool) -> None:
        self.outcome = Outcome()
        self._port = port
        self._connections = connections
        self._closed = closed
        self.waiting = 0
        self._free: deque[Connection] = deque()
        self._lines = cycle(LINES)
        self._numbers = count()
        self._sessions = uuid4().hex
        credentials = base64.b64encode(":".join(CALLOUT).encode()).decode()
        self._head = (
            f"POST {CALLOUT_PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {credentials}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        )
        self.ended = False

    async def run(self, rate: float, seconds: float) -> Outcome:
        """Send on schedule, and wait for the last answers."""
        loop = asyncio.get_running_loop()
        for _ in range(self._connections):
            _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port)
            self._free.append(connection)
        print("connected", flush=True)  # noqa: T201
        started = time.monotonic()
        if self._closed:
            for _ in range(self._connections):
                self._send_one()
            await asyncio.sleep(seconds)
        else:
            while (passed := time.monotonic() - started) < seconds:
                while self.outcome.due < passed * rate:
                    self.outcome.due += 1
                    self._send_one()
                await asyncio.sleep(0.001)
        self.ended = True
        print("ended", flush=True)  # noqa: T201
        deadline = time.monotonic() + LAST_ANSWERS_SECONDS_MAX
        while self.waiting and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self.outcome.unanswered = self.waiting
        return self.outcome

    def request(self) -> bytes:
        session = f"{self._sessions}-{next(self._numbers)}"
        body = json.dumps({"sessionId": session, "amount": 0.01, "upstreamId": next(self._lines)})
        return f"{self._head}{len(body)}\r\n\r\n{body}".encode()

    def is_free(self, connection: Connection) -> None:
        if self._closed and not self.ended:
            connection.send(self.request())
        else:
            self._free.append(connection)

    def _send_one(self) -> None:
        if self._free:
            self._free.popleft().send(self.request())


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> None:
        if self._transport.is_closing():
            return
        self._sent_at = time.monotonic()
        self._sender.outcome.sent += 1
        self._sender.waiting += 1
        self._transport.write(request)

    def data_received(self, some: bytes) -> None:
        self._received += some
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        fields = head.lower()
        length = int(fields.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        seconds = time.monotonic() - self._sent_at
        status = int(head[9:12])
        self._received, self._sent_at = b"", 0.0
        outcome = self._sender.outcome
        outcome.statuses[status] += 1
        self._sender.waiting -= 1
        if status == 200:
            outcome.answered_200.append(seconds)
            outcome.served += not self._sender.ended
        elif status == 503:
            outcome.answered_503.append(seconds)
            outcome.without_retry_after += b"\r\nretry-after: " not in fields
        self._sender.is_free(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._sent_at:
            self._sender.waiting -= 1
            self._sender.outcome.broken += 1


def main() -> None:
    port, rate, seconds, connections = sys.argv[1:]
    sender = Sender(int(port), int(connections), closed=float(rate) == 0)
    outcome = uvloop.run(sender.run(float(rate), float(seconds)))
    json.dump(vars(outcome), sys.stdout)


if __name__ == "__main__":
    main()
