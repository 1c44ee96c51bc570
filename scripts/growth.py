"""Whether the service stays as fast with years of data: `growth`.

Two real servers, one on a database with years of data and one on a new one, are measured in turns on the
same machine: authorizations, removals and order events over random lines, over as many lines as the new
database has, and on the one line that has past holds by the thousand. A ratio of 1.25 is the goal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

import growth_fill
import growth_load
from bench import environment
from bench_app import serving
from bench_database import administer, fill, postgresql_database, run_sql
from bench_load import BenchFailed
from bench_requests import UPSTREAM_IDS, Access
from growth_load import OPERATIONS, Client, Seconds
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, text

GOAL = 1.25
WARM_UP_SECONDS = 2.0
TABLES = ("credit_line", "ledger_entry", "hold", "deduction", "source", "decision", "webhook_event")
TABLES += ("claim", "ledger_batch")
_DONE = (
    "SELECT (SELECT count(*) FROM hold WHERE session_id LIKE :tag AND state = 'released'),"
    " (SELECT count(*) FROM deduction WHERE session_id LIKE :tag)"
)
_SETTINGS = ("shared_buffers", "fsync", "synchronous_commit", "max_wal_size", "wal_compression")


@dataclass(slots=True)
class Target:
    """A server on one of the two databases, and which of its lines each case uses."""

    client: Client
    names: dict[str, list[str]]
    found: dict[str, list[Seconds]] = field(default_factory=dict)

    def measure(self, case: str, connections: int, seconds: float) -> None:
        took = self.client.run(self.names[case], connections, seconds)
        self.found.setdefault(case, []).append(took)


def main() -> None:
    options = _options()
    kinds = ["postgresql", "sqlite"] if options.database == "both" else [options.database]
    try:
        reports = {kind: _measure(kind, options) for kind in kinds}
    except BenchFailed as error:
        sys.exit(f"growth: {error}")
    if options.json:
        sys.stdout.write(json.dumps(reports, indent=2) + "\n")
    else:
        _show(reports)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="growth", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--lines", type=int, default=1_000_000, help="on PostgreSQL, of ten entries each")
    parser.add_argument("--sqlite-lines", type=int, default=100_000)
    parser.add_argument("--past-holds", type=int, default=100_000, help="of the busiest line")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is shown")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--database", choices=["postgresql", "sqlite", "both"], default="both")
    setting = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
    parser.add_argument(
        "--set", dest="settings", help="of PostgreSQL, such as shared_buffers=4GB", **setting
    )
    parser.add_argument("--filled", help="URL of a database to fill if it is empty, and to keep")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = parser.parse_args()
    if min(options.lines, options.sqlite_lines, options.past_holds) < 1_000:
        parser.error("--lines, --sqlite-lines and --past-holds must be 1000 or more")
    if options.filled is not None and options.database == "both":
        parser.error("--filled needs --database")
    return options


def _measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    lines = options.lines if kind == "postgresql" else options.sqlite_lines
    with contextlib.ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="store-credit-growth-")))
        empty_url = cleanup.enter_context(_database(kind, folder, "empty", options.settings))
        filled_url = options.filled or cleanup.enter_context(
            _database(kind, folder, "filled", options.settings)
        )
        _tell(f"{kind}: filling {lines} lines")
        run_sql(empty_url, fill)
        run_sql(filled_url, lambda connection: _fill(connection, lines, options.past_holds))
        if kind == "postgresql":
            # As autovacuum would have done long ago; it would be busy with all of it now.
            administer(filled_url, "VACUUM ANALYZE")
        settled = run_sql(filled_url, _settings)
        sizes = run_sql(filled_url, _sizes)
        empty = cleanup.enter_context(_serving(empty_url, folder, _names_of_empty()))
        filled = cleanup.enter_context(_serving(filled_url, folder, _names_of_filled(lines)))
        _run_rounds(empty, filled, options)
        for target, url in ((empty, empty_url), (filled, filled_url)):
            _verify(target, run_sql(url, _count_done))
    return {"settings": settled, "sizes": sizes, "rows": _rows(empty, filled)}


def _run_rounds(empty: Target, filled: Target, options: argparse.Namespace) -> None:
    for number in range(options.rounds + 1):
        seconds = options.seconds if number else min(WARM_UP_SECONDS, options.seconds)
        _tell(f"round {number} of {options.rounds}" if number else "warming up")
        for case in empty.names:
            connections = 1 if case == "busiest line" else options.connections
            # The one that goes first changes with the round.
            for target in (empty, filled)[:: 1 if number % 2 else -1]:
                target.measure(case, connections, seconds)


@contextlib.contextmanager
def _database(kind: str, folder: Path, name: str, settings: Sequence[str]) -> Iterator[str]:
    """A new database; each of PostgreSQL's on a server of its own, so that they share no cache."""
    place = folder / name
    place.mkdir(mode=0o700)
    if kind == "sqlite":
        yield f"sqlite:///{place / 'growth.db'}"
        return
    with postgresql_database(place, settings) as url:
        yield url


@contextlib.contextmanager
def _serving(url: str, folder: Path, names: dict[str, list[str]]) -> Iterator[Target]:
    access = Access()
    with serving("create_service", environment(url, access), folder) as server:
        yield Target(Client(server.port, access), names)


def _names_of_empty() -> dict[str, list[str]]:
    names = UPSTREAM_IDS
    return {"all lines": names[:-1], "as many lines": names[:-1], "busiest line": names[-1:]}


def _names_of_filled(lines: int) -> dict[str, list[str]]:
    every = [growth_fill.upstream_id(n) for n in range(1, lines + 1) if growth_fill.is_ordinary(n)]
    busiest = [growth_fill.upstream_id(growth_fill.BUSY_NUMBER)]
    some = random.Random(1).sample(every, min(len(UPSTREAM_IDS) - 1, len(every)))
    return {"all lines": every, "as many lines": some, "busiest line": busiest}


def _fill(connection: Connection, lines: int, past_holds: int) -> None:
    if connection.execute(text("SELECT count(*) FROM credit_line")).scalar_one() == 0:
        growth_fill.fill(connection, lines, past_holds, datetime.now(UTC))


def _settings(connection: Connection) -> dict[str, str]:
    if connection.dialect.name == "sqlite":
        return {"synchronous": "full", "journal_mode": "wal"}
    return {name: connection.execute(text(f"SHOW {name}")).scalar_one() for name in _SETTINGS}


def _sizes(connection: Connection) -> dict[str, dict[str, int]]:
    """Rows of each table, its bytes with indexes, and those of a row. SQLite tells only the whole."""
    if connection.dialect.name == "sqlite":
        pages = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        return {"all": _size(connection, "ledger_entry", pages)}
    connection.execute(text("SET LOCAL statement_timeout = 0"))  # Millions of rows are counted.
    relation = "SELECT pg_total_relation_size('{}')"
    return {table: _size(connection, table, relation.format(table)) for table in TABLES}


def _size(connection: Connection, table: str, statement: str) -> dict[str, int]:
    rows = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
    size = connection.execute(text(statement)).scalar_one()
    return {"rows": rows, "bytes": size, "bytes_per_row": round(size / rows)}


def _count_done(connection: Connection) -> tuple[int, int]:
    released, deducted = connection.execute(text(_DONE), {"tag": f"{growth_load.TAG}-%"}).one()
    return released, deducted


def _verify(target: Target, done: tuple[int, int]) -> None:
    """What was answered is in the database, once; a database that is kept may hold more."""
    if min(done) < target.client.cycles:
        raise BenchFailed(f"{target.client.cycles} checkouts were answered, but {done} are stored.")


def _rows(empty: Target, filled: Target) -> list[dict[str, Any]]:
    return [_row(case, name, empty, filled) for case in empty.names for name in OPERATIONS]


def _row(case: str, operation: str, empty: Target, filled: Target) -> dict[str, Any]:
    # The first round warmed the servers up.
    pairs = [
        (before[operation], after[operation])
        for before, after in zip(empty.found[case][1:], filled.found[case][1:], strict=True)
    ]
    return {
        "case": case,
        "operation": operation,
        "empty_p50_ms": round(median(median(before) for before, _ in pairs) * 1e3, 2),
        "filled_p50_ms": round(median(median(after) for _, after in pairs) * 1e3, 2),
        "ratio_p50": round(median(median(after) / median(before) for before, after in pairs), 2),
        "ratio_mean": round(median(mean(after) / mean(before) for before, after in pairs), 2),
    }


def _tell(what: str) -> None:
    sys.stderr.write(f"growth: {what}\n")


def _show(reports: dict[str, dict[str, Any]]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for kind, report in reports.items():
        table = Table(
            "lines", "operation", "empty p50 ms", "filled p50 ms", "ratio", "of means", title=kind
        )
        for row in report["rows"]:
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)
        console.print(", ".join(f"{name} = {value}" for name, value in report["settings"].items()))
        for name, size in report["sizes"].items():
            console.print(f"{name}: {size['rows']} rows, {size['bytes_per_row']} bytes each with indexes")
        slow = [row for row in report["rows"] if row["ratio_p50"] > GOAL]
        for row in slow:
            console.print(f"not met: {row['case']}, {row['operation']}: {row['ratio_p50']} > {GOAL}")
        if not slow:
            console.print(f"met: every ratio is {GOAL} or less")


if __name__ == "__main__":
    main()
