"""Sample events as Digital River published them, where a folder with them is at hand.

`DIGITAL_RIVER_SAMPLES` names the folder; without it, one beside the checkout is looked for.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.http_fixtures import Shop, decoded

pytest_plugins = ["tests.http_fixtures"]

BESIDE_THE_CHECKOUT = Path(__file__).parents[3] / "shared" / "digital-river" / "events"
FOLDER = Path(os.environ.get("DIGITAL_RIVER_SAMPLES", BESIDE_THE_CHECKOUT))
SAMPLES = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("*.json"))}

pytestmark = pytest.mark.skipif(not SAMPLES, reason="no sample events at hand")


def credit_sources(event: dict[str, Any]) -> list[dict[str, Any]]:
    """The sources that a new order spent credit from."""
    if not event["type"].startswith("checkout_session.order.create"):
        return []
    sources = event["data"]["object"].get("payment", {}).get("sources", [])
    return [found for found in sources if found["type"] == "customerCredit"]


def state_without_line(event: dict[str, Any]) -> str:
    """What becomes of an event while no credit line is known."""
    if credit_sources(event):
        return "unmatched"
    about = event["data"]["object"]
    told = [part for kind in ("cancels", "refunds") for part in about.get(kind, [])]
    complete = any(part["state"] == "complete" for part in told)
    # What came back of a card is not told apart from what came back of credit.
    return "parked" if "sourceId" in about and complete and "complete" in event["type"] else "ignored"


async def issue_lines(shop: Shop, event: dict[str, Any]) -> dict[str, float]:
    """A line for each that the event names; returns what will be left on them."""
    expected = {}
    for spent in credit_sources(event):
        await shop.issue(500, spent["upstreamId"], currency=spent["currency"])
        expected[spent["upstreamId"]] = round(500 - spent["amount"], 2)
    return expected


@pytest.mark.parametrize("body", SAMPLES.values(), ids=SAMPLES.keys())
async def test_a_published_event_is_taken_in(shop: Shop, body: bytes) -> None:
    event = json.loads(body)
    expected = await issue_lines(shop, event)
    for _ in range(2):
        state = decoded(await shop.post_event(body))["state"]
        assert state == ("applied" if expected else state_without_line(event))
    for upstream_id, left in expected.items():
        assert (await shop.figures(upstream_id))[0] == left
    (kept,) = await shop.events()
    assert (kept["id"], kept["type"]) == (event["id"], event["type"])


async def test_a_published_order_without_its_line_waits(shop: Shop) -> None:
    for body in SAMPLES.values():
        state = decoded(await shop.post_event(body))["state"]
        assert state == state_without_line(json.loads(body))


def test_one_of_the_published_events_spends_credit() -> None:
    assert any(credit_sources(json.loads(body)) for body in SAMPLES.values())
