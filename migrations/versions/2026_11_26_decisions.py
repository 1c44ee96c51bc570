"""Decisions by upstream id are found by their lines, but for those of ids that no line has.

An index by hash takes a page of its own for nearly every new row: on SQLite a tenth of the processor's
time that an authorization takes in the ledger.
The version before finds such decisions without it too, by reading them all.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_decisions"
down_revision = "2026_11_21_floor"
branch_labels = None
depends_on = None


def upgrade() -> None:
    only = sa.text("line_id IS NULL")
    op.create_index(
        "ix_decision_lineless",
        "decision",
        ["upstream_key", "id"],
        postgresql_where=only,
        sqlite_where=only,
    )
    op.drop_index("ix_decision_upstream_key_id", "decision")


def downgrade() -> None:
    op.create_index("ix_decision_upstream_key_id", "decision", ["upstream_key", "id"])
    op.drop_index("ix_decision_lineless", "decision")
