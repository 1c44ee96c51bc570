"""The inbox's table."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from store_credit.metadata import ID_LENGTH_MAX, Moment, metadata, minted

_FIRST = text("state <> 'conflict'")
_WAITING = text("retry_at IS NOT NULL")
_WITH_BODY = text("body IS NOT NULL")

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
    # The raw body as it was delivered; pruned and erased, as it holds personal data.
    Column("body", Text),
    # Why it failed, was set aside or dismissed.
    Column("note", Text),
    Column("tries", Integer, nullable=False),
    # When a failed event is tried again; null when it is not.
    Column("retry_at", Moment),
    Column("event_created_at", Moment),
    Column("received_at", Moment, nullable=False),
    UniqueConstraint("event_id", "fingerprint"),
    CheckConstraint(
        "state IN ('applied', 'ignored', 'parked', 'unmatched', 'failed', 'conflict', 'dismissed')",
        name="state_known",
    ),
    Index(
        "uq_webhook_event_first",
        "event_id",
        unique=True,
        postgresql_where=_FIRST,
        sqlite_where=_FIRST,
    ),
    Index(None, "state", "id"),
    Index(None, "type", "id"),
    Index(
        "ix_webhook_event_with_body", "received_at", postgresql_where=_WITH_BODY, sqlite_where=_WITH_BODY
    ),
    Index(None, "retry_at", postgresql_where=_WAITING, sqlite_where=_WAITING),
)
