"""The server is killed under load: every answer that was given stays true, and nothing is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.recorder import Recorder
from tests.faults.sizes import KILLS, seeded
from tests.server import running

QUIET = {"LOG_LEVEL": "warning"}


def test_a_server_that_is_killed_again_and_again(database_url: str, tmp_path: Path) -> None:
    with running(database_url, tmp_path, **QUIET) as [server]:
        recorder = Recorder([server], seeded())
        with recorder.shopping():
            for _ in range(KILLS):
                recorder.wait_for_answers()
                server.kill()
                server.start()
        assert recorder.attempts(None), "no request was under way when the server was killed"
        recorder.check(database_url)
        recorder.deliver_again()
        recorder.check(database_url)


@pytest.mark.parametrize("processes", [2])
def test_a_process_that_survives_another_goes_on(
    postgresql_url: str, tmp_path: Path, processes: int
) -> None:
    """Two processes share the load, and one of them is killed in the middle of it."""
    with running(postgresql_url, tmp_path, processes=processes, **QUIET) as servers:
        recorder = Recorder(servers, seeded())
        with recorder.shopping():
            recorder.wait_for_answers()
            servers[1].kill()
            recorder.servers = servers[:1]
            recorder.wait_for_answers()
        assert servers[0].is_running
        recorder.check(postgresql_url)
