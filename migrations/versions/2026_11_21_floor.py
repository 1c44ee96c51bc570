"""Which versions may still run on this schema: a later migration that only adds leaves the floor alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_21_floor"
down_revision = "2026_11_20_growth"
branch_labels = None
depends_on = None


def upgrade() -> None:
    floor = op.create_table(
        "schema_floor",
        sa.Column("revision", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("revision", name="pk_schema_floor"),
    )
    op.bulk_insert(floor, [{"revision": revision}])


def downgrade() -> None:
    op.drop_table("schema_floor")
