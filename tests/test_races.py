"""Races through HTTP against the real server: on both databases, and with two processes on PostgreSQL.

Each scenario has credit lines of its own, so that they can share one service.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.server import (
    Json,
    Server,
    Service,
    calling,
    check_books,
    minor,
    order_event,
    postgresql_database,
    running,
    source,
    until,
)

PATIENT = {"DEADLINE": "30s", "LOG_LEVEL": "warning"}
"""What is tested is what is decided, not how fast: the machine may be busy."""
ROUNDS = 30
ROUNDS_OF_RETURNS = 25
EXPIRY_LINES = 24
EXPIRY_SPREAD_SECONDS = 0.16
"""Requests take their time to arrive: most are sent before the moment, some after it."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "postgresql, two processes"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def shared_url(
    kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A database with the newest schema, for all tests of one kind."""
    if kind == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        yield f"sqlite:///{shutil.copy(template, tmp_path_factory.mktemp('races') / 'races.db')}"
        return
    server, copied = (request.getfixturevalue(f"postgresql_{name}") for name in ("server", "template"))
    with postgresql_database(server, copied) as url:
        yield url


@pytest.fixture(scope="module")
def servers(kind: str, shared_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    processes = 2 if "two" in kind else 1
    with running(shared_url, tmp_path_factory.mktemp("servers"), processes=processes, **PATIENT) as started:
        yield started
        check_books(shared_url)
    assert not [server for server in started if "Traceback" in server.log]


@pytest.fixture
async def service(servers: list[Server]) -> AsyncIterator[Service]:
    """The service, called at all its processes in turn."""
    async with calling(*servers) as service:
        yield service


async def at_once(*requests: Awaitable[httpx.Response]) -> list[httpx.Response]:
    return await asyncio.gather(*requests)


def statuses(responses: list[httpx.Response]) -> Counter[int]:
    return Counter(response.status_code for response in responses)


def fresh(noun: str) -> str:
    return f"{noun}-{uuid4().hex}"


async def test_24_sessions_at_once_share_400_in_eight_holds_of_50(service: Service) -> None:
    line = await service.issued(400.00)
    sessions = [fresh("session") for _ in range(24)]
    responses = await at_once(*(service.authorize(line["upstreamId"], s, 50.00) for s in sessions))
    assert statuses(responses) == {200: 24}
    approved = {
        session
        for session, response in zip(sessions, responses, strict=True)
        if response.json()["approval"]
    }
    books = await service.books(line["id"])
    books.check()
    assert len(approved) == 8
    assert {hold["sessionId"] for hold in books.holds} == approved
    assert (books.line["held"], books.line["available"]) == (400, 0)


async def test_20_identical_requests_at_once_are_one_hold(service: Service) -> None:
    line, session = await service.issued(100.00), fresh("session")
    responses = await at_once(*(service.authorize(line["upstreamId"], session, 60.00) for _ in range(20)))
    assert [response.json().get("amount") for response in responses] == [60] * 20
    books = await service.books(line["id"])
    books.check()
    assert len(books.holds) == 1
    assert books.line["held"] == 60


async def test_requests_of_one_session_with_different_amounts_leave_one_of_them(service: Service) -> None:
    line, session = await service.issued(100.00), fresh("session")
    responses = await at_once(
        *(service.authorize(line["upstreamId"], session, amount) for amount in range(41, 61))
    )
    assert [response.json().get("amount") for response in responses] == list(range(41, 61))
    books = await service.books(line["id"])
    books.check()
    (hold,) = books.holds
    assert {decision["holdId"] for decision in books.approved()} == {hold["id"]}


async def test_the_same_event_five_times_at_once_is_one_deduction(service: Service) -> None:
    line, session = await service.issued(100.00), fresh("session")
    await service.authorize(line["upstreamId"], session, 30.00)
    event = order_event(session, source(line["upstreamId"], 30.00))
    responses = await at_once(*(service.deliver(event) for _ in range(5)))
    assert [(r.status_code, r.json()) for r in responses] == [
        (200, {"id": event["id"], "state": "applied"})
    ] * 5
    books = await service.books(line["id"])
    books.check()
    assert len(books.deductions) == 1
    assert (books.line["balance"], books.line["held"]) == (70, 0)


async def test_one_source_in_five_events_at_once_is_one_deduction(service: Service) -> None:
    line, session = await service.issued(100.00), fresh("session")
    spent = source(line["upstreamId"], 30.00)
    responses = await at_once(*(service.deliver(order_event(session, spent)) for _ in range(5)))
    assert statuses(responses) == {200: 5}
    books = await service.books(line["id"])
    books.check()
    assert len(books.deductions) == 1
    assert (books.line["balance"], books.line["flags"]) == (70, [])


async def test_a_deduction_and_its_return_at_once_both_land(service: Service) -> None:
    line = await service.issued(100.00)
    for _ in range(ROUNDS_OF_RETURNS):
        spent = source(line["upstreamId"], 3.00)
        refund = {"id": fresh("refund"), "amount": 2.00, "state": "complete"}
        charge = {"sourceId": spent["id"], "currency": "USD", "refunds": [refund]}
        returned: Json = {
            "id": fresh("event"),
            "type": "order.charge.refund.complete",
            "data": {"object": {"id": fresh("charge"), "orderId": fresh("order")} | charge},
        }
        responses = await at_once(
            service.deliver(order_event(fresh("session"), spent)), service.deliver(returned)
        )
        assert statuses(responses) == {200: 2}
    books = await service.books(line["id"])
    books.check()
    assert books.line["balance"] == 100 - ROUNDS_OF_RETURNS
    assert {(spent["amount"], spent["returned"]) for spent in books.deductions} == {(3, 2)}


async def test_events_that_name_the_same_lines_in_opposite_order_all_land(service: Service) -> None:
    one, two = await service.issued(100.00), await service.issued(100.00)
    pairs = [(one, two) if n % 2 else (two, one) for n in range(16)]
    events = [
        order_event(fresh("session"), *(source(line["upstreamId"], 1.00) for line in pair))
        for pair in pairs
    ]
    responses = await at_once(*(service.deliver(event) for event in events))
    assert [response.json().get("state") for response in responses] == ["applied"] * 16
    for line in (one, two):
        books = await service.books(line["id"])
        books.check()
        assert books.line["balance"] == 84


async def test_one_event_id_with_two_bodies_at_once_applies_one_and_answers_409_to_the_other(
    service: Service,
) -> None:
    for _ in range(5):
        line, event_id = await service.issued(100.00), fresh("event")
        bodies = [
            order_event(fresh("session"), source(line["upstreamId"], amount), event_id=event_id)
            for amount in (10.00, 20.00)
        ]
        responses = await at_once(*(service.deliver(bodies[n % 2]) for n in range(6)))
        first, second = ({r.status_code for r in responses[n::2]} for n in (0, 1))
        books = await service.books(line["id"])
        books.check()
        assert (first, second) in [({200}, {409}), ({409}, {200})]
        assert books.line["balance"] == (90 if first == {200} else 80)
        event = (await service.get(f"/webhook-events/{event_id}")).json()
        assert (event["state"], [c["state"] for c in event["conflicts"]]) == ("applied", ["conflict"])


async def test_one_idempotency_key_at_once_is_one_line_and_one_answer(service: Service) -> None:
    key, customer = fresh("key"), fresh("customer")
    responses = await at_once(*(service.issue(25.00, key, customerId=customer) for _ in range(10)))
    assert statuses(responses) == {201: 10}
    first = responses[0].json()
    assert all(response.json() == first for response in responses)
    lines = await service.listed("/credit-lines", customerId=customer)
    assert [line["id"] for line in lines] == [first["id"]]


async def test_one_idempotency_key_with_two_requests_at_once_issues_one_line(service: Service) -> None:
    key, customer = fresh("key"), fresh("customer")
    responses = await at_once(
        *(service.issue(amount, key, customerId=customer) for amount in (25.00, 35.00) * 3)
    )
    first, second = ({r.status_code for r in responses[n::2]} for n in (0, 1))
    assert (first, second) in [({201}, {409}), ({409}, {201})]
    lines = await service.listed("/credit-lines", customerId=customer)
    assert [line["balance"] for line in lines] == [25 if first == {201} else 35]


async def test_one_upstream_id_issued_at_once_is_taken_once(service: Service) -> None:
    upstream_id = fresh("upstream")
    responses = await at_once(*(service.issue(10.00 + n, upstreamId=upstream_id) for n in range(10)))
    assert statuses(responses) == {201: 1, 409: 9}
    (issued,) = [r.json() for r in responses if r.status_code == 201]
    (line,) = await service.listed("/credit-lines", upstreamId=upstream_id)
    assert line == issued


async def test_authorize_against_release_against_deduct(service: Service) -> None:
    """Two sessions want 60 of the same 100, one of them orders, and a removal comes in between."""
    rounds = random.Random(7)  # The order in which they are sent; what the server makes of it is its own.
    for _ in range(ROUNDS):
        line = await service.issued(100.00)
        upstream_id, ordering, other = line["upstreamId"], fresh("session"), fresh("session")
        event = order_event(ordering, source(upstream_id, 60.00))
        if rounds.random() < 0.5:
            await service.authorize(upstream_id, ordering, 60.00)
        requests = [
            service.authorize(upstream_id, ordering, 60.00),
            service.authorize(upstream_id, other, 60.00),
            service.release(upstream_id),
            service.deliver(event),
        ]
        rounds.shuffle(requests)
        responses = await at_once(*requests)
        assert {response.status_code for response in responses} <= {200, 204}
        await check_one_outcome(service, line["id"], event)


async def check_one_outcome(service: Service, line_id: str, event: Json) -> None:
    """The order is deducted once, its session is over, and every answer is borne out by the books."""
    books = await service.books(line_id)
    books.check()
    order = event["data"]["object"]
    (spent,) = order["payment"]["sources"]
    assert len(books.deductions_of(spent["id"])) == 1
    assert minor(books.line["balance"]) == 100_00 - minor(spent["amount"])
    assert not [
        hold
        for hold in books.holds
        if hold["sessionId"] == order["checkoutSessionId"] and hold["state"] == "open"
    ]
    overdrawn = any(
        entry["kind"] == "deducted" and entry["balanceAfter"] < entry["heldAfter"]
        for entry in books.entries
    )
    assert books.line["flags"] == (["overdrawn"] if overdrawn else [])
    assert {decision["holdId"] for decision in books.approved()} == {hold["id"] for hold in books.holds}
    released = [d["holdId"] for d in books.decisions if d["kind"] == "release" and d["accepted"]]
    ended = [e["holdId"] for e in books.entries if e["kind"] == "released"]
    assert sorted(released) == sorted(ended)


async def test_authorize_against_release_against_deduct_against_expiry(
    kind: str, shared_url: str, tmp_path: Path
) -> None:
    """Holds of one second: everything else happens in the moment in which they expire."""
    settings = PATIENT | {"HOLD_TTL": "1s", "SWEEP_INTERVAL": "100ms"}
    processes = 2 if "two" in kind else 1
    with running(shared_url, tmp_path, processes=processes, **settings) as servers:
        async with calling(*servers) as service:
            await asyncio.gather(*(race_with_expiry(service, n) for n in range(EXPIRY_LINES)))
    check_books(shared_url)
    assert not [server for server in servers if "Traceback" in server.log]


async def race_with_expiry(service: Service, number: int) -> None:
    line = await service.issued(100.00)
    upstream_id, session, other = line["upstreamId"], fresh("session"), fresh("session")
    event = order_event(session, source(upstream_id, 60.00))
    assert (await service.authorize(upstream_id, session, 60.00)).json()["approval"]
    (hold,) = await service.listed(f"/credit-lines/{line['id']}/holds")
    offset = (number / EXPIRY_LINES - 0.8) * EXPIRY_SPREAD_SECONDS
    await moment(datetime.fromisoformat(hold["expiresTime"]) + timedelta(seconds=offset))
    responses = await at_once(
        service.authorize(upstream_id, other, 60.00),
        service.release(upstream_id),
        service.deliver(event),
    )
    assert [response.status_code for response in responses] == [200, 204, 200]
    await until(lambda: nothing_held(service, line["id"]), every=0.2)
    await check_one_outcome(service, line["id"], event)


async def moment(at: datetime) -> None:
    """The time has come. (The service's clock is this machine's, on PostgreSQL too.)"""

    async def has_come() -> bool:
        return datetime.now(UTC) >= at

    await until(has_come)


async def nothing_held(service: Service, line_id: str) -> bool:
    """The journal says so, not only what is shown."""
    entries: list[dict[str, Any]] = await service.listed(f"/credit-lines/{line_id}/entries")
    return entries[-1]["heldAfter"] == 0
