"""SQLite's disk is full, or takes nothing at all: 503, nothing is broken, and service resumes by itself."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from tests.faults.recorder import Recorder
from tests.faults.sizes import RESTARTS, seeded
from tests.server import Server, calling, check_books, order_event, poll, running, source

QUIET = {"LOG_LEVEL": "warning"}
SECONDS_MAX = 8.0
REFUSALS = 20
DISK_BYTES = 64 * 1024**2
"""Room for SQLite's log, some 34 MB, and for the database."""


def check_through(recorder: Recorder, database_url: str) -> None:
    recorder.check(database_url)
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]
    engine.dispose()


def shop_while(recorder: Recorder, fault: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """Each time, shoppers are refused until it is over, and then answered again."""
    with recorder.shopping():
        for _ in range(RESTARTS):
            recorder.wait_for_answers()
            wanted = len(recorder.attempts(503)) + REFUSALS
            with fault():
                poll(lambda wanted=wanted: len(recorder.attempts(503)) >= wanted)
        recorder.wait_for_answers()
    assert not recorder.attempts(None)
    assert recorder.slowest() < SECONDS_MAX


@contextlib.contextmanager
def file_size_limited(server: Server, limit: int) -> Iterator[None]:
    """No file of the process can be written beyond this many bytes; what it tries fails."""
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard, hard))


def test_files_that_can_not_grow(sqlite_url: str, tmp_path: Path) -> None:
    files = [Path(f"{make_url(sqlite_url).database}{suffix}") for suffix in ("", "-wal")]
    with running(sqlite_url, tmp_path, **QUIET) as [server]:
        recorder = Recorder([server], seeded())
        shop_while(recorder, lambda: file_size_limited(server, max(f.stat().st_size for f in files)))
        check_through(recorder, sqlite_url)


def test_files_that_can_not_be_written_at_all(sqlite_url: str, tmp_path: Path) -> None:
    """Nor can the log: it is a file too."""
    with running(sqlite_url, tmp_path, **QUIET) as [server]:
        recorder = Recorder([server], seeded())
        shop_while(recorder, lambda: file_size_limited(server, 0))
        check_through(recorder, sqlite_url)


class OnSmallDisk(Server):
    """A server with a small file system of its own, which nobody else sees."""

    def _command_line(self, arguments: Sequence[str]) -> list[str]:
        mount = f'mount -t tmpfs -o size={DISK_BYTES} none "$0" && exec "$@"'
        return [*ALONE, "sh", "-c", mount, str(self.disk), *super()._command_line(arguments)]

    @property
    def disk(self) -> Path:
        return self.log_path.parent / "disk"

    @property
    def disk_from_outside(self) -> Path:
        return Path(f"/proc/{self.pid}/root") / self.disk.relative_to("/")


ALONE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]


def can_mount() -> bool:
    with contextlib.suppress(FileNotFoundError):
        tried = [*ALONE, "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(tried, capture_output=True, check=False).returncode == 0
    return False


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """There is no byte left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65_536, 4_096):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size) == size:
                    continue
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            file.write(b"x")
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
def test_a_disk_without_space(tmp_path: Path) -> None:
    server = OnSmallDisk(f"sqlite:///{tmp_path / 'disk' / 'store-credit.db'}", tmp_path, **QUIET)
    server.disk.mkdir()
    try:
        server.start()
        recorder = Recorder([server], seeded())
        shop_while(recorder, lambda: filled(server.disk_from_outside))
        # What others find there; SQLite would not follow the path to it.
        server.signal(signal.SIGSTOP)
        found = tmp_path / "found"
        shutil.copytree(server.disk_from_outside, found)
        check_through(recorder, f"sqlite:///{found / 'store-credit.db'}")
    finally:
        server.kill()


async def test_a_database_that_is_read_only(sqlite_url: str, tmp_path: Path) -> None:
    """It can be read; nothing is approved, acknowledged or taken in until it can be written again."""
    read_only = f"sqlite:///file:{make_url(sqlite_url).database}?mode=ro&uri=true"
    with running(sqlite_url, tmp_path, **QUIET) as [server]:
        async with calling(server) as service:
            line = await service.issued(100.00)
    event = order_event("session-1", source(line["upstreamId"], 11.4))
    with running(read_only, tmp_path, **QUIET) as [server]:
        async with calling(server) as service:
            for asked in (
                service.authorize(line["upstreamId"], "session-1", 11.4),
                service.release(line["upstreamId"]),
                service.deliver(event),
                service.issue(5.00),
            ):
                refused = await asked
                assert refused.status_code == 503, refused.text
                assert int(refused.headers["Retry-After"]) > 0
            assert (await service.books(line["id"])).line == line
        assert "Traceback" not in server.log
    with running(sqlite_url, tmp_path, **QUIET) as [server]:
        async with calling(server) as service:
            assert (await service.deliver(event)).json()["state"] == "applied"
            assert (await service.books(line["id"])).line["balance"] == 88.6
    check_books(sqlite_url)
