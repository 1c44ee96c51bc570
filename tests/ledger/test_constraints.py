"""What the database itself refuses, whatever the code above it does."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from store_credit.database import Database
from store_credit.ledger.ledger import Ledger
from tests.making import authorize, deduct, issue


async def execute(database: Database, sql: str) -> None:
    def run(connection: Connection) -> Any:
        return connection.execute(text(sql)).rowcount

    assert await database.write(run) != 0, "the statement met no row: the test proves nothing"


@pytest.fixture
async def traded(ledger: Ledger, database: Database) -> Database:
    """A database with one line, two open holds, one consumed hold and one deduction."""
    await ledger.execute(issue(100_00))
    for session_id in ("a", "b", "c"):
        await ledger.execute(authorize("10", session_id))
    await ledger.execute(deduct("10", "source-1", "c"))
    return database


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE ledger_entry SET amount = amount + 1",
        "UPDATE ledger_entry SET reason = 'another' WHERE seq = 1",
        "DELETE FROM ledger_entry",
        "DELETE FROM ledger_entry WHERE seq = 5",
    ],
)
async def test_the_journal_is_append_only(traded: Database, sql: str) -> None:
    with pytest.raises(DBAPIError, match="append-only"):
        await execute(traded, sql)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_the_journal_can_not_be_emptied(traded: Database) -> None:
    for sql in ("TRUNCATE ledger_entry", "TRUNCATE credit_line CASCADE"):
        with pytest.raises(DBAPIError, match="append-only"):
            await execute(traded, sql)


async def test_no_entry_is_replaced(traded: Database) -> None:
    """SQLite's REPLACE deletes the row in the way without asking the trigger on DELETE."""
    columns = (
        "line_id, seq, kind, amount, held, balance_after, held_after,"
        " actor, created_at, previous_hash, hash"
    )
    changed = columns.replace("amount", "amount + 1")
    insert = "INSERT OR REPLACE" if traded.dialect == "sqlite" else "INSERT"
    conflict = "" if traded.dialect == "sqlite" else "ON CONFLICT (line_id, seq) DO UPDATE SET amount = 1"

    with pytest.raises(DBAPIError, match="append-only"):
        await execute(
            traded,
            f"{insert} INTO ledger_entry ({columns})"
            f" SELECT {changed} FROM ledger_entry WHERE seq = 1 {conflict}",
        )


ENTRY = "INSERT INTO ledger_entry SELECT line_id, {seq}, kind, amount, held, balance_after, {held_after},"
REST = " hold_id, deduction_id, event_id, actor, reason, idempotency_key, created_at, previous_hash, hash"
HOLD_AGAIN = (
    "INSERT INTO hold SELECT 'hold_new', line_id, {session_id}, session_upstream_id, upstream_id,"
    " upstream_key, amount, {state}, created_at, expires_at, ended_at, deduction_id"
    " FROM hold WHERE session_id = 'a'"
)
DEDUCTION_AGAIN = (
    "INSERT INTO deduction SELECT 'ded_new', {line_id}, {source_id}, upstream_id, order_id, session_id,"
    " amount, returned, created_at FROM deduction"
)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE credit_line SET held = -1",
        "UPDATE credit_line SET written_off = -1",
        "UPDATE credit_line SET status = 'unheard-of'",
        "UPDATE hold SET amount = 0",
        "UPDATE hold SET state = 'unheard-of'",
        "UPDATE hold SET session_id = 'a' WHERE session_id = 'b'",
        "UPDATE hold SET line_id = 'cl_unknown'",
        "UPDATE deduction SET amount = 0",
        "UPDATE deduction SET returned = -1",
        "UPDATE deduction SET returned = amount + 1",
        HOLD_AGAIN.format(session_id="session_id", state="state"),
        DEDUCTION_AGAIN.format(line_id="line_id", source_id="source_id"),
        DEDUCTION_AGAIN.format(line_id="'cl_unknown'", source_id="'source-2'"),
        ENTRY.format(seq="seq", held_after="held_after") + REST + " FROM ledger_entry WHERE seq = 1",
        ENTRY.format(seq="99", held_after="-1") + REST + " FROM ledger_entry WHERE seq = 1",
        ENTRY.format(seq="0", held_after="held_after") + REST + " FROM ledger_entry WHERE seq = 1",
    ],
)
async def test_what_must_not_be_is_refused(traded: Database, sql: str) -> None:
    with pytest.raises(DBAPIError) as refused:
        await execute(traded, sql)

    state = getattr(refused.value.orig, "sqlstate", None) or refused.value.orig.sqlite_errorname
    assert str(state).startswith(("23", "SQLITE_CONSTRAINT"))


@pytest.mark.parametrize(
    "sql",
    [
        HOLD_AGAIN.format(session_id="session_id", state="'released'"),
        HOLD_AGAIN.format(session_id="'another'", state="state"),
        DEDUCTION_AGAIN.format(line_id="line_id", source_id="'source-2'"),
        ENTRY.format(seq="99", held_after="0") + REST + " FROM ledger_entry WHERE seq = 1",
        "UPDATE credit_line SET balance = -1",
    ],
)
async def test_what_may_be_is_not_refused(traded: Database, sql: str) -> None:
    await execute(traded, sql)
