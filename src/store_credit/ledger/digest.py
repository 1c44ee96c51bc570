"""One digest over the heads of all hash chains: kept elsewhere, it shows later if the past was changed.

Whoever can write to the database can also write a journal that is sound in itself: cut off a line's last
entries, or hash all of them anew. The digest that was kept elsewhere then no longer comes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, and_, func, select

from store_credit.ledger.tables import ledger_entry

PAGE = 500
"""Chains that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Digest:
    """SHA-256, in hex, over `<line id> <seq> <hash>` and a line feed for each chain, in order of ids."""

    sha256: str
    lines: int
    newest: datetime | None
    """When the newest of the heads was written: as of then, the same digest comes out for ever."""


def digest(connection: Connection, as_of: datetime | None = None, *, page: int = PAGE) -> Digest:
    """The digest of each line's last entry not after `as_of`, or of its last one of all.

    An entry's hash stands for all before it, if the audit finds the chain sound. Memory stays bounded.
    """
    total, lines, newest, after = hashlib.sha256(), 0, None, ""
    while heads := _heads(connection, as_of, after, page):
        for head in heads:
            total.update(f"{head.line_id} {head.seq} {head.hash}\n".encode())
        times = [head.created_at for head in heads]
        newest = max([*times, newest] if newest is not None else times)
        lines += len(heads)
        after = heads[-1].line_id
    return Digest(total.hexdigest(), lines, newest)


def _heads(connection: Connection, as_of: datetime | None, after: str, page: int) -> Sequence[Any]:
    entry, last = ledger_entry.c, _last_of_each(as_of, after, page).subquery()
    statement = (
        select(entry.line_id, entry.seq, entry.hash, entry.created_at)
        .join(last, and_(last.c.line_id == entry.line_id, last.c.seq == entry.seq))
        .order_by(entry.line_id)
    )
    return connection.execute(statement).all()


def _last_of_each(as_of: datetime | None, after: str, page: int) -> Select[Any]:
    entry = ledger_entry.c
    statement = select(entry.line_id, func.max(entry.seq).label("seq")).where(entry.line_id > after)
    if as_of is not None:
        statement = statement.where(entry.created_at <= as_of)
    return statement.group_by(entry.line_id).order_by(entry.line_id).limit(page)
