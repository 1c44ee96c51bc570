"""Catching up: Digital River's list of events is read to its end, and each event is applied once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from store_credit.cli.main import app
from store_credit.webhooks import catch_up
from store_credit.webhooks.catch_up import API_VERSION, PAUSE_SECONDS_MAX, TRIES_MAX, CatchUpFailed, Tally
from tests.http_fixtures import Json, Shop, order_event, source
from tests.webhooks.payloads import refund_event

pytest_plugins = ["tests.http_fixtures"]

KEY = "sk_test_a-secret-key"
SINCE = datetime(2026, 11, 20, tzinfo=UTC)
Answer = Callable[[httpx.Request], httpx.Response | None]


class DigitalRiver:
    """Its list of events, in pages of two; `trouble` may answer first."""

    def __init__(self, events: list[Any], trouble: Answer | None = None) -> None:
        self.events = events
        self.trouble = trouble
        self.requests: list[httpx.Request] = []
        self.slept: list[float] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.trouble is not None and (answer := self.trouble(request)) is not None:
            return answer
        after = request.url.params.get("startingAfter")
        ids = [event.get("id") if isinstance(event, dict) else None for event in self.events]
        start = ids.index(after) + 1 if after else 0
        page = self.events[start : start + 2]
        body = {"hasMore": start + 2 < len(self.events), "data": page}
        return httpx.Response(200, content=json.dumps(body))

    def client(self, monkeypatch: pytest.MonkeyPatch) -> httpx.AsyncClient:
        whole, transport = httpx.AsyncClient, httpx.MockTransport(self.answer)
        with monkeypatch.context() as patch:
            patch.setattr(httpx, "AsyncClient", lambda **given: whole(transport=transport, **given))
            return catch_up.client("https://api.example.test", KEY)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def run(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    async def caught_up(river: DigitalRiver, **given: Any) -> Tally:
        async with river.client(monkeypatch) as api:
            return await catch_up.catch_up(shop.service.ledger, api, SINCE, sleep=river.sleep, **given)

    return caught_up


def life(n: int = 1) -> list[Json]:
    """An order of 20 and a refund of 5; newest first, as Digital River lists them."""
    spent = source(f"source-{n}", 20)
    refund = refund_event(f"refund-{n}", {"r": 5}, f"source-{n}", orderId=f"order-{n}")
    order = order_event(spent, event_id=f"event-{n}", order_id=f"order-{n}", session_id=None)
    return [refund, order]


def figures(tally: Tally) -> tuple[int, int, int, int]:
    return tally.applied, tally.known_or_ignored, tally.waiting, tally.unreadable


async def balance(shop: Shop) -> float:
    return (await shop.figures())[0]


async def test_every_page_is_read_and_applied(shop: Shop, run: Callable[..., Any]) -> None:
    await shop.issue(100)
    river = DigitalRiver(
        [*life(1), *life(2), {"id": "e", "type": "source.created", "data": {"object": {}}}]
    )
    seen: list[int] = []
    tally = await run(river, on_event=lambda reached: seen.append(reached.seen))
    assert await balance(shop) == 70
    assert (figures(tally), tally.last_id, seen) == ((4, 1, 0, 0), "e", [1, 2, 3, 4, 5])
    asked = [dict(request.url.params) for request in river.requests]
    first = {"createdTime[gte]": "2026-11-20T00:00:00Z", "limit": "100"}
    assert asked == [first, first | {"startingAfter": "event-1"}, first | {"startingAfter": "event-2"}]
    assert {request.url.path for request in river.requests} == {"/events"}
    assert river.requests[0].headers["DigitalRiver-Version"] == API_VERSION == "2021-12-13"
    assert river.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    assert (await run(river)).applied == 0
    assert await balance(shop) == 70


async def test_beside_live_deliveries_each_is_applied_once(shop: Shop, run: Callable[..., Any]) -> None:
    await shop.issue(1_000)
    events = [event for n in range(10) for event in life(n)]
    live = (shop.deliver(event) for event in events)
    tally, again, *_ = await asyncio.gather(run(DigitalRiver(events)), run(DigitalRiver(events)), *live)
    assert await balance(shop) == 850
    assert tally.seen == again.seen == 20
    assert len(await shop.events()) == 20


async def test_it_goes_on_where_it_ended(shop: Shop, run: Callable[..., Any]) -> None:
    await shop.issue(100)
    calls = iter([None, *[httpx.Response(500)] * TRIES_MAX])
    river = DigitalRiver([*life(1), *life(2)], lambda _request: next(calls, None))
    reached = Tally()

    def remember(tally: Tally) -> None:
        nonlocal reached
        reached = tally

    with pytest.raises(CatchUpFailed):
        await run(river, on_event=remember)
    assert (reached.last_id, await balance(shop)) == ("event-1", 85)
    tally = await run(river, starting_after=reached.last_id)
    assert (tally.seen, await balance(shop)) == (2, 70)


async def test_too_many_requests_waits_as_long_as_it_is_told(shop: Shop, run: Callable[..., Any]) -> None:
    await shop.issue(100)
    calls = iter([httpx.Response(429, headers={"Retry-After": "7"}), httpx.Response(429), None])
    river = DigitalRiver(life(), lambda _request: next(calls, None))
    assert (await run(river)).applied == 2
    assert river.slept[0] == 7
    assert 1 <= river.slept[1] <= 2


async def test_a_long_pause_is_bounded(run: Callable[..., Any]) -> None:
    calls = iter([httpx.Response(429, headers={"Retry-After": "86400"})])
    river = DigitalRiver([], lambda _request: next(calls, None))
    await run(river)
    assert river.slept == [PAUSE_SECONDS_MAX]


def _unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectTimeout("away", request=request)


@pytest.mark.parametrize("trouble", [lambda _request: httpx.Response(503), _unreachable])
async def test_retries_are_bounded(run: Callable[..., Any], trouble: Answer) -> None:
    river = DigitalRiver([], trouble)
    with pytest.raises(CatchUpFailed) as failed:
        await run(river)
    assert len(river.requests) == TRIES_MAX
    assert len(river.slept) == TRIES_MAX - 1
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(river.slept))
    assert KEY not in str(failed.value)


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(401, text=KEY),
        httpx.Response(302),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"data": 1}),
    ],
)
async def test_what_no_retry_mends_fails_at_once(run: Callable[..., Any], response: httpx.Response) -> None:
    river = DigitalRiver([], lambda _request: response)
    with pytest.raises(CatchUpFailed) as failed:
        await run(river)
    assert (len(river.requests), river.slept) == (1, [])
    assert KEY not in str(failed.value)


async def test_unreadable_events_are_counted_and_passed_over(shop: Shop, run: Callable[..., Any]) -> None:
    await shop.issue(100)
    endless = refund_event("endless", {"r": float("nan")})
    tally = await run(DigitalRiver([*life(), {"id": "bodiless"}, endless, 7]))
    assert (figures(tally), tally.last_id) == ((2, 0, 0, 3), "event-1")


async def test_what_waits_for_an_operator_is_counted(shop: Shop, run: Callable[..., Any]) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source("source-9", 1), event_id="event-1"))
    unmatched = order_event(source("source-8", 5, None), event_id="event-8", order_id="order-8")
    tally = await run(DigitalRiver([*life(), unmatched, refund_event("event-7", {"r": -1})]))
    assert figures(tally) == (1, 0, 3, 0)


async def test_events_of_the_other_mode_are_set_aside(shop: Shop, run: Callable[..., Any]) -> None:
    await shop.issue(100)
    refund, order = life()
    tally = await run(DigitalRiver([refund | {"liveMode": True}, order]), live_mode=True)
    assert figures(tally) == (1, 1, 0, 0)
    assert (await shop.get("/webhook-events/event-1"))["state"] == "ignored"
    assert await balance(shop) == 100


# The command line


@pytest.fixture
def cli(shop: Shop, database_url: str) -> Callable[..., Any]:
    async def command(*arguments: str, of: str = "events", **environment: str | None) -> Result:
        given = {"STORE_CREDIT_DATABASE_URL": database_url, "STORE_CREDIT_DR_API_KEY": None} | environment
        runner = CliRunner(env=given)
        with ThreadPoolExecutor(1) as thread:
            called = thread.submit(runner.invoke, app, [of, *arguments], catch_exceptions=False)
            return await asyncio.wrap_future(called)

    return command


async def test_the_command_catches_up(
    shop: Shop, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.issue(100)
    river = DigitalRiver(life())
    transport, whole = httpx.MockTransport(river.answer), httpx.AsyncClient
    monkeypatch.setattr(httpx, "AsyncClient", lambda **given: whole(transport=transport, **given))
    key = {"STORE_CREDIT_DR_API_KEY": KEY}
    done = await cli("catch-up", "--since", "2026-11-20T00:00:00Z", **key)
    assert done.exit_code == 0
    assert "2 events: 2 applied, 0 known or without meaning, 0 wait" in done.output
    assert "The last was event-1; --starting-after goes on from there." in done.output
    assert await balance(shop) == 85
    river.trouble = lambda _request: httpx.Response(401)
    refused = await cli("catch-up", "--since", "2026-11-20T00:00:00Z", "--starting-after", "event-1", **key)
    assert refused.exit_code == 2
    assert "status 401" in refused.output
    assert KEY not in done.output + refused.output


async def test_the_command_says_what_is_missing(cli: Callable[..., Any]) -> None:
    keyless = await cli("catch-up", "--since", "2026-11-20T00:00:00Z")
    assert keyless.exit_code == 2
    assert "STORE_CREDIT_DR_API_KEY is not set." in keyless.output
    timeless = await cli("catch-up", "--since", "yesterday")
    assert timeless.exit_code == 2
    assert "--since" in timeless.output


async def test_events_are_listed_shown_and_applied(shop: Shop, cli: Callable[..., Any]) -> None:
    line = await shop.issue(100, customerId="shopper@example.test")
    told = order_event(source(amount=20, upstream_id=None), email="shopper@example.test")
    await shop.deliver(told)
    listed = await cli("list", "--state", "unmatched")
    assert "event-1" in listed.output
    assert "deduct 20" in listed.output
    (as_json,) = json.loads((await cli("list", "--json")).output)["data"]
    assert (as_json["id"], as_json["state"]) == ("event-1", "unmatched")
    shown = (await cli("show", "event-1")).output
    for told_of in (
        "shopper@example.test",
        "order-1",
        "session-1",
        "20.00 USD",
        "100.00 USD",
        f"--line {line['id']}",
    ):
        assert told_of in shown
    candidates = json.loads((await cli("show", "event-1", "--json")).output)["candidates"]
    assert [found["id"] for found in candidates] == [line["id"]]
    nowhere = await cli("apply", "event-1", "--line", "nowhere")
    assert nowhere.exit_code == 2
    assert "no credit line" in nowhere.output
    assert (await cli("apply", "event-1", "--source", "source-1")).exit_code == 2
    done = await cli("apply", "event-1", "--line", "line-1", "--reason", "asked")
    assert done.exit_code == 0
    became = f"source-1: deduct 20.00 USD: deducted, {line['id']}"
    assert done.output == f"The event is applied now.\n{became}\n"
    assert await balance(shop) == 80
    assert (await cli("dismiss", "event-1", "--reason", "no")).exit_code == 2
    assert (await cli("show", "event-9")).exit_code == 2


async def test_an_event_is_shown_with_the_upstream_id_that_no_line_has(
    shop: Shop, cli: Callable[..., Any]
) -> None:
    await shop.deliver(order_event(source(amount=20.125, upstream_id="lime-1")))
    became = "source-1: deduct 20.125 USD of lime-1: unknown line"
    shown = (await cli("show", "event-1")).output
    assert became in shown
    assert shown.endswith("\nNo line fits it: name one with `events apply --line`, or dismiss it.\n")
    again = await cli("apply", "event-1")
    assert (again.exit_code, again.output) == (1, f"The event is unmatched now.\n{became}\n")


async def test_who_overdraws_a_line_by_hand_is_told(shop: Shop, cli: Callable[..., Any]) -> None:
    line = await shop.issue(15)
    await shop.deliver(order_event(source(amount=20, upstream_id=None)))
    done = await cli("apply", "event-1", "--line", "line-1")
    warning = f"The line is overdrawn now: store-credit lines show {line['id']}\n"
    assert (done.exit_code, done.output.endswith(warning)) == (0, True)
    shown = " ".join((await cli("show", "line-1", of="lines")).output.split())
    assert "Spent on order order-1, which overdrew it -20.00 -5.00 0.00" in shown


async def test_ids_stay_whole_in_a_pipe(shop: Shop, cli: Callable[..., Any]) -> None:
    names = {"upstreamId": "u" * 200, "customerId": "c" * 200}
    line = await shop.issue(15, **names)
    (row,) = [row for row in (await cli("list", of="lines")).output.splitlines() if line["id"] in row]
    assert all(name in row for name in names.values())


async def test_what_moved_to_another_line_is_told_on_both(shop: Shop, cli: Callable[..., Any]) -> None:
    await shop.issue(100)
    await shop.issue(100, upstreamId="line-2")
    await shop.deliver(order_event(source(amount=20)))
    await shop.deliver(refund_event("event-2", {"refund-1": 5}))
    assert (await cli("apply", "event-1", "--line", "line-2")).exit_code == 0
    left = " ".join((await cli("show", "line-1", of="lines")).output.split())
    assert "Moved away: order order-1 +20.00" in left
    assert "Moved away: return, order order-1 -5.00" in left
    period = " ".join((await cli("statement", "line-1", of="lines")).output.split())
    assert "Moved away: deducted +20.00 105.00 order order-1; moved to" in period
    assert "Moved away: returned -5.00 100.00 order order-1; moved to" in period
    arrived = " ".join((await cli("show", "line-2", of="lines")).output.split())
    assert "Spent on order order-1 -20.00" in arrived
    assert "Returned from order order-1 +5.00" in arrived


async def test_nothing_to_list_is_said(shop: Shop, cli: Callable[..., Any]) -> None:
    assert (await cli("list")).output == "There are none.\n"
    assert (await cli("list", of="lines")).output == "There are none.\n"
    assert (await cli("list", of="credentials")).output == "There are none in the database.\n"
    assert (await cli(of="decisions")).output == "There are none.\n"
    assert (await cli("activity", of="report")).output == "There are none.\n"


async def test_events_are_dismissed_and_erased(shop: Shop, cli: Callable[..., Any]) -> None:
    await shop.deliver(order_event(source(upstream_id=None), email="shopper@example.test"))
    erased = await cli("erase", "--email", "Shopper@example.test")
    assert erased.output.endswith("1 stored bodies hold the person's data no more.\n")
    assert "@" not in (await shop.get("/webhook-events/event-1"))["body"]
    assert (await cli("erase", "--email", "nobody")).exit_code == 2
    assert (await cli("dismiss", "event-1", "--reason", "no credit")).exit_code == 0
    assert (await shop.get("/webhook-events/event-1"))["state"] == "dismissed"
    again = await cli("apply", "event-1")
    assert (again.exit_code, "dismissed" in again.output) == (2, True)


async def test_a_conflict_is_dismissed_by_the_id_that_it_claims(
    shop: Shop, cli: Callable[..., Any]
) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source()))
    assert (await shop.post_event(order_event(source(amount=50)))).status_code == 409
    assert (await cli("dismiss", "event-1", "--reason", "sent twice")).exit_code == 0
    shown = await shop.get("/webhook-events/event-1")
    assert shown["state"] == "applied"
    assert [(one["state"], one["note"] is not None) for one in shown["conflicts"]] == [("dismissed", True)]
    assert (await cli("dismiss", "event-1", "--reason", "again")).exit_code == 2
