"""`store-credit lines statement`: a line's worth before a period, what moved it, its worth after."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table
from sqlalchemy import Connection

from store_credit import money
from store_credit.cli.session import Session, console, fail, moment, not_in_future, plain, run
from store_credit.cli.statement import has_moved, when
from store_credit.fields import time_text
from store_credit.ledger import queries, reports
from store_credit.ledger.queries import LineFigures
from store_credit.ledger.reports import Statement
from store_credit.merchant import rendering

app = typer.Typer()


@app.command("statement")
def show_statement(
    name: Annotated[str, typer.Argument(help="Its id, or the upstreamId that Digital River knows.")],
    from_: Annotated[
        str | None, typer.Option("--from", help="From then on, such as 2026-11-01T00:00:00Z.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="Before then; now by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Print a line's statement for a period: opening balance, movements, closing balance."""
    start, end = moment("--from", from_), moment("--to", to)
    if start is not None and end is not None and end < start:
        fail("The period ends before it begins.")

    async def work(session: Session) -> tuple[LineFigures, Statement, datetime]:
        await not_in_future(session, "--from", start)

        def read(connection: Connection) -> tuple[LineFigures, Statement, datetime]:
            now = session.ledger.now_within(connection)
            line = _line(connection, name, now)
            return line, reports.statement(connection, line.row["id"], start, end), end or now

        return await session.database.read(read)

    try:
        line, found, until = run(work)
    except reports.TooManyMovements:
        fail(f"The period has more than {reports.MOVEMENTS_MAX:,} movements; choose a shorter one.")
    if as_json:
        typer.echo(json.dumps(_json(line, found, start, until)))
        return
    console().print(_table(line, found, start, until))


def _line(connection: Connection, name: str, now: datetime) -> LineFigures:
    line_id = queries.line_id_of(connection, name)
    line = queries.line(connection, line_id, now) if line_id is not None else None
    if line is None:
        fail(f"There is no credit line with the id or upstreamId {name!r}.")
    return line


def _json(line: LineFigures, found: Statement, start: datetime | None, until: datetime) -> dict[str, Any]:
    currency = line.row["currency"]
    return {
        "creditLineId": line.row["id"],
        "upstreamId": line.row["upstream_id"],
        "currency": currency,
        "from": time_text(start),
        "to": time_text(until),
        "opening": money.to_number(found.opening, currency),
        "movements": [
            rendering.entry(row, currency) | {"orderId": row["order_id"]} for row in found.movements
        ],
        "closing": money.to_number(found.closing, currency),
    }


def _table(line: LineFigures, found: Statement, start: datetime | None, until: datetime) -> Table:
    currency = line.row["currency"]

    def shown(minor: int, sign: str = "") -> str:
        return f"{money.to_decimal(minor, currency):{sign},}"

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("When (UTC)", no_wrap=True)
    table.add_column("What")
    table.add_column("Amount", justify="right", no_wrap=True)
    table.add_column(f"Balance ({currency})", justify="right", no_wrap=True)
    table.add_column("Why", overflow="fold")
    table.add_row(when(start), "Opening balance", "", shown(found.opening), "")
    for row in found.movements:
        kind = row["kind"].replace("_", " ")
        what = f"Moved away: {kind}" if has_moved(row["kind"], row["amount"]) else kind.capitalize()
        order = f"order {row['order_id']}" if row["order_id"] else None
        why = plain("; ".join(part for part in (order, row["reason"]) if part))
        table.add_row(
            when(row["created_at"]), what, shown(row["amount"], "+"), shown(row["balance_after"]), why
        )
    table.add_row(when(until), "Closing balance", "", shown(found.closing), "")
    return table
