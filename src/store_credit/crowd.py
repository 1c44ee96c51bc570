"""What comes while the ledger has too much to do is refused before it costs anything."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from store_credit.errors import ServiceUnavailable
from store_credit.ledger.ledger import Ledger
from store_credit.responses import error_response
from store_credit.telemetry import Metrics

REFUSAL_SECONDS = 2.0
"""Who is refused at once asks at once again, and refusing would be all that is done."""

CONNECTIONS_LEFT = 100
"""Refusals that wait keep their connections; so many are left for others, such as probes."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Crowd:
    """ASGI middleware: answers 503 to whatever would change something while the ledger is crowded."""

    def __init__(self, app: ASGIApp, ledger: Ledger, metrics: Metrics, connections: int) -> None:
        """`connections` is how many the process keeps open."""
        self._app = app
        self._ledger = ledger
        self._metrics = metrics
        self._slowed = 0
        self._slowed_max = max(connections - CONNECTIONS_LEFT, connections // 2)
        self._refusal = error_response(ServiceUnavailable.retry_after(1, "The service has too much to do."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _READING and self._ledger.is_crowded:
            self._metrics.refused.inc()
            if self._slowed < self._slowed_max:
                self._slowed += 1
                try:
                    await asyncio.sleep(REFUSAL_SECONDS)
                finally:
                    self._slowed -= 1
            await self._refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)
