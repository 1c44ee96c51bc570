"""The SQL of imports and exports. Exports are read a page at a time, each in a transaction of its own.

Pages go on after the last key of the page before, so that a page costs the same wherever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, select, tuple_

from store_credit.ledger.queries import LineFigures, settled
from store_credit.ledger.store import Claimed, claims
from store_credit.ledger.tables import credit_line, deduction, ledger_entry
from store_credit.metadata import upstream_key

PAGE_ROWS = 1_000


def known(
    connection: Connection, claim_keys: Sequence[str], upstream_ids: Sequence[str]
) -> tuple[dict[str, Claimed], set[bytes]]:
    """Which of the claims were made, and under which of the upstream ids (as keys) lines exist."""
    keys = [upstream_key(upstream_id) for upstream_id in upstream_ids]
    lines = connection.scalars(
        select(credit_line.c.upstream_key).where(credit_line.c.upstream_key.in_(keys))
    )
    return claims(connection, claim_keys), set(lines)


def line_page(connection: Connection, after: str | None, now: datetime) -> list[LineFigures]:
    """Credit lines, oldest first, settled at `now`."""
    statement = select(credit_line).order_by(credit_line.c.id).limit(PAGE_ROWS)
    if after is not None:
        statement = statement.where(credit_line.c.id > after)
    return settled(connection, _all(connection, statement), now)


def deduction_page(connection: Connection, after: str | None) -> Sequence[RowMapping]:
    """Deductions, oldest first, each with its line's currency."""
    statement = (
        select(deduction, credit_line.c.currency)
        .join(credit_line, credit_line.c.id == deduction.c.line_id)
        .order_by(deduction.c.id)
        .limit(PAGE_ROWS)
    )
    if after is not None:
        statement = statement.where(deduction.c.id > after)
    return _all(connection, statement)


def entry_page(connection: Connection, after: tuple[str, int] | None) -> Sequence[RowMapping]:
    """The journal line by line, oldest line and entry first, each entry with its line's currency."""
    key = (ledger_entry.c.line_id, ledger_entry.c.seq)
    statement = (
        select(ledger_entry, credit_line.c.currency)
        .join(credit_line, credit_line.c.id == ledger_entry.c.line_id)
        .order_by(*key)
        .limit(PAGE_ROWS)
    )
    if after is not None:
        # Without the second condition, each page would read all lines before it again.
        statement = statement.where(tuple_(*key) > tuple_(*after), credit_line.c.id >= after[0])
    return _all(connection, statement)


def _all(connection: Connection, statement: Select[Any]) -> Sequence[RowMapping]:
    return connection.execute(statement).mappings().all()
