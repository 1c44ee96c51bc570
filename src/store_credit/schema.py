"""Bringing a database to the newest schema, and telling whether it is there."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


class SchemaMismatch(Exception):
    """The database is not at the schema that this version needs. The message says what to do."""


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
    """Raises SchemaMismatch unless the database is at head."""
    found = current(connection)
    if found == head():
        return
    known = {script.revision for script in _scripts().walk_revisions()}
    if found is None or found in known:
        raise SchemaMismatch(
            f"The database schema is behind: it is at {found or 'nothing'}, and this version needs"
            f" {head()}. Run `store-credit migrate`."
        )
    raise SchemaMismatch(
        f"The database schema is ahead: it is at {found}, and this version knows only {head()}."
        f" Start the newer version of store-credit, or run its `store-credit migrate --back --to {head()}`."
    )


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the database to a schema, the newest by default, within the caller's transaction."""
    command.upgrade(_config(connection), revision)


def upgrade_if_behind(connection: Connection) -> None:
    """Bring a database to head unless it is there, or ahead, already."""
    known = {script.revision for script in _scripts().walk_revisions()}
    found = current(connection)
    if found is None or (found in known and found != head()):
        upgrade(connection)


def downgrade(connection: Connection, revision: str) -> None:
    """Take the database back to an earlier schema; what its tables held is lost."""
    command.downgrade(_config(connection), revision)


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(migrations_folder()))


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
