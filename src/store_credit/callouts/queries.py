"""Reading the decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, select, union_all

from store_credit.callouts.decisions import decision
from store_credit.ledger.pages import Page, cut, paged
from store_credit.ledger.tables import credit_line, offer
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
    statement = _narrowed(select(decision), wanted)
    if wanted.upstream_id is not None:
        # A page of each place, and of these the page that is wanted.
        found = [
            cut(_narrowed(select(decision.c.id).where(place), wanted), decision.c.id, page)
            for place in _places(connection, wanted.upstream_id)
        ]
        pages = [select(of_place.subquery().c.id) for of_place in found]
        statement = statement.where(decision.c.id.in_(union_all(*pages)))
    # What nothing but time narrows is read in the order of an index by time.
    named = (wanted.line_id, wanted.upstream_id, wanted.session_id)
    by = decision.c.created_at if all(name is None for name in named) else None
    return paged(connection, statement, decision.c.id, page, by=by)


def _narrowed(statement: Select[Any], wanted: DecisionFilter) -> Select[Any]:
    """By all but the upstream id."""
    if wanted.line_id is not None:
        statement = statement.where(decision.c.line_id == wanted.line_id)
    if wanted.session_id is not None:
        statement = statement.where(decision.c.session_id == wanted.session_id)
    if wanted.since is not None:
        statement = statement.where(decision.c.created_at >= wanted.since)
    if wanted.until is not None:
        statement = statement.where(decision.c.created_at < wanted.until)
    return statement


def _places(connection: Connection, upstream_id: str) -> list[ColumnElement[bool]]:
    """Where decisions on an upstream id are: with the line that it names, by itself or as an offer, and
    with those that found no line.
    """
    key = upstream_key(upstream_id)
    lines = select(credit_line.c.id).where(credit_line.c.upstream_key == key)
    of_offers = select(offer.c.line_id).where(offer.c.upstream_id == upstream_id)
    named = connection.scalars(lines.union_all(of_offers)).all()
    places = [*(decision.c.line_id == line_id for line_id in named), decision.c.line_id.is_(None)]
    return [and_(decision.c.upstream_key == key, place) for place in places]
