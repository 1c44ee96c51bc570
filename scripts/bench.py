"""How fast the service is, measured on real server processes with full durability.

In each round, one case after the other: a route without a database, then what Digital River and a
merchant ask, and on PostgreSQL pgbench with the same work. Ratios are taken within a round, those to no
database with what was measured last without one; what is shown is the median of the rounds. Every answer
is checked, and in the end the ledger is audited.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import bench_app
import bench_load
from bench_app import Server, serving
from bench_database import fill, pgbench, postgresql_database, run_sql
from bench_load import BenchFailed, Load, Measured
from bench_requests import HOT_ID, Access
from rich.console import Console
from rich.table import Table

CASES = {
    "plain": "no database",
    "authorize": "authorize",
    "again": "authorize again, other amount",
    "pair": "authorize and remove",
    "plain again": "no database, later",
    "order": "order event",
    "return": "return event",
    "look up": "look up a line",
    "hot": "authorize on one line",
    "control": "authorize in ORM form",
    "pgbench": "authorize by pgbench",
    "two": "authorize, two workers",
}
EARLY = ("plain", "authorize", "again", "pair")
"""Cases that are measured before the second time without a database; others are after it."""
USUAL = 32
"""Connections at which all cases are measured."""
RETURN_SECONDS = 1
WARM_UP_SECONDS = 1.0
WARM_UP_PER_SECOND = 10_000
MEMORY_MIB_MAX = 150
TABLE_WIDTH = 110

Found = dict[tuple[str, int], Measured]
"""What a round measured, by case and connections."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One case's figure over another's, at some connections."""

    case: str
    to: str
    wanted: float
    connections: int = USUAL
    p50: bool = False
    """Of the medians of the time, which shall be at most so much; else of the rates, at least."""


GOALS: dict[str, tuple[Goal, ...]] = {
    "postgresql": (
        Goal("authorize", "plain", 0.65),
        Goal("order", "plain again", 0.5),
        Goal("hot", "authorize", 0.6),
        Goal("authorize", "plain", 12, connections=1, p50=True),
        Goal("authorize", "control", 4),
    ),
    "sqlite": (Goal("authorize", "plain", 0.5), Goal("authorize", "control", 4)),
}


@dataclass(slots=True)
class Bench:
    """Servers under load, and what was measured."""

    access: Access
    connections: list[int]
    folder: Path
    service: Server
    control: Server
    two_workers: Server | None
    postgresql: str | None
    rounds: list[Found] = field(default_factory=list)

    def round(self, seconds: float) -> None:
        """Measure each case once. The first round warms the servers up and tells how much they take."""
        found: Found = {}
        for connections in self.connections:
            self._callouts(found, connections, seconds)
        self.rounds.append(found)

    def _callouts(self, found: Found, connections: int, seconds: float) -> None:
        tag = f"{len(self.rounds)}-{connections}-{secrets.token_hex(4)}"
        access, numbers = self.access, range(self._count(seconds))

        def measure(case: str, requests: list[bytes], for_seconds: float = seconds) -> int:
            """How many answers there certainly were; those that were sent last may have none."""
            measured = self._measure(case, requests, for_seconds, connections)
            found[case, connections] = measured
            return max(0, measured.answers - connections)

        measure("plain", access.authorizations(tag, numbers, path=bench_app.PLAIN_PATH))
        holds = measure("authorize", access.authorizations(tag, numbers))
        again = itertools.islice(itertools.cycle(range(max(1, holds))), len(numbers))
        measure("again", access.authorizations(tag, again, amount=12.4))
        measure("pair", access.authorizations_and_removals(tag, len(numbers), connections))
        measure("plain again", access.authorizations(tag, numbers, path=bench_app.PLAIN_PATH))
        # Each order comes back once: a second of returns must find more than a second of orders.
        longer = max(RETURN_SECONDS * 3, seconds)
        orders = measure("order", access.order_events(tag, self._count(longer), holds), longer)
        measure("return", access.return_events(tag, orders), RETURN_SECONDS)
        measure("look up", access.look_ups(len(numbers)))
        if connections != USUAL:
            return
        measure("hot", access.authorizations(f"hot-{tag}", numbers, upstreamId=HOT_ID))
        measure("control", access.authorizations(tag, numbers, path=bench_app.CONTROL_PATH))
        if self.two_workers is not None:
            measure("two", access.authorizations(f"two-{tag}", numbers))
        if self.postgresql is not None:
            rate, mean_ms = pgbench(self.postgresql, self.folder, seconds, connections)
            found["pgbench", connections] = Measured(int(rate * seconds), seconds, mean_ms, 0, 0, "")

    def _count(self, seconds: float) -> int:
        """Requests that are more than enough."""
        rates = [measured.per_second for found in self.rounds for measured in found.values()]
        return int(max(rates, default=WARM_UP_PER_SECOND) * seconds * 2) + 5_000

    def _measure(self, case: str, requests: list[bytes], seconds: float, connections: int) -> Measured:
        server = {"control": self.control, "two": self.two_workers}.get(case) or self.service
        expected = {"order": '"state":"applied"', "return": '"state":"applied"', "look up": '"cl_bench_'}
        load = Load(server.port, requests, expected.get(case, '"approval":true'), seconds, connections)
        measured = bench_load.run(load, self.folder)
        if measured.refused or not measured.answers:
            wrong = f"{measured.refused} of {measured.answers} answers"
            raise BenchFailed(f"{CASES[case]}: {wrong} were not as expected, the first: {measured.example}")
        return measured


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kinds = ["postgresql", "sqlite"] if options.database == "both" else [options.database]
    try:
        report = _report([_bench(kind, options) for kind in kinds], options)
    except BenchFailed as error:
        sys.exit(f"bench: {error}")
    if options.json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        _show(report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is shown")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, USUAL, 128])
    parser.add_argument("--database", choices=["postgresql", "sqlite", "both"], default="both")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = parser.parse_args()
    if not (0 < options.seconds <= 600 and 0 < options.rounds <= 100):
        parser.error("--seconds and --rounds must be more than zero, and reasonable")
    if not all(0 < connections <= 400 for connections in options.connections):
        parser.error("--connections may be 1 to 400 each")
    return options


def _bench(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    with contextlib.ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="store-credit-bench-")))
        url = f"sqlite:///{folder / 'bench.db'}"
        if kind == "postgresql":
            url = cleanup.enter_context(postgresql_database(folder))
        run_sql(url, fill)
        access = Access()
        variables = environment(url, access)
        postgresql = url if kind == "postgresql" else None
        with contextlib.ExitStack() as servers:
            service = servers.enter_context(serving("create_service", variables, folder))
            control = servers.enter_context(serving("create_control", variables, folder))
            two = (
                servers.enter_context(serving("create_service", variables, folder, 2))
                if postgresql
                else None
            )
            bench = Bench(access, options.connections, folder, service, control, two, postgresql)
            bench.round(min(WARM_UP_SECONDS, options.seconds))
            for number in range(options.rounds):
                sys.stderr.write(f"bench: {kind}, round {number + 1} of {options.rounds}\n")
                bench.round(options.seconds)
            memory = service.memory_mib()
        _audit(variables)
    rounds = bench.rounds[1:]
    rows = [
        _row(kind, *key, rounds)
        for key in sorted(rounds[0], key=lambda key: (key[1], [*CASES].index(key[0])))
    ]
    goals = [_goal(kind, goal, rounds) for goal in GOALS[kind] if ("plain", goal.connections) in rounds[0]]
    if memory is not None:
        told = f"{kind}: memory of the service, at most {MEMORY_MIB_MAX} MiB"
        goals.append({"goal": told, "measured": memory, "met": memory <= MEMORY_MIB_MAX})
    return {"rows": rows, "goals": goals}


def environment(database_url: str, access: Access) -> dict[str, str]:
    """The settings of a server: those of the bench, and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STORE_CREDIT_")}
    return kept | {
        "STORE_CREDIT_DATABASE_URL": database_url,
        "STORE_CREDIT_CALLOUT_USERNAME": access.username,
        "STORE_CREDIT_CALLOUT_PASSWORD": access.password,
        "STORE_CREDIT_MERCHANT_USERNAME": access.merchant,
        "STORE_CREDIT_MERCHANT_PASSWORD": access.password,
        "STORE_CREDIT_WEBHOOK_SECRETS": access.webhook_secret,
    }


def _audit(variables: dict[str, str]) -> None:
    """Whatever was answered, the ledger must be sound."""
    command = [sys.executable, "-m", "store_credit", "audit"]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise BenchFailed(f"The audit found something: {(ended.stdout + ended.stderr)[-2_000:]}")


def _report(found: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    sender = bench_load.wrk() or "a client of our own"
    return {
        "machine": _machine(),
        "load": f"median of {options.rounds} rounds, mostly of {options.seconds:g} s, sent by {sender}",
        "rows": [row for part in found for row in part["rows"]],
        "goals": [goal for part in found for goal in part["goals"]],
    }


def _row(kind: str, case: str, connections: int, rounds: list[Found]) -> dict[str, Any]:
    def middle(figure: Callable[[Measured], float]) -> float:
        return median(figure(found[case, connections]) for found in rounds)

    plain = "plain" if case in EARLY else "plain again"
    return {
        "database": kind,
        "connections": connections,
        "case": CASES[case],
        "requests_per_second": round(middle(lambda measured: measured.per_second)),
        "p50_ms": round(middle(lambda measured: measured.p50_ms), 2),
        "p99_ms": round(middle(lambda measured: measured.p99_ms), 2),
        "ratio_to_plain": round(_ratio(rounds, (case, connections), (plain, connections)), 2),
    }


def _goal(kind: str, goal: Goal, rounds: list[Found]) -> dict[str, Any]:
    key, to = (goal.case, goal.connections), (goal.to, goal.connections)
    ratio = _ratio(rounds, key, to, p50=goal.p50)
    what, at_most = ("p50 of ", "<=") if goal.p50 else ("", ">=")
    at = f"at {goal.connections}" if goal.connections != USUAL else ""
    told = f"{kind}: {what}{CASES[goal.case]} {at} {at_most} {goal.wanted} x {CASES[goal.to]}"
    met = ratio <= goal.wanted if goal.p50 else ratio >= goal.wanted
    return {"goal": " ".join(told.split()), "measured": round(ratio, 2), "met": met}


def _ratio(rounds: list[Found], key: tuple[str, int], to: tuple[str, int], *, p50: bool = False) -> float:
    if p50:
        return median(found[key].p50_ms / found[to].p50_ms for found in rounds)
    return median(found[key].per_second / found[to].per_second for found in rounds)


def _machine() -> str:
    names = ("fastapi", "uvicorn", "sqlalchemy", "asyncpg", "pydantic")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    own = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    return f"{os.cpu_count()} cores, {platform.machine()}, {own}, {versions}"


def _show(report: dict[str, Any]) -> None:
    table = Table("database", "connections", "case")
    for heading in ("requests/s", "p50 ms", "p99 ms", "ratio to no database"):
        table.add_column(heading, justify="right")
    for row in report["rows"]:
        table.add_row(*(str(value) for value in row.values()))
    console = Console(soft_wrap=True, highlight=False, width=TABLE_WIDTH)
    console.print(table)
    console.print(report["machine"], report["load"], sep="\n", markup=False)
    console.print("What follows `no database, later` is compared with that.", markup=False)
    console.print("pgbench tells the mean, not p50 and p99.", markup=False)
    for goal in report["goals"]:
        console.print("met    " if goal["met"] else "not met", goal["goal"], "is", goal["measured"])


if __name__ == "__main__":
    main()
