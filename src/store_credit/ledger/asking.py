"""Statements that are written once in both dialects, and asking several of them at once.

They are text for the driver itself, because building an expression costs more than running it.
`= ANY(:name)` takes a list. SQLite has neither arrays nor row locks: there a list of texts travels as
JSON, one of bytes as so many parameters, and `FOR UPDATE` falls away, as the one writer's lock serves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any

import orjson
from sqlalchemy import Boolean, ColumnElement, Connection

from store_credit import direct
from store_credit.direct import Fetch
from store_credit.metadata import Moment, sqlite_time

Parameters = Mapping[str, Any]

PADDED_MAX = 1_024
"""Up to so many bytes parameters, their number is rounded up, so that SQLite has few texts to prepare."""

NOW = "coalesce(CAST(:clock AS timestamptz), now())"
"""The time that a statement of `ask_together` goes by: the one that is given, or PostgreSQL's own."""

_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")


class Query:
    """One statement in both dialects, with the types of its result."""

    def __init__(
        self,
        sql: str,
        columns: Sequence[ColumnElement[Any]],
        lists: Mapping[str, str] | None = None,
        sqlite: str | None = None,
    ) -> None:
        """`lists` gives the PostgreSQL element type of each list; `sqlite` is for where SQL differs."""
        self.lists = dict(lists or {})
        self.sqlite = sqlite if sqlite is not None else sql.replace("FOR UPDATE", "")
        for name, kind in self.lists.items():
            sql = sql.replace(f":{name}", f"CAST(:{name} AS {kind}[])")
            if kind == "text":
                values = f"IN (SELECT value FROM json_each(:{name}))"
                self.sqlite = self.sqlite.replace(f"= ANY(:{name})", values)
        self.postgresql = sql
        self._readers = [_reader(column) for column in columns]

    def rows(self, connection: Connection, **parameters: Any) -> list[Any]:
        if connection.dialect.name == "postgresql":
            sql, names = _numbered(self.postgresql)
            return list(connection.exec_driver_sql(sql, tuple(parameters[name] for name in names)))
        found = direct.rows(connection, *self._for_sqlite(parameters))
        return [self.typed(row) for row in found]

    def typed(self, row: Sequence[Any]) -> Sequence[Any]:
        """A row of plain values, as SQLite and JSON know them, in the types of the columns."""
        return [
            reader(value) if reader is not None and value is not None else value
            for reader, value in zip(self._readers, row, strict=True)
        ]

    def _for_sqlite(self, parameters: Parameters) -> tuple[str, tuple[Any, ...]]:
        values = {name: self._plain(name, value) for name, value in parameters.items()}
        sizes = tuple((name, len(value)) for name, value in values.items() if isinstance(value, list))
        sql, names = _marked(self.sqlite, sizes)
        given: list[Any] = []
        for name in names:
            given.extend(values[name] if isinstance(values[name], list) else [values[name]])
        return sql, tuple(given)

    def _plain(self, name: str, value: Any) -> Any:
        if isinstance(value, datetime):
            return sqlite_time(value)
        if self.lists.get(name) == "text":
            return json.dumps(value)
        return _padded(value) if name in self.lists else value


def ask(connection: Connection, questions: Mapping[Query, Parameters]) -> dict[Query, list[Any]]:
    """The rows of several queries; of PostgreSQL in one round trip, as JSON, since their columns differ."""
    if connection.dialect.name != "postgresql" or len(questions) < 2:
        return {query: query.rows(connection, **asked) for query, asked in questions.items()}
    queries = tuple(questions)
    sql, names = _joined(queries)
    values = tuple(questions[queries[number]][name] for number, name in names)
    found: dict[Query, list[Any]] = {query: [] for query in queries}
    for number, row in connection.exec_driver_sql(sql, values):
        query = queries[number]
        found[query].append(query.typed(list(row.values())))
    return found


async def ask_together(
    fetch: Fetch, shared: str, questions: Mapping[Query, Parameters], given: Parameters
) -> tuple[datetime, dict[Query, list[Any]]]:
    """The rows of several queries of PostgreSQL, of one snapshot, and the time when that was taken.

    `shared` is what they are asked with, in front of all: common table expressions. `given` is what that
    and the time need: with a `clock` that is not None, that one is the time.
    """
    queries = tuple(questions)
    sql, names = _documents(shared, queries)
    values = [(given if number < 0 else questions[queries[number]])[name] for number, name in names]
    now, *documents = await fetch(sql, *values)
    found = {
        query: [query.typed(list(one.values())) for one in orjson.loads(document)] if document else []
        for query, document in zip(queries, documents, strict=True)
    }
    return now, found


def _reader(column: ColumnElement[Any]) -> Callable[[Any], Any] | None:
    if isinstance(column.type, Moment):
        return _moment
    return bool if isinstance(column.type, Boolean) else None


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


@cache
def _numbered(sql: str, first: int = 1) -> tuple[str, list[str]]:
    """The statement with PostgreSQL's numbers for its parameters, and their names in that order."""
    names = list(dict.fromkeys(_PARAMETER.findall(sql)))
    return _PARAMETER.sub(lambda found: f"${names.index(found[1]) + first}", sql), names


@lru_cache(maxsize=256)
def _joined(queries: tuple[Query, ...]) -> tuple[str, list[tuple[int, str]]]:
    """One statement for several queries, and which parameter of which query each number stands for."""
    parameters: list[tuple[int, str]] = []
    parts = []
    for number, query in enumerate(queries):
        sql, names = _numbered(query.postgresql, len(parameters) + 1)
        parts.append(f"SELECT {number}, to_json(found) FROM ({sql}) AS found")
        parameters += [(number, name) for name in names]
    return " UNION ALL ".join(parts), parameters


@lru_cache(maxsize=256)
def _documents(shared: str, queries: tuple[Query, ...]) -> tuple[str, list[tuple[int, str]]]:
    """One statement of one row: the time, and of each query a JSON document. -1 is what is shared."""
    sql, names = _numbered(f"{shared} SELECT {NOW}")
    parameters = [(-1, name) for name in names]
    for number, query in enumerate(queries):
        part, names = _numbered(query.postgresql, len(parameters) + 1)
        sql += f", CAST((SELECT json_agg(found) FROM ({part}) AS found) AS text)"
        parameters += [(number, name) for name in names]
    return sql, parameters


@lru_cache(maxsize=256)
def _marked(sql: str, sizes: tuple[tuple[str, int], ...]) -> tuple[str, list[str]]:
    """The statement with SQLite's marks, one for each value of a list of bytes, and the names in order."""
    names = _PARAMETER.findall(sql)
    for name, size in sizes:
        marks = ", ".join("?" for _ in range(size))
        sql = sql.replace(f"= ANY(:{name})", f"IN ({marks})")
    return _PARAMETER.sub("?", sql), names


def _padded(values: Sequence[bytes]) -> list[bytes]:
    """The values, the last one repeated up to the next power of two.

    Instead of none there is one that no key equals: for an empty list SQLite would read the whole table.
    """
    padded = list(values) or [b""]
    if len(padded) < PADDED_MAX:
        padded += padded[-1:] * ((1 << (len(padded) - 1).bit_length()) - len(padded))
    return padded
