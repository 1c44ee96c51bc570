"""Bringing a database to the newest schema, and telling whether this version can work on it.

A schema changes in two steps, so that versions can be replaced one after the other. A release expands it:
its migrations only add, and earlier versions go on working. A later release contracts it, and raises the
floor: the oldest schema that a version must know to work on it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, String, Table, select

from store_credit.metadata import metadata

REVISION_LENGTH_MAX = 32
"""As Alembic keeps them."""

schema_floor = Table(
    "schema_floor",
    metadata,
    # One row. A migration that takes away what earlier versions use puts its own revision here.
    Column("revision", String(REVISION_LENGTH_MAX), primary_key=True),
)


class SchemaMismatch(Exception):
    """This version can not work on the database's schema. The message says what to do."""


def migrations_folder() -> Path:
    """The migrations: inside the installed package, or beside `src` in a checkout."""
    package = Path(__file__).parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parents[1] / "migrations"


@cache
def head() -> str:
    """The newest schema that this version knows."""
    newest = _scripts().get_current_head()
    assert newest is not None
    return newest


def current(connection: Connection) -> str | None:
    """The schema of the database; None when it has none yet."""
    return MigrationContext.configure(connection).get_current_revision()


def check(connection: Connection) -> None:
    """Raises SchemaMismatch unless the database is at head, or at a later schema that still serves us."""
    found = current(connection)
    if found == head():
        return
    if found is None or found in _known():
        raise SchemaMismatch(
            f"The database schema is behind: it is at {found or 'nothing'}, and this version needs"
            f" {head()}. Run `store-credit migrate`."
        )
    if connection.scalar(select(schema_floor.c.revision)) not in _known():
        raise SchemaMismatch(
            f"The database schema is ahead: it is at {found}, and this version knows only {head()}."
            " Start the newer version of store-credit, or run its"
            f" `store-credit migrate --back --to {head()}`."
        )


def is_ahead(connection: Connection) -> bool:
    """Whether a newer version has migrated the database."""
    return current(connection) not in {None, *_known()}


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the database to a schema, the newest by default, within the caller's transaction."""
    command.upgrade(_config(connection), revision)


def upgrade_if_behind(connection: Connection) -> None:
    """Bring a database to head unless it is there, or ahead, already."""
    if current(connection) != head() and not is_ahead(connection):
        upgrade(connection)


def downgrade(connection: Connection, revision: str) -> None:
    """Take the database back to an earlier schema; what its tables held is lost."""
    command.downgrade(_config(connection), revision)


@cache
def _known() -> frozenset[str]:
    return frozenset(script.revision for script in _scripts().walk_revisions())


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(migrations_folder()))


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
