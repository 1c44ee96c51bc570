"""`store-credit decisions`: the answers given to Digital River, and why."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from store_credit.callouts.queries import DecisionFilter, decisions
from store_credit.cli.session import Session, fail, moment, run, show
from store_credit.cli.statement import answers
from store_credit.ledger import queries
from store_credit.ledger.pages import Page
from store_credit.merchant import rendering

LIST_LIMIT_MAX = 1_000


def list_decisions(
    line: Annotated[
        str | None, typer.Option(help="Only of this line: its id, or the upstreamId that it has.")
    ] = None,
    upstream_id: Annotated[
        str | None, typer.Option(help="Only those that asked for this id, also if no line has it.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Only of this checkout session.")] = None,
    since: Annotated[str | None, typer.Option(help="From then on, such as 2026-11-20T00:00:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Before then.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=LIST_LIMIT_MAX, help="At most this many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """List the answers given to Digital River with their reasons, newest first."""
    start, end = moment("--since", since), moment("--until", until)
    if start is not None and end is not None and end < start:
        fail("The period ends before it begins.")

    async def work(opened: Session) -> tuple[list[dict[str, Any]], bool] | None:
        def read(connection: Connection) -> tuple[list[dict[str, Any]], bool] | None:
            line_id = queries.line_id_of(connection, line) if line is not None else None
            if line is not None and line_id is None:
                return None
            wanted = DecisionFilter(line_id, upstream_id, session, start, end)
            rows, more = decisions(connection, wanted, Page(limit))
            return [dict(row) for row in rows], more

        return await opened.database.read(read)

    result = run(work)
    if result is None:
        fail(f"There is no credit line with the id or upstreamId {line!r}.")
    found, more = result
    if as_json:
        typer.echo(json.dumps(rendering.listed(found, more, rendering.decision)))
        return
    show(answers(found, of_one_line=False))
    if more and limit < LIST_LIMIT_MAX:
        typer.echo(f"There are more; --limit shows up to {LIST_LIMIT_MAX}.")
    elif more:
        typer.echo("There are more; GET /decisions has them in pages.")
