"""The clock jumps: no hold revives, none expires twice, and no journal runs backwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from store_credit.database import Database
from tests.faults.jumping_clock import ServerOnJumpingClock
from tests.faults.recorder import Recorder
from tests.faults.sizes import JUMPS, seeded
from tests.server import Service, calling, check_books, until

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SETTINGS = {
    "LOG_LEVEL": "warning",
    "HOLD_TTL": "30m",
    "SWEEP_INTERVAL": "100ms",
    # The events are signed by a clock that does not jump.
    "WEBHOOK_TOLERANCE": "365d",
}


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[ServerOnJumpingClock]:
    server = ServerOnJumpingClock(database_url, tmp_path, **SETTINGS)
    try:
        yield server.start()
        assert "Traceback" not in server.log
    finally:
        server.kill()
    check_books(database_url)


@pytest.fixture
async def service(server: ServerOnJumpingClock) -> AsyncIterator[Service]:
    async with calling(server) as service:
        yield service


async def test_what_expired_stays_expired_when_the_clock_goes_back(
    server: ServerOnJumpingClock, service: Service
) -> None:
    until_when = (datetime.now(UTC) + 2 * DAY).isoformat()
    line = await service.issued(100.00, expiresTime=until_when)
    upstream_id, path = line["upstreamId"], f"/credit-lines/{line['id']}"

    async def told(kind: str) -> list[str]:
        return [e["holdId"] for e in await service.listed(f"{path}/entries") if e["kind"] == kind]

    assert (await service.authorize(upstream_id, "session-1", 60.00)).json()["approval"]
    server.jump(-HOUR)
    assert not (await service.authorize(upstream_id, "session-2", 60.00)).json()["approval"]
    server.jump(DAY)
    await until(lambda: told("hold_expired"))
    server.jump(-HOUR)
    assert (await service.authorize(upstream_id, "session-2", 100.00)).json()["approval"]
    assert (await service.release(upstream_id)).status_code == 204
    server.jump(3 * DAY)
    await until(lambda: told("expired"))
    server.jump(timedelta())
    assert not (await service.authorize(upstream_id, "session-3", 1.00)).json()["approval"]
    books = await service.books(line["id"])
    books.check()
    kinds = [entry["kind"] for entry in books.entries]
    assert kinds == ["issued", "held", "hold_expired", "held", "released", "expired"]


async def test_jumps_under_load(
    server: ServerOnJumpingClock, database: Database, database_url: str
) -> None:
    recorder = Recorder([server], seeded())
    with recorder.shopping():
        for ahead in (DAY, DAY - HOUR, -HOUR, 2 * DAY) * JUMPS:
            recorder.wait_for_answers()
            server.jump(ahead)
        recorder.wait_for_answers()
    recorder.check(database_url)
    assert await database.read(endings) == {1}
    for times in (await database.read(times_by_line)).values():
        assert all(earlier <= later for earlier, later in pairwise(times))


def endings(connection: Connection) -> set[int]:
    """How often holds ended that did, at most; nothing follows on an end."""
    sql = (
        "SELECT count(*) FROM ledger_entry ended"
        " JOIN ledger_entry later ON later.hold_id = ended.hold_id AND later.seq >= ended.seq"
        " WHERE ended.kind = 'hold_expired' GROUP BY ended.hold_id"
    )
    return set(connection.execute(text(sql)).scalars())


def times_by_line(connection: Connection) -> dict[str, list[datetime]]:
    times: dict[str, list[datetime]] = {}
    for line_id, at in connection.execute(
        text("SELECT line_id, created_at FROM ledger_entry ORDER BY line_id, seq")
    ):
        times.setdefault(line_id, []).append(at)
    return times
