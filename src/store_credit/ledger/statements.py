"""The ledger's prepared statements: written once, compiled once per database, run by the thousand.

They are text because building an expression costs more than running it. `= ANY(:name)` takes a
list: an array on PostgreSQL, where the statement then is the same for any number of values, and an
`IN` list on SQLite, which has no row locks either: there `FOR UPDATE` falls away, and the one
writer's lock serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BindParameter, Column, ColumnElement, Connection, bindparam, null, text
from sqlalchemy.sql.selectable import TextualSelect

from store_credit.ledger.tables import (
    claim,
    credit_line,
    deduction,
    hold,
    ledger_batch,
    offer,
    source,
)
from store_credit.metadata import Moment


class Query:
    """One statement in both dialects, with the types of its result."""

    def __init__(
        self,
        sql: str,
        columns: Sequence[ColumnElement[Any]],
        lists: Mapping[str, str],
        sqlite: str | None = None,
    ) -> None:
        """`lists` gives the PostgreSQL element type of each list; `sqlite` is for where SQL differs."""
        portable = sqlite if sqlite is not None else sql.replace("FOR UPDATE", "")
        for name, kind in lists.items():
            sql = sql.replace(f"ANY(:{name})", f"ANY(CAST(:{name} AS {kind}[]))")
            portable = portable.replace(f"= ANY(:{name})", f"IN :{name}")
        expanding: list[BindParameter[Any]] = [
            bindparam(n, expanding=True) for n in lists if f"IN :{n}" in portable
        ]
        times = [bindparam(n, type_=Moment) for n in ("now", "created_at") if f":{n}" in portable]
        self._postgresql: TextualSelect = text(sql).columns(*columns)
        self._sqlite: TextualSelect = text(portable).bindparams(*expanding, *times).columns(*columns)

    def rows(self, connection: Connection, **parameters: Any) -> list[Any]:
        postgresql = connection.dialect.name == "postgresql"
        statement = self._postgresql if postgresql else self._sqlite
        return list(connection.execute(statement, parameters))


def _names(columns: Sequence[Column[Any]]) -> str:
    return ", ".join(column.name for column in columns)


START_BATCH = Query(
    "INSERT INTO ledger_batch (id, created_at)"
    " VALUES (:id, coalesce(CAST(:created_at AS timestamptz), clock_timestamp()))"
    " ON CONFLICT DO NOTHING RETURNING created_at",
    [ledger_batch.c.created_at],
    {},
    sqlite="INSERT INTO ledger_batch (id, created_at) VALUES (:id, :created_at)"
    " ON CONFLICT DO NOTHING RETURNING created_at",
)

LOCK_SOURCES = Query(
    "SELECT id, told, order_id, parked_at FROM source WHERE id = ANY(:ids) ORDER BY id FOR UPDATE",
    [source.c.id, source.c.told, source.c.order_id, source.c.parked_at],
    {"ids": "text"},
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

_OPEN_HOLDS = f"SELECT {_names(_HOLD)} FROM hold WHERE state = 'open'"

DUE_HOLDS = Query(
    f"{_OPEN_HOLDS} AND line_id = ANY(:line_ids) AND expires_at <= :now LIMIT :most",
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
    # By session alone, of which each has few: pairs of session and upstream id would be joined with all
    # open holds, on both databases.
    f"{_OPEN_HOLDS} AND session_id = ANY(:session_ids)",
    _HOLD,
    {"session_ids": "text"},
)

RELEASED_HOLDS = Query(
    # "IS TRUE" keeps PostgreSQL from the index by time, with the open holds of all lines: it knows the past
    # ones, and believes that hardly any lies in the future.
    f"SELECT {_names(_HOLD)} FROM"
    " (SELECT hold.*, row_number() OVER (PARTITION BY upstream_key ORDER BY id) AS place"
    " FROM hold WHERE state = 'open' AND upstream_key = ANY(:keys) AND (expires_at > :now) IS TRUE)"
    " AS numbered WHERE place <= :most",
    _HOLD,
    {"keys": "bytea"},
)

HOLDS_BY_ID = Query(f"{_OPEN_HOLDS} AND id = ANY(:ids)", _HOLD, {"ids": "text"})

COMPLETED_SESSIONS = Query(
    "SELECT line_id, session_id FROM deduction"
    " WHERE session_id = ANY(:session_ids) AND line_id = ANY(:line_ids)",
    [deduction.c.line_id, deduction.c.session_id],
    {"session_ids": "text", "line_ids": "text"},
)

CLAIMS = Query(
    "SELECT key, fingerprint, answer FROM claim WHERE key = ANY(:keys)",
    [claim.c.key, claim.c.fingerprint, claim.c.answer],
    {"keys": "text"},
)
