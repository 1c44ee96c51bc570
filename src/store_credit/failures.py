"""What an error of the database means: whether it passes, and what an operator should hear of it."""

from __future__ import annotations

import sqlite3
from typing import Any

import asyncpg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

_PASSING_SQLSTATES = (
    "08",  # connection exceptions
    "0A000",  # a prepared statement from before a migration
    "28",  # the login is refused
    "3D",  # the database is gone
    "42501",  # a right was taken away
    "42P01",  # a table is gone: the schema is being changed
    "25006",  # read-only transaction: a standby during a failover
    "40001",  # serialization failure
    "40P01",  # deadlock
    "53",  # insufficient resources
    "55P03",  # lock timeout
    "57",  # operator intervention: shutdown, cancelled, starting up
    "58",  # system error, such as a full disk
)
_UNTOLD_SQLSTATES = (
    "08",  # connection exceptions
    "40003",  # statement completion unknown
)
_UNUSABLE_SQLSTATES = (
    "25",  # of the transaction's state: a session that may only read would be kept after a failover
    "26",  # a prepared statement is gone: driver and server do not know the same ones
    "XX",  # internal errors
)
_COMPLAINTS = {
    "25006": "is read-only",
    "28": "refuses the login",
    "3D": "does not exist",
    "42501": "refuses a right",
    "42P01": "has no tables",
    "53": "has nothing left to give",
    "55P03": "is locked by somebody else",
    "BUSY": "is locked by somebody else",
    "CANTOPEN": "can not be opened",
    "FULL": "has no space left",
    "READONLY": "is read-only",
}
"""By the beginnings of PostgreSQL's states and of SQLite's error names."""
_LOCK_TIMEOUT = "55P03"
_UNIQUE_VIOLATION = "23505"
_PASSING_SQLITE_ERRORS = ("BUSY", "LOCKED", "PROTOCOL", "FULL", "IOERR", "READONLY", "CANTOPEN", "NOMEM")


_DRIVER_ERRORS = (
    DBAPIError,
    sqlite3.Error,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # Also what asyncpg says of a connection that the server has just ended, when nobody was using it.
    asyncpg.InternalClientError,
)
DATABASE_ERRORS = (SQLAlchemyError, *_DRIVER_ERRORS)
"""Of an engine, and of the drivers where they are asked directly."""


class CommitFailed(Exception):
    """COMMIT raised: the transaction may or may not have happened. `result` is what it would give."""

    def __init__(self, result: Any) -> None:
        super().__init__("the fate of a COMMIT is unknown")
        self.result = result


def is_passing(error: BaseException) -> bool:
    """Whether the same transaction may well succeed later: the database is away, busy or in conflict."""
    if isinstance(error, (CommitFailed, OSError, TimeoutError, PoolTimeoutError)):
        return True
    if not isinstance(error, _DRIVER_ERRORS):
        return False
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    orig = of_driver(error)
    if isinstance(orig, sqlite3.Error):
        return _sqlite_name(orig).startswith(_PASSING_SQLITE_ERRORS)
    sqlstate = _sqlstate(error)
    if sqlstate is None:
        # A driver error without a state speaks of the connection, unless it is about a value.
        return not _is_about_a_value(orig)
    return sqlstate.startswith(_PASSING_SQLSTATES)


def is_race(error: BaseException) -> bool:
    """Whether another process took a unique name that was free when this transaction looked.

    SQLite has one writer, so that there it can not happen.
    """
    return _sqlstate(error) == _UNIQUE_VIOLATION


def is_undone(error: BaseException) -> bool:
    """Whether a statement that commits by itself has certainly left nothing.

    PostgreSQL calls it an ERROR when it has undone the statement and goes on. What it calls worse may come
    after COMMIT, and of a connection that is lost nothing can be told.
    """
    orig = of_driver(error)
    severity = getattr(orig, "severity_en", None)
    if severity is None:
        # The driver's own word: about a value, the statement was not even sent.
        return _is_about_a_value(orig) or isinstance(orig, asyncpg.DataError)
    return severity == "ERROR" and not str(_sqlstate(error)).startswith(_UNTOLD_SQLSTATES)


def leaves_session(error: BaseException) -> bool:
    """Whether the session is as good as before after a statement that failed; a new one is never wrong."""
    return is_undone(error) and not str(_sqlstate(error)).startswith(_UNUSABLE_SQLSTATES)


def is_locked(error: BaseException) -> bool:
    """Whether someone held a row for longer than is waited for."""
    return _sqlstate(error) == _LOCK_TIMEOUT


def is_busy(error: BaseException) -> bool:
    """Whether another process was writing to SQLite, for longer than was waited for."""
    return _sqlite_name(error).startswith("BUSY")


def complaint(error: BaseException) -> str:
    """What is the matter with the database, in a few words for an operator: it "does not answer"."""
    state = _sqlstate(error) or ""
    name = state or _sqlite_name(error)
    found = (words for prefix, words in _COMPLAINTS.items() if name.startswith(prefix))
    return next(found, "does not answer")


def of_driver(error: BaseException) -> BaseException | None:
    """The driver's own error, whether or not an engine has wrapped it; None if it is none."""
    if isinstance(error, DBAPIError):
        return error.orig
    return error if isinstance(error, _DRIVER_ERRORS) else None


def _sqlstate(error: BaseException) -> str | None:
    state = getattr(of_driver(error), "sqlstate", None)
    return str(state) if state is not None else None


def _sqlite_name(error: BaseException) -> str:
    """SQLite's name for an error, without what all begin with; empty if it is none of SQLite's."""
    return str(getattr(of_driver(error), "sqlite_errorname", None) or "").removeprefix("SQLITE_")


def _is_about_a_value(error: BaseException | None) -> bool:
    """Whether the driver could make nothing of a value: no other try would do better."""
    return isinstance(error, ValueError) or isinstance(getattr(error, "__cause__", None), ValueError)
