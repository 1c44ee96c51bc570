"""The inbox: every event is stored under its id, in the transaction of its effects."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping

from store_credit import ids
from store_credit.bulk import Row
from store_credit.failures import is_passing
from store_credit.ledger.commands import Cause, Command
from store_credit.ledger.ledger import Claim, Ledger, Record
from store_credit.ledger.refusals import KeyReused, NotAllowed, OutOfRange, Refusal, Unavailable
from store_credit.ledger.state import Outcome
from store_credit.webhooks import queries
from store_credit.webhooks.effects import Assignment, Effect, EventState, assigned, state_of, steps, told
from store_credit.webhooks.events import Event, MalformedEvent, read
from store_credit.webhooks.tables import webhook_event

ACTOR = "digital-river"
TRIES_MAX = 8
FIRST_PAUSE = timedelta(minutes=1)
PAUSE_GROWTH = 4
PAUSE_MAX = timedelta(hours=12)
TOLD_AT_ONCE_MAX = 20

_log = logging.getLogger(__name__)


class EventConflict(Exception):
    """The id belongs to another event with other effects. This one is kept for an operator."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of an event."""

    state: EventState
    outcomes: Sequence[Outcome] = ()
    """Empty when the event was known."""


async def receive(ledger: Ledger, event: Event, body: str, *, aside: str | None = None) -> Receipt:
    """Store and apply an event once; with a reason to set it `aside`, only store it.

    An event whose application raises is stored as failed and tried again. Raises EventConflict, and
    the ledger's Unavailable: then nothing is stored.
    """
    receipt_id = ids.mint("evt")
    planned = steps(event, receipt_id, Cause(ACTOR, event_id=event.id)) if aside is None else []
    asked = [step.effect for step in planned]
    commands = [step.command for step in planned if step.command is not None]

    base = _row(receipt_id, event, body)

    def record(outcomes: Sequence[Outcome], at: datetime) -> list[Record]:
        effects = told(planned, outcomes)
        row = _with_effects(base, state_of(effects), effects) | {"note": aside}
        return [_received(row, at), *_unparked(outcomes, at)]

    try:
        receipt = await _execute_once(
            ledger, base, commands, record, lambda outcomes: state_of(told(planned, outcomes))
        )
    except KeyReused:
        await _keep(ledger, _with_effects(base, EventState.CONFLICT, asked))
        raise EventConflict from None
    except (Unavailable, Refusal):
        raise
    except Exception as error:
        _log.exception("event %s could not be applied", event.id)
        row = _with_effects(base, EventState.FAILED, asked) | {"note": _described(error)}
        return await _execute_once(
            ledger, row, [], lambda _outcomes, at: [_received(row, at)], lambda _: EventState.FAILED
        )
    await _tell_of_unparked(ledger, receipt.outcomes)
    if any(outcome.awaited for outcome in receipt.outcomes):
        await _resolve_siblings(ledger, event.order_id, receipt_id)
    return receipt


async def apply_again(
    ledger: Ledger, row: RowMapping, cause: Cause, to: Assignment | None = None
) -> Receipt:
    """Apply a stored event again, on the operator's line if one is named.

    Raises OutOfRange when its body is gone or nothing fits the assignment, other refusals of the
    ledger, and whatever the application raises.
    """
    event = stored_event(row)
    before = json.loads(row["effects"])
    planned = steps(event, row["id"], cause)
    if to is not None:
        planned = assigned(planned, before, to)
    commands = [step.command for step in planned if step.command is not None]
    if to is not None and not commands:
        raise OutOfRange("The event has no such source to assign.", "sourceId")

    def record(outcomes: Sequence[Outcome], at: datetime) -> list[Record]:
        effects = told(planned, outcomes, before)
        return [_changed(row, state_of(effects), effects), *_unparked(outcomes, at)]

    result = await ledger.execute(*commands, record=record)
    await _tell_of_unparked(ledger, result.outcomes)
    effects = told(planned, result.outcomes, before)
    return Receipt(state_of(effects), result.outcomes)


async def apply_by_hand(
    ledger: Ledger, row: RowMapping, cause: Cause, to: Assignment | None = None
) -> Receipt:
    """Apply a stored event at an operator's word; with a line, also what else of its order waited for it.

    Raises the ledger's refusals, and NotAllowed when the application raises: nothing is changed then.
    """
    try:
        receipt = await apply_again(ledger, row, cause, to)
    except (Unavailable, Refusal):
        raise
    except Exception as error:
        _log.exception("event %s could not be applied", row["event_id"])
        if row["state"] != EventState.APPLIED:
            await _note(ledger, row, _described(error))
        message = f"The event could not be applied, and stays as it was: {_described(error)}."
        raise NotAllowed(message, "id") from error
    if to is not None:
        await _resolve_siblings(ledger, row["order_id"], row["id"])
    return receipt


async def _resolve_siblings(ledger: Ledger, order_id: str | None, receipt_id: str) -> None:
    """Apply the order's other unmatched events, as their sources may be in the books by now."""
    if order_id is None:
        return
    for other in await _read_if_possible(ledger, queries.unmatched_of, order_id):
        if other["id"] == receipt_id or other["body"] is None:
            continue
        try:
            await apply_again(ledger, other, Cause(ACTOR, event_id=other["event_id"]))
        except Exception:
            # What was asked for is done; this one keeps waiting, and an operator sees it.
            _log.exception("event %s could not be applied", other["event_id"])


async def _read_if_possible(
    ledger: Ledger, query: Callable[[Connection, Any], Sequence[RowMapping]], wanted: Any
) -> Sequence[RowMapping]:
    """What is read when all that was asked for is done: a failure to read it must not spoil the answer."""
    try:
        return await ledger.database.read(query, wanted)
    except Exception:
        _log.exception("what waits for an order could not be read")
        return ()


async def _tell_of_unparked(ledger: Ledger, outcomes: Sequence[Outcome]) -> None:
    """Apply the events again whose returns were booked with these deductions: so their effects say so.

    Some of them: somebody waits for an answer, and all are due to be tried again anyway.
    """
    receipts = [receipt_id for outcome in outcomes for receipt_id in outcome.unparked][:TOLD_AT_ONCE_MAX]
    for row in await _read_if_possible(ledger, queries.receipts, receipts) if receipts else ():
        try:
            await try_again(ledger, row)
        except Exception:
            # All is booked, and what is untold is due to be tried again.
            _log.exception("event %s could not be told of its deduction", row["event_id"])


async def try_again(ledger: Ledger, row: RowMapping) -> None:
    """Apply an event again that is due for it; another failure makes the pause longer."""
    if row["state"] == EventState.APPLIED and row["body"] is None:
        await ledger.execute(record=lambda _outcomes, _at: [_no_more_tries(row)])
        return
    try:
        receipt = await apply_again(ledger, row, Cause(ACTOR, event_id=row["event_id"]))
    except Unavailable:
        return
    except Exception as error:
        await _put_off(ledger, row, _described(error))
        return
    if receipt.state == EventState.FAILED:
        await _put_off(ledger, row, None)


async def dismiss(ledger: Ledger, row: RowMapping, actor: str, reason: str) -> None:
    """Set an event or a conflict aside for good. What it did already stays done."""
    if row["state"] == EventState.DISMISSED:
        return
    changed = {"id": row["id"], "note": f"{actor}: {reason}", "retry_at": None}
    if row["state"] != EventState.CONFLICT:
        # A conflict keeps its state, which tells it from the first event of its id: see `queries`.
        changed["state"] = EventState.DISMISSED.value
    await ledger.execute(record=lambda _outcomes, _at: [(webhook_event, changed, "update")])


def stored_event(row: RowMapping) -> Event:
    """The event of a stored body. Raises OutOfRange when the body was pruned or erased."""
    if row["body"] is None:
        raise OutOfRange("The body of this event was pruned; it can not be applied again.", "id")
    try:
        return read(json.loads(row["body"]))
    except (ValueError, MalformedEvent):
        raise OutOfRange("The body of this event can not be read any more.", "id") from None


async def _execute_once(
    ledger: Ledger,
    row: Row,
    commands: list[Command],
    record: Callable[[Sequence[Outcome], datetime], list[Record]],
    state: Callable[[Sequence[Outcome]], EventState],
) -> Receipt:
    """Execute the commands for the event of this row, unless it is known. `state` is what it comes to."""
    claim = Claim(f"event:{row['event_id']}", row["fingerprint"], lambda _outcomes: "")
    result = await ledger.execute(*commands, claim=claim, record=record)
    if result.earlier_answer is None:
        return Receipt(state(result.outcomes), result.outcomes)
    try:
        return Receipt(EventState(await ledger.database.read(queries.state_of, row["event_id"])))
    except Exception as error:
        if is_passing(error):
            raise Unavailable("The database does not answer.") from error
        raise


async def _keep(ledger: Ledger, row: Row) -> None:
    await ledger.execute(record=lambda _outcomes, at: [_received(row, at)])


async def _note(ledger: Ledger, row: RowMapping, note: str) -> None:
    changed = {"id": row["id"], "note": note}
    await ledger.execute(record=lambda _outcomes, _at: [(webhook_event, changed, "update")])


async def _put_off(ledger: Ledger, row: RowMapping, note: str | None) -> None:
    tries = row["tries"] + 1
    pause = min(FIRST_PAUSE * PAUSE_GROWTH ** min(tries, TRIES_MAX), PAUSE_MAX)

    def record(_outcomes: Sequence[Outcome], at: datetime) -> list[Record]:
        retry_at = at + pause if tries < TRIES_MAX else None
        changed = {"id": row["id"], "tries": tries, "retry_at": retry_at, "note": note or row["note"]}
        return [(webhook_event, changed, "update")]

    await ledger.execute(record=record)


def _row(receipt_id: str, event: Event, body: str) -> Row:
    return {
        "id": receipt_id,
        "event_id": event.id,
        "fingerprint": event.fingerprint,
        "type": event.type,
        "order_id": event.order_id,
        "live_mode": event.live_mode,
        "body": body,
        "note": None,
        "tries": 0,
        "event_created_at": event.created_at,
    }


def _with_effects(row: Row, state: EventState, effects: list[Effect]) -> Row:
    return row | {"state": state.value, "effects": json.dumps(effects)}


def _received(row: Row, at: datetime) -> Record:
    retry_at = at + FIRST_PAUSE if row["state"] == EventState.FAILED else None
    return webhook_event, row | {"retry_at": retry_at, "received_at": at}, "skip"


def _changed(row: RowMapping, state: EventState, effects: list[Effect]) -> Record:
    changed = {"id": row["id"], "state": state.value, "effects": json.dumps(effects)}
    if state != EventState.FAILED:
        changed |= {"retry_at": None, "note": None}
    return webhook_event, changed, "update"


def _unparked(outcomes: Sequence[Outcome], at: datetime) -> Iterable[Record]:
    """The events whose returns waited for these deductions are applied now, and due to say so."""
    for outcome in outcomes:
        for receipt_id in outcome.unparked:
            changed = {"id": receipt_id, "state": EventState.APPLIED.value, "retry_at": at}
            yield webhook_event, changed, "update"


def _no_more_tries(row: RowMapping) -> Record:
    return webhook_event, {"id": row["id"], "retry_at": None}, "update"


def _described(error: Exception) -> str:
    """An error without values that it may hold."""
    return f"{type(error).__name__} while it was applied"
