"""Reading the inbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, RowMapping, and_, func, or_, select

from store_credit import ids
from store_credit.ledger.queries import Page, paged
from store_credit.ledger.refusals import OutOfRange
from store_credit.webhooks.effects import EventState
from store_credit.webhooks.tables import webhook_event

_columns = webhook_event.c

PER_ORDER_MAX = 100

_WAITING = and_(
    _columns.state.in_((EventState.UNMATCHED.value, EventState.FAILED.value, EventState.CONFLICT.value)),
    or_(_columns.state != EventState.CONFLICT.value, _columns.note.is_(None)),
)
"""What an operator must look at. A conflict stays one, and has a note once it was dismissed."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted; None means any."""

    state: str | None = None
    type: str | None = None
    order_id: str | None = None


def events(connection: Connection, wanted: EventFilter, page: Page) -> tuple[Sequence[RowMapping], bool]:
    """Events, newest first, and whether there are more. Cursors are Digital River's ids or ours.

    Raises OutOfRange for a cursor that is neither.
    """
    statement = select(webhook_event)
    if wanted.state is not None:
        statement = statement.where(_columns.state == wanted.state)
    if wanted.type is not None:
        statement = statement.where(_columns.type == wanted.type)
    if wanted.order_id is not None:
        statement = statement.where(_columns.order_id == wanted.order_id)
    own = replace(
        page,
        starting_after=_own_id(connection, "startingAfter", page.starting_after),
        ending_before=_own_id(connection, "endingBefore", page.ending_before),
    )
    return paged(connection, statement, _columns.id, own)


def event(connection: Connection, event_id: str) -> list[RowMapping]:
    """What was received under Digital River's id: the event, then others that claimed its id."""
    statement = select(webhook_event).where(_columns.event_id == event_id)
    rows = connection.execute(statement.order_by(_columns.id)).mappings().all()
    return sorted(rows, key=lambda row: row["state"] == EventState.CONFLICT)


def state_of(connection: Connection, event_id: str) -> str:
    """The state of the first event that came under Digital River's id."""
    statement = select(_columns.state).where(
        _columns.event_id == event_id, _columns.state != EventState.CONFLICT.value
    )
    state: str = connection.execute(statement).scalar_one()
    return state


def unmatched_of(connection: Connection, order_id: str) -> Sequence[RowMapping]:
    """The unmatched events of an order."""
    statement = select(webhook_event).where(
        _columns.order_id == order_id, _columns.state == EventState.UNMATCHED.value
    )
    return connection.execute(statement.limit(PER_ORDER_MAX)).mappings().all()


def due_failed(connection: Connection, now: datetime, limit: int) -> Sequence[RowMapping]:
    """Failed events that are to be tried again."""
    due = (_columns.retry_at <= now, _columns.state == EventState.FAILED.value)
    statement = select(webhook_event).where(*due).order_by(_columns.retry_at).limit(limit)
    return connection.execute(statement).mappings().all()


def waiting(connection: Connection) -> tuple[int, datetime | None]:
    """How many events wait for an operator, and since when the oldest of them does.

    Asked together: for the least time alone, PostgreSQL might walk through all events in order of time.
    """
    found = select(func.count(), func.min(_columns.received_at)).where(_WAITING)
    count, since = connection.execute(found).one()
    return count, since


def last_received_at(connection: Connection) -> datetime | None:
    """When the newest event was received."""
    at: datetime | None = connection.scalar(select(func.max(_columns.received_at)))
    return at


def to_dismiss(rows: Sequence[RowMapping]) -> RowMapping:
    """Of what `event` found, the row that waits for an operator, or else the event itself."""
    waiting = (EventState.UNMATCHED, EventState.FAILED)
    for row in rows:
        if row["state"] in waiting or (row["state"] == EventState.CONFLICT and row["note"] is None):
            return row
    return rows[0]


def _own_id(connection: Connection, parameter: str, cursor: str | int | None) -> str | int | None:
    if cursor is None:
        return None
    named = select(_columns.id).where(
        _columns.event_id == cursor, _columns.state != EventState.CONFLICT.value
    )
    found: str | None = connection.execute(named).scalars().first()
    if found is None and not ids.is_minted(str(cursor), "evt"):
        raise OutOfRange("The cursor is no id of this list.", parameter)
    return found or cursor
