"""`store-credit lines`: issue, list and show credit lines."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.table import Table
from sqlalchemy import Connection

from store_credit import ids, money
from store_credit.cli.session import Session, actor, console, fail, plain, run, show
from store_credit.cli.statement import Story, print_statement, tell, when
from store_credit.fields import time_text
from store_credit.ledger import queries
from store_credit.ledger.commands import Cause, Issue
from store_credit.ledger.pages import Page
from store_credit.ledger.queries import LineFigures, LineFilter
from store_credit.merchant import rendering, schemas
from store_credit.responses import validation_problems

__all__ = ["app", "when"]

app = typer.Typer(help="Credit lines.", no_args_is_help=True)

LIST_LIMIT_MAX = 1_000
ENTRIES_MAX = 100_000
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


@app.command("issue")
def issue_line(
    customer: Annotated[str, typer.Option(help="The customer's id.")],
    amount: Annotated[str, typer.Option(help="The opening balance, such as 100.00.")],
    currency: Annotated[str, typer.Option(help="ISO 4217 code, such as USD.")],
    upstream_id: Annotated[
        str | None, typer.Option(help="The id Digital River will know it by; minted if not given.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the shopper sees.")] = None,
    expires: Annotated[str | None, typer.Option(help="When, such as 2027-12-31T00:00:00Z.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the journal.")] = None,
    as_json: AsJson = False,
) -> None:
    """Issue a credit line."""
    command = _issue_command(
        customerId=customer,
        amount=_number(amount),
        currency=currency.upper(),
        upstreamId=upstream_id,
        name=name,
        expiresTime=expires,
        reason=reason,
    )

    async def work(session: Session) -> LineFigures:
        await session.ledger.execute(command)
        found = await session.database.read(queries.line, command.line_id, await session.ledger.now())
        assert found is not None
        return found

    issued = run(work, make=True)
    if as_json:
        typer.echo(json.dumps(rendering.line(issued)))
        return
    worth = money.to_text(issued.balance, issued.row["currency"])
    known_as = plain(command.upstream_id)
    typer.echo(f"Issued {command.line_id} over {worth}; Digital River knows it as {known_as}.")


@app.command("list")
def list_lines(
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    status: Annotated[
        Literal["active", "suspended", "closed", "expired"] | None, typer.Option(help="Only these.")
    ] = None,
    currency: Annotated[str | None, typer.Option(help="Only in this currency.")] = None,
    flagged: Annotated[bool, typer.Option("--flagged", help="Only those that need a look.")] = False,
    order: Annotated[str | None, typer.Option(help="Only those that this order was paid from.")] = None,
    session: Annotated[
        str | None, typer.Option(help="Only those with a hold or an order of this checkout session.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=LIST_LIMIT_MAX, help="At most this many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List credit lines, newest first."""
    wanted = LineFilter(
        customer_id=customer,
        status=status,
        currency=currency.upper() if currency else None,
        flagged=flagged or None,
        order_id=order,
        session_id=session,
    )

    async def work(opened: Session) -> tuple[list[LineFigures], bool]:
        now = await opened.ledger.now()
        return await opened.database.read(queries.lines, wanted, Page(limit), now)

    found, more = run(work)
    if as_json:
        typer.echo(json.dumps(rendering.listed(found, more, rendering.line)))
        return
    show(_line_table(found))
    if more:
        typer.echo(f"There are more; --limit shows up to {LIST_LIMIT_MAX}.")


@app.command("show")
def show_line(
    name: Annotated[str, typer.Argument(help="Its id, or the upstreamId that Digital River knows.")],
    entries: Annotated[
        int, typer.Option(min=1, max=ENTRIES_MAX, help="At most this many of the newest entries.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """Print a credit line's statement: what it is worth, what is promised, and how that came about."""

    async def work(session: Session) -> Story | None:
        def read(connection: Connection) -> Story | None:
            return tell(connection, name, session.ledger.now_within(connection), entries)

        return await session.database.read(read)

    story = run(work)
    if story is None:
        fail(f"There is no credit line with the id or upstreamId {name!r}.")
    if as_json:
        typer.echo(json.dumps(_story_json(story)))
        return
    print_statement(console(), story)


def _issue_command(**fields: Any) -> Issue:
    """The command, checked as the merchant API would check it."""
    try:
        asked = schemas.CreditLineRequest.model_validate(fields)
        amount_minor = money.positive_minor(asked.amount, asked.currency)
    except ValidationError as error:
        problem = validation_problems(error.errors()).problems[0]
        fail(f"{problem.parameter}: {problem.message}")
    except money.InvalidAmount as error:
        fail(f"The amount {error}.")
    return Issue(
        line_id=ids.mint("cl"),
        upstream_id=asked.upstream_id or ids.mint("sc"),
        customer_id=asked.customer_id,
        currency=asked.currency,
        amount_minor=amount_minor,
        cause=Cause(actor(), asked.reason),
        name=asked.name,
        expires_at=asked.expires_time,
    )


def _number(amount: str) -> float:
    try:
        number = Decimal(amount)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        fail(f"{amount!r} is not a decimal number.")
    return float(number)


def _line_table(found: list[LineFigures]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("Id", "Upstream id", "Customer", "Status"):
        table.add_column(heading, overflow="fold")
    for heading in ("Balance", "Held", "Available"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("Expires", "Flags"):
        table.add_column(heading)
    for figures in found:
        row = figures.row
        amounts = (figures.balance, figures.held, figures.available)
        table.add_row(
            row["id"],
            plain(row["upstream_id"]),
            plain(row["customer_id"]),
            figures.status,
            *(money.to_text(amount, row["currency"]) for amount in amounts),
            when(row["expires_at"]) or "never",
            " ".join(figures.flags),
        )
    return table


def _story_json(story: Story) -> dict[str, Any]:
    currency = story.line.row["currency"]
    return {
        "creditLine": rendering.line(story.line),
        "entries": [rendering.entry(entry, currency) for entry in story.entries],
        "openHolds": [rendering.hold(hold, currency) for hold in story.open_holds],
        "decisions": [rendering.decision(decision) for decision in story.decisions],
        "hasMoreDecisions": story.has_more_decisions,
        "asOf": time_text(story.at),
    }
