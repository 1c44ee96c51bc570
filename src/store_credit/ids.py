"""Identifiers that we mint: a short prefix, then 26 characters that sort by time."""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 26


def mint(prefix: str) -> str:
    """A new identifier such as `hold_01kajw2v9ye8g5q1bmbdsm0c9t`.

    48 bits of milliseconds, then 80 random bits, in Crockford's base 32: unique without asking the
    database, and new rows go to the end of their index.
    """
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    digits = [_ALPHABET[value >> shift & 31] for shift in range(5 * (_LENGTH - 1), -1, -5)]
    return f"{prefix}_{''.join(digits)}"
