"""The commands of `store-credit`, each with its options; what they do lives beside."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.table import Table

from store_credit import __version__, credentials, schema
from store_credit.cli import events, lines, serve
from store_credit.cli.session import Session, console, fail, opened, plain, run, told_in_one_sentence
from store_credit.credentials import Role
from store_credit.ledger.audit import Finding
from store_credit.ledger.audit import audit as audit_lines

app = typer.Typer(
    help="Store credit for Digital River checkouts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
credentials_app = typer.Typer(help="Who may call the service.", no_args_is_help=True)
app.add_typer(lines.app, name="lines")
app.add_typer(events.app, name="events")
app.add_typer(credentials_app, name="credentials")


def main() -> None:
    """The entry point of the `store-credit` command."""
    app(prog_name="store-credit")


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.command("serve")
def serve_command(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
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
    """Bring the database to the newest schema."""
    if back and to == "head":
        fail("To go back, name the schema to go to with --to.")

    async def work() -> tuple[str | None, str | None]:
        async with opened(check_schema=False, command_timeout_seconds=None) as session:
            before = await session.database.read(schema.current)
            await session.database.write(schema.downgrade if back else schema.upgrade, to)
            return before, await session.database.read(schema.current)

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
def audit() -> None:
    """Recompute every credit line from its journal, and name what differs."""

    async def work(session: Session) -> int:
        return await session.database.read(lambda connection: _print_findings(audit_lines(connection)))

    findings = run(work)
    if findings:
        raise typer.Exit(1)


def _print_findings(findings: Iterable[Finding]) -> int:
    count = 0
    for finding in findings:
        count += 1
        where = finding.line_id if finding.seq is None else f"{finding.line_id}, entry {finding.seq}"
        typer.echo(f"{where}: {finding.problem}")
    typer.echo("The books are right." if count == 0 else f"{count} findings.")
    return count


@credentials_app.command("add")
def add_credential(
    name: Annotated[str, typer.Argument(help="The user name to call with.")],
    role: Annotated[Role, typer.Option(help="What it may do.")],
) -> None:
    """Add a credential. Its password is generated, and shown this once.

    A name may have several credentials: add a second one to rotate a password, and disable the first
    by its id when nobody uses it any more.
    """
    if not name or ":" in name or len(name) > 255 or not name.isprintable():
        fail("The name must be 1 to 255 printable characters without a colon.")

    async def work(session: Session) -> tuple[credentials.Credential, str]:
        now = await session.ledger.now()
        return await session.database.write(credentials.add, name, role, now)

    added, password = run(work)
    sys.stderr.write(f"{added.id}: {name} may call as {role.value}. The password is shown only now:\n")
    typer.echo(password)


@credentials_app.command("list")
def list_credentials() -> None:
    """List the credentials of the database; those of the environment are not among them."""

    async def work(session: Session) -> list[credentials.Credential]:
        return await session.database.read(credentials.listed)

    table = Table("Id", "Name", "Role", "Added", "Disabled", box=None, pad_edge=False)
    for found in run(work):
        table.add_row(
            found.id,
            plain(found.name),
            found.role.value,
            lines.when(found.created_at),
            lines.when(found.disabled_at),
        )
    console().print(table)


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
