"""The ledger's prepared statements: written once, prepared once per connection, run by the thousand.

They are text for the driver itself, because building an expression costs more than running it.
`= ANY(:name)` takes a list. SQLite has neither arrays nor row locks: there a list of texts travels as
JSON, one of bytes as so many parameters, and `FOR UPDATE` falls away, as the one writer's lock serves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import Boolean, Column, ColumnElement, Connection, null

from store_credit.ledger.tables import (
    claim,
    credit_line,
    deduction,
    hold,
    ledger_batch,
    offer,
    source,
)
from store_credit.metadata import Moment, sqlite_time

Parameters = Mapping[str, Any]

PADDED_MAX = 1_024
"""Up to so many bytes parameters, their number is rounded up, so that SQLite has few texts to prepare."""

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
        found = connection.exec_driver_sql(*self._for_sqlite(parameters))
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


@cache
def _joined(queries: tuple[Query, ...]) -> tuple[str, list[tuple[int, str]]]:
    """One statement for several queries, and which parameter of which query each number stands for."""
    parameters: list[tuple[int, str]] = []
    parts = []
    for number, query in enumerate(queries):
        sql, names = _numbered(query.postgresql, len(parameters) + 1)
        parts.append(f"SELECT {number}, to_json(found) FROM ({sql}) AS found")
        parameters += [(number, name) for name in names]
    return " UNION ALL ".join(parts), parameters


@cache
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


def _names(columns: Sequence[Column[Any]]) -> str:
    return ", ".join(column.name for column in columns)


_BY_INDEX = ", ".join(
    f"set_config('{way}', 'off', true)" for way in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")
)
"""Until the transaction ends: a transaction names its rows, and looks them up by an index, also while
PostgreSQL knows nothing of its tables' sizes yet."""

START_BATCH = Query(
    "INSERT INTO ledger_batch (id, created_at)"
    " VALUES (:id, coalesce(CAST(:created_at AS timestamptz), clock_timestamp()))"
    f" ON CONFLICT DO NOTHING RETURNING created_at, {_BY_INDEX}",
    [ledger_batch.c.created_at],
    sqlite="INSERT INTO ledger_batch (id, created_at) VALUES (:id, :created_at)"
    " ON CONFLICT DO NOTHING RETURNING created_at",
)

# The update changes nothing: it makes a row that is there, in its newest version, locked and returned.
_LOCK_SOURCES = (
    "INSERT INTO source (id) SELECT {ids} ON CONFLICT (id) DO UPDATE SET id = excluded.id"
    " RETURNING id, told, order_id, parked_at"
)

LOCK_SOURCES = Query(
    _LOCK_SOURCES.format(ids="unnest(:ids)"),
    [source.c.id, source.c.told, source.c.order_id, source.c.parked_at],
    {"ids": "text"},
    sqlite=_LOCK_SOURCES.format(ids="value FROM json_each(:ids) WHERE true"),
)

_DEDUCTION = [
    deduction.c.id,
    deduction.c.line_id,
    deduction.c.source_id,
    deduction.c.upstream_id,
    deduction.c.order_id,
    deduction.c.session_id,
    deduction.c.amount,
    deduction.c.returned,
    deduction.c.created_at,
]
"""In the order of the fields of `state.Deduction`."""

DEDUCTIONS = Query(
    f"SELECT {_names(_DEDUCTION)} FROM deduction WHERE source_id = ANY(:ids)",
    _DEDUCTION,
    {"ids": "text"},
)

_LINE = [
    credit_line.c.id,
    credit_line.c.upstream_id,
    credit_line.c.currency,
    credit_line.c.status,
    credit_line.c.balance,
    credit_line.c.held,
    credit_line.c.written_off,
    credit_line.c.seq,
    credit_line.c.head_hash,
    credit_line.c.last_entry_at,
    credit_line.c.expires_at,
    credit_line.c.allow_partial,
    credit_line.c.flags,
]
"""In the order of the fields of `state.Line`."""

_LOCKED_LINES = (
    f"SELECT {_names(_LINE)} FROM credit_line"
    " WHERE upstream_key = ANY(:keys) OR id = ANY(:ids) ORDER BY id FOR UPDATE"
)

LINES = Query(
    # The outer part runs after each row was locked: its clock is later than any wait for a lock.
    f"WITH locked AS MATERIALIZED ({_LOCKED_LINES}) SELECT {_names(_LINE)}, clock_timestamp() FROM locked",
    [*_LINE, null()],
    {"keys": "bytea", "ids": "text"},
    sqlite=f"SELECT {_names(_LINE)}, NULL FROM credit_line"
    " WHERE upstream_key = ANY(:keys) OR id = ANY(:ids)",
)

_HOLD = [
    hold.c.id,
    hold.c.line_id,
    hold.c.session_id,
    hold.c.upstream_id,
    hold.c.amount,
    hold.c.state,
    hold.c.created_at,
    hold.c.expires_at,
    hold.c.session_upstream_id,
]
"""In the order of the fields of `state.Hold`; an open hold has no more."""

# A new database does not know its tables' sizes yet, and PostgreSQL then takes any index of the open holds
# for a short one. So the statements below leave it no index but the right one: they name rows by equality,
# one after the other, or hide by "IS TRUE" that only open holds are meant.

DUE_HOLDS = Query(
    f"SELECT {_names(_HOLD)} FROM hold"
    " WHERE state = 'open' AND line_id = ANY(:line_ids) AND expires_at <= :now LIMIT :most",
    _HOLD,
    {"line_ids": "text"},
)

OVERDUE = Query(
    "SELECT line_id, CAST(sum(amount) AS bigint) FROM hold"
    " WHERE state = 'open' AND line_id = ANY(:line_ids) AND expires_at <= :now GROUP BY line_id",
    [hold.c.line_id, hold.c.amount],
    {"line_ids": "text"},
)

_OFFER = [
    offer.c.upstream_id,
    offer.c.line_id,
    offer.c.amount,
    offer.c.expires_at,
    offer.c.session_id,
    offer.c.spent_at,
]
"""In the order of the fields of `offers.Offer`."""

OFFERS = Query(
    f"SELECT {_names(_OFFER)} FROM offer WHERE upstream_id = ANY(:ids)",
    _OFFER,
    {"ids": "text"},
)

SESSION_HOLDS = Query(
    # By session alone, of which each has few.
    f"SELECT {_names(_HOLD)} FROM hold WHERE session_id = ANY(:session_ids) AND (state = 'open') IS TRUE",
    _HOLD,
    {"session_ids": "text"},
)

_RELEASABLE = "state = 'open' AND (expires_at > :now) IS TRUE"

RELEASED_HOLDS = Query(
    f"SELECT held.* FROM unnest(:keys) AS named (key) CROSS JOIN LATERAL"
    f" (SELECT {_names(_HOLD)} FROM hold WHERE upstream_key = named.key AND {_RELEASABLE}"
    " ORDER BY id LIMIT :most) AS held",
    _HOLD,
    {"keys": "bytea"},
    sqlite=f"SELECT {_names(_HOLD)} FROM"
    " (SELECT hold.*, row_number() OVER (PARTITION BY upstream_key ORDER BY id) AS place"
    f" FROM hold WHERE upstream_key = ANY(:keys) AND {_RELEASABLE}) AS numbered WHERE place <= :most",
)

HOLDS_BY_ID = Query(
    f"SELECT {_names(_HOLD)} FROM hold WHERE id = ANY(:ids) AND (state = 'open') IS TRUE",
    _HOLD,
    {"ids": "text"},
)

COMPLETED_SESSIONS = Query(
    "SELECT line_id, session_id FROM deduction WHERE session_id = ANY(:session_ids)",
    [deduction.c.line_id, deduction.c.session_id],
    {"session_ids": "text"},
)

PLAN_ONCE = Query(
    # What is left of the transaction only writes by primary keys: one plan serves for ever, also for the
    # checks of foreign keys. To make plans anew each time would take a third of PostgreSQL's time.
    "SELECT set_config('plan_cache_mode', 'force_generic_plan', true)",
    [null()],
    sqlite="SELECT NULL",
)

CLAIMS = Query(
    "SELECT key, fingerprint, answer FROM claim WHERE key = ANY(:keys)",
    [claim.c.key, claim.c.fingerprint, claim.c.answer],
    {"keys": "text"},
)
