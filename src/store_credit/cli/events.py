"""`store-credit events`: the inbox of Digital River's events."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from sqlalchemy import Connection, RowMapping

from store_credit import money
from store_credit.cli.session import Session, actor, console, fail, plain, run, show
from store_credit.cli.statement import when
from store_credit.fields import instant
from store_credit.ledger import queries as ledger_queries
from store_credit.ledger.commands import Cause
from store_credit.ledger.pages import Page
from store_credit.ledger.queries import LineFigures
from store_credit.ledger.state import Flag
from store_credit.merchant import rendering
from store_credit.webhooks import candidates, catch_up, inbox, queries, upkeep
from store_credit.webhooks.effects import Assignment, EventState

app = typer.Typer(help="Digital River's events.", no_args_is_help=True)

LIST_LIMIT_MAX = 1_000
EventId = Annotated[str, typer.Argument(help="Digital River's id of the event, or its receipt's.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


@app.command("list")
def list_events(
    state: Annotated[EventState | None, typer.Option(help="Only those in this state.")] = None,
    order: Annotated[str | None, typer.Option(help="Only of this order.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=LIST_LIMIT_MAX, help="At most this many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List events, newest first. `--state unmatched` are those that wait for you."""
    wanted = queries.EventFilter(state.value if state else None, None, order)

    async def work(session: Session) -> tuple[Any, bool]:
        return await session.database.read(queries.events, wanted, Page(limit))

    rows, more = run(work)
    if as_json:
        typer.echo(json.dumps(rendering.listed(rows, more, rendering.event)))
        return
    show(_event_table(rows))
    if more:
        typer.echo(f"There are more; --limit shows up to {LIST_LIMIT_MAX}.")


@app.command("show")
def show_event(event_id: EventId, as_json: AsJson = False) -> None:
    """Show an event: what it asks for, what became of it, and which lines it may mean."""

    async def work(session: Session) -> tuple[RowMapping, list[RowMapping], list[LineFigures]]:
        row, *others = await _rows(session, event_id)
        now = await session.ledger.now()

        def suggested(connection: Connection) -> list[LineFigures]:
            return candidates.candidates(connection, row, candidates.email_of(row), now)

        waiting = row["state"] == EventState.UNMATCHED
        return row, others, await session.database.read(suggested) if waiting else []

    row, others, lines = run(work)
    if as_json:
        shown = {"candidates": [rendering.line(line) for line in lines], "body": row["body"]}
        typer.echo(json.dumps({**rendering.event(row), **shown}))
        return
    _print_event(row, lines)
    for other in others:
        typer.echo(
            f"Another event came under this id ({other['state']}): store-credit events show {other['id']}"
        )


@app.command("apply")
def apply_event(
    event_id: EventId,
    line: Annotated[
        str | None, typer.Option(help="The credit line to take it from: id or upstreamId.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="One source of several.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the journal.")] = None,
) -> None:
    """Apply an event again, or to a named line. A source on the wrong line moves to the named one.

    The exit code is 1 when something in it is not booked yet, be it another source: unmatched or failed.
    """
    if source is not None and line is None:
        fail("A source is assigned to a line: name it with --line.")

    async def work(session: Session) -> tuple[RowMapping, list[LineFigures]]:
        row = await _row(session, event_id)
        if row["state"] in (EventState.DISMISSED, EventState.CONFLICT):
            fail(f"The event is {row['state']}.")
        cause = Cause(actor(), reason, event_id=event_id)
        to = Assignment(await _line_id(session, line), source) if line is not None else None
        await inbox.apply_by_hand(session.ledger, row, cause, to)
        applied = await _row(session, event_id)
        return applied, await session.database.read(_lines_of, applied, await session.ledger.now())

    applied, lines = run(work)
    typer.echo(f"The event is {applied['state']} now.")
    for effect in json.loads(applied["effects"]):
        typer.echo(plain(_became_of(effect)))
    for overdrawn in (line for line in lines if Flag.OVERDRAWN in line.flags):
        typer.echo(f"The line is overdrawn now: store-credit lines show {overdrawn.row['id']}")
    if applied["state"] in (EventState.UNMATCHED, EventState.FAILED):
        raise typer.Exit(1)


@app.command("dismiss")
def dismiss_event(
    event_id: EventId, reason: Annotated[str, typer.Option(help="Why nothing is to be booked.")]
) -> None:
    """Set an event aside that asks for nothing to be booked. It can not be taken up again."""

    async def work(session: Session) -> None:
        row = queries.to_dismiss(await _rows(session, event_id))
        if row["state"] == EventState.APPLIED:
            fail("The event is applied.")
        await inbox.dismiss(session.ledger, row, actor(), reason)

    run(work)
    typer.echo("The event is dismissed now.")


@app.command("catch-up")
def catch_up_events(
    since: Annotated[str, typer.Option(help="From when on, such as 2026-11-20T00:00:00Z.")],
    starting_after: Annotated[
        str | None, typer.Option(help="Go on after this event, where an earlier run ended.")
    ] = None,
) -> None:
    """List Digital River's events since a time, and apply what is missing. Safe beside live webhooks."""
    start = _instant(since)
    try:
        run(lambda session: _catch_up(session, start, starting_after))
    except catch_up.CatchUpFailed as error:
        fail(str(error))


@app.command("erase")
def erase_person(
    email: Annotated[str, typer.Option(help="The person's e-mail address.")],
) -> None:
    """Take a person's data out of all stored bodies that hold this address."""
    if "@" not in email:
        fail("This is no e-mail address.")

    async def work(session: Session) -> int:
        with _progress() as progress:
            task = progress.add_task("bodies", total=None)
            return await upkeep.erase(session.ledger, email, lambda seen: progress.advance(task, seen))

    typer.echo(f"{run(work)} stored bodies hold the person's data no more.")


async def _catch_up(session: Session, since: datetime, starting_after: str | None) -> None:
    """Catch up under a progress bar; however it ends, tell how far it got."""
    chosen = session.settings
    if chosen.dr_api_key is None:
        fail("STORE_CREDIT_DR_API_KEY is not set.")
    tally = catch_up.Tally(last_id=starting_after)
    try:
        with _progress() as progress:
            task = progress.add_task("events", total=None)

            def note(reached: catch_up.Tally) -> None:
                nonlocal tally
                tally = reached
                progress.update(task, completed=reached.seen)

            more: Any = {
                "starting_after": starting_after,
                "live_mode": chosen.live_mode,
                "on_event": note,
            }
            async with catch_up.client(chosen.dr_api_url, chosen.dr_api_key.get_secret_value()) as api:
                await catch_up.catch_up(session.ledger, api, since, **more)
    finally:
        _tell_tally(tally)


def _lines_of(connection: Connection, row: RowMapping, now: datetime) -> list[LineFigures]:
    """The lines on which something of the event is booked."""
    ids = {effect["creditLineId"] for effect in json.loads(row["effects"]) if effect["creditLineId"]}
    found = [ledger_queries.line(connection, line_id, now) for line_id in sorted(ids)]
    return [line for line in found if line is not None]


async def _row(session: Session, event_id: str) -> RowMapping:
    return (await _rows(session, event_id))[0]


async def _rows(session: Session, event_id: str) -> list[RowMapping]:
    rows = await session.database.read(queries.event, event_id)
    if not rows:
        fail(f"There is no event with the id {event_id!r}.")
    return rows


async def _line_id(session: Session, name: str) -> str:
    found = await session.database.read(ledger_queries.line_id_of, name)
    if found is None:
        fail(f"There is no credit line with the id or upstreamId {name!r}.")
    return found


def _instant(text: str) -> datetime:
    try:
        return instant(text)
    except ValueError as error:
        fail(f"--since {error}.")


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.completed} {task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=console(), transient=True)


def _tell_tally(tally: catch_up.Tally) -> None:
    typer.echo(
        f"{tally.seen} events: {tally.applied} applied, {tally.known_or_ignored} known or without meaning,"
        f" {tally.waiting} wait for an operator, {tally.unreadable} not readable."
    )
    if tally.last_id is not None:
        typer.echo(f"The last was {plain(tally.last_id)}; --starting-after goes on from there.")


def _event_table(rows: list[RowMapping]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("Received (UTC)", "Event", "Type", "State", "Order", "Asks for", "Outcome"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        effects = json.loads(row["effects"])
        table.add_row(
            when(row["received_at"]),
            plain(row["event_id"]),
            plain(row["type"]),
            row["state"],
            plain(row["order_id"] or ""),
            Text("\n").join(plain(_asked(effect)) for effect in effects),
            "\n".join((effect["outcome"] or "").replace("_", " ") for effect in effects),
        )
    return table


def _asked(effect: dict[str, Any]) -> str:
    return " ".join(filter(None, (effect["kind"], _amount(effect), effect["currency"])))


def _amount(effect: dict[str, Any]) -> str:
    """With all decimals of its currency, and as it was told if it has more."""
    amount, currency = effect["amount"], effect["currency"]
    if amount is None:
        return ""
    usual = f"{amount:.{money.EXPONENTS.get(currency, 0)}f}"
    return usual if float(usual) == amount else str(amount)


def _became_of(effect: dict[str, Any]) -> str:
    detail = f" ({effect['detail']})" if effect["detail"] else ""
    outcome = (effect["outcome"] or "not tried").replace("_", " ")
    of = f" of {effect['upstreamId']}" if effect["upstreamId"] else ""
    line = f", {effect['creditLineId']}" if effect["creditLineId"] else ""
    return f"{effect['sourceId']}: {_asked(effect)}{of}: {outcome}{line}{detail}"


def _print_event(row: RowMapping, lines: list[LineFigures]) -> None:
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for name, value in (
        ("Event", row["event_id"]),
        ("Type", row["type"]),
        ("State", row["state"] + (f" ({row['note']})" if row["note"] else "")),
        ("Order", row["order_id"]),
        ("Session", candidates.session_of(row)),
        ("Shopper", candidates.email_of(row)),
        ("Received", f"{when(row['received_at'])} UTC"),
    ):
        if value:
            facts.add_row(name, plain(value))
    for effect in json.loads(row["effects"]):
        facts.add_row("Source", plain(_became_of(effect)))
    console().print(facts)
    if row["state"] == EventState.UNMATCHED and not lines:
        typer.echo("\nNo line fits it: name one with `events apply --line`, or dismiss it.")
    if lines:
        typer.echo("\nLines that it may mean:")
        for line in lines:
            worth = money.to_text(line.balance, line.row["currency"])
            typer.echo(f"  {line.row['id']}  {plain(line.row['customer_id'])}  {worth}  {line.status}")
        # What begins with a dash would be an option.
        named = plain(shlex.join((["--"] if row["event_id"].startswith("-") else []) + [row["event_id"]]))
        typer.echo(f"\nstore-credit events apply --line {lines[0].row['id']} {named}")
