"""The credentials kept in the database: names, roles and argon2id hashes of generated passwords.

Several credentials may share a name: that is how a password is rotated with both valid for a while.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from passlib.hash import argon2
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Select,
    String,
    Table,
    Text,
    insert,
    select,
    update,
)

from store_credit import ids
from store_credit.metadata import ID_LENGTH_MAX, Moment, metadata, minted

PASSWORD_BYTES = 24

hasher = argon2.using(type="ID", memory_cost=19 * 1024, rounds=2, parallelism=1)
"""argon2id with the parameters that OWASP recommends: 19 MiB, two passes, one lane."""


class Role(StrEnum):
    CALLOUT = "callout"
    """Digital River: the callout."""
    MERCHANT = "merchant"
    """The merchant API, reading and writing."""
    READER = "reader"
    """The merchant API, reading only."""


credential = Table(
    "credential",
    metadata,
    Column("id", minted(), primary_key=True),
    Column("name", String(ID_LENGTH_MAX), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("disabled_at", Moment),
    CheckConstraint("role IN ('callout', 'merchant', 'reader')", name="role_known"),
)


@dataclass(frozen=True, slots=True)
class Credential:
    """A name and a password's hash that open a role."""

    id: str
    name: str
    role: Role
    password_hash: str
    created_at: datetime | None = None
    disabled_at: datetime | None = None


def add(connection: Connection, name: str, role: Role, now: datetime) -> tuple[Credential, str]:
    """A new credential with a generated password, which is returned once and kept nowhere."""
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    new = Credential(ids.mint("cred"), name, role, hasher.hash(password), now)
    connection.execute(
        insert(credential).values(
            id=new.id,
            name=new.name,
            role=new.role.value,
            password_hash=new.password_hash,
            created_at=now,
        )
    )
    return new, password


def disable(connection: Connection, name_or_id: str, now: datetime) -> int:
    """Disable the credential of this id, or all of this name; returns how many."""
    statement = (
        update(credential)
        .where((credential.c.id == name_or_id) | (credential.c.name == name_or_id))
        .where(credential.c.disabled_at.is_(None))
        .values(disabled_at=now)
    )
    return connection.execute(statement).rowcount


def listed(connection: Connection) -> list[Credential]:
    """All credentials, disabled ones included, oldest first."""
    return _found(connection, select(credential))


def active(connection: Connection) -> list[Credential]:
    """The credentials that are not disabled."""
    return _found(connection, select(credential).where(credential.c.disabled_at.is_(None)))


def _found(connection: Connection, statement: Select[Any]) -> list[Credential]:
    rows = connection.execute(statement.order_by(credential.c.id))
    return [
        Credential(row.id, row.name, Role(row.role), row.password_hash, row.created_at, row.disabled_at)
        for row in rows
    ]
