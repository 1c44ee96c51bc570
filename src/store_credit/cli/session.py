"""What every command needs: settings, a database at the right schema, and errors as one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import getpass
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer
from alembic.util import CommandError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import make_url

from store_credit import schema, settings
from store_credit.database import COMMAND_TIMEOUT_SECONDS, Database, InvalidUrl, connect
from store_credit.failures import DATABASE_ERRORS, complaint, is_passing, of_driver
from store_credit.fields import instant
from store_credit.ledger.commands import Policy
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.refusals import Refusal, Unavailable
from store_credit.settings import InvalidSettings, Settings

T = TypeVar("T")

OF_OUTPUT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a connection never says, but a file does to which the output goes."""

WIDE = 140
"""Columns that the tables take that a narrow terminal shall rather wrap."""
PIPED_WIDTH = 10_000
"""Columns when the output is no terminal: enough that nothing is wrapped, so that ids stay whole."""


@dataclass(frozen=True, slots=True)
class Session:
    """A database that is at the right schema, and its ledger."""

    settings: Settings
    database: Database
    ledger: Ledger


def run(
    work: Callable[[Session], Coroutine[Any, Any, T]], *, check_schema: bool = True, make: bool = False
) -> T:
    """Run a command's work; what goes wrong ends the process with one clear sentence.

    With `make`, a SQLite database need not be there yet.
    """

    async def within() -> T:
        async with opened(check_schema=check_schema, make=make) as session:
            return await work(session)

    with told_in_one_sentence():
        return asyncio.run(within())


@contextlib.contextmanager
def told_in_one_sentence() -> Any:
    """Turn the expected errors into an exit with one sentence on standard error."""
    try:
        yield
    except (InvalidSettings, schema.SchemaMismatch) as error:
        fail(str(error))
    except (Refusal, Unavailable) as error:
        fail(error.message)
    except CommandError as error:
        fail(f"The migrations can not do this: {str(error).rstrip('.')}.")
    except (*DATABASE_ERRORS, OSError, TimeoutError) as error:
        if isinstance(error, OSError) and error.errno in OF_OUTPUT:
            raise
        if is_passing(error):
            fail(f"The database {complaint(error)}; see STORE_CREDIT_DATABASE_URL.")
        if (refusal := of_driver(error)) is None:
            raise
        fail(f"The database refuses: {str(refusal).splitlines()[0].rstrip('.')}.")


@contextlib.asynccontextmanager
async def opened(
    *,
    check_schema: bool = True,
    make: bool = False,
    command_timeout_seconds: float | None = COMMAND_TIMEOUT_SECONDS,
) -> AsyncIterator[Session]:
    """The database of the settings. A SQLite database is brought to the newest schema first."""
    chosen = settings.load()
    database = connected(chosen, command_timeout_seconds)
    policy = Policy(chosen.hold_ttl, chosen.partial_approval, chosen.return_grace)
    try:
        missing = _missing_file(chosen)
        if missing and not make:
            # An empty database, made by mistake just now, would tell nothing of the real one.
            raise InvalidSettings(f"There is no database at {missing!r}; see STORE_CREDIT_DATABASE_URL.")
        if check_schema and database.dialect == "sqlite":
            await database.write(schema.upgrade_if_behind)
        if check_schema and missing:
            sys.stderr.write(f"store-credit: This is a new database: {plain(missing)}\n")
        if check_schema:
            await database.read(schema.check)
        ledger = Ledger(database, policy, deadline_seconds=30)
        yield Session(chosen, database, ledger)
        await ledger.close()
    finally:
        await database.close()


def _missing_file(chosen: Settings) -> str | None:
    """The file of a SQLite database that is not there."""
    url = make_url(chosen.database_url)
    is_missing = url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file()
    return url.database if is_missing else None


def connected(chosen: Settings, command_timeout_seconds: float | None) -> Database:
    """The database of the settings. Raises InvalidSettings when its URL is of no use."""
    try:
        return connect(chosen.database_url, command_timeout_seconds=command_timeout_seconds)
    except InvalidUrl as error:
        raise InvalidSettings(f"STORE_CREDIT_DATABASE_URL: {error}.") from None


def actor() -> str:
    """The user of the command line, as the journal names them."""
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):  # A container may run under a number without a name.
        return "cli"


def console(*, wide: bool = False) -> Console:
    """For standard output. A `wide` one rather lets a narrow terminal wrap lines than cut off figures."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    if wide:
        width = max(width or Console().width, WIDE)
    return Console(width=width, emoji=False, highlight=False)


def plain(text: str) -> Text:
    """Text from outside, for the console: neither markup nor control characters in it take effect."""
    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def moment(option: str, text: str | None) -> datetime | None:
    """The time that an option gives; one that is none ends the process with a sentence."""
    try:
        return instant(text) if text is not None else None
    except ValueError as error:
        fail(f"{option} {error}.")


async def not_in_future(session: Session, option: str, at: datetime | None) -> None:
    """End the process with a sentence when the time that an option gave is yet to come."""
    if at is not None and at > await session.ledger.now():
        fail(f"{option} is in the future: what will be in the books then, nobody knows.")


def counted(number: int, noun: str) -> str:
    """Such as `1 row` and `2 rows`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def show(table: Table, *, wide: bool = False, none: str = "There are none.") -> None:
    """Print a table on standard output, or a sentence when there is nothing in it."""
    if table.row_count:
        console(wide=wide).print(table)
    else:
        typer.echo(none)


def fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"store-credit: {plain(sentence)}\n")
    raise SystemExit(2)
