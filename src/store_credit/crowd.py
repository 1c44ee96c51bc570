"""What comes while the ledger has too much to do is refused before it costs anything."""

from __future__ import annotations

import time
from collections.abc import Awaitable

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope

from store_credit.ledger.ledger import Ledger

REFUSALS_PER_SECOND = 1_000
"""Who is refused asks again at once. At this pace, refusing takes about a tenth of a processor."""
REFUSAL_SECONDS_MAX = 4.0
"""No refusal waits longer for its turn: to refuse thousands faster would cost the others."""

READING_MAX = 128
"""So many requests that only read are let in within a turn of the event loop, for which all others wait."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Crowd:
    """Decides which requests are refused, and when each of them is told.

    Those are refused that would change something while the ledger is crowded, and those that only read when
    too many come at once.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._starting = 0
        self._last_turn = 0.0

    def refuses(self, method: str) -> bool:
        """Asked once for each request, before it is started."""
        if method in _READING:
            return self._starting >= READING_MAX
        return self._ledger.is_crowded_with(self._starting)

    def starting(self, app: ASGI3Application) -> ASGI3Application:
        """The application for one request that is started. Until it runs, the ledger knows nothing of it.

        A thousand connections may be read before the first of their requests runs.
        """
        self._starting += 1

        def run(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> Awaitable[None]:
            self._starting -= 1
            return app(scope, receive, send)

        return run

    def seconds_to_turn(self) -> float:
        """When the next refusal is to be sent: they go out one after the other, at a steady pace."""
        now = time.monotonic()
        turn = max(now, self._last_turn + 1 / REFUSALS_PER_SECOND)
        self._last_turn = min(turn, now + REFUSAL_SECONDS_MAX)
        return self._last_turn - now
