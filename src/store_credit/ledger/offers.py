"""Offers: an upstream id minted for one checkout session, so that a removal notice is never ambiguous.

An offer promises nothing by itself; it names a line, caps what may be held under it, and belongs to the
first session that uses it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

PREFIX = "offer_"
"""Offers are looked for under identifiers that begin so, and under no others."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A minted name for a line. `amount` caps the hold, in minor units of the line's currency."""

    upstream_id: str
    line_id: str
    amount: int
    expires_at: datetime
    session_id: str | None = None
    """The session that used it first, and alone may use it."""
    spent_at: datetime | None = None
    """When an order was deducted under it."""
