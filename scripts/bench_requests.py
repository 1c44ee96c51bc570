"""The bench's requests, ready to be sent: what Digital River and a merchant would ask."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from store_credit.settings import CALLOUT_PATH
from store_credit.webhooks import signature

WEBHOOK_PATH = "/webhooks/digital-river"

LINES = 1_000
UPSTREAM_IDS = [f"7654-2345-0987-{number:06}" for number in range(LINES)]
"""Credit lines over which most cases spread."""

SINGLE_IDS = [f"single-{number:06}" for number in range(LINES)]
"""Credit lines that have one hold at a time, so that a removal notice is never ambiguous."""

HOT_ID = "hot"
"""The credit line that one case is all about."""

LINE_IDS = [f"cl_bench_{number:06}" for number in range(LINES)]
"""Our own identifiers of the first ones, to look them up by."""


@dataclass(frozen=True, slots=True)
class Access:
    """The throw-away secrets of one run."""

    username: str = "bench"
    merchant: str = "bench-merchant"
    password: str = field(default_factory=secrets.token_urlsafe)
    webhook_secret: str = field(default_factory=secrets.token_urlsafe)

    def authorizations(
        self, tag: str, numbers: Iterable[int], *, path: str = CALLOUT_PATH, **changed: Any
    ) -> list[bytes]:
        """Authorizations over all lines, each of a session of its own."""
        return [self._post(path, _asked(tag, number) | changed) for number in numbers]

    def authorizations_and_removals(self, tag: str, count: int, connections: int) -> list[bytes]:
        """Each line gets a hold and loses it again, long after the answer to the first."""
        distance, requests = min(LINES // 2, 4 * connections), []
        for number in range(count // 2 + distance):
            single = SINGLE_IDS[number % LINES]
            if number < count // 2:
                requests.append(self._post(CALLOUT_PATH, _asked(tag, number) | {"upstreamId": single}))
            if number >= distance:
                ended = SINGLE_IDS[(number - distance) % LINES]
                requests.append(_request("DELETE", f"{CALLOUT_PATH}/{quote(ended)}", self._basic()))
        return requests

    def look_ups(self, count: int) -> list[bytes]:
        header = self._basic(self.merchant)
        return [_request("GET", f"/credit-lines/{LINE_IDS[n % LINES]}", header) for n in range(count)]

    def order_events(self, tag: str, count: int, holds: int) -> list[bytes]:
        """Signed events, every other one of a session with a hold while these last."""
        return self._signed(_order_event(tag, number, holds) for number in range(count))

    def return_events(self, tag: str, count: int) -> list[bytes]:
        """A refund of each of the orders before."""
        return self._signed(_refund_event(tag, number) for number in range(count))

    def _post(self, path: str, asked: dict[str, Any]) -> bytes:
        return _request("POST", path, self._basic(), json.dumps(asked).encode())

    def _basic(self, username: str | None = None) -> str:
        pair = f"{username or self.username}:{self.password}".encode()
        return f"Authorization: Basic {base64.b64encode(pair).decode('ascii')}"

    def _signed(self, events: Iterable[dict[str, Any]]) -> list[bytes]:
        timestamp, requests = str(int(time.time())), []
        for event in events:
            body = json.dumps(event).encode()
            sign = signature.sign(timestamp, body, self.webhook_secret)
            requests.append(
                _request("POST", WEBHOOK_PATH, f"{signature.HEADER}: {timestamp}, {sign}", body)
            )
        return requests


def _request(method: str, path: str, header: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def _asked(tag: str, number: int) -> dict[str, Any]:
    return {
        "sessionId": f"session-{tag}-{number}",
        "sessionUpstreamId": f"cart-{number}",
        "amount": 11.4,
        "upstreamId": UPSTREAM_IDS[number % LINES],
        "name": "Gift card",
        "lastFour": "7831",
    }


def _order_event(tag: str, number: int, holds: int) -> dict[str, Any]:
    """An order paid with credit and with a card; the even ones have a hold of `authorizations`."""
    held = number % 2 == 0 and number // 2 < holds
    credit = {
        "id": f"source-{tag}-{number}",
        "type": "customerCredit",
        "currency": "USD",
        "amount": 11.4,
        "state": "consumed",
        "upstreamId": UPSTREAM_IDS[(number // 2) % LINES],
        "customerCredit": {},
    }
    card = {"id": f"card-{tag}-{number}", "type": "creditCard", "currency": "USD", "amount": 53.99}
    order = {
        "id": f"order-{tag}-{number}",
        "checkoutSessionId": f"session-{tag}-{number // 2}" if held else f"other-{tag}-{number}",
        "currency": "USD",
        "payment": {"sources": [credit, card]},
    }
    return _event(f"event-{tag}-{number}", "checkout_session.order.created", order)


def _refund_event(tag: str, number: int) -> dict[str, Any]:
    charge = {
        "id": f"charge-{tag}-{number}",
        "sourceId": f"source-{tag}-{number}",
        "orderId": f"order-{tag}-{number}",
        "currency": "USD",
        "refunds": [{"id": f"refund-{tag}-{number}", "amount": 1.4, "state": "complete"}],
    }
    return _event(f"return-{tag}-{number}", "order.charge.refund.complete", charge)


def _event(event_id: str, event_type: str, about: dict[str, Any]) -> dict[str, Any]:
    return {"id": event_id, "type": event_type, "data": {"object": about}}
