"""Catching up after an outage: Digital River lists the events of the last 30 days.

Every event goes through the inbox like a delivered one, so that it is applied exactly once, whether or
not live webhooks bring it at the same time, and however often the catching up is begun anew.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from store_credit.body import loads
from store_credit.errors import BadRequest
from store_credit.fields import time_text
from store_credit.ledger.ledger import Ledger
from store_credit.webhooks import inbox
from store_credit.webhooks.effects import EventState
from store_credit.webhooks.events import Event, MalformedEvent, read

API_VERSION = "2021-12-13"
PAGE = 100
TRIES_MAX = 6
TIMEOUT_SECONDS = 20
PAUSE_SECONDS_MAX = 60

Sleep = Callable[[float], Any]


class CatchUpFailed(Exception):
    """Digital River did not answer as it should. The message says what, and holds no secret."""


@dataclass(slots=True)
class Tally:
    """How far it got: what became of the events, and the last one, to go on from."""

    applied: int = 0
    known_or_ignored: int = 0
    waiting: int = 0
    unreadable: int = 0
    last_id: str | None = None

    @property
    def seen(self) -> int:
        return self.applied + self.known_or_ignored + self.waiting + self.unreadable


def client(url: str, key: str) -> httpx.AsyncClient:
    """A client for Digital River's API."""
    headers = {"Authorization": f"Bearer {key}", "DigitalRiver-Version": API_VERSION}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS)


async def catch_up(
    ledger: Ledger,
    api: httpx.AsyncClient,
    since: datetime,
    *,
    starting_after: str | None = None,
    live_mode: bool | None = None,
    on_event: Callable[[Tally], None] | None = None,
    sleep: Sleep = asyncio.sleep,
) -> Tally:
    """List the events since a time and apply what is missing. Raises CatchUpFailed and Unavailable."""
    tally = Tally(last_id=starting_after)
    async for document in _events(api, since, starting_after, sleep):
        await _take_in(ledger, document, live_mode, tally)
        if on_event is not None:
            on_event(tally)
    return tally


async def _take_in(ledger: Ledger, document: Any, live_mode: bool | None, tally: Tally) -> None:
    try:
        # As strict as a delivered body: what could not be received is not applied either.
        body = json.dumps(document)
        parsed, finite = loads(body.encode())
        if not finite:
            raise MalformedEvent("data", "A number is not finite.")
        event = read(parsed)
    except (MalformedEvent, BadRequest):
        tally.unreadable += 1
        return
    aside = None if live_mode is None or event.live_mode in (None, live_mode) else "of the other mode"
    await _count(ledger, event, body, aside, tally)
    tally.last_id = event.id


async def _count(ledger: Ledger, event: Event, body: str, aside: str | None, tally: Tally) -> None:
    try:
        receipt = await inbox.receive(ledger, event, body, aside=aside)
    except inbox.EventConflict:
        tally.waiting += 1
        return
    if receipt.state in (EventState.UNMATCHED, EventState.FAILED):
        tally.waiting += 1
    elif receipt.outcomes:
        tally.applied += 1
    else:
        tally.known_or_ignored += 1


async def _events(
    api: httpx.AsyncClient, since: datetime, starting_after: str | None, sleep: Sleep
) -> AsyncIterator[Any]:
    cursor = starting_after
    while True:
        parameters = {"createdTime[gte]": str(time_text(since)), "limit": str(PAGE)}
        if cursor is not None:
            parameters["startingAfter"] = cursor
        page = await _page(api, parameters, sleep)
        for document in page["data"]:
            yield document
        last = page["data"][-1].get("id") if page["data"] and isinstance(page["data"][-1], dict) else None
        if not page.get("hasMore") or not isinstance(last, str) or last == cursor:
            return
        cursor = last


async def _page(api: httpx.AsyncClient, parameters: dict[str, str], sleep: Sleep) -> dict[str, Any]:
    """One page; asked again a bounded number of times, with growing pauses or as `Retry-After` says."""
    problem = "no answer"
    for attempt in range(TRIES_MAX):
        pause = min(2.0**attempt, PAUSE_SECONDS_MAX) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        try:
            response = await api.get("/events", params=parameters)
        except httpx.TransportError as error:
            problem = type(error).__name__
        else:
            if response.status_code == 200:
                return _listed(response)
            problem = f"status {response.status_code}"
            if response.status_code != 429 and response.status_code < 500:
                break
            pause = _retry_after(response) or pause
        if attempt + 1 < TRIES_MAX:
            await sleep(pause)
    raise CatchUpFailed(f"Digital River's list of events could not be read: {problem}.")


def _listed(response: httpx.Response) -> dict[str, Any]:
    try:
        page = response.json()
    except ValueError:
        page = None
    if not isinstance(page, dict) or not isinstance(page.get("data"), list):
        raise CatchUpFailed("Digital River's list of events could not be read: it is no list.")
    return page


def _retry_after(response: httpx.Response) -> float | None:
    seconds = response.headers.get("Retry-After", "")
    return min(float(seconds), PAUSE_SECONDS_MAX) if seconds.isdecimal() else None
