"""What an error of the database means: whether it passes, and what an operator should hear of it."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy.exc import DBAPIError
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
_PASSING_SQLITE_ERRORS = ("BUSY", "LOCKED", "FULL", "IOERR", "READONLY", "CANTOPEN", "NOMEM")


class CommitFailed(Exception):
    """COMMIT raised: the transaction may or may not have happened. `result` is what it would give."""

    def __init__(self, result: Any) -> None:
        super().__init__("the fate of a COMMIT is unknown")
        self.result = result


def is_passing(error: BaseException) -> bool:
    """Whether the same transaction may well succeed later: the database is away, busy or in conflict."""
    if isinstance(error, (CommitFailed, OSError, TimeoutError, PoolTimeoutError)):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        name = getattr(error.orig, "sqlite_errorname", "") or ""
        return name.removeprefix("SQLITE_").startswith(_PASSING_SQLITE_ERRORS)
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is None:
        # A driver error without a state speaks of the connection, unless it is about a value.
        return not isinstance(getattr(error.orig, "__cause__", None), ValueError)
    return str(sqlstate).startswith(_PASSING_SQLSTATES)


def is_race(error: BaseException) -> bool:
    """Whether another process took a unique name that was free when this transaction looked.

    SQLite has one writer, so that there it can not happen.
    """
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _UNIQUE_VIOLATION


def is_locked(error: BaseException) -> bool:
    """Whether someone held a row for longer than is waited for."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _LOCK_TIMEOUT


def complaint(error: BaseException) -> str:
    """What is the matter with the database, in a few words for an operator: it "does not answer"."""
    orig = getattr(error, "orig", None)
    state = str(getattr(orig, "sqlstate", None) or "")
    name = str(getattr(orig, "sqlite_errorname", None) or "").removeprefix("SQLITE_")
    found = (words for prefix, words in _COMPLAINTS.items() if (state or name).startswith(prefix))
    return next(found, "does not answer")
