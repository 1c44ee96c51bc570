"""What the ledger asks the database: each statement is written once, and run by the thousand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, null

from store_credit.ledger.asking import NOW, Query
from store_credit.ledger.tables import (
    claim,
    credit_line,
    deduction,
    hold,
    ledger_batch,
    offer,
    source,
)


def _names(columns: Sequence[Column[Any]]) -> str:
    return ", ".join(column.name for column in columns)


CLAIM_BATCH = Query(
    "INSERT INTO ledger_batch (id, created_at) VALUES (:id, :created_at)"
    " ON CONFLICT DO NOTHING RETURNING id",
    [ledger_batch.c.id],
)

_BY_INDEX = ", ".join(
    f"set_config('{way}', 'off', true)" for way in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")
)
"""Until the transaction ends: what follows names its rows, and looks them up by an index, also while
PostgreSQL knows nothing of its tables' sizes yet. The statements that lock rows set it; what may come
before them asks by primary keys."""

# The update changes nothing: it makes a row that is there, in its newest version, locked and returned.
_LOCK_SOURCES = (
    "INSERT INTO source (id) SELECT {ids} ON CONFLICT (id) DO UPDATE SET id = excluded.id"
    " RETURNING id, told, order_id, parked_at"
)

LOCK_SOURCES = Query(
    _LOCK_SOURCES.format(ids=f"unnest(:ids) FROM (SELECT {_BY_INDEX}) AS by_index"),
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
    f"WITH locked AS MATERIALIZED ({_LOCKED_LINES})"
    f" SELECT {_names(_LINE)}, clock_timestamp() FROM locked, (SELECT {_BY_INDEX}) AS by_index",
    [*_LINE, null()],
    {"keys": "bytea", "ids": "text"},
    sqlite=f"SELECT {_names(_LINE)}, NULL FROM credit_line"
    " WHERE upstream_key = ANY(:keys) OR id = ANY(:ids)",
)

NAMED_LINES = Query(
    # The lines that are named in whatever way, each with that name, and whether it can be locked now.
    "WITH named (name, line_id) AS ("
    "SELECT upstream_id, id FROM credit_line WHERE upstream_key = ANY(:keys)"
    " UNION ALL SELECT id, id FROM credit_line WHERE id = ANY(:ids)"
    " UNION ALL SELECT source_id, line_id FROM deduction WHERE source_id = ANY(:sources)"
    " UNION ALL SELECT upstream_id, line_id FROM offer WHERE upstream_id = ANY(:offers)"
    "), free AS MATERIALIZED (SELECT id FROM credit_line WHERE id IN (SELECT line_id FROM named)"
    " FOR UPDATE SKIP LOCKED)"
    " SELECT name, line_id NOT IN (SELECT id FROM free) FROM named",
    [null(), null()],
    {"keys": "bytea", "ids": "text", "sources": "text", "offers": "text"},
    sqlite="SELECT NULL, NULL WHERE false",
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

# A new database does not know its tables' sizes yet, and one that was analysed in a quiet hour believes
# that no hold is open: PostgreSQL then takes any index of the open holds for a short one. So each serves
# only who names what it is for (see `tables`), and "IS TRUE" hides the column of one that would be wrong.
# Orders keep what is asked for one name after the other from becoming a join, that may read all open holds.

DUE_HOLDS = Query(
    "SELECT due.* FROM unnest(:line_ids) AS named (line_id) CROSS JOIN LATERAL"
    f" (SELECT {_names(_HOLD)} FROM hold WHERE state = 'open' AND line_id = named.line_id"
    " AND expires_at <= :now ORDER BY expires_at LIMIT :most) AS due LIMIT :most",
    _HOLD,
    {"line_ids": "text"},
    sqlite=f"SELECT {_names(_HOLD)} FROM hold WHERE state = 'open' AND expires_at <= :now"
    " AND line_id IN (SELECT value FROM json_each(:line_ids)) LIMIT :most",
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
    "SELECT held.* FROM unnest(:session_ids) AS named (session_id) CROSS JOIN LATERAL"
    f" (SELECT {_names(_HOLD)} FROM hold WHERE state = 'open' AND session_id = named.session_id"
    " ORDER BY upstream_key) AS held",
    _HOLD,
    {"session_ids": "text"},
    sqlite=f"SELECT {_names(_HOLD)} FROM hold"
    " WHERE state = 'open' AND session_id IN (SELECT value FROM json_each(:session_ids))",
)

# The line that an upstream id names, by itself or as an offer; then its open holds, as those of one line.
_OF_NAMED_LINE = (
    " CROSS JOIN LATERAL (SELECT coalesce("
    "(SELECT id FROM credit_line WHERE upstream_key = named.key),"
    " (SELECT line_id FROM offer WHERE upstream_id = named.upstream_id)) AS id) AS line_named"
    f" CROSS JOIN LATERAL (SELECT {_names(_HOLD)} FROM hold"
    " WHERE state = 'open' AND line_id = line_named.id AND upstream_key = named.key"
)

RELEASED_HOLDS = Query(
    f"SELECT held.* FROM unnest(:keys, :ids) AS named (key, upstream_id){_OF_NAMED_LINE}"
    " AND (expires_at > :now) IS TRUE ORDER BY expires_at DESC LIMIT :most) AS held",
    _HOLD,
    {"keys": "bytea", "ids": "text"},
    sqlite=f"SELECT {_names(_HOLD)} FROM"
    " (SELECT hold.*, row_number() OVER (PARTITION BY upstream_key ORDER BY expires_at DESC) AS place"
    " FROM hold WHERE state = 'open' AND expires_at > :now AND upstream_key = ANY(:keys)"
    " AND line_id IN (SELECT id FROM credit_line WHERE upstream_key = ANY(:keys) UNION ALL SELECT line_id"
    " FROM offer WHERE upstream_id IN (SELECT value FROM json_each(:ids)))"
    ") AS numbered WHERE place <= :most",
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
    # What is left of the transaction writes by primary keys: one plan serves for ever, also for the checks
    # of foreign keys. To make plans anew each time would take a third of PostgreSQL's time.
    "SELECT set_config('plan_cache_mode', 'force_generic_plan', true)",
    [null()],
    sqlite="SELECT NULL",
)

CLAIMS = Query(
    "SELECT key, fingerprint, answer FROM claim WHERE key = ANY(:keys)",
    [claim.c.key, claim.c.fingerprint, claim.c.answer],
    {"keys": "text"},
)

# What follows is asked together, in one statement of PostgreSQL and without locks: see `at_once`.

_LINES_AT_ONCE = (
    f"WITH line AS MATERIALIZED (SELECT {_names(_LINE)}, xmin::text AS version FROM credit_line"
)
_OF_KEYS = "upstream_key = ANY(CAST(:keys AS bytea[]))"

LINES_AT_ONCE = f"{_LINES_AT_ONCE} WHERE {_OF_KEYS})"

LINES_OF_OFFERS_AT_ONCE = (
    f"{_LINES_AT_ONCE} WHERE id IN (SELECT id FROM credit_line WHERE {_OF_KEYS}"
    " UNION SELECT line_id FROM offer WHERE upstream_id = ANY(CAST(:offers AS text[]))))"
)

READ_LINES = Query("SELECT * FROM line", [*_LINE, null()])

_LATEST = f"greatest({NOW}, (SELECT max(last_entry_at) FROM line))"

DUE_HOLDS_AT_ONCE = Query(
    f"SELECT due.* FROM line CROSS JOIN LATERAL (SELECT {_names(_HOLD)} FROM hold WHERE state = 'open'"
    f" AND line_id = line.id AND expires_at <= {_LATEST} ORDER BY expires_at LIMIT :most) AS due",
    _HOLD,
)

RELEASED_HOLDS_AT_ONCE = Query(
    f"SELECT held.* FROM unnest(:keys, :ids) AS named (key, upstream_id){_OF_NAMED_LINE}"
    f" AND (expires_at > {_LATEST}) IS TRUE ORDER BY expires_at DESC LIMIT :most) AS held",
    _HOLD,
    {"keys": "bytea", "ids": "text"},
)

KNOWN_SOURCES = Query("SELECT id FROM source WHERE id = ANY(:ids)", [source.c.id], {"ids": "text"})
