"""Indexes for lists that are narrowed, and for pruning, on tables that have grown for years."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_20_growth"
down_revision = "2026_11_20_adapters"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_credit_line_status_id", "credit_line", ["status", "id"])
    op.create_index("ix_credit_line_currency_id", "credit_line", ["currency", "id"])
    create_partial_index(
        "ix_credit_line_expires_at", "credit_line", ["expires_at"], "expires_at IS NOT NULL"
    )
    create_partial_index("ix_hold_open_created_at", "hold", ["created_at", "id"], "state = 'open'")
    create_partial_index("ix_hold_ended", "hold", ["state", "created_at", "id"], "state <> 'open'")
    op.create_index("ix_decision_created_at_id", "decision", ["created_at", "id"])
    op.drop_index("ix_decision_created_at", "decision")
    op.create_index("ix_webhook_event_type_id", "webhook_event", ["type", "id"])
    # Bodies that were pruned are left out: else each round of pruning would look at all of them again.
    create_partial_index("ix_webhook_event_with_body", "webhook_event", ["received_at"], "body IS NOT NULL")
    op.drop_index("ix_webhook_event_received_at", "webhook_event")


def create_partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    only = sa.text(condition)
    op.create_index(name, table, columns, postgresql_where=only, sqlite_where=only)


def downgrade() -> None:
    op.create_index("ix_webhook_event_received_at", "webhook_event", ["received_at"])
    op.drop_index("ix_webhook_event_with_body", "webhook_event")
    op.drop_index("ix_webhook_event_type_id", "webhook_event")
    op.create_index("ix_decision_created_at", "decision", ["created_at"])
    op.drop_index("ix_decision_created_at_id", "decision")
    op.drop_index("ix_hold_ended", "hold")
    op.drop_index("ix_hold_open_created_at", "hold")
    for name in ("expires_at", "currency_id", "status_id"):
        op.drop_index(f"ix_credit_line_{name}", "credit_line")
