"""Digital River's webhook signature.

`DigitalRiver-Signature: <timestamp>, <signature>`, where the signature is the standard Base64 of the
HMAC-SHA256 of `<timestamp>.<raw body>` under the webhook's secret (as Digital River's own
connector computes it). Neither the unit of the timestamp nor the layout of several signatures is
documented: every part after the first is a candidate, and the timestamp is read as seconds,
milliseconds or ISO 8601.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

HEADER = "DigitalRiver-Signature"
CANDIDATES_MAX = 10
HEADER_LENGTH_MAX = 4_096
_MILLISECONDS_FROM = 10**11
"""As seconds this is the year 5138; a larger number counts milliseconds."""
_DIGITS_MAX = 15


class SignatureRefused(Exception):
    """The event does not prove that it comes from Digital River. The message is fit to show."""


def sign(timestamp: str, body: bytes, secret: str) -> str:
    """The signature of a body: Base64 text."""
    message = timestamp.encode() + b"." + body
    return base64.b64encode(hmac.digest(secret.encode(), message, hashlib.sha256)).decode("ascii")


def verify(header: str, body: bytes, secrets: Sequence[str], now: datetime, tolerance: timedelta) -> None:
    """Raises SignatureRefused unless a candidate matches a secret and the timestamp is recent."""
    # Python takes more than blanks and tabs for white space, and more than 0 to 9 for digits.
    is_plain = header.isascii() and len(header) <= HEADER_LENGTH_MAX
    timestamp, *candidates = [part.strip(" \t") for part in header.split(",")] if is_plain else [""]
    if not 0 < len(candidates) <= CANDIDATES_MAX:
        raise SignatureRefused(f"{HEADER} must be a timestamp and a signature, separated by a comma.")
    expected = [sign(timestamp, body, secret).encode() for secret in secrets]
    matches = [
        hmac.compare_digest(right, candidate.encode()) for right in expected for candidate in candidates
    ]
    if not any(matches):
        raise SignatureRefused("The signature does not match the body and any configured secret.")
    signed_at = time_of(timestamp)
    if signed_at is None or abs(now - signed_at) > tolerance:
        raise SignatureRefused("The signature's timestamp is too far from the present time.")


def time_of(timestamp: str) -> datetime | None:
    """The time that a timestamp of seconds, milliseconds or ISO 8601 stands for, if it is one."""
    try:
        if timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= _DIGITS_MAX:
            number = int(timestamp)
            seconds = number / 1_000 if number >= _MILLISECONDS_FROM else number
            return datetime.fromtimestamp(seconds, UTC)
        return moment(timestamp)
    except (ValueError, OverflowError, OSError):
        return None


def moment(text: str) -> datetime:
    """An ISO 8601 time; Java's zone suffix, as in `2023-12-29T15:35:56.952982Z[UTC]`, is ignored.

    A time without a zone is taken as UTC. Raises ValueError and OverflowError.
    """
    parsed = datetime.fromisoformat(text.partition("[")[0])
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
