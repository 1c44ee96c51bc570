"""PostgreSQL is away for a while: nothing is approved, and service resumes by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import make_url

from tests.faults.postgresql import Postgresql
from tests.faults.recorder import Recorder
from tests.faults.sizes import CUTS, LONG, seeded
from tests.faults.wire import Wire, wire_to
from tests.server import Service, calling, check_books, order_event, running, source, until

ANSWER_SECONDS_MAX = 8
"""The service gives up after 2.5 s; the rest is for a busy machine."""
STALLED_READ_SECONDS_MAX = 20


async def within(seconds: float, request: Awaitable[httpx.Response]) -> httpx.Response:
    """The answer, which must come in time."""
    started = time.monotonic()
    response = await request
    assert time.monotonic() - started < seconds
    return response


def assert_unavailable(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert response.json()["type"] == "service_unavailable"
    assert int(response.headers["Retry-After"]) > 0


async def ready(service: Service) -> bool:
    return (await service.get("/readyz", auth=None)).status_code == 200


async def test_while_the_database_is_stopped_nothing_is_answered_as_done(
    own_postgresql: Postgresql, own_url: str, tmp_path: Path
) -> None:
    with running(own_url, tmp_path) as [server]:
        async with calling(server) as service:
            line = await service.issued(100.00)
            await service.authorize(line["upstreamId"], "session-1", 11.4)
            event = order_event("session-2", source(line["upstreamId"], 20.00))
            assert await ready(service)
            own_postgresql.stop()
            for asked in (
                service.authorize(line["upstreamId"], "session-2", 20.00),
                service.deliver(event),
                service.release(line["upstreamId"]),
                service.issue(5.00),
                *map(service.get, ("/credit-lines", f"/credit-lines/{line['id']}", "/decisions")),
                service.get("/readyz", auth=None),
            ):
                assert_unavailable(await within(ANSWER_SECONDS_MAX, asked))
            for path in ("/healthz", "/metrics"):
                alive = await within(ANSWER_SECONDS_MAX, service.get(path, auth=None))
                assert alive.status_code == 200
            own_postgresql.start()
            await until(lambda: ready(service))
            books = await service.books(line["id"])
            assert [hold["sessionId"] for hold in books.holds] == ["session-1"]
            assert (books.line["balance"], len(books.decisions)) == (100, 1)
            assert (await service.deliver(event)).json()["state"] == "applied"
            assert (await service.release(line["upstreamId"])).status_code == 204
            assert (await service.books(line["id"])).line["available"] == 80
        assert server.is_running
        assert "Traceback" not in server.log
    check_books(own_url)


@pytest.fixture
def wire(own_postgresql: Postgresql, own_url: str) -> Iterator[Wire]:
    with wire_to(own_postgresql.port) as wire:
        yield wire


@pytest.fixture
def url_behind_wire(own_url: str, wire: Wire) -> str:
    return make_url(own_url).set(port=wire.port).render_as_string(hide_password=False)


def test_commits_whose_answers_are_lost_happen_once(
    url_behind_wire: str, wire: Wire, own_url: str, tmp_path: Path
) -> None:
    """PostgreSQL did what it was told, and the service can not know."""
    with running(url_behind_wire, tmp_path) as [server]:
        recorder = Recorder([server], seeded())
        with recorder.shopping():
            for _ in range(CUTS):
                recorder.wait_for_answers()
                wire.lose_commit()
            recorder.wait_for_answers()
        assert wire.lost == CUTS
        assert "CommitFailed" in server.log
        recorder.check(own_url)


async def test_a_database_that_falls_silent_approves_nothing(
    url_behind_wire: str, wire: Wire, own_url: str, tmp_path: Path
) -> None:
    with running(url_behind_wire, tmp_path) as [server]:
        async with calling(server) as service:
            line = await service.issued(100.00)
            wire.fall_silent()
            asked = [service.authorize(line["upstreamId"], f"session-{n}", 1.00) for n in range(5)]
            for response in await asyncio.gather(*(within(ANSWER_SECONDS_MAX, ask) for ask in asked)):
                assert_unavailable(response)
            if LONG:
                assert_unavailable(
                    await within(STALLED_READ_SECONDS_MAX, service.get("/readyz", auth=None))
                )
            assert (await service.get("/healthz", auth=None)).status_code == 200
            wire.come_back()
            await until(lambda: ready(service))

            async def approves() -> bool:
                answer = await service.authorize(line["upstreamId"], "session-later", 1.00)
                return answer.status_code == 200 and answer.json()["approval"]

            await until(approves)
            books = await service.books(line["id"])
            books.check()
            assert len(books.holds) == len({hold["sessionId"] for hold in books.holds})
        assert "Traceback" not in server.log
    check_books(own_url)


PROBES = ("/readyz", "/healthz", "/metrics")
TOLD_SECONDS_MAX = 8.0
"""A probe waits for a second; the rest is for a busy machine."""


async def test_probes_tell_soon_of_a_silent_database(
    own_postgresql: Postgresql, own_url: str, tmp_path: Path
) -> None:
    """Those who keep asking share one connection to the database."""
    with running(own_url, tmp_path) as [server]:
        async with calling(server) as service:
            assert await ready(service)
            with own_postgresql.paused():
                await asyncio.gather(*(assert_told_soon(service) for _ in range(10)))
            await until(lambda: ready(service))
        assert "Traceback" not in server.log


async def assert_told_soon(service: Service) -> None:
    told = {path: await within(TOLD_SECONDS_MAX, service.get(path, auth=None)) for path in PROBES}
    assert_unavailable(told["/readyz"])
    assert [told[path].status_code for path in ("/healthz", "/metrics")] == [200, 200]
