"""The load of `growth`: checkouts over keep-alive connections, each call timed by itself.

One cycle is an authorization, its removal, another authorization, and the order that spends it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from urllib.parse import quote

from bench_load import BenchFailed
from bench_requests import Access

from store_credit.settings import CALLOUT_PATH
from store_credit.webhooks import signature

OPERATIONS = ("authorize", "release", "deduct")
TAG = "growing"
AMOUNT = 0.1

Seconds = dict[str, list[float]]
"""What each call took, by operation."""


class Client:
    """One shop's checkouts: what Digital River would send, as fast as it is answered."""

    def __init__(self, port: int, access: Access) -> None:
        self._port = port
        pair = base64.b64encode(f"{access.username}:{access.password}".encode()).decode("ascii")
        self._authorization = f"Authorization: Basic {pair}"
        self._secret = access.webhook_secret
        self.cycles = 0

    def run(self, names: Sequence[str], connections: int, seconds: float) -> Seconds:
        """Checkouts on the lines of these upstream ids until the time is over. Raises BenchFailed."""
        return asyncio.run(self._run(names, connections, seconds))

    async def _run(self, names: Sequence[str], connections: int, seconds: float) -> Seconds:
        took: Seconds = defaultdict(list)
        until = time.perf_counter() + seconds
        # No two connections use one line at once: of several open holds, a removal releases none.
        shares = [names[number::connections] for number in range(connections)]
        await asyncio.gather(*(self._check_out(share, until, took) for share in shares))
        return took

    async def _check_out(self, names: Sequence[str], until: float, took: Seconds) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def call(operation: str, request: bytes, expected: bytes) -> None:
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            body = await reader.readexactly(int(length or b"0"))
            took[operation].append(time.perf_counter() - started)
            if expected not in head + body:
                raise BenchFailed(f"{operation}: {(head + body)[:500].decode('utf-8', 'replace')}")

        while time.perf_counter() < until:
            name, session = secrets.choice(names), f"{TAG}-{secrets.token_hex(8)}"
            await call("authorize", self._authorize(name, f"{session}-a"), b'"approval":true')
            await call("release", self._remove(name), b"HTTP/1.1 204 ")
            await call("authorize", self._authorize(name, f"{session}-b"), b'"approval":true')
            await call("deduct", self._order(name, f"{session}-b"), b'"state":"applied"')
            self.cycles += 1
        writer.close()
        await writer.wait_closed()

    def _authorize(self, name: str, session: str) -> bytes:
        asked = {"sessionId": session, "amount": AMOUNT, "upstreamId": name}
        return _request("POST", CALLOUT_PATH, self._authorization, json.dumps(asked).encode())

    def _remove(self, name: str) -> bytes:
        return _request("DELETE", f"{CALLOUT_PATH}/{quote(name)}", self._authorization)

    def _order(self, name: str, session: str) -> bytes:
        source = {"id": f"source-{session}", "type": "customerCredit", "amount": AMOUNT}
        sources = {"sources": [source | {"upstreamId": name}]}
        order = {"id": f"order-{session}", "checkoutSessionId": session, "payment": sources}
        event = {"id": f"event-{session}", "type": "checkout_session.order.created"}
        body = json.dumps(event | {"data": {"object": order}}).encode()
        timestamp = str(int(time.time()))
        signed = f"{timestamp}, {signature.sign(timestamp, body, self._secret)}"
        return _request("POST", "/webhooks/digital-river", f"{signature.HEADER}: {signed}", body)


def _request(method: str, path: str, header: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{header}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
