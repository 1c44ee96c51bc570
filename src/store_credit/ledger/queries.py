"""Reading the ledger: look-ups, lists and their paging. Each runs in the caller's read transaction.

Figures are shown as they are after settling: a hold past its time holds nothing, and an expired line is
worth no more than what its holds protect, whether or not the sweeper came by.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Table,
    and_,
    func,
    literal_column,
    or_,
    select,
    union,
    union_all,
)

from store_credit.ledger.pages import Page, cut, paged
from store_credit.ledger.state import HoldState, LineStatus
from store_credit.ledger.tables import OF_ALL_LINES, credit_line, deduction, hold, ledger_entry, offer
from store_credit.metadata import upstream_key

SPENDABLE_MAX = 100
"""Lines of one customer that a checkout is shown."""

IS_OPEN = hold.c.state == HoldState.OPEN.value
HAS_ENDED = hold.c.state != literal_column(f"'{HoldState.OPEN.value}'")
"""In the words of the indexes of the holds that ended."""

LATEST = datetime.max.replace(tzinfo=UTC)

EXPIRED = "expired"
"""The status shown for an active line past its expiry."""


@dataclass(frozen=True, slots=True)
class LineFilter:
    """Which credit lines are wanted; None means any."""

    upstream_id: str | None = None
    customer_id: str | None = None
    status: str | None = None
    currency: str | None = None
    flagged: bool | None = None
    order_id: str | None = None
    """From which this order was deducted."""
    session_id: str | None = None
    """With a hold or a deduction of this checkout session."""


@dataclass(frozen=True, slots=True)
class HoldFilter:
    """Which holds are wanted; None means any."""

    state: str | None = None
    opened_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class LineFigures:
    """A credit line as it is shown: settled at `now`."""

    row: RowMapping
    status: str
    balance: int
    held: int
    available: int

    @property
    def metadata(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.row["metadata"])
        return found

    @property
    def flags(self) -> list[str]:
        return [flag for flag in self.row["flags"].split(",") if flag]


def line(connection: Connection, line_id: str, now: datetime) -> LineFigures | None:
    """One credit line, or None."""
    found = connection.execute(select(credit_line).where(credit_line.c.id == line_id)).mappings().all()
    return settled(connection, found, now)[0] if found else None


def lines(
    connection: Connection, wanted: LineFilter, page: Page, now: datetime
) -> tuple[list[LineFigures], bool]:
    """Credit lines, newest first, and whether there are more."""
    statement = _filtered(select(credit_line), wanted, now)
    rows, more = paged(connection, statement, credit_line.c.id, page)
    return settled(connection, rows, now), more


def entries(connection: Connection, line_id: str, page: Page) -> tuple[Sequence[RowMapping], bool]:
    """The journal of a line, oldest first. Cursors are sequence numbers."""
    statement = select(ledger_entry).where(ledger_entry.c.line_id == line_id)
    return paged(connection, statement, ledger_entry.c.seq, page, newest_first=False)


def holds(
    connection: Connection, line_id: str, page: Page, now: datetime
) -> tuple[list[dict[str, Any]], bool]:
    """The holds of a line, newest first, ended ones included."""
    # Open ones and those that ended have an index each: a page of each, and of these the wanted one.
    of_line = select(hold.c.id).where(hold.c.line_id == line_id)
    pages = [
        select(cut(of_line.where(condition), hold.c.id, page).subquery().c.id)
        for condition in (IS_OPEN, HAS_ENDED)
    ]
    statement = select(hold).where(hold.c.id.in_(union_all(*pages)))
    rows, more = paged(connection, statement, hold.c.id, page)
    return [_settled_hold(row, now) for row in rows], more


def all_holds(
    connection: Connection, wanted: HoldFilter, page: Page, now: datetime
) -> tuple[list[dict[str, Any]], bool]:
    """Holds of all lines with their currencies, newest first."""
    statement = select(hold, credit_line.c.currency).join(credit_line, credit_line.c.id == hold.c.line_id)
    # An index has the holds of each state by age: a page of each, and of these the page that is wanted.
    # That of the open ones serves only who names the time.
    opened = hold.c.created_at <= (wanted.opened_until or LATEST)
    pages = []
    for condition in _in_state(wanted.state, now):
        of_state = select(hold.c.id).where(condition, opened)
        pages.append(select(cut(of_state, hold.c.id, page, by=hold.c.created_at).subquery().c.id))
    statement = statement.where(hold.c.id.in_(union_all(*pages)))
    rows, more = paged(connection, statement, hold.c.id, page, by=hold.c.created_at)
    return [_settled_hold(row, now) for row in rows], more


def deductions(connection: Connection, line_id: str, page: Page) -> tuple[Sequence[RowMapping], bool]:
    """The deductions of a line, newest first."""
    statement = select(deduction).where(deduction.c.line_id == line_id)
    return paged(connection, statement, deduction.c.id, page)


def spendable(connection: Connection, customer_id: str, currency: str, now: datetime) -> list[LineFigures]:
    """A customer's lines with something to spend: soonest expiring first, then oldest."""
    wanted = LineFilter(customer_id=customer_id, currency=currency, status=LineStatus.ACTIVE)
    # Lines that were used up are many in the end, and must not take the place of others.
    worth = _filtered(select(credit_line), wanted, now).where(credit_line.c.balance > 0)
    statement = worth.limit(SPENDABLE_MAX)
    ordered = statement.order_by(
        credit_line.c.expires_at.is_(None), credit_line.c.expires_at, credit_line.c.id
    )
    rows = connection.execute(ordered).mappings().all()
    return [line for line in settled(connection, rows, now) if line.available > 0] if rows else []


def customer_holds(connection: Connection, customer_id: str, currency: str) -> list[tuple[str, str]]:
    """The open holds on a customer's lines: (id, line id) each."""
    statement = (
        select(hold.c.id, hold.c.line_id)
        .join(credit_line, credit_line.c.id == hold.c.line_id)
        .where(credit_line.c.customer_id == customer_id, credit_line.c.currency == currency)
        .where(IS_OPEN)
    )
    return [(row.id, row.line_id) for row in connection.execute(statement)]


def hold_places(
    connection: Connection, *, hold_id: str | None = None, session_id: str | None = None
) -> list[tuple[str, str]]:
    """The hold of this id, whatever its state, or the open ones of a session: (id, line id) each."""
    statement = select(hold.c.id, hold.c.line_id)
    if hold_id is not None:
        statement = statement.where(hold.c.id == hold_id)
    else:
        statement = statement.where(hold.c.session_id == session_id, IS_OPEN)
    return [(row.id, row.line_id) for row in connection.execute(statement)]


def had_holds(connection: Connection, session_id: str) -> bool:
    """Whether the session ever held anything."""
    return connection.execute(union_all(*held_by(session_id)).limit(1)).first() is not None


def held_by(session_id: str) -> list[Select[Any]]:
    """The ids of the lines of which a session has holds, and of those of which it had some."""
    of_session = _lines_with(hold, "session_id", session_id)
    return [of_session.where(IS_OPEN), of_session.where(HAS_ENDED)]


def line_id_of(connection: Connection, name: str) -> str | None:
    """The id of the line with this id or upstream id, its own or an offer's."""
    of_line = select(credit_line.c.id).where(
        or_(credit_line.c.id == name, credit_line.c.upstream_key == upstream_key(name))
    )
    of_offer = select(offer.c.line_id).where(offer.c.upstream_id == name)
    return connection.execute(of_line.union_all(of_offer)).scalars().first()


def count_open_holds(connection: Connection, now: datetime) -> int:
    return _count(connection, hold, and_(IS_OPEN, OF_ALL_LINES, hold.c.expires_at > now))


def count_flagged_lines(connection: Connection) -> int:
    return _count(connection, credit_line, credit_line.c.flags != "")


def oldest_due_at(connection: Connection, now: datetime) -> datetime | None:
    """Since when the sweeper should have looked at a line; None when it has nothing to do."""
    holds = select(func.min(hold.c.expires_at)).where(IS_OPEN, OF_ALL_LINES, hold.c.expires_at <= now)
    lines = select(func.min(credit_line.c.due_at)).where(credit_line.c.due_at <= now)
    found = [moment for query in (holds, lines) if (moment := connection.scalar(query)) is not None]
    return min(found, default=None)


def settled(connection: Connection, rows: Sequence[RowMapping], now: datetime) -> list[LineFigures]:
    """The figures of lines after settling, with one query for all of them."""
    overdue = select(hold.c.line_id, func.sum(hold.c.amount)).where(
        hold.c.line_id.in_([row["id"] for row in rows]),
        IS_OPEN,
        hold.c.expires_at <= now,
    )
    freed = {line_id: int(total) for line_id, total in connection.execute(overdue.group_by(hold.c.line_id))}
    return [_figures(row, freed.get(row["id"], 0), now) for row in rows]


def _figures(row: RowMapping, freed: int, now: datetime) -> LineFigures:
    held = row["held"] - freed
    expired = row["expires_at"] is not None and now >= row["expires_at"]
    closed = row["status"] == LineStatus.CLOSED
    balance = min(row["balance"], held) if expired and not closed else row["balance"]
    status = EXPIRED if expired and row["status"] == LineStatus.ACTIVE else row["status"]
    available = max(0, balance - held) if status == LineStatus.ACTIVE else 0
    return LineFigures(row, status, balance, held, available)


def _settled_hold(row: RowMapping, now: datetime) -> dict[str, Any]:
    overdue = row["state"] == HoldState.OPEN and now >= row["expires_at"]
    ended = {"state": HoldState.EXPIRED.value, "ended_at": row["expires_at"]} if overdue else {}
    return {**row, **ended}


def _in_state(state: str | None, now: datetime) -> list[ColumnElement[bool]]:
    """The holds that are shown in this state or in any, by the states in which they are stored.

    An open one past its time is shown as expired.
    """
    if state == HoldState.OPEN:
        return [and_(IS_OPEN, hold.c.expires_at > now)]
    if state == HoldState.EXPIRED:
        return [_ended(HoldState.EXPIRED), and_(IS_OPEN, hold.c.expires_at <= now)]
    if state is not None:
        return [_ended(HoldState(state))]
    return [IS_OPEN, *(_ended(stored) for stored in HoldState if stored != HoldState.OPEN)]


def _ended(state: HoldState) -> ColumnElement[bool]:
    return and_(hold.c.state == state.value, HAS_ENDED)


def _filtered(statement: Select[Any], wanted: LineFilter, now: datetime) -> Select[Any]:
    columns = credit_line.c
    if wanted.upstream_id is not None:
        statement = statement.where(columns.upstream_key == upstream_key(wanted.upstream_id))
    if wanted.customer_id is not None:
        statement = statement.where(columns.customer_id == wanted.customer_id)
    if wanted.currency is not None:
        statement = statement.where(columns.currency == wanted.currency)
    if wanted.flagged is not None:
        statement = statement.where(columns.flags != "" if wanted.flagged else columns.flags == "")
    if wanted.order_id is not None:
        statement = statement.where(columns.id.in_(_lines_with(deduction, "order_id", wanted.order_id)))
    if wanted.session_id is not None:
        spent = _lines_with(deduction, "session_id", wanted.session_id)
        statement = statement.where(columns.id.in_(union(*held_by(wanted.session_id), spent)))
    if wanted.status is None:
        return statement
    return _with_status(statement, wanted.status, now)


def _lines_with(table: Table, name: str, value: str) -> Select[Any]:
    return select(table.c.line_id).where(table.c[name] == value)


def _with_status(statement: Select[Any], status: str, now: datetime) -> Select[Any]:
    columns = credit_line.c
    if status not in (LineStatus.ACTIVE, EXPIRED):
        return statement.where(columns.status == status)
    is_active = columns.status == LineStatus.ACTIVE.value
    if status == EXPIRED:
        return statement.where(and_(is_active, columns.expires_at <= now))
    return statement.where(and_(is_active, or_(columns.expires_at.is_(None), columns.expires_at > now)))


def _count(connection: Connection, table: Table, condition: Any) -> int:
    return connection.execute(select(func.count()).select_from(table).where(condition)).scalar_one()
