"""What is known of a statement that commits by itself, when it failed."""

from __future__ import annotations

import asyncpg
import pytest

from store_credit.failures import is_undone


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.UniqueViolationError("a name is taken"),
        asyncpg.LockNotAvailableError("locked"),
        asyncpg.SerializationError("in each other's way"),
        asyncpg.DeadlockDetectedError("in each other's way"),
        asyncpg.QueryCanceledError("took too long"),
        asyncpg.UndefinedTableError("no such table"),
        asyncpg.DataError("no value"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_has_certainly_left_nothing(error: Exception) -> None:
    assert is_undone(error)


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.StatementCompletionUnknownError("who knows"),
        asyncpg.ConnectionDoesNotExistError("lost"),
        asyncpg.AdminShutdownError("going down"),
        asyncpg.ReadOnlySQLTransactionError("after a failover"),
        asyncpg.DiskFullError("no space left"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 11"),
        ConnectionResetError("reset by peer"),
        TimeoutError("no answer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_have_happened(error: Exception) -> None:
    assert not is_undone(error)
