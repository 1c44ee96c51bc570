"""The audit: silent on honest books, and naming the first bad entry on every kind of tampering."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
import tracemalloc
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.util import await_only

from store_credit.database import Database
from store_credit.ledger import audit as audit_module
from store_credit.ledger import journal
from store_credit.ledger.audit import Finding
from store_credit.ledger.commands import Command
from store_credit.ledger.digest import Digest, digest
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.state import Entry
from store_credit.ledger.tables import credit_line, ledger_entry
from tests.making import HOUR, Clock, authorize, deduct, issue, release


async def audit(database: Database, page: int = 500) -> list[Finding]:
    return await database.read(lambda connection: list(audit_module.audit(connection, page=page)))


async def execute(database: Database, *statements: str) -> None:
    def run(connection: Connection) -> None:
        for statement in statements:
            assert connection.execute(text(statement)).rowcount != 0, "the statement met no row"

    await database.write(run)


def random_command(dice: random.Random, count: int, lines: Sequence[str]) -> Command:
    upstream_id, session_id = dice.choice(lines), f"session-{dice.randrange(20)}"
    amount = str(dice.randrange(1, 40))
    match dice.randrange(6):
        case 0 | 1 | 2:
            return authorize(amount, session_id, upstream_id)
        case 3:
            return release(upstream_id)
        case 4:
            return deduct(amount, f"source-{count}", session_id, upstream_id)
        case _:
            return deduct(amount, f"source-{dice.randrange(count + 1)}", None, upstream_id)


async def trade(ledger: Ledger, clock: Clock, lines: Sequence[str], count: int) -> None:
    dice = random.Random(2026)
    for n, upstream_id in enumerate(lines):
        expires_at = clock.now + 50 * HOUR if n % 3 == 0 else None
        await ledger.execute(issue(dice.randrange(1, 200_00), upstream_id, expires_at=expires_at))
    for n in range(count):
        clock.advance(HOUR * dice.randrange(3))
        await ledger.execute(random_command(dice, n, lines))


@pytest.fixture
async def books(ledger: Ledger, database: Database) -> Database:
    """Books that can be tampered with: line a of five entries, line b of one."""
    await ledger.execute(issue(100_00, "a", line_id="cl_a"))
    await ledger.execute(issue(50_00, "b", line_id="cl_b"))
    await ledger.execute(authorize("10", "s", "a"))
    await ledger.execute(authorize("20", "t", "a"))
    await ledger.execute(deduct("10", "source-1", "s", "a"))
    await ledger.execute(deduct("5", "source-2", None, "a"))
    if database.dialect == "sqlite":
        names = ("update", "delete", "replace")
        await execute(database, *(f"DROP TRIGGER ledger_entry_no_{name}" for name in names))
    else:
        await execute(database, "DROP TRIGGER ledger_entry_append_only ON ledger_entry")
    return database


@pytest.fixture
async def lax(books: Database) -> Database:
    """The books without the foreign key of entries to lines."""
    if books.dialect == "postgresql":
        await execute(books, "ALTER TABLE ledger_entry DROP CONSTRAINT fk_ledger_entry_line_id")
    return books


@pytest.mark.parametrize("page", [1, 3, 500])
async def test_honest_books_have_no_findings(
    ledger: Ledger, database: Database, clock: Clock, page: int
) -> None:
    await trade(ledger, clock, [f"line-{n}" for n in range(7)], 150)

    assert await audit(database, page) == []


async def test_empty_books_have_no_findings(database: Database) -> None:
    assert await audit(database) == []


async def test_an_overdrawn_line_is_a_fact(ledger: Ledger, database: Database) -> None:
    await ledger.execute(issue(1_00))
    await ledger.execute(deduct("70"))

    assert await audit(database) == []


async def test_progress_is_told_line_by_line(books: Database) -> None:
    told: list[None] = []

    def run(connection: Connection) -> list[Finding]:
        return list(audit_module.audit(connection, page=1, on_line=lambda: told.append(None)))

    await books.read(run)

    assert len(told) == 2


async def test_an_audit_sees_one_moment(ledger: Ledger, database: Database) -> None:
    """What is booked meanwhile is no finding: here a third line is opened after the first was seen."""
    await ledger.execute(issue(upstream_id="a", line_id="cl_a"))
    await ledger.execute(issue(upstream_id="b", line_id="cl_b"))
    loop, seen = asyncio.get_running_loop(), 0

    def on_line() -> None:
        nonlocal seen
        seen += 1
        opening = ledger.execute(issue(upstream_id=f"c{seen}", line_id=f"cl_c{seen}"))
        if database.dialect == "sqlite":
            asyncio.run_coroutine_threadsafe(opening, loop).result()
        else:
            await_only(opening)

    found = await database.read(lambda c: list(audit_module.audit(c, page=1, on_line=on_line)))

    assert (found, seen) == ([], 2)


@pytest.mark.parametrize(
    ("sql", "seq", "problem"),
    [
        ("UPDATE ledger_entry SET amount = 1 WHERE line_id = 'cl_a' AND seq = 1", 1, "sum of the amounts"),
        (
            "UPDATE ledger_entry SET balance_after = 1 WHERE line_id = 'cl_a' AND seq = 3",
            3,
            "balance_after",
        ),
        ("UPDATE ledger_entry SET held = 1 WHERE line_id = 'cl_a' AND seq = 2", 2, "sum of what is held"),
        ("UPDATE ledger_entry SET held_after = 1 WHERE line_id = 'cl_a' AND seq = 3", 3, "held_after"),
        ("UPDATE ledger_entry SET reason = 'x' WHERE line_id = 'cl_a' AND seq = 4", 4, "was changed"),
        ("UPDATE ledger_entry SET actor = 'x' WHERE line_id = 'cl_a' AND seq = 5", 5, "was changed"),
        ("UPDATE ledger_entry SET kind = 'x' WHERE line_id = 'cl_a' AND seq = 2", 2, "was changed"),
        ("UPDATE ledger_entry SET hash = 'x' WHERE line_id = 'cl_a' AND seq = 2", 2, "was changed"),
        (
            "UPDATE ledger_entry SET previous_hash = 'x' WHERE line_id = 'cl_a' AND seq = 2",
            2,
            "hash of the",
        ),
        ("DELETE FROM ledger_entry WHERE line_id = 'cl_a' AND seq = 2", 3, "Entry 2 is missing"),
        ("DELETE FROM ledger_entry WHERE line_id = 'cl_a' AND seq = 1", 2, "Entry 1 is missing"),
        ("UPDATE ledger_entry SET seq = 9 WHERE line_id = 'cl_a' AND seq = 5", 9, "Entry 5 is missing"),
    ],
)
async def test_a_bad_entry_is_named(books: Database, sql: str, seq: int, problem: str) -> None:
    await execute(books, sql)

    first = (await audit(books))[0]

    assert (first.line_id, first.seq) == ("cl_a", seq)
    assert problem in first.problem


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("UPDATE credit_line SET balance = balance + 1 WHERE id = 'cl_b'", "balance is 5001"),
        ("UPDATE credit_line SET held = 1 WHERE id = 'cl_b'", "held is 1"),
        ("UPDATE credit_line SET written_off = 1 WHERE id = 'cl_b'", "written_off is 1"),
        ("UPDATE credit_line SET seq = 2 WHERE id = 'cl_b'", "seq is 2"),
        ("UPDATE credit_line SET head_hash = 'x' WHERE id = 'cl_b'", "head_hash is x"),
        (
            "UPDATE credit_line SET last_entry_at = '2001-01-01 00:00:00' WHERE id = 'cl_b'",
            "last_entry_at is 2001-01-01",
        ),
        ("DELETE FROM ledger_entry WHERE line_id = 'cl_b'", "no entries"),
    ],
)
async def test_a_line_that_says_something_else_is_named(books: Database, sql: str, problem: str) -> None:
    await execute(books, sql)

    (finding,) = await audit(books)

    assert (finding.line_id, finding.seq) == ("cl_b", None)
    assert problem in finding.problem


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE hold SET amount = amount + 1 WHERE state = 'open'",
        "UPDATE hold SET state = 'released' WHERE state = 'open'",
        "UPDATE hold SET state = 'open' WHERE state = 'consumed'",
        "DELETE FROM hold WHERE state = 'open'",
    ],
)
async def test_open_holds_that_do_not_add_up_are_named(books: Database, sql: str) -> None:
    await execute(books, sql)

    (finding,) = await audit(books)

    assert (finding.line_id, finding.seq) == ("cl_a", None)
    assert "open holds" in finding.problem


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE deduction SET amount = amount + 1 WHERE source_id = 'source-2'",
        "UPDATE deduction SET returned = 1 WHERE source_id = 'source-2'",
        "DELETE FROM deduction WHERE source_id = 'source-2'",
    ],
)
async def test_a_deduction_that_differs_from_its_entry_is_named(books: Database, sql: str) -> None:
    await execute(books, sql)

    (finding,) = await audit(books)

    assert (finding.line_id, finding.seq) == ("cl_a", 5)
    assert "eduction" in finding.problem


async def test_a_deduction_without_an_entry_is_named(books: Database) -> None:
    await execute(
        books,
        "INSERT INTO deduction SELECT 'ded_new', line_id, 'source-3', upstream_id, order_id, session_id,"
        " amount, returned, created_at FROM deduction WHERE source_id = 'source-2'",
    )

    (finding,) = await audit(books)

    assert finding.seq is None
    assert "ded_new" in finding.problem


async def test_a_forged_last_entry_with_a_right_hash_does_not_agree_with_its_line(books: Database) -> None:
    def forge(connection: Connection) -> None:
        last = (ledger_entry.c.line_id == "cl_b") & (ledger_entry.c.seq == 1)
        row = connection.execute(ledger_entry.select().where(last)).one()
        changed = {"amount": 60_00, "balance_after": 60_00}
        forged = Entry(**{**row._mapping, **changed})
        values = {**changed, "hash": journal.entry_hash(forged)}
        connection.execute(ledger_entry.update().where(last).values(values))

    await books.write(forge)

    problems = [finding.problem for finding in await audit(books)]
    assert any("balance is 5000" in problem for problem in problems)
    assert any("head_hash" in problem for problem in problems)


@pytest.mark.parametrize("line_id", ["cl_0", "cl_aa", "cl_z"])
@pytest.mark.parametrize("page", [1, 500])
async def test_entries_without_a_line_are_named(lax: Database, line_id: str, page: int) -> None:
    def stray(connection: Connection) -> None:
        row = connection.execute(ledger_entry.select().where(ledger_entry.c.line_id == "cl_b")).one()
        connection.execute(ledger_entry.insert().values({**row._mapping, "line_id": line_id}))

    if lax.dialect == "sqlite":
        await _without_foreign_keys(lax, stray)
    else:
        await lax.write(stray)

    (finding,) = await audit(lax, page)

    assert finding == Finding(line_id, None, "There are entries of this line, but no such line.")


async def _without_foreign_keys(database: Any, function: Any) -> None:
    """The pragma counts only outside a transaction, so that it needs the engine itself."""
    await database.write(lambda _: None)
    database._writing.connection.execute("PRAGMA foreign_keys = OFF")
    await database.write(function)


async def test_findings_of_several_lines_come_line_by_line(books: Database) -> None:
    await execute(
        books,
        "UPDATE credit_line SET balance = balance + 1",
        "UPDATE ledger_entry SET actor = 'x' WHERE seq = 1",
    )

    found = [(finding.line_id, finding.seq) for finding in await audit(books, page=1)]

    assert found == [("cl_a", 1), ("cl_a", None), ("cl_b", 1), ("cl_b", None)]


# The digest of all heads, which is kept elsewhere


async def digest_of(database: Database, as_of: datetime | None = None, page: int = 500) -> Digest:
    return await database.read(digest, as_of, page=page)


async def test_the_digest_is_what_it_says(books: Database) -> None:
    def heads(connection: Connection) -> list[str]:
        rows = connection.execute(text("SELECT id, seq, head_hash FROM credit_line ORDER BY id"))
        return [f"{row.id} {row.seq} {row.head_hash}\n" for row in rows]

    expected = hashlib.sha256("".join(await books.read(heads)).encode()).hexdigest()

    assert [(await digest_of(books, page=page)).sha256 for page in (1, 2, 500)] == [expected] * 3


async def test_the_digest_of_a_past_instant_comes_out_for_ever(
    ledger: Ledger, database: Database, clock: Clock
) -> None:
    lines = [f"line-{n}" for n in range(7)]
    await trade(ledger, clock, lines, 40)
    kept = await digest_of(database)
    assert kept.newest is not None
    clock.advance(HOUR)
    await ledger.execute(issue(upstream_id="later", line_id="cl_0"), authorize("0.01", "s", lines[0]))
    await ledger.execute(deduct("1", "a-source", None, lines[1]))

    assert (await digest_of(database)).sha256 != kept.sha256
    for page in (1, 3, 500):
        assert await digest_of(database, kept.newest, page) == kept


async def test_no_lines_have_a_digest_too(database: Database) -> None:
    assert await digest_of(database) == Digest(hashlib.sha256().hexdigest(), 0, None)


async def cut_off(books: Database) -> None:
    """Take the last entry of line a away, and make all else agree: no audit could tell."""
    await execute(
        books,
        "DELETE FROM deduction WHERE source_id = 'source-2'",
        "DELETE FROM ledger_entry WHERE line_id = 'cl_a' AND seq = 5",
        "UPDATE credit_line SET (balance, seq, head_hash, last_entry_at) ="
        " (SELECT balance_after, seq, hash, created_at FROM ledger_entry"
        " WHERE line_id = 'cl_a' AND seq = 4) WHERE id = 'cl_a'",
    )


async def forge(books: Database) -> None:
    """Change the only entry of line b, hash it anew, and make the line agree."""

    def work(connection: Connection) -> None:
        only = ledger_entry.c.line_id == "cl_b"
        row = connection.execute(ledger_entry.select().where(only)).one()
        values = {"amount": 60_00, "balance_after": 60_00}
        values["hash"] = journal.entry_hash(Entry(**{**row._mapping, **values}))
        connection.execute(ledger_entry.update().where(only).values(values))
        line = {"balance": 60_00, "head_hash": values["hash"]}
        connection.execute(credit_line.update().where(credit_line.c.id == "cl_b").values(line))

    await books.write(work)


async def remove(books: Database) -> None:
    """Take line b away with all that it had."""
    await execute(books, "DELETE FROM ledger_entry WHERE line_id = 'cl_b'")
    await execute(books, "DELETE FROM credit_line WHERE id = 'cl_b'")


@pytest.mark.parametrize("tamper", [cut_off, forge, remove])
async def test_what_no_audit_can_find_changes_the_digest(
    books: Database, tamper: Any, clock: Clock
) -> None:
    kept = await digest_of(books)

    await tamper(books)

    assert await audit(books) == [], "the books agree with themselves"
    assert (await digest_of(books, kept.newest)).sha256 != kept.sha256


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_memory_stays_bounded(ledger: Ledger, database: Database) -> None:
    """Four times the lines, and as much memory: what an audit holds at once is a page."""
    peaks = []
    # A service in this process may have told the collector to come seldom.
    gc.set_threshold(700, 10, 10)
    for first, size in ((0, 1), (400, 3)):
        for n in range(first, first + 400 * size):
            await ledger.execute(issue(1_00, f"line-{n}", line_id=f"cl_{n:06}"))
        await audit_and_digest(database)  # What is loaded once does not count.
        tracemalloc.start()
        await audit_and_digest(database)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < 1.5 * peaks[0]


async def audit_and_digest(database: Database) -> None:
    def run(connection: Connection) -> None:
        assert sum(1 for _ in audit_module.audit(connection, page=100)) == 0
        digest(connection, page=100)

    await database.read(run)
