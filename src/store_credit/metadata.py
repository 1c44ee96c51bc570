"""What all tables share: one metadata with a naming convention, and the types of their columns."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import lru_cache

from sqlalchemy import DateTime, Dialect, MetaData, String
from sqlalchemy.types import TypeDecorator

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

ID_LENGTH_MAX = 255
"""Characters of a session, order, source, event, customer or idempotency identifier."""

UPSTREAM_ID_LENGTH_MAX = 1024


@lru_cache(maxsize=1_024)
def sqlite_time(moment: datetime) -> str:
    """A time as SQLAlchemy's `DateTime` keeps it in SQLite, in UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


class Moment(TypeDecorator[datetime]):
    """An aware time in UTC. SQLite has no time zones and stores it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.replace(tzinfo=UTC)


def minted() -> String:
    """The type of an identifier that we mint: compared byte by byte, so that it sorts by time."""
    return String(64).with_variant(String(64, collation="C"), "postgresql")


@lru_cache(maxsize=1_024)
def upstream_key(upstream_id: str) -> bytes:
    """What upstream ids are indexed by: SHA-256, as 1,024 characters are too long for an index row.

    A request needs that of its id several times.
    """
    return hashlib.sha256(upstream_id.encode()).digest()
