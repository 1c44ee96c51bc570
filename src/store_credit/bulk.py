"""Writing rows of several tables with as few statements as can be.

On PostgreSQL the rows of a table travel as one JSON document and become rows of the table's own type
there; all tables together are one statement: one round trip, whatever the number of rows. On SQLite,
where there is no trip, the driver repeats a statement for each table's rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, Table

from store_credit import direct
from store_credit.metadata import Moment, sqlite_time

Row = dict[str, Any]
Conflict = Literal["refuse", "skip", "replace", "update"]
"""What becomes of a known primary key. With `update` nothing is inserted: the row of that key changes."""

Record = tuple[Table, Row, Conflict]
Statement = tuple[str, tuple[Any, ...]]
"""For the driver, with its values."""

_Shape = tuple[Table, Conflict, tuple[str, ...]]
_Group = tuple[_Shape, list[Row]]


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions, PostgreSQL's `xmin`, in which some rows of a table were read, by their primary keys."""

    table: Table
    of: Mapping[str, str]


def write(connection: Connection, records: Iterable[Record]) -> None:
    """Write the records: those of one table and kind together, in the order in which these first appear.

    Those of one row keep their order; of several that change the same columns of it, the last counts.
    """
    groups = _grouped(records)
    if connection.dialect.name == "postgresql":
        for together in _statements(groups):
            values = tuple(value for _, rows in together for value in (_encode(rows), len(rows)))
            connection.exec_driver_sql(_combined(tuple(shape for shape, _ in together)), values)
    else:
        for shape, rows in groups:
            direct.repeat(connection, _repeated(*shape), _parameters(*shape, rows))


def if_unchanged(
    first: Iterable[Record], versions: Versions, records: Iterable[Record]
) -> Statement | None:
    """The statement of PostgreSQL that writes the records if the rows still have these versions.

    It needs no transaction around it, and tells in one row whether that was so: what comes `first` is
    written in any case, then the rows are locked in the order of their keys and looked at. A row that
    somebody else has locked counts as changed, and is not waited for. None when the records take more than
    one statement.
    """
    before, after = _grouped(first), _grouped(records)
    groups = [*before, *after]
    if len(_statements(groups)) > 1:
        return None
    keys = sorted(versions.of)
    values: list[Any] = [value for _, rows in groups for value in (_encode(rows), len(rows))]
    values += [keys, [versions.of[key] for key in keys]]
    shapes = tuple(shape for shape, _ in groups)
    return _guarded(shapes, len(before), versions.table), tuple(values)


def _grouped(records: Iterable[Record]) -> list[_Group]:
    groups: list[tuple[_Shape, dict[object, Row]]] = []
    newest: dict[_Shape, int] = {}
    # The group in which each row was last written: what follows must not come before it.
    written: dict[tuple[Table, object], int] = {}
    for table, row, conflict in records:
        shape = (table, conflict, tuple(row))
        name = _only_key(table)
        key = row[name] if name is not None else None
        place = newest.get(shape, -1)
        if place < written.get((table, key), 0):
            place = newest[shape] = len(groups)
            groups.append((shape, {}))
        written[table, key] = place
        rows = groups[place][1]
        rows[key if conflict in ("update", "replace") else len(rows)] = row
    return [(shape, list(rows.values())) for shape, rows in groups]


def _statements(groups: Iterable[_Group]) -> list[list[_Group]]:
    """Groups that can share a statement, whose parts do not see each other's rows: a table comes once."""
    statements: list[list[_Group]] = []
    tables: set[Table] = set()
    for shape, rows in groups:
        if not statements or shape[0] in tables:
            statements.append([])
            tables.clear()
        statements[-1].append((shape, rows))
        tables.add(shape[0])
    return statements


@lru_cache(maxsize=256)
def _combined(shapes: tuple[_Shape, ...]) -> str:
    """One statement for all. Each part waits for the one before, so that locks are taken in this order."""
    parts = [
        _part(number, shape, _after(number - 1) if number > 1 else "true")
        for number, shape in enumerate(shapes, start=1)
    ]
    return f"WITH {', '.join(parts)} SELECT FROM w{len(parts)} LIMIT 0"


@lru_cache(maxsize=256)
def _guarded(shapes: tuple[_Shape, ...], before: int, table: Table) -> str:
    """One statement for all, of which the parts after those `before` write nothing unless all rows of the
    table have the versions that are named by the last two values."""
    keys, seen = 2 * len(shapes) + 1, 2 * len(shapes) + 2
    key, given = f"{table.name}.{_key(table)}", f"CAST(${keys} AS text[])"
    named = f"unnest({given}, CAST(${seen} AS text[])) AS v (key, seen)"
    parts = [
        _part(number, shape, _after(number - 1) if number > 1 else "true")
        for number, shape in enumerate(shapes[:before], start=1)
    ]
    parts.append(
        f"locked AS MATERIALIZED (SELECT {table.name}.xmin::text = v.seen AS is_same"
        f" FROM {named} JOIN {table.name} ON {key} = v.key"
        f" WHERE {_after(before) if before else 'true'} ORDER BY {key}"
        f" FOR NO KEY UPDATE OF {table.name} SKIP LOCKED)"
    )
    parts.append(
        "guard AS MATERIALIZED"
        f" (SELECT count(*) FILTER (WHERE is_same) = cardinality({given}) AS is_same FROM locked)"
    )
    for number, shape in enumerate(shapes[before:], start=before + 1):
        after = f" AND {_after(number - 1)}" if number > before + 1 else ""
        parts.append(_part(number, shape, f"(SELECT is_same FROM guard){after}"))
    return f"WITH {', '.join(parts)} SELECT is_same FROM guard"


def _after(number: int) -> str:
    """The condition that a part of the statement is done."""
    return f"(SELECT count(*) FROM w{number}) >= 0"


def _part(number: int, shape: _Shape, condition: str) -> str:
    """Writing one group, whose rows and their number are two values of the statement.

    The limit limits nothing: it tells the planner how few rows there are.
    """
    table, conflict, names = shape
    document, count = f"${2 * number - 1}", f"${2 * number}"
    rows = f"(SELECT * FROM json_populate_recordset(NULL::{table.name}, {document}) LIMIT {count}) AS v"
    if conflict == "update":
        sets = ", ".join(f"{name} = v.{name}" for name in _replaced(table, names))
        same = f"{table.name}.{_key(table)} = v.{_key(table)}"
        change = f"UPDATE {table.name} SET {sets} FROM {rows} WHERE {same} AND {condition}"
    else:
        columns = ", ".join(names)
        change = f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {rows} WHERE {condition}"
        change += _on_conflict(table, names, conflict)
    return f"w{number} AS ({change} RETURNING 1)"


@cache
def _repeated(table: Table, conflict: Conflict, names: tuple[str, ...]) -> str:
    if conflict == "update":
        sets = ", ".join(f"{name} = ?" for name in _replaced(table, names))
        return f"UPDATE {table.name} SET {sets} WHERE {_key(table)} = ?"
    marks = ", ".join("?" for _ in names)
    insert = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks})"
    return insert + _on_conflict(table, names, conflict)


def _on_conflict(table: Table, names: tuple[str, ...], conflict: Conflict) -> str:
    if conflict == "skip":
        return " ON CONFLICT DO NOTHING"
    if conflict == "refuse":
        return ""
    sets = ", ".join(f"{name} = excluded.{name}" for name in _replaced(table, names))
    return f" ON CONFLICT ({_key(table)}) DO UPDATE SET {sets}"


def _key(table: Table) -> str:
    """The primary key of a table whose rows can change."""
    name = _only_key(table)
    assert name is not None, "rows that can change have one column as their key"
    return name


@cache
def _only_key(table: Table) -> str | None:
    """The column that is the primary key, if it is one column."""
    columns = list(table.primary_key.columns)
    return str(columns[0].name) if len(columns) == 1 else None


def _replaced(table: Table, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name not in table.primary_key.columns]


def _encode(rows: Sequence[Row]) -> str:
    return orjson.dumps(rows, default=_for_postgresql).decode()


@lru_cache(maxsize=1_024)
def _for_postgresql(value: bytes) -> str:
    """Most rows of a transaction are of few lines."""
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    raise TypeError(f"{type(value).__name__} is no value of a column")


@cache
def _moments(table: Table, names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(i for i, name in enumerate(names) if isinstance(table.c[name].type, Moment))


def _parameters(
    table: Table, conflict: Conflict, names: tuple[str, ...], rows: Sequence[Row]
) -> list[tuple[Any, ...]]:
    """The rows for SQLite's own driver, times in the form in which the column type reads them."""
    if conflict == "update":
        # The key comes last and is not set: to set it, SQLite would look for all rows that refer to it.
        names = (*_replaced(table, names), _key(table))
    moments = _moments(table, names)
    found = []
    for row in rows:
        values = [row[name] for name in names]
        for i in moments:
            if values[i] is not None:
                values[i] = sqlite_time(values[i])
        found.append(tuple(values))
    return found
