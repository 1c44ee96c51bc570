"""Rows of the database as the merchant API shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping

from store_credit.fields import time_text
from store_credit.ledger.commands import Issue
from store_credit.ledger.queries import EXPIRED, LineFigures
from store_credit.ledger.reports import PastLine
from store_credit.ledger.state import Line, LineStatus
from store_credit.money import to_number

Shown = dict[str, Any]
Row = RowMapping | dict[str, Any]


def listed(rows: Iterable[Any], more: bool, render: Callable[[Any], Shown]) -> Shown:
    return {"hasMore": more, "data": [render(row) for row in rows]}


def line(figures: LineFigures) -> Shown:
    row = figures.row
    currency = row["currency"]
    return {
        "id": row["id"],
        "upstreamId": row["upstream_id"],
        "customerId": row["customer_id"],
        "currency": currency,
        "status": figures.status,
        "balance": to_number(figures.balance, currency),
        "held": to_number(figures.held, currency),
        "available": to_number(figures.available, currency),
        "name": row["name"],
        "iconUrl": row["icon_url"],
        "lastFour": row["last_four"],
        "allowPartial": row["allow_partial"],
        "expiresTime": time_text(row["expires_at"]),
        "createdTime": time_text(row["created_at"]),
        "updatedTime": time_text(row["last_entry_at"]),
        "flags": figures.flags,
        "metadata": figures.metadata,
    }


def past_line(today: LineFigures, then: PastLine) -> Shown:
    """A line with the status and figures of a past instant; how it is called and flagged is today's."""
    row = {**today.row, "last_entry_at": then.last_entry_at}
    return line(LineFigures(_as_row(row), then.status, then.balance, then.held, then.available))


def changed_line(before: LineFigures, after: Line, at: datetime, changes: Row) -> Shown:
    """A line as one transaction left it, with what that changed of its description."""
    row = {**before.row, **changes, "expires_at": after.expires_at, "allow_partial": after.allow_partial}
    row |= {"flags": ",".join(sorted(after.flags)), "last_entry_at": after.last_entry_at}
    expired = after.status == LineStatus.ACTIVE and after.is_expired(at)
    status = EXPIRED if expired else after.status.value
    return line(LineFigures(_as_row(row), status, after.balance, after.held, after.available(at)))


def issued_line(command: Issue, issued: Line, at: datetime) -> Shown:
    """A line in the moment of its issue, before it can be read."""
    row: Any = {
        "id": command.line_id,
        "upstream_id": command.upstream_id,
        "customer_id": command.customer_id,
        "currency": command.currency,
        "name": command.name,
        "icon_url": command.icon_url,
        "last_four": command.last_four,
        "allow_partial": command.allow_partial,
        "expires_at": command.expires_at,
        "created_at": at,
        "last_entry_at": at,
        "flags": "",
        "metadata": json.dumps(command.metadata),
    }
    return line(LineFigures(row, issued.status.value, issued.balance, issued.held, issued.balance))


def _as_row(row: dict[str, Any]) -> Any:
    """A mapping in the place of a row of the database."""
    return row


def entry(row: Row, currency: str) -> Shown:
    return {
        "id": f"{row['line_id']}.{row['seq']}",
        "seq": row["seq"],
        "kind": row["kind"],
        "amount": to_number(row["amount"], currency),
        "held": to_number(row["held"], currency),
        "balanceAfter": to_number(row["balance_after"], currency),
        "heldAfter": to_number(row["held_after"], currency),
        "holdId": row["hold_id"],
        "deductionId": row["deduction_id"],
        "eventId": row["event_id"],
        "actor": row["actor"],
        "reason": row["reason"],
        "idempotencyKey": row["idempotency_key"],
        "createdTime": time_text(row["created_at"]),
        "previousHash": row["previous_hash"],
        "hash": row["hash"],
    }


def hold(row: Row, currency: str) -> Shown:
    return {
        "id": row["id"],
        "creditLineId": row["line_id"],
        "sessionId": row["session_id"],
        "sessionUpstreamId": row["session_upstream_id"],
        "upstreamId": row["upstream_id"],
        "amount": to_number(row["amount"], currency),
        "state": row["state"],
        "createdTime": time_text(row["created_at"]),
        "expiresTime": time_text(row["expires_at"]),
        "endedTime": time_text(row["ended_at"]),
        "deductionId": row["deduction_id"],
    }


def deduction(row: Row, currency: str) -> Shown:
    return {
        "id": row["id"],
        "creditLineId": row["line_id"],
        "sourceId": row["source_id"],
        "upstreamId": row["upstream_id"],
        "orderId": row["order_id"],
        "sessionId": row["session_id"],
        "amount": to_number(row["amount"], currency),
        "returned": to_number(row["returned"], currency),
        "createdTime": time_text(row["created_at"]),
    }


def decision(row: Row) -> Shown:
    amount, currency = row["amount"], row["currency"]
    return {
        "id": row["id"],
        "kind": row["kind"],
        "creditLineId": row["line_id"],
        "upstreamId": row["upstream_id"],
        "sessionId": row["session_id"],
        "sessionUpstreamId": row["session_upstream_id"],
        "amountAsked": None if row["asked"] is None else float(row["asked"]),
        "amount": None if amount is None or currency is None else to_number(amount, currency),
        "currency": currency,
        "accepted": row["accepted"],
        "reason": row["reason"],
        "detail": row["detail"],
        "holdId": row["hold_id"],
        "actor": row["actor"],
        "requestId": row["request_id"],
        "createdTime": time_text(row["created_at"]),
    }


def event(row: Row) -> Shown:
    return {
        "id": row["event_id"],
        "receiptId": row["id"],
        "type": row["type"],
        "state": row["state"],
        "orderId": row["order_id"],
        "liveMode": row["live_mode"],
        "note": row["note"],
        "effects": json.loads(row["effects"]),
        "createdTime": time_text(row["event_created_at"]),
        "receivedTime": time_text(row["received_at"]),
    }
