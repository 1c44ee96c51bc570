"""Credit lines, holds, deductions and the append-only journal."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_20_ledger"
down_revision = None
branch_labels = None
depends_on = None

MINTED = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
IDENTIFIER = sa.String(255)
UPSTREAM_ID = sa.String(1024)
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    create_lines()
    create_holds()
    create_deductions()
    create_journal()
    create_offers()
    create_bookkeeping()


def create_lines() -> None:
    op.create_table(
        "credit_line",
        sa.Column("id", MINTED, nullable=False),
        sa.Column("upstream_id", UPSTREAM_ID, nullable=False),
        sa.Column("upstream_key", sa.LargeBinary(32), nullable=False),
        sa.Column("customer_id", IDENTIFIER, nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("balance", sa.BigInteger, nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
        sa.Column("written_off", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("head_hash", sa.String(64), nullable=False),
        sa.Column("allow_partial", sa.Boolean),
        sa.Column("name", sa.Text),
        sa.Column("icon_url", sa.Text),
        sa.Column("last_four", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("flags", sa.Text, nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.Column("due_at", MOMENT),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("last_entry_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_credit_line"),
        sa.UniqueConstraint("upstream_key", name="uq_credit_line_upstream_key"),
        sa.CheckConstraint("held >= 0", name="ck_credit_line_held_not_negative"),
        sa.CheckConstraint("written_off >= 0", name="ck_credit_line_written_off_not_negative"),
        sa.CheckConstraint(
            "status IN ('active', 'suspended', 'closed')", name="ck_credit_line_status_known"
        ),
    )
    op.create_index("ix_credit_line_customer_id_id", "credit_line", ["customer_id", "id"])
    due = sa.text("due_at IS NOT NULL")
    op.create_index(
        "ix_credit_line_due_at", "credit_line", ["due_at"], postgresql_where=due, sqlite_where=due
    )
    flagged = sa.text("flags <> ''")
    op.create_index(
        "ix_credit_line_flagged", "credit_line", ["id"], postgresql_where=flagged, sqlite_where=flagged
    )
    if op.get_bind().dialect.name == "postgresql":
        # Room for new versions of a row beside the old one: the figures change with every hold.
        op.execute("ALTER TABLE credit_line SET (fillfactor = 80)")


def create_holds() -> None:
    op.create_table(
        "hold",
        sa.Column("id", MINTED, nullable=False),
        sa.Column("line_id", MINTED, nullable=False),
        sa.Column("session_id", IDENTIFIER, nullable=False),
        sa.Column("session_upstream_id", IDENTIFIER),
        sa.Column("upstream_id", UPSTREAM_ID, nullable=False),
        sa.Column("upstream_key", sa.LargeBinary(32), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT),
        sa.Column("deduction_id", MINTED),
        sa.PrimaryKeyConstraint("id", name="pk_hold"),
        sa.ForeignKeyConstraint(["line_id"], ["credit_line.id"], name="fk_hold_line_id"),
        sa.CheckConstraint("amount > 0", name="ck_hold_amount_positive"),
        sa.CheckConstraint(
            "state IN ('open', 'consumed', 'released', 'expired')", name="ck_hold_state_known"
        ),
    )
    op.create_index("ix_hold_line_id_id", "hold", ["line_id", "id"])
    op.create_index("ix_hold_session_id", "hold", ["session_id"])
    create_open_hold_index("uq_hold_open", ["session_id", "upstream_key"], unique=True)
    create_open_hold_index("ix_hold_open_upstream_key", ["upstream_key", "id"])
    create_open_hold_index("ix_hold_open_line_id", ["line_id", "expires_at"])
    create_open_hold_index("ix_hold_open_expires_at", ["expires_at"])


def create_open_hold_index(name: str, columns: list[str], unique: bool = False) -> None:
    is_open = sa.text("state = 'open'")
    op.create_index(name, "hold", columns, unique=unique, postgresql_where=is_open, sqlite_where=is_open)


def create_deductions() -> None:
    op.create_table(
        "deduction",
        sa.Column("id", MINTED, nullable=False),
        sa.Column("line_id", MINTED, nullable=False),
        sa.Column("source_id", IDENTIFIER, nullable=False),
        sa.Column("upstream_id", UPSTREAM_ID, nullable=False),
        sa.Column("order_id", IDENTIFIER),
        sa.Column("session_id", IDENTIFIER),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("returned", sa.BigInteger, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deduction"),
        sa.UniqueConstraint("source_id", name="uq_deduction_source_id"),
        sa.ForeignKeyConstraint(["line_id"], ["credit_line.id"], name="fk_deduction_line_id"),
        sa.CheckConstraint("amount > 0", name="ck_deduction_amount_positive"),
        sa.CheckConstraint(
            "returned >= 0 AND returned <= amount", name="ck_deduction_returned_within_amount"
        ),
    )
    op.create_index("ix_deduction_session_id_line_id", "deduction", ["session_id", "line_id"])
    op.create_index("ix_deduction_order_id", "deduction", ["order_id"])
    op.create_index("ix_deduction_line_id_id", "deduction", ["line_id", "id"])


def create_journal() -> None:
    op.create_table(
        "ledger_entry",
        sa.Column("line_id", MINTED, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(24), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
        sa.Column("balance_after", sa.BigInteger, nullable=False),
        sa.Column("held_after", sa.BigInteger, nullable=False),
        sa.Column("hold_id", MINTED),
        sa.Column("deduction_id", MINTED),
        sa.Column("event_id", IDENTIFIER),
        sa.Column("actor", IDENTIFIER, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("idempotency_key", IDENTIFIER),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("line_id", "seq", name="pk_ledger_entry"),
        sa.ForeignKeyConstraint(["line_id"], ["credit_line.id"], name="fk_ledger_entry_line_id"),
        sa.CheckConstraint("held_after >= 0", name="ck_ledger_entry_held_after_not_negative"),
        sa.CheckConstraint("seq > 0", name="ck_ledger_entry_seq_positive"),
    )
    forbid_changes()


def forbid_changes() -> None:
    """The journal is append-only, and the database itself sees to it."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION ledger_entry_is_append_only() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'ledger_entry is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER ledger_entry_append_only BEFORE UPDATE OR DELETE OR TRUNCATE"
            " ON ledger_entry FOR EACH STATEMENT EXECUTE FUNCTION ledger_entry_is_append_only()"
        )
        return
    refuse = "BEGIN SELECT RAISE(ABORT, 'ledger_entry is append-only'); END"
    for action in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER ledger_entry_no_{action.lower()} BEFORE {action} ON ledger_entry {refuse}"
        )
    # REPLACE removes the row in its way without asking the trigger on DELETE.
    op.execute(
        "CREATE TRIGGER ledger_entry_no_replace BEFORE INSERT ON ledger_entry WHEN EXISTS"
        f" (SELECT 1 FROM ledger_entry WHERE line_id = NEW.line_id AND seq = NEW.seq) {refuse}"
    )


def create_bookkeeping() -> None:
    op.create_table(
        "source",
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("told", sa.Text),
        sa.Column("order_id", IDENTIFIER),
        sa.Column("parked_at", MOMENT),
        sa.PrimaryKeyConstraint("id", name="pk_source"),
    )
    parked = sa.text("parked_at IS NOT NULL")
    op.create_index(
        "ix_source_parked_at", "source", ["parked_at"], postgresql_where=parked, sqlite_where=parked
    )
    op.create_table(
        "claim",
        sa.Column("key", sa.String(271), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_claim"),
    )
    op.create_table(
        "ledger_batch",
        sa.Column("id", MINTED, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_batch"),
    )
    op.create_index("ix_ledger_batch_created_at", "ledger_batch", ["created_at"])


def create_offers() -> None:
    op.create_table(
        "offer",
        sa.Column("upstream_id", MINTED, nullable=False),
        sa.Column("line_id", MINTED, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("session_id", IDENTIFIER),
        sa.Column("spent_at", MOMENT),
        sa.Column("session_upstream_id", IDENTIFIER),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("upstream_id", name="pk_offer"),
        sa.ForeignKeyConstraint(["line_id"], ["credit_line.id"], name="fk_offer_line_id"),
        sa.CheckConstraint("amount > 0", name="ck_offer_amount_positive"),
    )
    op.create_index("ix_offer_line_id", "offer", ["line_id"])


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER ledger_entry_append_only ON ledger_entry")
        op.execute("DROP FUNCTION ledger_entry_is_append_only()")
    for table in ("ledger_batch", "claim", "source", "offer", "ledger_entry", "deduction", "hold"):
        op.drop_table(table)
    op.drop_table("credit_line")
