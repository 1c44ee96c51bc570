"""`GET /decisions` narrowed by time."""

from __future__ import annotations

from store_credit.fields import time_text
from tests.http_fixtures import Shop
from tests.making import HOUR

pytest_plugins = ["tests.http_fixtures"]


async def test_decisions_are_narrowed_to_a_period(shop: Shop) -> None:
    for session in ("early", "middle", "late"):
        await shop.authorize(1, session, "nobody's")
        shop.clock.advance(HOUR)
    since, until = time_text(shop.clock() - 2 * HOUR), time_text(shop.clock() - HOUR)

    def sessions(found: list[dict[str, object]]) -> list[object]:
        return [decision["sessionId"] for decision in found]

    assert sessions(await shop.decisions(since=since)) == ["late", "middle"]
    assert sessions(await shop.decisions(until=until)) == ["middle", "early"]
    assert sessions(await shop.decisions(since=since, until=until)) == ["middle"]
