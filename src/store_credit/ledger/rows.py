"""Rows of the ledger's tables, and the values that the rules know: one made of the other. No SQL."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from store_credit.bulk import Row
from store_credit.ledger.commands import Describe, Issue
from store_credit.ledger.offers import Offer
from store_credit.ledger.sources import Returned, Source
from store_credit.ledger.state import Hold, HoldState, Line, LineStatus
from store_credit.metadata import upstream_key

_SOURCE_FACTS = frozenset(field.name for field in fields(Source))


def read_line(row: Any) -> Line:
    flags = frozenset(filter(None, row[-1].split(",")))
    values: list[Any] = [*row[:3], LineStatus(row[3]), *row[4:-1], flags]
    return Line(*values)


def read_hold(row: Any) -> Hold:
    values: list[Any] = [*row[:5], HoldState.OPEN, *row[6:]]
    return Hold(*values)


def read_source(source_id: str, told: str, order_id: str | None, parked_at: datetime | None) -> Source:
    # A later version may know more of a source.
    facts = {name: value for name, value in json.loads(told).items() if name in _SOURCE_FACTS}
    for kind in ("cancelled", "refunded"):
        facts[kind] = Returned(**facts[kind])
    facts["references"] = tuple(facts["references"])
    return Source(source_id, order_id=order_id, parked_at=parked_at, **facts)


def new_line_row(line: Line, issue: Issue, now: datetime) -> Row:
    opened = {
        "upstream_id": line.upstream_id,
        "upstream_key": upstream_key(line.upstream_id),
        "customer_id": issue.customer_id,
        "currency": line.currency,
        "name": issue.name,
        "icon_url": issue.icon_url,
        "last_four": issue.last_four,
        "metadata": json.dumps(issue.metadata),
        "created_at": now,
    }
    return figures_row(line, now) | terms_row(line) | opened


def figures_row(line: Line, now: datetime) -> Row:
    """What most commands change."""
    return {
        "id": line.id,
        "balance": line.balance,
        "held": line.held,
        "written_off": line.written_off,
        "seq": line.seq,
        "head_hash": line.head_hash,
        "due_at": _due_at(line, now),
        "flags": ",".join(sorted(line.flags)),
        "last_entry_at": line.last_entry_at,
    }


def terms_row(line: Line) -> Row:
    """What decides about new holds, which hardly ever changes: to name a column renews its indexes."""
    return {
        "id": line.id,
        "status": line.status,
        "allow_partial": line.allow_partial,
        "expires_at": line.expires_at,
    }


def described_row(command: Describe) -> Row:
    values = dict(command.changes)
    if "metadata" in values:
        values["metadata"] = json.dumps(values["metadata"])
    return {"id": command.line_id, **values}


def hold_row(held: Hold) -> Row:
    return held._asdict() | {"upstream_key": upstream_key(held.upstream_id)}


def source_row(told: Source) -> Row:
    facts = asdict(told)
    del facts["id"], facts["order_id"], facts["parked_at"]
    for kind in ("uncaptured", "charge_of", "refund_charge_of", "cancel_totals", "refund_totals"):
        if not facts[kind]:
            del facts[kind]
    row = {"id": told.id, "told": json.dumps(facts), "order_id": told.order_id}
    return row | {"parked_at": told.parked_at}


def new_source_row(source_id: str) -> Row:
    """A source that was only named: nothing is known of what came back of it."""
    return {"id": source_id, "told": None, "order_id": None, "parked_at": None}


def used_offer_row(used: Offer) -> Row:
    return {"upstream_id": used.upstream_id, "session_id": used.session_id, "spent_at": used.spent_at}


def _due_at(line: Line, now: datetime) -> datetime | None:
    """When the sweeper must look at the line: at its expiry, and later while holds protect credit."""
    waiting = line.expires_at is not None and (line.expires_at > now or line.unheld > 0)
    return line.expires_at if waiting and line.status != LineStatus.CLOSED else None
