"""Ten times what the service can serve: some are answered in time, the others refused in turn."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from store_credit.crowd import REFUSAL_SECONDS_MAX
from store_credit.database import Database
from store_credit.ledger import tables
from tests.faults.open_loop import LINES
from tests.faults.sizes import LONG, OVERLOAD_SECONDS
from tests.server import Server, calling, check_books, running

QUIET = {"LOG_LEVEL": "warning", "CONNECTIONS": "8192"}
PEAK_CONNECTIONS = 64
CONNECTED_SECONDS = 1.5
"""As many connections as take this long to serve, all with a request under way."""
PEAK_SHARE_MIN = 0.8
PEAK_SHARE_PER_CPU_MIN = 0.6
"""Of what was served per second of the processor, where the machine may have much else to do: the server's
share of it varies, and some of it goes into refusals."""
GROWTH_MAX = 1.15
"""Of memory, after the first flood made the room that the others need."""
FILES = 8_192
P99_SECONDS_MAX = 1.0
TICKS = os.sysconf("SC_CLK_TCK")
_PROJECT = Path(__file__).parents[2]


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One flood at a time: two beside each other would flood the machine, and not their servers."""
    with (tmp_path_factory.getbasetemp().parent / "flood.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def many_files() -> Iterator[None]:
    """Connections are files, for the server and for the sender."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


class Measured:
    """What a sender was answered, and what the server spent on it."""

    def __init__(self, server: Server, rate: float, connections: int, seconds: float) -> None:
        arguments = [server.port, rate, seconds, connections]
        with subprocess.Popen(
            [sys.executable, "-m", "tests.faults.open_loop", *map(str, arguments)],
            cwd=_PROJECT,
            env=os.environ | {"PYTHONPATH": f"{_PROJECT}{os.pathsep}{_PROJECT / 'src'}"},
            stdout=subprocess.PIPE,
        ) as sender:
            assert sender.stdout is not None
            assert sender.stdout.readline() == b"connected\n"
            cpu, started = cpu_seconds(server.pid), time.monotonic()
            assert sender.stdout.readline() == b"ended\n"
            cpu = cpu_seconds(server.pid) - cpu
            self.share = min(1.0, cpu / (time.monotonic() - started))
            """How much of a processor the server got: the machine may have much else to do."""
            self.told: dict[str, Any] = json.loads(sender.stdout.read())
        self.memory = memory_bytes(server.pid)
        self.statuses: dict[str, int] = self.told["statuses"]
        self.rate = self.told["served"] / seconds
        self.per_cpu_second = self.told["served"] / cpu

    def seconds(self, quantile: float, status: int = 200) -> float:
        ordered = sorted(self.told[f"answered_{status}"])
        return ordered[int(len(ordered) * quantile)] if ordered else 0.0

    def __str__(self) -> str:
        return (
            f"{self.rate:.0f}/s, {self.per_cpu_second:.0f} per CPU second, share {self.share:.2f},"
            f" p50 {self.seconds(0.5):.3f} s, p99 {self.seconds(0.99):.3f} s,"
            f" {self.memory / 2**20:.0f} MiB, due {self.told['due']}, sent {self.told['sent']},"
            f" {self.statuses}, 503 after {self.seconds(0.5, 503):.3f} s"
        )


@pytest.mark.usefixtures("alone", "many_files")
async def test_ten_times_too_much(database_url: str, database: Database, tmp_path: Path) -> None:
    with running(database_url, tmp_path, **QUIET) as [server]:
        async with calling(server) as service:
            for upstream_id in LINES:
                await service.issued(100_000.00, upstreamId=upstream_id)
        warm_up = Measured(server, 0, PEAK_CONNECTIONS, OVERLOAD_SECONDS / 2)
        connections = min(FILES // 2, int(warm_up.rate * CONNECTED_SECONDS))
        peaks, floods = [], []
        for _ in range(3):
            # In turns, as a busy machine is not as fast in one minute as in the next.
            peaks.append(peak := Measured(server, 0, PEAK_CONNECTIONS, OVERLOAD_SECONDS / 2))
            floods.append(Measured(server, 10 * peak.rate, connections, OVERLOAD_SECONDS))
        peaks.append(Measured(server, 0, PEAK_CONNECTIONS, OVERLOAD_SECONDS / 2))
        _, second, last = floods
        for measured in (*peaks, *floods):
            print(measured)  # noqa: T201
            assert set(measured.statuses) <= {"200", "503"}
            assert measured.told["broken"] == measured.told["unanswered"] == 0
            assert measured.told["without_retry_after"] == 0
            # Of a busy machine the server has only a share, and is as much slower.
            share = 1.0 if LONG else measured.share
            assert measured.seconds(0.99) * share < P99_SECONDS_MAX
            assert measured.seconds(0.99, 503) * share < REFUSAL_SECONDS_MAX + P99_SECONDS_MAX
        for flood in floods:
            assert flood.statuses.get("503", 0) > connections / 2, "it was no overload"
        peak_per_cpu = median(peak.per_cpu_second for peak in peaks)
        assert median(flood.per_cpu_second for flood in floods) > PEAK_SHARE_PER_CPU_MIN * peak_per_cpu
        if LONG:
            peak_rate = median(peak.rate for peak in peaks)
            assert median(flood.rate for flood in floods) > PEAK_SHARE_MIN * peak_rate
        assert last.memory < second.memory * GROWTH_MAX
    approvals = sum(measured.statuses["200"] for measured in (warm_up, *peaks, *floods))
    assert await database.read(_count_holds) >= approvals
    check_books(database_url)


def _count_holds(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(tables.hold)).scalar_one()
