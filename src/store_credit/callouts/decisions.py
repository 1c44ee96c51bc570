"""Every answer given to Digital River, with its reason, so that support can say why."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Boolean, Column, Index, LargeBinary, String, Table, Text, text

from store_credit import ids, money
from store_credit.ledger.commands import Authorize, Release
from store_credit.ledger.ledger import Record
from store_credit.ledger.state import Outcome
from store_credit.metadata import (
    ID_LENGTH_MAX,
    UPSTREAM_ID_LENGTH_MAX,
    Moment,
    metadata,
    minted,
    upstream_key,
)

decision = Table(
    "decision",
    metadata,
    Column("id", minted(), primary_key=True),
    # `authorize` or `release`.
    Column("kind", String(16), nullable=False),
    Column("line_id", minted()),
    Column("upstream_id", String(UPSTREAM_ID_LENGTH_MAX), nullable=False),
    Column("upstream_key", LargeBinary(32), nullable=False),
    Column("session_id", String(ID_LENGTH_MAX)),
    Column("session_upstream_id", String(ID_LENGTH_MAX)),
    # The decimal number as it was asked; it need not be an amount of any currency.
    Column("asked", String(64)),
    # Approved or released, in minor units.
    Column("amount", BigInteger),
    Column("currency", String(3)),
    Column("accepted", Boolean, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("detail", Text),
    Column("hold_id", minted()),
    Column("actor", String(ID_LENGTH_MAX), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("created_at", Moment, nullable=False),
    Index(None, "line_id", "id"),
    Index(
        "ix_decision_lineless",
        "upstream_key",
        "id",
        postgresql_where=text("line_id IS NULL"),
        sqlite_where=text("line_id IS NULL"),
    ),
    Index(None, "session_id", "id"),
    Index(None, "created_at", "id"),
)


def record(command: Authorize | Release, outcome: Outcome, at: datetime, request_id: str) -> Record:
    """The row that keeps one answer, to be written in the transaction of its effect."""
    asked = command if isinstance(command, Authorize) else None
    row = {
        "id": ids.mint("dec"),
        "kind": "authorize" if asked else "release",
        "line_id": outcome.line.id if outcome.line else None,
        "upstream_id": command.upstream_id,
        "upstream_key": upstream_key(command.upstream_id),
        "session_id": asked.session_id if asked else outcome.hold.session_id if outcome.hold else None,
        "session_upstream_id": asked.session_upstream_id if asked else None,
        "asked": money.asked_text(asked.amount) if asked else None,
        "amount": outcome.hold.amount if outcome.hold else None,
        "currency": outcome.line.currency if outcome.line else None,
        "accepted": outcome.accepted,
        "reason": outcome.reason.value,
        "detail": outcome.detail,
        "hold_id": outcome.hold.id if outcome.hold else None,
        "actor": command.cause.actor,
        "request_id": request_id,
        "created_at": at,
    }
    return decision, row, "refuse"
