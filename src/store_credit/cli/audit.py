"""`store-credit audit`: every line recomputed from its journal, with a progress bar for people who wait."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import typer
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Connection, func, select

from store_credit.cli.session import Session, counted, fail, plain, run
from store_credit.fields import time_text
from store_credit.ledger.audit import Finding, audit
from store_credit.ledger.digest import Digest, digest
from store_credit.ledger.tables import credit_line


def audit_books(*, with_digest: bool, as_of: datetime | None, metrics: Path | None) -> bool:
    """Print what is wrong, the verdict, and the digest if it is wanted. Whether the books are right.

    With `metrics`, a file for node_exporter's textfile collector tells it too.
    """

    async def work(session: Session) -> int:
        lines = await session.database.read(_count_lines)
        with _progress(lines) as on_line:
            count = await session.database.read(_audit, on_line, with_digest, as_of)
        if metrics is not None:
            _write_metrics(metrics, count)
        return count

    return run(work) == 0


def _write_metrics(path: Path, findings: int) -> None:
    """The verdict in Prometheus' format; the file appears whole or not at all.

    It takes the place of what is there: a device, or what a link leads to, would be gone.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        fail(f"The metrics can not be written to {str(path)!r}: it is no plain file.")
    registry = CollectorRegistry()
    found = Gauge("store_credit_audit_findings", "Findings of the last audit.", registry=registry)
    ended = Gauge(
        "store_credit_audit_timestamp_seconds",
        "When the last audit ended, by Unix time.",
        registry=registry,
    )
    found.set(findings)
    ended.set_to_current_time()
    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        fail(f"The metrics can not be written to {str(path)!r}: {error.strerror}.")


def _audit(
    connection: Connection, on_line: Callable[[], None], with_digest: bool, as_of: datetime | None
) -> int:
    """The digest is of the moment that was audited: both are read in one transaction."""
    count = 0
    for finding in audit(connection, on_line=on_line):
        count += 1
        _print_finding(finding)
    typer.echo("The books are right." if count == 0 else f"{counted(count, 'finding')}.")
    if with_digest:
        _print_digest(digest(connection, as_of), as_of)
    return count


def _print_finding(finding: Finding) -> None:
    where = finding.line_id if finding.seq is None else f"{finding.line_id}, entry {finding.seq}"
    typer.echo(f"{plain(where)}: {plain(finding.problem)}")


def _print_digest(found: Digest, as_of: datetime | None) -> None:
    moment = time_text(as_of or found.newest)
    of = f" as of {moment}" if moment else ""
    typer.echo(f"Digest of {found.lines} lines{of}: {found.sha256}")


@contextmanager
def _progress(lines: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, if that is a terminal; it yields what is to be called for each line."""
    columns = (TextColumn("Lines"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Console(stderr=True)
    with Progress(*columns, console=shown, disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("audit", total=lines)
        yield lambda: progress.advance(task)


def _count_lines(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(credit_line)).scalar_one()
