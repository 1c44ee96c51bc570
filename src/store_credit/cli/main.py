"""The commands of `store-credit`, each with its options; what they do lives beside."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from store_credit import __version__, credentials, schema
from store_credit.cli import backup, decisions, events, exchange, keeping, lines, period, reports, serve
from store_credit.cli.audit import audit_books
from store_credit.cli.session import (
    OF_OUTPUT,
    Session,
    fail,
    moment,
    opened,
    plain,
    run,
    show,
    told_in_one_sentence,
)
from store_credit.credentials import Role
from store_credit.settings import duration

OVERLAP_MAX = timedelta(days=365)
"""The longest that a password outlives its rotation."""

app = typer.Typer(
    help="Store credit for Digital River checkouts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
credentials_app = typer.Typer(help="Who may call the service.", no_args_is_help=True)
lines.app.add_typer(keeping.app)
lines.app.add_typer(period.app)
app.add_typer(lines.app, name="lines")
app.command("decisions")(decisions.list_decisions)
app.add_typer(events.app, name="events")
app.add_typer(exchange.export_app, name="export")
app.command("import")(exchange.import_lines)
app.command("backup")(backup.backup_database)
app.add_typer(credentials_app, name="credentials")
app.add_typer(reports.app, name="report")


def main() -> None:
    """The entry point of the `store-credit` command."""
    for argument in sys.argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            fail(f"The argument {argument!r} is not valid UTF-8.")
    try:
        app(prog_name="store-credit")
    except OSError as error:
        if error.errno not in OF_OUTPUT:
            raise
        fail(f"The output can not be written: {error.strerror}.")


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.command("serve")
def serve_command(
    host: Annotated[str, typer.Option(help="IPv4 or IPv6 address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes; PostgreSQL only.")] = 1,
) -> None:
    """Serve the callout, the webhook and the merchant API."""
    with told_in_one_sentence():
        serve.serve(host, port, workers)


@app.command()
def migrate(
    to: Annotated[str, typer.Option(help="A schema to go to; the newest by default.")] = "head",
    back: Annotated[bool, typer.Option("--back", help="Go back to an earlier schema.")] = False,
) -> None:
    """Bring the database to the newest schema. A newer one that this version can work on stays."""
    if back and to == "head":
        fail("To go back, name the schema to go to with --to.")

    async def work() -> tuple[str | None, str | None]:
        async with opened(check_schema=False, make=True, command_timeout_seconds=None) as session:
            before = await session.database.read(schema.current)
            if to == "head":
                await session.database.write(schema.upgrade_if_behind)
                await session.database.read(schema.check)
            else:
                await session.database.write(schema.downgrade if back else schema.upgrade, to)
            after = await session.database.read(schema.current)
            if after == before and not back and to not in ("head", after):
                fail(f"The schema is at {after}, and {to} is earlier: to go back, add --back.")
            return before, after

    with told_in_one_sentence():
        before, after = asyncio.run(work())
    typer.echo(f"The schema was at {before or 'nothing'} and is at {after or 'nothing'}.")


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the play.")] = False,
    port: Annotated[int, typer.Option(help="Port to serve on; another if it is taken.")] = 8000,
) -> None:
    """Serve a throw-away database, and play Digital River's part over HTTP."""
    from store_credit.cli.demo import play

    raise typer.Exit(play(once=once, port=port))


@app.command()
def audit(
    digest: Annotated[bool, typer.Option("--digest", help="Print one digest of all journals.")] = False,
    as_of: Annotated[
        str | None, typer.Option(help="Of the journals as they were then, such as 2026-11-20T00:00:00Z.")
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="Write the verdict to this file, for node_exporter to read.")
    ] = None,
) -> None:
    """Recompute every credit line from its journal, and name what differs.

    A digest that is kept elsewhere shows later, with --as-of, whether the past was changed.
    """
    if as_of is not None and not digest:
        fail("--as-of is of the digest: give --digest as well.")
    if not audit_books(with_digest=digest, as_of=moment("--as-of", as_of), metrics=metrics):
        raise typer.Exit(1)


@credentials_app.command("add")
def add_credential(
    name: Annotated[str, typer.Argument(help="The user name to call with.")],
    role: Annotated[Role, typer.Option(help="What it may do.")],
) -> None:
    """Add a credential. Its password is generated, and shown this once.

    A name may have several credentials; `rotate` replaces those that there are.
    """
    if not name or ":" in name or len(name) > 255 or not name.isprintable():
        fail("The name must be 1 to 255 printable characters without a colon.")

    async def work(session: Session) -> tuple[credentials.Credential, str]:
        now = await session.ledger.now()
        return await session.database.write(credentials.add, name, role, now)

    added, password = run(work, make=True)
    _print_password(added, password)


@credentials_app.command("rotate")
def rotate_credential(
    name: Annotated[str, typer.Argument(help="The user name whose password is replaced.")],
    overlap: Annotated[str, typer.Option(help="How long the old password stays valid.")] = "24h",
    role: Annotated[Role | None, typer.Option(help="Only that of this role.")] = None,
) -> None:
    """Give a name a new password, shown this once; the old ones end by themselves after the overlap."""
    try:
        lasting = duration(overlap)
    except ValueError as error:
        fail(f"--overlap {error}.")
    if lasting > OVERLAP_MAX:
        fail(f"--overlap must be at most {OVERLAP_MAX.days}d.")

    async def work(session: Session) -> tuple[credentials.Credential, str]:
        now = await session.ledger.now()
        return await session.database.write(credentials.rotate, name, role, now, lasting)

    try:
        added, password = run(work)
    except credentials.NothingToRotate:
        fail(f"No active credential has the name {name!r}{f' and the role {role.value}' if role else ''}.")
    except credentials.SeveralRoles:
        fail(f"The credentials of {name!r} have several roles: say which with --role.")
    _print_password(added, password)


def _print_password(added: credentials.Credential, password: str) -> None:
    """The password alone goes to standard output, for a script to take."""
    told = f"{added.id}: {added.name} may call as {added.role.value}. The password is shown only now:\n"
    sys.stderr.write(told)
    typer.echo(password)


@credentials_app.command("list")
def list_credentials() -> None:
    """List the credentials of the database; those of the environment are not among them."""

    async def work(session: Session) -> list[credentials.Credential]:
        return await session.database.read(credentials.listed)

    headings = ("Id", "Name", "Role", "Added", "Disabled", "Expires", "Last used")
    table = Table(*headings, box=None, pad_edge=False)
    for found in run(work):
        table.add_row(
            found.id,
            plain(found.name),
            found.role.value,
            *(lines.when(moment) for moment in (found.created_at, found.disabled_at)),
            *(lines.when(moment) for moment in (found.expires_at, found.last_used_at)),
        )
    show(table, wide=True, none="There are none in the database.")


@credentials_app.command("disable")
def disable_credential(
    name_or_id: Annotated[str, typer.Argument(help="The id of one, or the name of all to disable.")],
) -> None:
    """Disable credentials. Running services refuse them within a second."""

    async def work(session: Session) -> int:
        now = await session.ledger.now()
        return await session.database.write(credentials.disable, name_or_id, now)

    count = run(work)
    if count == 0:
        fail(f"No active credential has the id or name {name_or_id!r}.")
    typer.echo(f"{count} disabled.")
