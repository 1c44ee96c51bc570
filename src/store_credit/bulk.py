"""Writing many rows with one statement.

On PostgreSQL the rows travel as one array per column and are unnested there: one round trip and one
prepared statement, whatever their number. On SQLite the driver repeats the statement itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Integer,
    LargeBinary,
    Table,
    TextClause,
    text,
)

from store_credit.metadata import Moment, sqlite_time

Row = dict[str, Any]
Conflict = Literal["refuse", "skip", "replace", "update"]


def insert(
    connection: Connection, table: Table, rows: Sequence[Row], conflict: Conflict = "refuse"
) -> None:
    """Insert rows that all have the same keys. `conflict` says what becomes of a known primary key.

    With `update`, nothing is inserted: the row of that `id` gets the given columns.
    """
    if not rows:
        return
    if conflict == "update":
        update_by_id(connection, table, rows)
        return
    names = tuple(rows[0])
    if connection.dialect.name == "postgresql":
        connection.execute(_unnested_insert(table, names, conflict), _columns(names, rows))
    else:
        moments = _moments(table, names)
        plain = _plain_insert(table, names, conflict)
        connection.exec_driver_sql(plain, [tuple(_values(row, moments)) for row in rows])


def update_by_id(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Update rows by their `id`; all have the same keys."""
    if not rows:
        return
    names = tuple(rows[0])
    if connection.dialect.name == "postgresql":
        connection.execute(_unnested_update(table, names), _columns(names, rows))
    else:
        changed = tuple(_replaced(table, names))
        moments = _moments(table, changed)
        values = [_values({name: row[name] for name in changed}, moments) for row in rows]
        ids = [row["id"] for row in rows]
        connection.exec_driver_sql(
            _plain_update(table, names), [(*of_row, id_) for of_row, id_ in zip(values, ids, strict=True)]
        )


def insert_grouped(connection: Connection, rows: Iterable[tuple[Table, Row, Conflict]]) -> None:
    """Insert rows of several tables, each table's rows together, in order of first appearance."""
    groups: dict[tuple[Table, Conflict, tuple[str, ...]], list[Row]] = {}
    for table, row, conflict in rows:
        groups.setdefault((table, conflict, tuple(row)), []).append(row)
    for (table, conflict, _), group in groups.items():
        insert(connection, table, group, conflict)


def _columns(names: tuple[str, ...], rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The rows turned into one list a column, as parameters; all have their keys in the same order."""
    columns = zip(*(row.values() for row in rows), strict=True)
    return {f"v_{name}": list(column) for name, column in zip(names, columns, strict=True)}


def _unnest(table: Table, names: tuple[str, ...]) -> str:
    return ", ".join(f"CAST(:v_{name} AS {_array_type(table, name)}[])" for name in names)


def _array_type(table: Table, name: str) -> str:
    kind = table.c[name].type
    if isinstance(kind, BigInteger):
        return "bigint"
    if isinstance(kind, Moment):
        return "timestamptz"
    if isinstance(kind, Boolean):
        return "boolean"
    if isinstance(kind, Integer):
        return "integer"
    return "bytea" if isinstance(kind, LargeBinary) else "text"


def _replaced(table: Table, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name not in table.primary_key.columns]


def _on_conflict(table: Table, names: tuple[str, ...], conflict: Conflict) -> str:
    if conflict == "skip":
        return " ON CONFLICT DO NOTHING"
    if conflict == "refuse":
        return ""
    key = ", ".join(column.name for column in table.primary_key.columns)
    sets = ", ".join(f"{name} = excluded.{name}" for name in _replaced(table, names))
    return f" ON CONFLICT ({key}) DO UPDATE SET {sets}"


@cache
def _moments(table: Table, names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(i for i, name in enumerate(names) if isinstance(table.c[name].type, Moment))


def _values(row: Row, moments: tuple[int, ...]) -> list[Any]:
    """A row for SQLite's own driver, times in the form in which the column type reads them."""
    values = list(row.values())
    for i in moments:
        if values[i] is not None:
            values[i] = sqlite_time(values[i])
    return values


@cache
def _unnested_insert(table: Table, names: tuple[str, ...], conflict: Conflict) -> TextClause:
    statement = (
        f"INSERT INTO {table.name} ({', '.join(names)}) SELECT * FROM unnest({_unnest(table, names)})"
    )
    return text(statement + _on_conflict(table, names, conflict))


@cache
def _plain_insert(table: Table, names: tuple[str, ...], conflict: Conflict) -> str:
    marks = ", ".join("?" for _ in names)
    statement = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks})"
    return statement + _on_conflict(table, names, conflict)


@cache
def _unnested_update(table: Table, names: tuple[str, ...]) -> TextClause:
    sets = ", ".join(f"{name} = v.{name}" for name in _replaced(table, names))
    return text(
        f"UPDATE {table.name} SET {sets} FROM unnest({_unnest(table, names)}) "
        f"AS v({', '.join(names)}) WHERE {table.name}.id = v.id"
    )


@cache
def _plain_update(table: Table, names: tuple[str, ...]) -> str:
    # Set anew, even to itself, the id would make SQLite look through all rows that refer to this one.
    sets = ", ".join(f"{name} = ?" for name in _replaced(table, names))
    return f"UPDATE {table.name} SET {sets} WHERE id = ?"
