"""PostgreSQL's indexes of the open holds serve only who names their first column.

Else it may read all open holds of all lines for those of one session: while it believes that there are
none, which an ANALYZE in a quiet hour tells it, it takes any of these indexes for a short one.
The version before works as well with them, but for the list of all open holds, which it sorts.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_open_holds"
down_revision = "2026_11_26_holds"
branch_labels = None
depends_on = None

_INDEXES = {
    "ix_hold_open_line_id": ["line_id", "expires_at"],
    "ix_hold_open_expires_at": ["expires_at"],
    "ix_hold_open_created_at": ["created_at", "id"],
}


def upgrade() -> None:
    for name, columns in _INDEXES.items():
        _create_anew(name, columns, f"state = 'open' AND {columns[0]} IS NOT NULL")


def downgrade() -> None:
    for name, columns in _INDEXES.items():
        _create_anew(name, columns, "state = 'open'")


def _create_anew(name: str, columns: list[str], condition: str) -> None:
    if op.get_context().dialect.name == "postgresql":
        op.drop_index(name, "hold")
        op.create_index(name, "hold", columns, postgresql_where=sa.text(condition))
