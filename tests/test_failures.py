"""What is known of a statement that commits by itself, when it failed."""

from __future__ import annotations

import asyncpg
import pytest

from store_credit.failures import is_undone, leaves_session


def told(kind: type[asyncpg.PostgresError], severity: str = "ERROR") -> asyncpg.PostgresError:
    """An error as the server tells it."""
    error = kind("told by the server")
    error.severity_en = severity
    return error


@pytest.mark.parametrize(
    "error",
    [
        told(asyncpg.UniqueViolationError),
        told(asyncpg.LockNotAvailableError),
        told(asyncpg.SerializationError),
        told(asyncpg.QueryCanceledError),
        told(asyncpg.UndefinedTableError),
        told(asyncpg.RaiseError),
        told(asyncpg.DiskFullError),
        asyncpg.DataError("invalid input for query argument $1"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_has_certainly_left_nothing(error: Exception) -> None:
    assert is_undone(error)
    assert leaves_session(error)


@pytest.mark.parametrize(
    "error",
    [
        told(asyncpg.ReadOnlySQLTransactionError),
        told(asyncpg.InFailedSQLTransactionError),
        told(asyncpg.InvalidSQLStatementNameError),
        told(asyncpg.IndexCorruptedError),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_has_left_nothing_but_a_session_of_no_use(error: Exception) -> None:
    assert is_undone(error)
    assert not leaves_session(error)


@pytest.mark.parametrize(
    "error",
    [
        told(asyncpg.StatementCompletionUnknownError),
        told(asyncpg.AdminShutdownError, "FATAL"),
        told(asyncpg.CrashShutdownError, "PANIC"),
        told(asyncpg.ProtocolViolationError),
        asyncpg.ConnectionDoesNotExistError("lost"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 11"),
        ConnectionResetError("reset by peer"),
        TimeoutError("no answer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_have_happened(error: Exception) -> None:
    assert not is_undone(error)
    assert not leaves_session(error)
