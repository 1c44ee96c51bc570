"""`store-credit backup`: a copy of a SQLite database, whole and consistent, while the service runs."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import make_url

from store_credit import settings
from store_credit.cli.session import connected, fail, told_in_one_sentence


def backup_database(
    to: Annotated[Path, typer.Argument(dir_okay=False, help="The file to make; none may be there yet.")],
) -> None:
    """Copy a SQLite database to a new file, while the service runs. PostgreSQL has pg_dump for this."""
    with told_in_one_sentence():
        chosen = settings.load()
        dialect = connected(chosen, None).dialect
    if dialect != "sqlite":
        fail("Only SQLite is backed up with this: PostgreSQL has pg_dump and pg_basebackup.")
    source = Path(str(make_url(chosen.database_url).database))
    if not source.is_file():
        fail(f"There is no database at {str(source)!r}.")
    try:
        _copy(source, to)
    except FileExistsError as error:
        fail(f"There is a file at {error.filename!r} already.")
    except (sqlite3.Error, OSError) as error:
        fail(f"The backup failed: {str(error).rstrip('.')}.")
    typer.echo(f"{to}: {to.stat().st_size} bytes.")


def _copy(source: Path, to: Path) -> None:
    """Copy under another name first: `to` appears when it is whole, checked and on disk."""
    part = to.with_name(f"{to.name}.part")
    # Readable by us alone: it holds personal data. While it is there, no other backup takes the name.
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        if to.exists():
            raise FileExistsError(None, None, str(to))
        with (
            contextlib.closing(sqlite3.connect(source)) as live,
            contextlib.closing(sqlite3.connect(part)) as copy,
        ):
            # In one step, of one snapshot: writers go on beside it.
            live.backup(copy)
            # One file by itself; the service turns the write-ahead log on again.
            copy.execute("PRAGMA journal_mode = DELETE")
            (verdict,) = copy.execute("PRAGMA quick_check").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        _sync(part)
        part.rename(to)
        _sync(to.parent)
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
