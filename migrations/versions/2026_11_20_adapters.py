"""Callout decisions, webhook events and credentials."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_20_adapters"
down_revision = "2026_11_20_ledger"
branch_labels = None
depends_on = None

MINTED = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
IDENTIFIER = sa.String(255)
UPSTREAM_ID = sa.String(1024)
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    create_decisions()
    create_events()
    create_credentials()


def create_decisions() -> None:
    op.create_table(
        "decision",
        sa.Column("id", MINTED, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("line_id", MINTED),
        sa.Column("upstream_id", UPSTREAM_ID, nullable=False),
        sa.Column("upstream_key", sa.LargeBinary(32), nullable=False),
        sa.Column("session_id", IDENTIFIER),
        sa.Column("session_upstream_id", IDENTIFIER),
        sa.Column("asked", sa.String(64)),
        sa.Column("amount", sa.BigInteger),
        sa.Column("currency", sa.String(3)),
        sa.Column("accepted", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("hold_id", MINTED),
        sa.Column("actor", IDENTIFIER, nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_decision"),
    )
    op.create_index("ix_decision_line_id_id", "decision", ["line_id", "id"])
    op.create_index("ix_decision_upstream_key_id", "decision", ["upstream_key", "id"])
    op.create_index("ix_decision_created_at", "decision", ["created_at"])
    op.create_index("ix_decision_session_id_id", "decision", ["session_id", "id"])


def create_events() -> None:
    op.create_table(
        "webhook_event",
        sa.Column("id", MINTED, nullable=False),
        sa.Column("event_id", IDENTIFIER, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("type", IDENTIFIER, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("order_id", IDENTIFIER),
        sa.Column("live_mode", sa.Boolean),
        sa.Column("effects", sa.Text, nullable=False),
        sa.Column("body", sa.Text),
        sa.Column("note", sa.Text),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("retry_at", MOMENT),
        sa.Column("event_created_at", MOMENT),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_event"),
        sa.UniqueConstraint("event_id", "fingerprint", name="uq_webhook_event_event_id_fingerprint"),
        sa.CheckConstraint(
            "state IN ('applied', 'ignored', 'parked', 'unmatched', 'failed', 'conflict', 'dismissed')",
            name="ck_webhook_event_state_known",
        ),
    )
    first = sa.text("state <> 'conflict'")
    op.create_index(
        "uq_webhook_event_first",
        "webhook_event",
        ["event_id"],
        unique=True,
        postgresql_where=first,
        sqlite_where=first,
    )
    op.create_index("ix_webhook_event_state_id", "webhook_event", ["state", "id"])
    op.create_index("ix_webhook_event_order_id", "webhook_event", ["order_id"])
    op.create_index("ix_webhook_event_received_at", "webhook_event", ["received_at"])
    waiting = sa.text("retry_at IS NOT NULL")
    op.create_index(
        "ix_webhook_event_retry_at",
        "webhook_event",
        ["retry_at"],
        postgresql_where=waiting,
        sqlite_where=waiting,
    )


def create_credentials() -> None:
    op.create_table(
        "credential",
        sa.Column("id", MINTED, nullable=False),
        sa.Column("name", IDENTIFIER, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("disabled_at", MOMENT),
        sa.Column("expires_at", MOMENT),
        sa.Column("last_used_at", MOMENT),
        sa.PrimaryKeyConstraint("id", name="pk_credential"),
        sa.CheckConstraint(
            "role IN ('callout', 'merchant', 'reader', 'storefront')", name="ck_credential_role_known"
        ),
    )
    op.create_index("ix_credential_name", "credential", ["name"])


def downgrade() -> None:
    for table in ("credential", "webhook_event", "decision"):
        op.drop_table(table)
