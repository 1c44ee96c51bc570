"""`store-credit report ...`, for finance: tables for people, JSON and CSV for machines.

Currencies are never added together. Times are in UTC.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table
from sqlalchemy import Connection

from store_credit import money
from store_credit.cli.session import Session, fail, moment, not_in_future, run, show
from store_credit.fields import time_text
from store_credit.ledger import reports

app = typer.Typer(help="What finance asks, from the journal alone.", no_args_is_help=True)

T = TypeVar("T")
INSTANT = timedelta(microseconds=1)
"""The resolution of the journal: what is before `moment + INSTANT` is not after `moment`."""

AsOf = Annotated[str | None, typer.Option(help="As of then, such as 2026-11-20T00:00:00Z; now by default.")]
OneCurrency = Annotated[str | None, typer.Option("--currency", help="Only this one, such as USD.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="For spreadsheets.")]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a report: its heading for people, its name for machines, and the field it shows."""

    heading: str
    name: str
    field: str
    is_amount: bool = True


_CURRENCY = Column("Currency", "currency", "currency", False)
_LIABILITY = (
    _CURRENCY,
    Column("Issued", "issued", "issued"),
    Column("Adjusted", "adjusted", "adjusted"),
    Column("Deducted", "deducted", "deducted"),
    Column("Returned", "returned", "returned"),
    Column("Expired", "expired", "expired"),
    Column("Voided", "voided", "voided"),
    Column("Reversed", "writeOffsReversed", "write_offs_reversed"),
    Column("Held", "held", "held"),
    Column("Available", "available", "available"),
    Column("Outstanding", "outstanding", "outstanding"),
)
_BREAKAGE = (
    _CURRENCY,
    Column("Month", "month", "month", False),
    Column("Expired", "expired", "expired"),
    Column("Voided", "voided", "voided"),
    Column("Reversed", "writeOffsReversed", "write_offs_reversed"),
    Column("Breakage", "breakage", "breakage"),
)
_ACTIVITY = (
    _CURRENCY,
    Column("Kind", "kind", "kind", False),
    Column("Entries", "count", "count", False),
    Column("Balance", "amount", "amount"),
    Column("Held", "held", "held"),
)


@app.command()
def liability(
    as_of: AsOf = None, currency: OneCurrency = None, as_json: AsJson = False, as_csv: AsCsv = False
) -> None:
    """What is owed to customers, exact at any past instant."""
    wanted = _checked(currency)

    def read(connection: Connection, at: datetime) -> list[reports.Liability]:
        return [row for row in reports.liability(connection, at) if wanted in (None, row.currency)]

    at, rows = _read(moment("--as-of", as_of), read)
    _tell(_LIABILITY, rows, {"asOf": time_text(at)}, as_json, as_csv)


@app.command()
def breakage(
    as_of: AsOf = None, currency: OneCurrency = None, as_json: AsJson = False, as_csv: AsCsv = False
) -> None:
    """What was written off by currency and month: expired and voided, less what was reversed."""
    wanted = _checked(currency)
    at, rows = _read(
        moment("--as-of", as_of), lambda connection, at: reports.breakage(connection, at, wanted)
    )
    _tell(_BREAKAGE, rows, {"asOf": time_text(at)}, as_json, as_csv)


@app.command()
def activity(
    from_: Annotated[str | None, typer.Option("--from", help="From then on.")] = None,
    to: Annotated[str | None, typer.Option(help="Before then.")] = None,
    as_of: AsOf = None,
    currency: OneCurrency = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """What happened in a period: entries of each kind, how many, and their signed sums."""
    if to is not None and as_of is not None:
        fail("Give --to or --as-of: the one ends before its time, the other with it.")
    wanted, start, before = _checked(currency), moment("--from", from_), moment("--to", to)

    def read(connection: Connection, at: datetime) -> list[reports.Activity]:
        return reports.activity(connection, start, before or at + INSTANT, wanted)

    at, rows = _read(moment("--as-of", as_of), read)
    period = {"from": time_text(start), "to": time_text(before or at + INSTANT)}
    _tell(_ACTIVITY, rows, period, as_json, as_csv)


def _read(
    as_of: datetime | None, read: Callable[[Connection, datetime], list[T]]
) -> tuple[datetime, list[T]]:
    """The rows, and as of when they are: now unless it is given."""

    async def work(session: Session) -> tuple[datetime, list[T]]:
        await not_in_future(session, "--as-of", as_of)
        at = as_of or await session.ledger.now()
        return at, await session.database.read(read, at)

    return run(work)


def _checked(currency: str | None) -> str | None:
    code = currency.upper() if currency is not None else None
    if code is not None and code not in money.EXPONENTS:
        fail(f"{currency!r} is not an ISO 4217 currency code.")
    return code


def _tell(
    columns: Sequence[Column], rows: Sequence[Any], of: dict[str, Any], as_json: bool, as_csv: bool
) -> None:
    if as_json and as_csv:
        fail("Give --json or --csv, not both.")
    if as_json:
        typer.echo(json.dumps({**of, "data": [_numbers(columns, row) for row in rows]}))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([column.name for column in columns])
        writer.writerows([_text(column, row, "") for column in columns] for row in rows)
    else:
        show(_table(columns, rows), wide=True)


def _numbers(columns: Sequence[Column], row: Any) -> dict[str, Any]:
    values = {column: getattr(row, column.field) for column in columns}
    return {
        column.name: money.to_number(value, row.currency) if column.is_amount else value
        for column, value in values.items()
    }


def _text(column: Column, row: Any, thousands: str) -> str:
    value = getattr(row, column.field)
    return f"{money.to_decimal(value, row.currency):{thousands}f}" if column.is_amount else str(value)


def _table(columns: Sequence[Column], rows: Sequence[Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        figures = column.is_amount or column.name == "count"
        table.add_column(column.heading, justify="right" if figures else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_text(column, row, ",") for column in columns))
    return table
