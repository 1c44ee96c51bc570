"""Journal entries and their hash chain.

Each entry carries the line's figures after it and a SHA-256 over itself and the entry before it, so
that a changed, removed or inserted row shows. Pure: no SQL, no clock.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from store_credit.ledger.commands import Cause
from store_credit.ledger.state import Entry, EntryKind, Line

FIRST_HASH = "0" * 64
"""The previous hash of a line's first entry."""

_TIME = Entry._fields.index("created_at")
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
_WRITE_OFFS = frozenset({EntryKind.EXPIRED, EntryKind.VOIDED, EntryKind.WRITE_OFF_REVERSED})


def post(
    line: Line,
    kind: EntryKind,
    at: datetime,
    cause: Cause,
    *,
    amount: int = 0,
    held: int = 0,
    hold_id: str | None = None,
    deduction_id: str | None = None,
    reason: str | None = None,
) -> tuple[Line, Entry]:
    """Append one entry: the line as it is afterwards, and the entry.

    `amount` and `held` are the signed changes in minor units. `reason` overrides the cause's own.
    """
    balance_after, held_after = line.balance + amount, line.held + held
    assert held_after >= 0, "a hold can not be released twice"
    told = Entry(
        previous_hash=line.head_hash,
        line_id=line.id,
        seq=line.seq + 1,
        kind=kind,
        amount=amount,
        held=held,
        balance_after=balance_after,
        held_after=held_after,
        created_at=at,
        actor=cause.actor,
        hold_id=hold_id,
        deduction_id=deduction_id,
        event_id=cause.event_id,
        reason=reason if reason is not None else cause.reason,
        idempotency_key=cause.idempotency_key,
        hash="",
    )
    entry = told._replace(hash=entry_hash(told))
    after = line._replace(
        balance=balance_after,
        held=held_after,
        written_off=line.written_off + written_off_by(kind, amount),
        seq=entry.seq,
        head_hash=entry.hash,
        last_entry_at=at,
    )
    return after, entry


def written_off_by(kind: EntryKind, amount: int) -> int:
    """How much an entry adds to what the line has written off; a reversal takes away."""
    return -amount if kind in _WRITE_OFFS else 0


def entry_hash(entry: Entry) -> str:
    """SHA-256, in hex, of the previous hash and every field of the entry, in a fixed order."""
    fields = [*entry[:-1]]
    fields[_TIME] = _time_text(entry.created_at)
    return hashlib.sha256(_encoded(fields)).hexdigest()


def _encoded(fields: list[Any]) -> bytes:
    """JSON in ASCII. What holds nothing else is faster told by orjson, in the very same bytes."""
    text = orjson.dumps(fields)
    return text if text.isascii() and b"\x7f" not in text else _encode(fields).encode("ascii")


@lru_cache(maxsize=1_024)
def _time_text(at: datetime) -> str:
    """Most entries of a batch tell the same time."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")
