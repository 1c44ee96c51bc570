"""What the inbox needs in the background: failed events are tried again, old personal data goes.

Any number of processes may do this at once: an event that is applied twice changes nothing the second
time, and deleting twice deletes once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, exists, or_, select, update

from store_credit.ledger.ledger import Ledger
from store_credit.ledger.tables import source
from store_credit.settings import Settings
from store_credit.webhooks import inbox, queries
from store_credit.webhooks.effects import EventState
from store_credit.webhooks.tables import webhook_event

PER_ROUND = 200
"""Events that are tried again in one round, and rows that one transaction prunes."""

STEPS_PER_ROUND = 50
"""Transactions that prune one kind of rows in one round, so that a round ends."""

_FINISHED = (EventState.APPLIED, EventState.IGNORED, EventState.DISMISSED)
_UNFINISHED = [state.value for state in EventState if state not in _FINISHED]
_KEPT_OF_SOURCE = ("id", "type", "amount", "currency", "upstreamId")
_KEPT_OF_CHARGE = ("id", "amount", "sourceId", "currency", "state", "cancels", "refunds", "captures")
_KEPT_OF_PART = ("id", "amount", "state")

_columns = webhook_event.c


async def tend(ledger: Ledger, settings: Settings) -> None:
    """One round: try failed events again, prune parked returns and the bodies of finished events."""
    now = await ledger.now()
    for row in await ledger.database.read(queries.due, now, PER_ROUND):
        await inbox.try_again(ledger, row)
    await _in_steps(ledger, prune_parked, now - settings.parked_retention)
    if settings.event_retention is not None:
        await _in_steps(ledger, prune_bodies, now - settings.event_retention)


async def _in_steps(ledger: Ledger, prune: Callable[[Connection, datetime], int], before: datetime) -> None:
    """Prune in short transactions, so that nobody waits for them, until little is left to prune."""
    for _ in range(STEPS_PER_ROUND):
        if await ledger.database.write(prune, before) < PER_ROUND:
            return


def prune_parked(connection: Connection, before: datetime) -> int:
    """Forget some of the sources whose deduction never came, and end the events that wait for them.

    Never while an event of the same order is unmatched: its deduction may come yet. Returns how many.
    """
    unmatched = exists().where(
        _columns.order_id == source.c.order_id, _columns.state == EventState.UNMATCHED.value
    )
    old = select(source.c.id, source.c.told).where(source.c.parked_at < before, ~unmatched)
    if connection.dialect.name == "postgresql":
        old = old.with_for_update(skip_locked=True, of=source)
    found = connection.execute(old.order_by(source.c.parked_at).limit(PER_ROUND)).all()
    references = [reference for row in found for reference in json.loads(row.told)["references"]]
    for start in range(0, len(references), PER_ROUND):
        some = _columns.id.in_(references[start : start + PER_ROUND])
        ended = {"state": EventState.IGNORED.value, "note": "no deduction came"}
        parked = _columns.state == EventState.PARKED.value
        connection.execute(update(webhook_event).where(some, parked).values(ended))
    connection.execute(delete(source).where(source.c.id.in_([row.id for row in found])))
    return len(found)


def prune_bodies(connection: Connection, before: datetime) -> int:
    """Drop the bodies of some finished events; what they did stays. Returns how many."""
    # Not "in a finished state": SQLite would look through all such events, and not by their age.
    finished = or_(_columns.state.not_in(_UNFINISHED), queries.DISMISSED_CONFLICT)
    old = (
        select(_columns.id)
        .where(_columns.received_at < before, finished, _columns.body.is_not(None))
        .order_by(_columns.received_at)
        .limit(PER_ROUND)
    )
    statement = update(webhook_event).where(_columns.id.in_(old.scalar_subquery())).values(body=None)
    return connection.execute(statement).rowcount


def bodies(connection: Connection, after: str, limit: int) -> list[tuple[str, str]]:
    """Some stored bodies with their ids, in order of their ids."""
    statement = select(_columns.id, _columns.body).where(_columns.id > after, _columns.body.is_not(None))
    return [(row.id, row.body) for row in connection.execute(statement.order_by(_columns.id).limit(limit))]


async def erase(ledger: Ledger, email: str, on_page: Callable[[int], None] | None = None) -> int:
    """Take a person's data out of every stored body that holds this e-mail address; returns how many.

    What the ledger needs to apply the event again stays: ids, sources and charges.
    """
    erased, after = 0, ""
    while page := await ledger.database.read(bodies, after, PER_ROUND):
        after = page[-1][0]
        found = [(row_id, document) for row_id, body in page if (document := _about(body, email))]
        await ledger.database.write(_store_without_person, found)
        erased += len(found)
        if on_page is not None:
            on_page(len(page))
    return erased


def _about(body: str, email: str) -> dict[str, Any] | None:
    """The document of the body, when the address stands in it."""
    try:
        document = json.loads(body)
    except ValueError:
        return None
    wanted = email.strip().casefold()
    return document if any(wanted in text.casefold() for text in _texts(document)) else None


def _texts(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict):
            pending.extend([*found.keys(), *found.values()])
        elif isinstance(found, list):
            pending.extend(found)


def _store_without_person(connection: Connection, found: list[tuple[str, dict[str, Any]]]) -> None:
    for row_id, document in found:
        body = json.dumps(without_person(document))
        connection.execute(update(webhook_event).where(_columns.id == row_id).values(body=body))


def without_person(document: dict[str, Any]) -> dict[str, Any]:
    """The event with nothing but what it means for store credit."""
    about = document["data"]["object"]
    kept = _only(about, ("id", "orderId", "checkoutSessionId", "currency", "state", *_KEPT_OF_CHARGE))
    for holder, target in ((about, kept), (about.get("payment"), kept.setdefault("payment", {}))):
        if isinstance(holder, dict):
            for name, fields in (("sources", _KEPT_OF_SOURCE), ("charges", _KEPT_OF_CHARGE)):
                if isinstance(holder.get(name), list):
                    target[name] = [_only(item, fields) for item in holder[name] if isinstance(item, dict)]
    envelope = _only(document, ("id", "type", "liveMode", "createdTime"))
    return envelope | {"data": {"object": kept}}


def _only(holder: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """These fields of an object; of the cancels, refunds and captures in it only what is counted."""
    kept = {name: holder[name] for name in names if name in holder}
    for name in _KEPT_OF_CHARGE[-3:]:
        if isinstance(kept.get(name), list):
            kept[name] = [_only(part, _KEPT_OF_PART) for part in kept[name] if isinstance(part, dict)]
    return kept
