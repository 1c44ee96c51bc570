"""Open holds and those that ended have indexes of their own, and the open ones of an upstream id are found
by their line.

What an index over all holds or by hash takes for a new hold is a page of its own. Without the three that
go, 32 authorizations in one transaction write 138 pages on SQLite, where it were 197. The version before
would read whole tables without them: so the floor is raised.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_holds"
down_revision = "2026_11_26_decisions"
branch_labels = None
depends_on = None

_FLOOR = sa.table("schema_floor", sa.column("revision"))


def upgrade() -> None:
    create_partial_index("ix_hold_ended_line_id", ["line_id", "id"], "state <> 'open'")
    create_partial_index("ix_hold_ended_session_id", ["session_id"], "state <> 'open'")
    op.drop_index("ix_hold_line_id_id", "hold")
    op.drop_index("ix_hold_session_id", "hold")
    op.drop_index("ix_hold_open_upstream_key", "hold")
    op.execute(sa.update(_FLOOR).values(revision=revision))


def create_partial_index(name: str, columns: list[str], condition: str) -> None:
    only = sa.text(condition)
    op.create_index(name, "hold", columns, postgresql_where=only, sqlite_where=only)


def downgrade() -> None:
    create_partial_index("ix_hold_open_upstream_key", ["upstream_key", "id"], "state = 'open'")
    op.create_index("ix_hold_session_id", "hold", ["session_id"])
    op.create_index("ix_hold_line_id_id", "hold", ["line_id", "id"])
    op.drop_index("ix_hold_ended_session_id", "hold")
    op.drop_index("ix_hold_ended_line_id", "hold")
    op.execute(sa.update(_FLOOR).values(revision="2026_11_21_floor"))
