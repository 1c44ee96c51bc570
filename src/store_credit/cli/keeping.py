"""`store-credit lines ...`: the life of a line, each step with its reason in the journal."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal

import typer

from store_credit import ids, money
from store_credit.cli.session import Session, actor, fail, moment, run
from store_credit.fields import TEXT_LENGTH_MAX, storable
from store_credit.ledger import queries
from store_credit.ledger.commands import Adjust, Cause, Command, ReleaseHolds, SetExpiry, SetFlag, SetStatus
from store_credit.ledger.queries import LineFigures
from store_credit.ledger.state import Flag, Hold, HoldState
from store_credit.merchant import rendering

app = typer.Typer()

Line = Annotated[str, typer.Argument(help="Its id, or the upstreamId that Digital River knows.")]
Why = Annotated[str, typer.Option("--reason", help="Why, for the journal.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
WhichFlag = Annotated[Flag, typer.Argument(help="Which flag.")]
Action = Literal["suspend", "resume", "close", "reopen"]


@app.command("adjust")
def adjust_line(
    line: Line,
    amount: Annotated[str, typer.Option(help="Signed, in the line's currency, such as -5.00.")],
    reason: Why,
    as_json: AsJson = False,
) -> None:
    """Correct a line's balance. A decrease never takes away what is held."""
    change = _decimal(amount)
    _tell(_changed(line, reason, lambda id_, cause: Adjust(id_, change, cause)), as_json)


@app.command("suspend")
def suspend_line(line: Line, reason: Why, as_json: AsJson = False) -> None:
    """Take no new holds. Open ones live on."""
    _set_status(line, "suspend", reason, as_json)


@app.command("resume")
def resume_line(line: Line, reason: Why, as_json: AsJson = False) -> None:
    """Take holds again."""
    _set_status(line, "resume", reason, as_json)


@app.command("close")
def close_line(line: Line, reason: Why, as_json: AsJson = False) -> None:
    """Void what is left. Refused while credit is held."""
    _set_status(line, "close", reason, as_json)


@app.command("reopen")
def reopen_line(line: Line, reason: Why, as_json: AsJson = False) -> None:
    """Take holds again after a close. What was voided does not come back."""
    _set_status(line, "reopen", reason, as_json)


@app.command("expire")
def expire_line(
    line: Line,
    reason: Why,
    at: Annotated[str | None, typer.Option(help="When, such as 2027-12-31T00:00:00Z.")] = None,
    never: Annotated[bool, typer.Option("--never", help="Take the expiry off.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set, change or remove when a line expires. What has expired stays written off."""
    if (at is None) != never:
        fail("Say when with --at, or --never.")
    expiry = moment("--at", at)
    _tell(_changed(line, reason, lambda id_, cause: SetExpiry(id_, expiry, cause)), as_json)


@app.command("flag")
def flag_line(line: Line, flag: WhichFlag, reason: Why, as_json: AsJson = False) -> None:
    """Mark a line for an operator."""
    _tell(_changed(line, reason, lambda id_, cause: SetFlag(id_, flag.value, True, cause)), as_json)


@app.command("unflag")
def unflag_line(line: Line, flag: WhichFlag, reason: Why, as_json: AsJson = False) -> None:
    """Take a mark off, once it was looked at."""
    _tell(_changed(line, reason, lambda id_, cause: SetFlag(id_, flag.value, False, cause)), as_json)


@app.command("release")
def release_holds(
    name: Annotated[str, typer.Argument(help="The id of a hold, or of a session whose holds all end.")],
    reason: Why,
    as_json: AsJson = False,
) -> None:
    """End holds before their time; what they held becomes available again."""
    cause = Cause(actor(), _checked(reason))

    is_hold = ids.is_minted(name, "hold")

    async def work(session: Session) -> list[Hold]:
        read = session.database.read
        found = await read(queries.hold_places, **{"hold_id" if is_hold else "session_id": name})
        if not found and is_hold:
            fail(f"There is no hold with the id {name!r}.")
        if not found and await read(queries.line_id_of, name) is not None:
            fail(f"That is a credit line: `lines show {name}` names its holds and their sessions.")
        if not found and not await read(queries.had_holds, name):
            fail(f"There was never a hold of a session {name!r}, and no hold has this id.")
        if not found:
            return []
        holds, lines = zip(*found, strict=True)
        command = ReleaseHolds(holds, tuple(dict.fromkeys(lines)), cause)
        (outcome,) = (await session.ledger.execute(command)).outcomes
        return [hold for hold in outcome.ended if hold.state == HoldState.RELEASED]

    ended = run(work)
    if as_json:
        typer.echo(json.dumps({"released": [hold.id for hold in ended]}))
        return
    for hold in ended:
        typer.echo(f"{hold.id} of {hold.line_id} is released.")
    if not ended:
        typer.echo("Nothing is open." if is_hold else "Nothing is open of this session.")


def _set_status(line: str, action: Action, reason: str, as_json: bool) -> None:
    _tell(_changed(line, reason, lambda id_, cause: SetStatus(id_, action, cause)), as_json)


def _changed(line: str, reason: str, command: Callable[[str, Cause], Command]) -> LineFigures:
    """Run a command on the line of this name, and read what it left."""
    cause = Cause(actor(), _checked(reason))

    async def work(session: Session) -> LineFigures:
        line_id = await session.database.read(queries.line_id_of, line)
        if line_id is None:
            fail(f"There is no credit line with the id or upstreamId {line!r}.")
        await session.ledger.execute(command(line_id, cause))
        found = await session.database.read(queries.line, line_id, await session.ledger.now())
        assert found is not None
        return found

    return run(work)


def _tell(line: LineFigures, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rendering.line(line)))
        return
    currency = line.row["currency"]
    balance, held = (money.to_text(amount, currency) for amount in (line.balance, line.held))
    flags = f" Flags: {', '.join(line.flags)}." if line.flags else ""
    typer.echo(f"{line.row['id']} is {line.status}, worth {balance}, of which {held} held.{flags}")


def _checked(reason: str) -> str:
    """The reason, checked as the merchant API would check it."""
    if not reason.strip():
        fail("The reason must not be empty.")
    if len(reason) > TEXT_LENGTH_MAX:
        fail(f"The reason must have at most {TEXT_LENGTH_MAX} characters.")
    try:
        return storable(reason)
    except ValueError as error:
        fail(f"The reason {error}.")


def _decimal(amount: str) -> Decimal:
    try:
        number = Decimal(amount)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        fail(f"{amount!r} is not a decimal number.")
    return number
