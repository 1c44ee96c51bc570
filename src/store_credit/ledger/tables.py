"""The ledger's tables. Amounts are integers in the minor unit of the line's currency."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Table,
    Text,
    text,
)

from store_credit.metadata import ID_LENGTH_MAX, UPSTREAM_ID_LENGTH_MAX, Moment, metadata, minted


def _open_hold_index(name: str, *columns: str, named: str) -> Index:
    """For who names this column too, and nobody else: while PostgreSQL believes that no hold is open, it
    takes any index of them for as good as the right one."""
    only = text(f"state = 'open' AND {named} IS NOT NULL")
    return Index(name, *columns, postgresql_where=only, sqlite_where=text("state = 'open'"))


def _ended_hold_index(name: str, *columns: str) -> Index:
    is_ended = text("state <> 'open'")
    return Index(name, *columns, postgresql_where=is_ended, sqlite_where=is_ended)


credit_line = Table(
    "credit_line",
    metadata,
    Column("id", minted(), primary_key=True),
    Column("upstream_id", String(UPSTREAM_ID_LENGTH_MAX), nullable=False),
    Column("upstream_key", LargeBinary(32), nullable=False, unique=True),
    Column("customer_id", String(ID_LENGTH_MAX), nullable=False),
    Column("currency", String(3), nullable=False),
    Column("status", String(16), nullable=False),
    # Cached from the journal: the sums up to its last entry, and that entry's hash.
    Column("balance", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("written_off", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("head_hash", String(64), nullable=False),
    Column("allow_partial", Boolean),
    Column("name", Text),
    Column("icon_url", Text),
    Column("last_four", Text),
    Column("metadata", Text, nullable=False),
    # Comma-separated; see ledger.state.Flag.
    Column("flags", Text, nullable=False),
    Column("expires_at", Moment),
    # When the sweeper must look at the line; null when there is nothing left to write off.
    Column("due_at", Moment),
    Column("created_at", Moment, nullable=False),
    Column("last_entry_at", Moment, nullable=False),
    CheckConstraint("held >= 0", name="held_not_negative"),
    CheckConstraint("written_off >= 0", name="written_off_not_negative"),
    CheckConstraint("status IN ('active', 'suspended', 'closed')", name="status_known"),
    Index(None, "customer_id", "id"),
    Index(None, "status", "id"),
    Index(None, "currency", "id"),
    Index(
        None,
        "expires_at",
        postgresql_where=text("expires_at IS NOT NULL"),
        sqlite_where=text("expires_at IS NOT NULL"),
    ),
    Index(
        None,
        "due_at",
        postgresql_where=text("due_at IS NOT NULL"),
        sqlite_where=text("due_at IS NOT NULL"),
    ),
    Index(
        "ix_credit_line_flagged",
        "id",
        postgresql_where=text("flags <> ''"),
        sqlite_where=text("flags <> ''"),
    ),
)

hold = Table(
    "hold",
    metadata,
    Column("id", minted(), primary_key=True),
    Column("line_id", minted(), ForeignKey(credit_line.c.id), nullable=False),
    Column("session_id", String(ID_LENGTH_MAX), nullable=False),
    Column("session_upstream_id", String(ID_LENGTH_MAX)),
    # As asked by Digital River.
    Column("upstream_id", String(UPSTREAM_ID_LENGTH_MAX), nullable=False),
    Column("upstream_key", LargeBinary(32), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("deduction_id", minted()),
    CheckConstraint("amount > 0", name="amount_positive"),
    CheckConstraint("state IN ('open', 'consumed', 'released', 'expired')", name="state_known"),
    Index(
        "uq_hold_open",
        "session_id",
        "upstream_key",
        unique=True,
        postgresql_where=text("state = 'open'"),
        sqlite_where=text("state = 'open'"),
    ),
    _open_hold_index("ix_hold_open_line_id", "line_id", "expires_at", named="line_id"),
    _open_hold_index("ix_hold_open_expires_at", "expires_at", named="id"),
    _open_hold_index("ix_hold_open_created_at", "created_at", "id", named="created_at"),
    # Open holds and those that ended have indexes of their own: each that a new hold goes into costs a
    # page of its own, and an authorization makes nothing but open ones.
    _ended_hold_index("ix_hold_ended_line_id", "line_id", "id"),
    _ended_hold_index("ix_hold_ended_session_id", "session_id"),
    _ended_hold_index("ix_hold_ended", "state", "created_at", "id"),
)

OF_ALL_LINES = hold.c.id > ""
"""Named by who wants the open holds of all lines by their expiry: there are none without an id."""

deduction = Table(
    "deduction",
    metadata,
    Column("id", minted(), primary_key=True),
    Column("line_id", minted(), ForeignKey(credit_line.c.id), nullable=False),
    # Digital River's payment source: deducted once, for ever.
    Column("source_id", String(ID_LENGTH_MAX), nullable=False, unique=True),
    Column("upstream_id", String(UPSTREAM_ID_LENGTH_MAX), nullable=False),
    Column("order_id", String(ID_LENGTH_MAX)),
    Column("session_id", String(ID_LENGTH_MAX)),
    Column("amount", BigInteger, nullable=False),
    Column("returned", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False),
    CheckConstraint("amount > 0", name="amount_positive"),
    CheckConstraint("returned >= 0 AND returned <= amount", name="returned_within_amount"),
    Index(None, "session_id", "line_id"),
    Index(None, "order_id"),
    Index(None, "line_id", "id"),
)

ledger_entry = Table(
    "ledger_entry",
    metadata,
    Column("line_id", minted(), ForeignKey(credit_line.c.id), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("kind", String(24), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    Column("held_after", BigInteger, nullable=False),
    Column("hold_id", minted()),
    Column("deduction_id", minted()),
    Column("event_id", String(ID_LENGTH_MAX)),
    Column("actor", String(ID_LENGTH_MAX), nullable=False),
    Column("reason", Text),
    Column("idempotency_key", String(ID_LENGTH_MAX)),
    Column("created_at", Moment, nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    CheckConstraint("held_after >= 0", name="held_after_not_negative"),
    CheckConstraint("seq > 0", name="seq_positive"),
)

source = Table(
    "source",
    metadata,
    # A row for each Digital River source id ever named: locked before lines, so that a deduction and
    # a return of one source never miss each other.
    Column("id", String(ID_LENGTH_MAX), primary_key=True),
    # JSON: what was told of its cancels and refunds; see ledger.sources.Source.
    Column("told", Text),
    Column("order_id", String(ID_LENGTH_MAX)),
    # Since when returns wait for the deduction; null when none do.
    Column("parked_at", Moment),
    Index(
        None,
        "parked_at",
        postgresql_where=text("parked_at IS NOT NULL"),
        sqlite_where=text("parked_at IS NOT NULL"),
    ),
)

claim = Table(
    "claim",
    metadata,
    # `event:<id>` or `key:<Idempotency-Key>`: what was claimed once, with the answer it got.
    Column("key", String(ID_LENGTH_MAX + 16), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("answer", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
)

offer = Table(
    "offer",
    metadata,
    # Minted: see ledger.offers.
    Column("upstream_id", minted(), primary_key=True),
    Column("line_id", minted(), ForeignKey(credit_line.c.id), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("session_id", String(ID_LENGTH_MAX)),
    Column("spent_at", Moment),
    Column("session_upstream_id", String(ID_LENGTH_MAX)),
    Column("created_at", Moment, nullable=False),
    CheckConstraint("amount > 0", name="amount_positive"),
    Index(None, "line_id"),
)

ledger_batch = Table(
    "ledger_batch",
    metadata,
    # One row a transaction: tells after a lost connection whether its COMMIT happened. Pruned.
    Column("id", minted(), primary_key=True),
    Column("created_at", Moment, nullable=False),
    Index(None, "created_at"),
)
