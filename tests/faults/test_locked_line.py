"""A stranger holds a credit line's row for long: callouts on other lines do not wait for that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from tests.faults.sizes import LOCKED_SECONDS
from tests.server import Json, Service, calling, check_books, running, until

QUIET = {"LOG_LEVEL": "warning"}
CALLERS = 8
STUCK_CALLERS = 30
SECONDS_MAX = 8.0
"""Far more than it takes, as the machine may be busy; a call that waits for the lock gives up at 2.5 s."""

Answers = list[tuple[int, float]]
"""Statuses, and the seconds that they took."""


@asynccontextmanager
async def locked(database_url: str, line: Json) -> AsyncIterator[None]:
    stranger = await asyncpg.connect(database_url)
    try:
        async with stranger.transaction():
            await stranger.execute("SELECT id FROM credit_line WHERE id = $1 FOR UPDATE", line["id"])
            yield
    finally:
        await stranger.close()


async def call_until(ended: Callable[[], bool], service: Service, line: Json, name: str) -> Answers:
    answers: Answers = []
    while not ended():
        asked = time.monotonic()
        response = await service.authorize(line["upstreamId"], f"session-{name}-{len(answers)}", 0.01)
        answers.append((response.status_code, time.monotonic() - asked))
        if response.status_code == 503:
            assert int(response.headers["Retry-After"]) > 0
    return answers


async def test_one_locked_line_stops_no_other(postgresql_url: str, tmp_path: Path) -> None:
    with running(postgresql_url, tmp_path, **QUIET) as [server]:
        async with calling(server) as service:
            stuck, *others = [await service.issued(100_000.00) for _ in range(CALLERS + 1)]
            at_last = time.monotonic() + LOCKED_SECONDS

            def ended() -> bool:
                return time.monotonic() > at_last

            called = [stuck] * STUCK_CALLERS + others
            async with locked(postgresql_url, stuck):
                found = await asyncio.gather(
                    *(call_until(ended, service, line, str(n)) for n, line in enumerate(called))
                )
            waiting = [answer for caller in found[:STUCK_CALLERS] for answer in caller]
            answers = [answer for caller in found[STUCK_CALLERS:] for answer in caller]
            slowest = max(seconds for _, seconds in answers)
            print(f"{len(answers)} answers, the slowest after {slowest:.2f} s")  # noqa: T201
            assert {status for status, _ in waiting} == {503}
            assert {status for status, _ in answers} == {200}
            assert slowest < SECONDS_MAX

            async def approved() -> bool:
                answer = await service.authorize(stuck["upstreamId"], "session-after", 1.00)
                return answer.status_code == 200 and bool(answer.json()["approval"])

            await until(approved)
        assert "Traceback" not in server.log
    check_books(postgresql_url)
