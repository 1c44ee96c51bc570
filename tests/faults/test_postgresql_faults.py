"""PostgreSQL goes away under load: 503 in bounded time, nothing twice, and all is well by itself after."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.postgresql import Postgresql
from tests.faults.recorder import Recorder
from tests.faults.sizes import CUTS, PAUSE_SECONDS, RESTARTS, seeded
from tests.server import running

QUIET = {"LOG_LEVEL": "warning"}
SECONDS_MAX = 8.0
"""The service gives up after 2.5 s; the rest is for a busy machine."""

Fault = Callable[[Postgresql, str], None]


def restart(postgresql: Postgresql, _url: str) -> None:
    postgresql.stop()
    postgresql.start()


def crash(postgresql: Postgresql, _url: str) -> None:
    postgresql.crash()
    postgresql.start()


def pause(postgresql: Postgresql, _url: str) -> None:
    with postgresql.paused():
        time.sleep(PAUSE_SECONDS)


def cut_connections(postgresql: Postgresql, url: str) -> None:
    assert postgresql.cut_connections(url) > 0


@pytest.mark.parametrize(
    ("fault", "times"),
    [(restart, RESTARTS), (crash, RESTARTS), (pause, 1), (cut_connections, CUTS)],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_postgresql_fails_under_load(
    fault: Fault, times: int, own_postgresql: Postgresql, own_url: str, tmp_path: Path
) -> None:
    with running(own_url, tmp_path, processes=2, **QUIET) as servers:
        recorder = Recorder(servers, seeded())
        with recorder.shopping():
            for _ in range(times):
                recorder.wait_for_answers()
                fault(own_postgresql, own_url)
            recorder.wait_for_answers()
        print(f"slowest: {recorder.slowest():.2f} s; 503: {len(recorder.attempts(503))}")  # noqa: T201
        assert not recorder.attempts(None), "the service itself never goes away"
        assert recorder.slowest() < SECONDS_MAX
        recorder.check(own_url)
        recorder.deliver_again()
        recorder.check(own_url)
        assert all(server.is_running for server in servers)
