"""Reading the inbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, case, func, or_, select

from store_credit import ids
from store_credit.ledger.pages import Page, paged
from store_credit.ledger.refusals import OutOfRange
from store_credit.webhooks.effects import EventState
from store_credit.webhooks.tables import webhook_event

_columns = webhook_event.c

PER_ORDER_MAX = 100
RECEIPTS_MAX = 1_000
RECEIPT_PREFIX = "evt_"

_FIRST = _columns.state != EventState.CONFLICT.value
DISMISSED_CONFLICT = and_(~_FIRST, _columns.note.is_not(None))
"""The index of the first events goes by the state, so a conflict keeps its own. Whoever dismisses it leaves
a note, and it is shown as dismissed."""

_state = case((DISMISSED_CONFLICT, EventState.DISMISSED.value), else_=_columns.state)
_shown = select(*(column for column in _columns if column is not _columns.state), _state.label("state"))

_WAITING_STATES = (EventState.UNMATCHED.value, EventState.FAILED.value, EventState.CONFLICT.value)
"""What an operator must look at."""


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
    statement = _shown
    if wanted.state is not None:
        statement = statement.where(_in_state(wanted.state))
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
    """What was received under Digital River's id: the event, then others that claimed its id.

    The id of a receipt names the same, or one of the others alone.
    """
    named = _columns.event_id == event_id
    if (rows := _received(connection, named)) or not event_id.startswith(RECEIPT_PREFIX):
        return rows
    receipt = connection.execute(select(_columns.event_id, _FIRST).where(_columns.id == event_id)).first()
    if receipt is None:
        return []
    its_id, first = receipt
    return _received(connection, _columns.event_id == its_id if first else _columns.id == event_id)


def receipts(connection: Connection, ids: Sequence[str]) -> Sequence[RowMapping]:
    """What was received under these ids of ours."""
    statement = _shown.where(_columns.id.in_(ids[:RECEIPTS_MAX])).order_by(_columns.id)
    return connection.execute(statement).mappings().all()


def _received(connection: Connection, wanted: ColumnElement[bool]) -> list[RowMapping]:
    first_before_others = case((_FIRST, 0), else_=1)
    statement = _shown.where(wanted).order_by(first_before_others, _columns.id)
    return list(connection.execute(statement).mappings())


def state_of(connection: Connection, event_id: str) -> str:
    """The state of the first event that came under Digital River's id."""
    statement = select(_columns.state).where(_columns.event_id == event_id, _FIRST)
    state: str = connection.execute(statement).scalar_one()
    return state


def unmatched_of(connection: Connection, order_id: str) -> Sequence[RowMapping]:
    """The unmatched events of an order."""
    statement = select(webhook_event).where(
        _columns.order_id == order_id, _columns.state == EventState.UNMATCHED.value
    )
    return connection.execute(statement.limit(PER_ORDER_MAX)).mappings().all()


def due(connection: Connection, now: datetime, limit: int) -> Sequence[RowMapping]:
    """Events that are to be tried again: failed ones, and those whose returns were booked meanwhile."""
    # Not "in these states": SQLite would look through all applied events, and not by their time.
    others = [state.value for state in EventState if state not in (EventState.FAILED, EventState.APPLIED)]
    statement = (
        select(webhook_event)
        .where(_columns.retry_at <= now, _columns.state.not_in(others))
        .order_by(_columns.retry_at)
        .limit(limit)
    )
    return connection.execute(statement).mappings().all()


def waiting(connection: Connection) -> tuple[int, datetime | None]:
    """How many events wait for an operator, and since when the oldest of them does.

    Asked together: for the least time alone, PostgreSQL might walk through all events in order of time.
    """
    found = select(func.count(), func.min(_columns.received_at))
    found = found.where(_columns.state.in_(_WAITING_STATES), ~DISMISSED_CONFLICT)
    count, since = connection.execute(found).one()
    return count, since


def last_received_at(connection: Connection) -> datetime | None:
    """When the newest event was received."""
    newest = select(_columns.received_at).order_by(_columns.id.desc()).limit(1)
    at: datetime | None = connection.scalar(newest)
    return at


def to_dismiss(rows: Sequence[RowMapping]) -> RowMapping:
    """Of what `event` found, the row that waits for an operator, or else the event itself."""
    return next((row for row in rows if row["state"] in _WAITING_STATES), rows[0])


def _own_id(connection: Connection, parameter: str, cursor: str | int | None) -> str | int | None:
    if cursor is None:
        return None
    named = select(_columns.id).where(_columns.event_id == cursor, _FIRST)
    found: str | None = connection.execute(named).scalars().first()
    if found is None and not ids.is_minted(str(cursor), "evt"):
        raise OutOfRange("The cursor is no id of this list.", parameter)
    return found or cursor


def _in_state(state: str) -> ColumnElement[bool]:
    """The condition that an event is shown in this state; each can use the index of states."""
    if state == EventState.CONFLICT:
        return and_(_columns.state == state, _columns.note.is_(None))
    if state == EventState.DISMISSED:
        return or_(_columns.state == state, DISMISSED_CONFLICT)
    return _columns.state == state
