"""Identifiers that we mint: a short prefix, then 26 characters that sort by time."""

from __future__ import annotations

import re
import secrets
import threading
import time
from datetime import UTC, datetime, timedelta

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_RANDOM_BITS = 80
_TIME_DIGITS = 10
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINTED = re.compile(f"[{_ALPHABET}]{{26}}")

_LOW_BITS = 20

_lock = threading.Lock()
_last = 0
_high, _high_text = 0, ""
"""All of the last identifier but its last four characters, which are mostly all that changes."""


def mint(prefix: str) -> str:
    """A new identifier such as `hold_01kajw2v9ye8g5q1bmbdsm0c9t`.

    48 bits of milliseconds, then 80 random bits, in Crockford's base 32: unique without asking the
    database, and new rows go to the end of their index. Within a millisecond a process counts on
    from its first identifier, so that its identifiers only ever grow.
    """
    global _last, _high, _high_text
    now = (time.time_ns() // 1_000_000) << _RANDOM_BITS
    with _lock:
        # One bit less than there is room for leaves room to count on.
        _last = value = now | secrets.randbits(_RANDOM_BITS - 1) if now > _last else _last + 1
        if value >> _LOW_BITS != _high:
            _high = value >> _LOW_BITS
            _high_text = "".join([_PAIRS[value >> shift & 1023] for shift in range(120, 10, -10)])
        return f"{prefix}_{_high_text}{_PAIRS[value >> 10 & 1023]}{_PAIRS[value & 1023]}"


def is_minted(text: str, prefix: str) -> bool:
    """Whether it has the form of our identifiers with this prefix, whether or not it was ever given."""
    return text.startswith(f"{prefix}_") and _MINTED.fullmatch(text, len(prefix) + 1) is not None


def minted_at(identifier: str) -> datetime:
    """When an identifier was minted, by the clock of the process that did; at most the last date."""
    digits = identifier.rpartition("_")[2][:_TIME_DIGITS]
    milliseconds = 0
    for digit in digits:
        milliseconds = milliseconds * len(_ALPHABET) + _ALPHABET.index(digit)
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
