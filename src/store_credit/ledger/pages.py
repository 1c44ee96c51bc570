"""Pages of lists: by a unique column, or by time first and then by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, RowMapping, Select, func, literal, select, tuple_

from store_credit import ids


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted."""

    limit: int = 10
    starting_after: str | int | None = None
    ending_before: str | int | None = None


def paged(
    connection: Connection,
    statement: Select[Any],
    cursor: Column[Any],
    page: Page,
    *,
    by: Column[Any] | None = None,
    newest_first: bool = True,
) -> tuple[Sequence[RowMapping], bool]:
    """One page of a statement, and whether more follow in that direction.

    It is ordered by a unique column, or `by` another one first, which is known of the cursor's row.
    """
    rows = list(connection.execute(cut(statement, cursor, page, by, newest_first)).mappings())
    more = len(rows) > page.limit
    rows = rows[: page.limit]
    return (rows[::-1] if page.ending_before is not None else rows), more


def cut(
    statement: Select[Any],
    cursor: Column[Any],
    page: Page,
    by: Column[Any] | None = None,
    newest_first: bool = True,
) -> Select[Any]:
    """The statement for the rows of a page and one more, in the page's direction."""
    for at, after in ((page.starting_after, True), (page.ending_before, False)):
        if at is not None:
            older = newest_first == after
            statement = statement.where(_beyond(cursor, at, by, older))
    descending = newest_first == (page.ending_before is None)
    order = [column for column in (by, cursor) if column is not None]
    ordered = statement.order_by(*(column.desc() if descending else column.asc() for column in order))
    return ordered.limit(page.limit + 1)


def _beyond(cursor: Column[Any], at: str | int, by: Column[Any] | None, older: bool) -> ColumnElement[bool]:
    if by is None:
        return cursor < at if older else cursor > at
    same = by.table.alias()
    known = select(same.c[by.name]).where(same.c[cursor.name] == at).scalar_subquery()
    # A row that is not there, or no more, would be where its id says.
    moment = func.coalesce(known, literal(ids.minted_at(str(at)), by.type))
    here, there = tuple_(by, cursor), tuple_(moment, at)
    return here < there if older else here > there
