"""Writing records of several tables at once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import select, text

from store_credit import bulk
from store_credit.bulk import Record
from store_credit.database import Database
from store_credit.ledger.tables import claim, ledger_batch, source

AT = datetime(2026, 2, 1, 12, 0, 0, 123456, tzinfo=UTC)


async def written(database: Database, *records: Record) -> list[tuple[object, ...]]:
    await database.write(bulk.write, records)
    rows = await database.read(lambda connection: connection.execute(select(source).order_by("id")).all())
    return [tuple(row) for row in rows]


def told(source_id: str, what: str | None = "new") -> Record:
    return source, {"id": source_id, "told": what}, "update"


async def test_tables_are_written_in_the_order_in_which_they_first_appear(database: Database) -> None:
    """An update finds what was inserted before it, though both are written together with others."""
    found = await written(
        database,
        (source, {"id": "a"}, "refuse"),
        (ledger_batch, {"id": "batch-1", "created_at": AT}, "refuse"),
        told("a"),
    )

    assert found == [("a", "new", None, None)]


async def test_of_two_changes_of_one_row_the_last_counts(database: Database) -> None:
    records = [told("a", "first"), told("b"), told("a", None), told("a", "last")]
    found = await written(database, *((source, {"id": name}, "refuse") for name in "ab"), *records)

    assert found == [("a", "last", None, None), ("b", "new", None, None)]


async def test_a_row_is_changed_after_it_was_inserted_though_others_were_changed_before(
    database: Database,
) -> None:
    known = (source, {"id": "a"}, "refuse")
    await written(database, known)
    parked = (source, {"id": "a", "order_id": "order-a"}, "update")

    found = await written(
        database, told("a"), (source, {"id": "b"}, "skip"), told("b"), parked, told("a", "at last")
    )

    assert found == [("a", "at last", "order-a", None), ("b", "new", None, None)]


async def test_values_come_back_as_they_were(database: Database) -> None:
    """What JSON would escape, times to the microsecond, large numbers, and nothing at all."""
    strange = "\x01\x1f\"\\/\u2028\U0001f600 ' :name $1 {} null"
    row = {"id": strange, "told": None, "order_id": strange, "parked_at": AT}
    assert await written(database, (source, row, "refuse")) == [(strange, None, strange, AT)]


async def test_a_row_that_is_there_is_refused_skipped_or_replaced(database: Database) -> None:
    row = {"key": "event:1", "fingerprint": "f", "answer": "first", "created_at": AT}
    again = row | {"answer": "second"}
    answers = text("SELECT answer FROM claim")

    async def answer() -> list[str]:
        return await database.read(lambda connection: list(connection.scalars(answers)))

    await database.write(bulk.write, [(claim, row, "refuse"), (claim, again, "skip")])
    assert await answer() == ["first"]
    await database.write(bulk.write, [(claim, again, "replace"), (source, {"id": "a"}, "skip")])
    assert await answer() == ["second"]
    with pytest.raises(Exception, match=r"(?i)unique"):
        await database.write(bulk.write, [(source, {"id": "b"}, "refuse"), (claim, row, "refuse")])
    assert await written(database) == [("a", None, None, None)], "one refused row refuses them all"
