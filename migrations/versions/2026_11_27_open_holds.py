"""PostgreSQL's indexes of the open holds serve only who names what they are for.

Else it may read all open holds of all lines for those of one session: while it believes that there are
none, which an ANALYZE in a quiet hour tells it, it takes any of these indexes for a short one.
The version before does not name it, and would look for holds past their time in the whole table: so the
floor is raised.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_open_holds"
down_revision = "2026_11_26_holds"
branch_labels = None
depends_on = None

_INDEXES = {
    "ix_hold_open_line_id": (["line_id", "expires_at"], "line_id"),
    "ix_hold_open_expires_at": (["expires_at"], "id"),
    "ix_hold_open_created_at": (["created_at", "id"], "created_at"),
}
_FLOOR = sa.table("schema_floor", sa.column("revision"))


def upgrade() -> None:
    for name, (columns, named) in _INDEXES.items():
        _create_anew(name, columns, f"state = 'open' AND {named} IS NOT NULL")
    op.execute(sa.update(_FLOOR).values(revision=revision))


def downgrade() -> None:
    for name, (columns, _) in _INDEXES.items():
        _create_anew(name, columns, "state = 'open'")
    op.execute(sa.update(_FLOOR).values(revision=down_revision))


def _create_anew(name: str, columns: list[str], condition: str) -> None:
    if op.get_context().dialect.name == "postgresql":
        op.drop_index(name, "hold")
        op.create_index(name, "hold", columns, postgresql_where=sa.text(condition))
