"""Reading the decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, RowMapping, select

from store_credit.callouts.decisions import decision
from store_credit.ledger.pages import Page, paged
from store_credit.metadata import upstream_key


@dataclass(frozen=True, slots=True)
class DecisionFilter:
    """Which decisions are wanted; None means any."""

    line_id: str | None = None
    upstream_id: str | None = None
    session_id: str | None = None
    since: datetime | None = None
    """Its own instant included."""
    until: datetime | None = None
    """Its own instant left out."""


def decisions(
    connection: Connection, wanted: DecisionFilter, page: Page
) -> tuple[Sequence[RowMapping], bool]:
    """Answers given to Digital River, newest first, and whether there are more."""
    statement = select(decision)
    if wanted.line_id is not None:
        statement = statement.where(decision.c.line_id == wanted.line_id)
    if wanted.upstream_id is not None:
        statement = statement.where(decision.c.upstream_key == upstream_key(wanted.upstream_id))
    if wanted.session_id is not None:
        statement = statement.where(decision.c.session_id == wanted.session_id)
    if wanted.since is not None:
        statement = statement.where(decision.c.created_at >= wanted.since)
    if wanted.until is not None:
        statement = statement.where(decision.c.created_at < wanted.until)
    # What nothing but time narrows is read in the order of an index by time.
    named = (wanted.line_id, wanted.upstream_id, wanted.session_id)
    by = decision.c.created_at if all(name is None for name in named) else None
    return paged(connection, statement, decision.c.id, page, by=by)
