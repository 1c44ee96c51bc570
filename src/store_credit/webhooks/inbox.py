"""The inbox: every event is stored under its id, in the transaction of its effects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Index,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from store_credit import ids
from store_credit.ledger.commands import Cause, Deduct
from store_credit.ledger.ledger import Claim, Ledger, Record
from store_credit.ledger.refusals import KeyReused
from store_credit.ledger.state import Outcome, Reason
from store_credit.metadata import ID_LENGTH_MAX, Moment, metadata, minted
from store_credit.webhooks.events import Event, Spent

ACTOR = "digital-river"


class EventState(StrEnum):
    APPLIED = "applied"
    IGNORED = "ignored"
    """Kept, and means nothing for store credit."""
    UNMATCHED = "unmatched"
    """Something in it waits for an operator to say which credit line is meant."""
    FAILED = "failed"
    """Something in it can not be booked."""
    CONFLICT = "conflict"
    """It has the id of another event, and other effects."""


_FIRST = text("state <> 'conflict'")

webhook_event = Table(
    "webhook_event",
    metadata,
    Column("id", minted(), primary_key=True),
    # Digital River's id; the same when an event is delivered again.
    Column("event_id", String(ID_LENGTH_MAX), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("type", String(ID_LENGTH_MAX), nullable=False),
    Column("state", String(16), nullable=False),
    Column("order_id", String(ID_LENGTH_MAX), index=True),
    Column("live_mode", Boolean),
    # JSON: what became of each source.
    Column("effects", Text, nullable=False),
    # The raw body as it was delivered.
    Column("body", Text),
    Column("event_created_at", Moment),
    Column("received_at", Moment, nullable=False),
    UniqueConstraint("event_id", "fingerprint"),
    CheckConstraint(
        "state IN ('applied', 'ignored', 'unmatched', 'failed', 'conflict')", name="state_known"
    ),
    Index(
        "uq_webhook_event_first",
        "event_id",
        unique=True,
        postgresql_where=_FIRST,
        sqlite_where=_FIRST,
    ),
    Index(None, "state", "id"),
)

_FAILED = frozenset({Reason.INVALID_AMOUNT})


class EventConflict(Exception):
    """The id belongs to another event with other effects. This one is kept for an operator."""


async def receive(ledger: Ledger, event: Event, body: str) -> tuple[str, Sequence[Outcome]]:
    """Store and apply an event once. Returns its state, and the outcomes if it was not seen before.

    Raises EventConflict, and the ledger's Unavailable: then nothing is stored.
    """
    commands = [_deduct(event, spent) for spent in event.spent if spent.problem is None]
    claim = Claim(f"event:{event.id}", event.fingerprint, lambda outcomes: _state(event, outcomes))
    try:
        result = await ledger.execute(
            *commands,
            claim=claim,
            record=lambda outcomes, at: [_row(event, body, _state(event, outcomes), outcomes, at)],
        )
    except KeyReused:
        await ledger.execute(record=lambda _, at: [_row(event, body, EventState.CONFLICT, (), at)])
        raise EventConflict from None
    return result.earlier_answer or _state(event, result.outcomes), result.outcomes


def _deduct(event: Event, spent: Spent) -> Deduct:
    assert spent.source_id is not None
    assert spent.amount is not None
    return Deduct(
        source_id=spent.source_id,
        upstream_id=spent.upstream_id,
        order_id=event.order_id,
        session_id=event.session_id,
        amount=spent.amount,
        currency=spent.currency,
        deduction_id=ids.mint("ded"),
        cause=Cause(actor=ACTOR, event_id=event.id),
    )


def _state(event: Event, outcomes: Sequence[Outcome]) -> EventState:
    if not event.spent:
        return EventState.IGNORED
    refused = {outcome.reason for outcome in outcomes if not outcome.accepted}
    if refused & _FAILED or any(spent.problem for spent in event.spent):
        return EventState.FAILED
    return EventState.UNMATCHED if refused else EventState.APPLIED


def _row(event: Event, body: str, state: EventState, outcomes: Sequence[Outcome], at: datetime) -> Record:
    row = {
        "id": ids.mint("evt"),
        "event_id": event.id,
        "fingerprint": event.fingerprint,
        "type": event.type,
        "state": state.value,
        "order_id": event.order_id,
        "live_mode": event.live_mode,
        "effects": json.dumps(_effects(event, outcomes)),
        "body": body,
        "event_created_at": event.created_at,
        "received_at": at,
    }
    return webhook_event, row, "skip"


def _effects(event: Event, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What became of each source, in the order of the event."""
    remaining = list(outcomes)
    effects = []
    for spent in event.spent:
        outcome = remaining.pop(0) if spent.problem is None and remaining else None
        effects.append(
            {
                "sourceId": spent.source_id,
                "upstreamId": spent.upstream_id,
                "amount": float(spent.amount) if spent.amount is not None else None,
                "currency": spent.currency,
                "outcome": outcome.reason.value if outcome else "malformed" if spent.problem else None,
                "detail": outcome.detail if outcome else spent.problem,
                "creditLineId": outcome.line.id if outcome and outcome.line else None,
                "deductionId": outcome.deduction.id if outcome and outcome.deduction else None,
            }
        )
    return effects
