"""The credentials kept in the database: names, roles and argon2id hashes of generated passwords.

Several credentials may share a name: that is how a password is rotated with both valid for a while.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from passlib.hash import argon2
from sqlalchemy import (
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    Select,
    String,
    Table,
    Text,
    and_,
    insert,
    or_,
    select,
    update,
)

from store_credit import ids
from store_credit.metadata import ID_LENGTH_MAX, Moment, metadata, minted

PASSWORD_BYTES = 24

hasher = argon2.using(type="ID", memory_cost=19 * 1024, rounds=2, parallelism=1)
"""argon2id with the parameters that OWASP recommends: 19 MiB, two passes, one lane."""

_SALT_BYTES = 16
_TAG_BYTES = 4


class NothingToRotate(Exception):
    """No valid credential has this name, and this role if one is asked for."""


class SeveralRoles(Exception):
    """The credentials of this name have several roles: it must be said which."""


def hashed(password: str, using: Any = hasher) -> str:
    """The argon2id hash of a password, whose salt ends with a tag: see `may_match`."""
    salt = secrets.token_bytes(_SALT_BYTES)
    salted: str = using.using(salt=salt + _tag(salt, password)).hash(password)
    return salted


def may_match(password: str, password_hash: str) -> bool:
    """True for the right password and for one in 2**32 others, at the cost of one SHA-256.

    It tells the right password from a flood of guesses before argon2 is spent on them. The tag gives 32
    bits of a password to those who can read the database; a generated one has 192, and those of the
    environment are not in there.
    """
    salt = _salt_of(password_hash)
    return hmac.compare_digest(salt[_SALT_BYTES:], _tag(salt[:_SALT_BYTES], password))


def is_tagged(password_hash: str) -> bool:
    """Whether `may_match` can tell; hashes of earlier versions have no tag."""
    return len(_salt_of(password_hash)) == _SALT_BYTES + _TAG_BYTES


def _tag(salt: bytes, password: str) -> bytes:
    return hashlib.sha256(salt + password.encode()).digest()[:_TAG_BYTES]


def _salt_of(password_hash: str) -> bytes:
    """The salt of `$argon2id$v=19$<parameters>$<salt>$<hash>`, which is Base64 without padding."""
    encoded = password_hash.split("$")[4]
    return base64.b64decode(encoded + "=" * (-len(encoded) % 4))


class Role(StrEnum):
    CALLOUT = "callout"
    """Digital River: the callout."""
    MERCHANT = "merchant"
    """The merchant API, reading and writing."""
    READER = "reader"
    """The merchant API, reading only."""
    STOREFRONT = "storefront"
    """What a shop's checkout page needs: what a customer can spend, offers, and releasing sessions."""


credential = Table(
    "credential",
    metadata,
    Column("id", minted(), primary_key=True),
    Column("name", String(ID_LENGTH_MAX), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("disabled_at", Moment),
    # From when on it is refused, whether or not anybody disabled it.
    Column("expires_at", Moment),
    # About when it was last used; see `note_uses`.
    Column("last_used_at", Moment),
    CheckConstraint("role IN ('callout', 'merchant', 'reader', 'storefront')", name="role_known"),
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
    expires_at: datetime | None = None
    last_used_at: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        return self.disabled_at is None and (self.expires_at is None or now < self.expires_at)


def add(connection: Connection, name: str, role: Role, now: datetime) -> tuple[Credential, str]:
    """A new credential with a generated password, which is returned once and kept nowhere."""
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    new = Credential(ids.mint("cred"), name, role, hashed(password), now)
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
        .where(_is_valid(now))
        .values(disabled_at=now)
    )
    return connection.execute(statement).rowcount


def rotate(
    connection: Connection, name: str, role: Role | None, now: datetime, overlap: timedelta
) -> tuple[Credential, str]:
    """A new credential in the place of those of this name, which stay valid for `overlap` at most.

    With a role, only those of that role are replaced. Raises NothingToRotate and SeveralRoles.
    """
    of_name = and_(credential.c.name == name, _is_valid(now))
    found = {Role(row.role) for row in connection.execute(select(credential.c.role).where(of_name))}
    roles = found if role is None else found & {role}
    if not roles:
        raise NothingToRotate
    if len(roles) > 1:
        raise SeveralRoles
    (chosen,) = roles
    until = now + overlap
    ends_later = or_(credential.c.expires_at.is_(None), credential.c.expires_at > until)
    old = update(credential).where(of_name, credential.c.role == chosen.value, ends_later)
    connection.execute(old.values(expires_at=until))
    return add(connection, name, chosen, now)


def note_uses(connection: Connection, used_at: Mapping[str, datetime]) -> None:
    """Keep when credentials were last used, by their ids; a later use that is known already stays."""
    for credential_id, moment in sorted(used_at.items()):
        earlier = or_(credential.c.last_used_at.is_(None), credential.c.last_used_at < moment)
        its_own = update(credential).where(credential.c.id == credential_id, earlier)
        connection.execute(its_own.values(last_used_at=moment))


def renew(connection: Connection, hashes: Mapping[str, tuple[str, str]]) -> None:
    """Put hashes, by credential id, in the place of those that they were made for: (old, new) each."""
    for credential_id, (old, new) in sorted(hashes.items()):
        same = (credential.c.id == credential_id, credential.c.password_hash == old)
        connection.execute(update(credential).where(*same).values(password_hash=new))


def listed(connection: Connection) -> list[Credential]:
    """All credentials, disabled ones included, oldest first."""
    return _found(connection, select(credential))


def active(connection: Connection) -> list[Credential]:
    """The credentials that are not disabled. Some may expire while they are remembered."""
    return _found(connection, select(credential).where(credential.c.disabled_at.is_(None)))


def _found(connection: Connection, statement: Select[Any]) -> list[Credential]:
    rows = connection.execute(statement.order_by(credential.c.id)).mappings()
    return [Credential(**{**row, "role": Role(row["role"])}) for row in rows]


def _is_valid(now: datetime) -> ColumnElement[bool]:
    unexpired = or_(credential.c.expires_at.is_(None), credential.c.expires_at > now)
    return and_(credential.c.disabled_at.is_(None), unexpired)
