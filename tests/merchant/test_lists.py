"""The merchant API's lists: newest first, page by page in both directions, and filtered."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.http_fixtures import MERCHANT, Json, Shop, order_event, problem_of, source
from tests.making import HOUR

pytest_plugins = ["tests.http_fixtures"]

COUNT = 5


async def fill_lines(shop: Shop) -> str:
    for n in range(COUNT):
        await shop.issue(100, f"line-{n}")
    return "/credit-lines"


async def fill_entries(shop: Shop) -> str:
    line = await shop.issue(100)
    for n in range(1, COUNT):
        await shop.authorize(n)
    return f"/credit-lines/{line['id']}/entries"


async def fill_holds(shop: Shop) -> str:
    line = await shop.issue(100)
    for n in range(COUNT):
        await shop.authorize(1, f"session-{n}")
    return f"/credit-lines/{line['id']}/holds"


async def fill_all_holds(shop: Shop) -> str:
    for n in range(COUNT):
        await shop.issue(100, f"line-{n}")
        await shop.authorize(1, f"session-{n}", f"line-{n}")
    return "/holds"


async def fill_deductions(shop: Shop) -> str:
    line = await shop.issue(100)
    for n in range(COUNT):
        await shop.deliver(order_event(source(f"source-{n}", 1), event_id=f"event-{n}"))
    return f"/credit-lines/{line['id']}/deductions"


async def fill_line_decisions(shop: Shop) -> str:
    line = await shop.issue(100)
    for n in range(COUNT):
        await shop.authorize(n + 1)
    return f"/credit-lines/{line['id']}/decisions"


async def fill_decisions(shop: Shop) -> str:
    for n in range(COUNT):
        await shop.authorize(1, upstream_id=f"unknown-{n}")
    return "/decisions"


async def fill_events(shop: Shop) -> str:
    for n in range(COUNT):
        await shop.deliver(order_event(event_id=f"event-{n}"))
    return "/webhook-events"


FILLERS = {
    "lines": fill_lines,
    "entries": fill_entries,
    "holds": fill_holds,
    "holds of all lines": fill_all_holds,
    "deductions": fill_deductions,
    "decisions of a line": fill_line_decisions,
    "decisions": fill_decisions,
    "events": fill_events,
}
each_list = pytest.mark.parametrize("fill", FILLERS.values(), ids=FILLERS.keys())
Fill = Callable[[Shop], Awaitable[str]]


def ids(page: Json) -> list[str]:
    return [shown["id"] for shown in page["data"]]


async def created_before(shop: Shop, fill: Fill) -> tuple[str, list[str]]:
    """The path of a filled list, and all its ids in order."""
    path = await fill(shop)
    everything = await shop.get(path)
    assert everything["hasMore"] is False
    found = ids(everything)
    assert len(found) == len(set(found)) == COUNT
    return path, found


@each_list
async def test_a_list_is_ordered_by_time(shop: Shop, fill: Fill) -> None:
    path = await fill(shop)
    found = (await shop.get(path))["data"]
    if path.endswith("/entries"):
        assert [entry["seq"] for entry in found] == [1, 2, 3, 4, 5]
        return
    minted = [shown.get("receiptId", shown["id"]) for shown in found]
    assert minted == sorted(minted, reverse=True)


@each_list
async def test_forwards_page_by_page(shop: Shop, fill: Fill) -> None:
    path, all_ids = await created_before(shop, fill)
    first = await shop.get(path, limit=2)
    second = await shop.get(path, limit=2, startingAfter=ids(first)[-1])
    third = await shop.get(path, limit=2, startingAfter=ids(second)[-1])
    assert [ids(page) for page in (first, second, third)] == [all_ids[:2], all_ids[2:4], all_ids[4:]]
    assert [page["hasMore"] for page in (first, second, third)] == [True, True, False]


@each_list
async def test_backwards_page_by_page(shop: Shop, fill: Fill) -> None:
    path, all_ids = await created_before(shop, fill)
    first = await shop.get(path, limit=2, endingBefore=all_ids[-1])
    second = await shop.get(path, limit=2, endingBefore=ids(first)[0])
    third = await shop.get(path, limit=2, endingBefore=ids(second)[0])
    assert [ids(page) for page in (first, second, third)] == [all_ids[2:4], all_ids[:2], []]
    assert [page["hasMore"] for page in (first, second, third)] == [True, False, False]


@each_list
async def test_after_the_last_there_is_nothing(shop: Shop, fill: Fill) -> None:
    path, all_ids = await created_before(shop, fill)
    assert await shop.get(path, startingAfter=all_ids[-1]) == {"hasMore": False, "data": []}


@each_list
@pytest.mark.parametrize(("limit", "more"), [(1, True), (4, True), (5, False), (100, False)])
async def test_the_limit_tells_whether_there_is_more(
    shop: Shop, fill: Fill, limit: int, more: bool
) -> None:
    path, all_ids = await created_before(shop, fill)
    page = await shop.get(path, limit=limit)
    assert (ids(page), page["hasMore"]) == (all_ids[:limit], more)


async def test_ten_are_shown_without_a_limit(shop: Shop) -> None:
    for n in range(11):
        await shop.authorize(1, upstream_id=f"unknown-{n}")
    page = await shop.get("/decisions")
    assert (len(page["data"]), page["hasMore"]) == (10, True)


async def test_an_empty_list(shop: Shop) -> None:
    assert await shop.get("/credit-lines") == {"hasMore": False, "data": []}


async def test_an_entry_is_also_named_by_its_number(shop: Shop) -> None:
    path, all_ids = await created_before(shop, fill_entries)
    assert ids(await shop.get(path, startingAfter="2")) == all_ids[2:]


async def test_lists_show_only_their_own_line(shop: Shop) -> None:
    await shop.issue(100, "line-1")
    await shop.issue(100, "line-2")
    await shop.authorize(1, upstream_id="line-1")
    await shop.deliver(order_event(source()))
    for noun, count in (("entries", 1), ("holds", 0), ("deductions", 0), ("decisions", 0)):
        assert len(await shop.history(noun, "line-2")) == count


# Filters


async def three_lines(shop: Shop) -> None:
    await shop.issue(100, "a/1", customerId="anna")
    await shop.issue(100, "b", customerId="anna", currency="EUR")
    await shop.issue(100, "c", customerId="boris", expiresTime="2026-11-20T13:00:00Z")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["c", "b", "a/1"]),
        ({"upstreamId": "a/1"}, ["a/1"]),
        ({"upstreamId": "A/1"}, []),
        ({"upstreamId": "a"}, []),
        ({"customerId": "anna"}, ["b", "a/1"]),
        ({"customerId": "ann"}, []),
        ({"currency": "EUR"}, ["b"]),
        ({"currency": "JPY"}, []),
        ({"customerId": "anna", "currency": "USD"}, ["a/1"]),
        ({"status": "active"}, ["c", "b", "a/1"]),
        ({"status": "expired"}, []),
        ({"flagged": "false"}, ["c", "b", "a/1"]),
        ({"flagged": "true"}, []),
    ],
    ids=str,
)
async def test_lines_are_filtered(shop: Shop, query: dict[str, Any], expected: list[str]) -> None:
    await three_lines(shop)
    found = (await shop.get("/credit-lines", **query))["data"]
    assert [line["upstreamId"] for line in found] == expected


async def test_lines_are_filtered_by_the_status_that_is_shown(shop: Shop) -> None:
    await three_lines(shop)
    shop.clock.advance(HOUR)
    expired = (await shop.get("/credit-lines", status="expired"))["data"]
    active = (await shop.get("/credit-lines", status="active"))["data"]
    assert [(line["upstreamId"], line["status"]) for line in expired] == [("c", "expired")]
    assert [(line["upstreamId"], line["status"]) for line in active] == [("b", "active"), ("a/1", "active")]


@pytest.mark.parametrize("status", ["suspended", "closed"])
async def test_lines_that_are_suspended_or_closed(shop: Shop, status: str) -> None:
    await three_lines(shop)

    def run(connection: Connection) -> None:
        changed = text("UPDATE credit_line SET status = :status WHERE upstream_id = 'b'")
        connection.execute(changed, {"status": status})

    await shop.service.database.write(run)
    found = (await shop.get("/credit-lines", status=status))["data"]
    assert [(line["upstreamId"], line["status"], line["available"]) for line in found] == [("b", status, 0)]


async def test_filters_and_pages_go_together(shop: Shop) -> None:
    for n in range(6):
        await shop.issue(100, f"line-{n}", customerId=("anna", "boris")[n % 2])
    first = await shop.get("/credit-lines", customerId="anna", limit=2)
    rest = await shop.get("/credit-lines", customerId="anna", limit=2, startingAfter=ids(first)[-1])
    assert [line["upstreamId"] for line in (*first["data"], *rest["data"])] == [
        "line-4",
        "line-2",
        "line-0",
    ]
    assert (first["hasMore"], rest["hasMore"]) == (True, False)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"orderId": "order-1"}, ["c", "a"]),
        ({"orderId": "order-2"}, ["b"]),
        ({"orderId": "order-3"}, []),
        ({"sessionId": "held"}, ["b", "a"]),
        ({"sessionId": "removed"}, ["b"]),
        ({"sessionId": "spent"}, ["c", "a"]),
        ({"sessionId": "spent without a hold"}, ["b"]),
        ({"sessionId": "unknown"}, []),
        ({"orderId": "order-1", "sessionId": "held"}, ["a"]),
        ({"orderId": "order-1", "customerId": "customer-2"}, []),
        ({"sessionId": "held", "limit": 1}, ["b"]),
    ],
    ids=str,
)
async def test_lines_of_an_order_or_a_session(
    shop: Shop, query: dict[str, Any], expected: list[str]
) -> None:
    for name in "abc":
        await shop.issue(100, name)
    for name, session_id in (("a", "held"), ("b", "held"), ("b", "removed"), ("a", "spent")):
        await shop.authorize(1, session_id, name)
    (hold,) = [hold for hold in await shop.history("holds", "b") if hold["sessionId"] == "removed"]
    await shop.client.post(f"/holds/{hold['id']}/release", json={}, auth=MERCHANT)
    spent = source("s-1", 1, "a"), source("s-2", 1, "c")
    await shop.deliver(order_event(*spent, event_id="e-1", order_id="order-1", session_id="spent"))
    other = source("s-3", 1, "b")
    await shop.deliver(
        order_event(other, event_id="e-2", order_id="order-2", session_id="spent without a hold")
    )
    found = (await shop.get("/credit-lines", **query))["data"]
    assert [line["upstreamId"] for line in found] == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["new", "released", "spent", "yen", "old"]),
        ({"state": "open"}, ["new", "yen"]),
        ({"state": "expired"}, ["old"]),
        ({"state": "released"}, ["released"]),
        ({"state": "consumed"}, ["spent"]),
        ({"olderThan": "0s"}, ["new", "released", "spent", "yen", "old"]),
        ({"olderThan": "1ms"}, ["released", "spent", "yen", "old"]),
        ({"olderThan": "22h"}, ["released", "spent", "yen", "old"]),
        ({"olderThan": "24h"}, ["old"]),
        ({"olderThan": "90000"}, []),
        ({"olderThan": "36500d"}, []),
        ({"state": "open", "olderThan": "1h"}, ["yen"]),
        ({"state": "open", "limit": 1}, ["new"]),
    ],
    ids=str,
)
async def test_holds_are_filtered_by_state_and_age(
    shop: Shop, query: dict[str, Any], expected: list[str]
) -> None:
    await shop.issue(100)
    await shop.issue(500, "line-2", currency="JPY")
    await shop.authorize(1, "old")
    shop.clock.advance(2 * HOUR)
    await shop.authorize(200, "yen", "line-2")
    await shop.authorize(1, "spent")
    await shop.authorize(1, "released")
    await shop.deliver(order_event(source(amount=1), session_id="spent"))
    await shop.client.post("/sessions/released/release", json={}, auth=MERCHANT)
    shop.clock.advance(22 * HOUR)
    await shop.authorize(1, "new", "line-2")

    found = (await shop.get("/holds", **query))["data"]

    assert [hold["sessionId"] for hold in found] == expected
    assert all(hold["amount"] == (200 if hold["sessionId"] == "yen" else 1) for hold in found)


async def test_a_hold_past_its_time_is_shown_as_expired_in_the_list_of_all(shop: Shop) -> None:
    line = await shop.issue(100)
    await shop.authorize(1)
    shop.clock.advance(24 * HOUR)
    (hold,) = (await shop.get("/holds"))["data"]
    assert (hold["state"], hold["endedTime"]) == ("expired", hold["expiresTime"])
    assert hold["creditLineId"] == line["id"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"upstreamId": "券/1"}, [2, 1]),
        ({"sessionId": "s-1"}, [3, 1]),
        ({"upstreamId": "券/1", "sessionId": "s-1"}, [1]),
        ({"upstreamId": "券"}, []),
        ({}, [3, 2, 1]),
    ],
    ids=str,
)
async def test_decisions_are_filtered(shop: Shop, query: dict[str, str], expected: list[int]) -> None:
    await shop.authorize(1, "s-1", "券/1")
    await shop.authorize(2, "s-2", "券/1")
    await shop.authorize(3, "s-1", "other")
    assert [decision["amountAsked"] for decision in await shop.decisions(**query)] == expected


async def test_decisions_on_an_upstream_id_are_those_before_its_line_and_those_with_it(shop: Shop) -> None:
    await shop.authorize(1, "s-1")
    await shop.authorize(9, "s-1", "another")
    await shop.issue(100)
    asked = {"currency": "USD", "amount": 50}
    made = await shop.client.post("/customers/customer-1/offers", json=asked, auth=MERCHANT)
    offered = made.json()["storeCredits"][0]["upstreamId"]
    await shop.authorize(2, "s-2")
    await shop.authorize(3, "s-2", offered)
    await shop.authorize(200, "s-3")
    await shop.authorize(4, "s-3", offered)

    assert [found["amountAsked"] for found in await shop.decisions(upstreamId="line-1")] == [200, 2, 1]
    assert [found["amountAsked"] for found in await shop.decisions(upstreamId=offered)] == [4, 3]
    assert [found["amountAsked"] for found in await shop.history("decisions")] == [4, 200, 3, 2]
    first = await shop.get("/decisions", upstreamId="line-1", limit=2)
    last = first["data"][-1]["id"]
    then = await shop.get("/decisions", upstreamId="line-1", limit=2, startingAfter=last)
    assert [found["amountAsked"] for found in first["data"] + then["data"]] == [200, 2, 1]
    assert (first["hasMore"], then["hasMore"]) == (True, False)
    back = await shop.get("/decisions", upstreamId="line-1", endingBefore=then["data"][0]["id"])
    assert [found["amountAsked"] for found in back["data"]] == [200, 2]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"state": "ignored"}, ["e-3"]),
        ({"state": "unmatched"}, ["e-2"]),
        ({"state": "conflict"}, []),
        ({"type": "order.complete"}, ["e-3"]),
        ({"orderId": "o-2"}, ["e-2"]),
        ({"orderId": "o-2", "state": "applied"}, []),
        ({}, ["e-3", "e-2", "e-1"]),
    ],
    ids=str,
)
async def test_events_are_filtered(shop: Shop, query: dict[str, str], expected: list[str]) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source("s-1"), event_id="e-1", order_id="o-1"))
    await shop.deliver(order_event(source("s-2", upstream_id="x"), event_id="e-2", order_id="o-2"))
    await shop.deliver(order_event(event_id="e-3", event_type="order.complete"))
    assert [event["id"] for event in await shop.events(**query)] == expected


# Bad queries

BAD_QUERIES: list[tuple[str, dict[str, Any], str]] = [
    ("/credit-lines", {"limit": 0}, "limit"),
    ("/credit-lines", {"limit": 101}, "limit"),
    ("/credit-lines", {"limit": -1}, "limit"),
    ("/credit-lines", {"limit": "zebra"}, "limit"),
    ("/credit-lines", {"limit": "9" * 5_000}, "limit"),
    ("/credit-lines", {"limit": "1.5"}, "limit"),
    ("/credit-lines", {"limit": ""}, "limit"),
    ("/credit-lines", {"startingAfter": ""}, "startingAfter"),
    ("/credit-lines", {"startingAfter": "zebra" * 100}, "startingAfter"),
    ("/credit-lines", {"endingBefore": "zebra\0"}, "endingBefore"),
    ("/credit-lines", {"upstreamId": ""}, "upstreamId"),
    ("/credit-lines", {"upstreamId": "zebra\0"}, "upstreamId"),
    ("/credit-lines", {"upstreamId": "x" * 1025}, "upstreamId"),
    ("/credit-lines", {"customerId": "x" * 256}, "customerId"),
    ("/credit-lines", {"status": "zebra"}, "status"),
    ("/credit-lines", {"status": ""}, "status"),
    ("/credit-lines", {"currency": "usd"}, "currency"),
    ("/credit-lines", {"currency": "zebra"}, "currency"),
    ("/credit-lines", {"flagged": "zebra"}, "flagged"),
    ("/credit-lines", {"orderId": ""}, "orderId"),
    ("/credit-lines", {"sessionId": "x" * 256}, "sessionId"),
    ("/holds", {"state": "zebra"}, "state"),
    ("/holds", {"olderThan": "zebra"}, "olderThan"),
    ("/holds", {"olderThan": "-1s"}, "olderThan"),
    ("/holds", {"olderThan": "36501d"}, "olderThan"),
    ("/holds", {"olderThan": "999999999d"}, "olderThan"),
    ("/holds", {"limit": 101}, "limit"),
    ("/decisions", {"sessionId": ""}, "sessionId"),
    ("/decisions", {"sessionId": "x" * 256}, "sessionId"),
    ("/decisions", {"limit": 101}, "limit"),
    ("/webhook-events", {"state": "zebra"}, "state"),
    ("/webhook-events", {"type": "zebra\0"}, "type"),
]


@pytest.mark.parametrize(("path", "query", "parameter"), BAD_QUERIES)
async def test_a_query_that_can_not_be_answered(
    shop: Shop, path: str, query: dict[str, Any], parameter: str
) -> None:
    response = await shop.client.get(path, params=query, auth=MERCHANT)
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", parameter)
    assert "zebra" not in response.text


@pytest.mark.parametrize("name", ["upstreamid", "upstream_id", "page", "starting_after"])
async def test_a_filter_that_is_not_known(shop: Shop, name: str) -> None:
    response = await shop.client.get("/credit-lines", params={name: "zebra"}, auth=MERCHANT)
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("unknown_parameter", name)
    assert "zebra" not in response.text


PREFIXES = {"deductions": "ded", "holds": "hold", "decisions": "dec", "webhook-events": "evt"}


@each_list
async def test_a_cursor_is_an_id_of_the_list_whether_or_not_it_is_there(shop: Shop, fill: Fill) -> None:
    path, all_ids = await created_before(shop, fill)
    before_all = "0" * 26
    wrong = ("zebra", f"req_{before_all}", before_all, f"cl_{before_all} ", f"cl_{'u' * 26}")
    for cursor, parameter in itertools.product(wrong, ("startingAfter", "endingBefore")):
        response = await shop.client.get(path, params={parameter: cursor}, auth=MERCHANT)
        problem = problem_of(response, 400, "bad_request")
        assert (problem["code"], problem["parameter"]) == ("invalid_parameter", parameter), cursor
        assert cursor not in response.text
    if not path.endswith("/entries"):
        oldest = f"{PREFIXES.get(path.rpartition('/')[2], 'cl')}_{before_all}"
        assert await shop.get(path, startingAfter=oldest) == {"hasMore": False, "data": []}
        assert ids(await shop.get(path, endingBefore=oldest)) == all_ids


@pytest.mark.parametrize("parameter", ["startingAfter", "endingBefore"])
@pytest.mark.parametrize("cursor", ["zebra", "-1", "1.5", "٣", "9" * 30])
async def test_a_cursor_that_names_no_entry(shop: Shop, parameter: str, cursor: str) -> None:
    line = await shop.issue(100)
    path = f"/credit-lines/{line['id']}/entries"
    response = await shop.client.get(path, params={parameter: cursor}, auth=MERCHANT)
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", parameter)
    assert "zebra" not in response.text
