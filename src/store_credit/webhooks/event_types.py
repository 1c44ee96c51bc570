"""The types of Digital River's events, by what they mean for store credit."""

from __future__ import annotations

ORDER_CREATED = frozenset({"checkout_session.order.created", "checkout_session.order.create"})
"""Digital River's documentation once spells the type without its last letter."""

DEDUCTING = ORDER_CREATED | {"order.accepted"}
"""An order with its sources; direct integrations get only the latter, which names no session."""

ENDING = frozenset({"order.cancelled", "order.blocked"})
"""All that is left of the order's sources comes back."""

CHARGE_CANCELLED = "order.charge.cancelled"
RETURNING = frozenset(
    {
        "order.charge.cancel.complete",
        "order.charge.refund.complete",
        "order.refunded",
        CHARGE_CANCELLED,
    }
)

KNOWN_TYPES = (
    DEDUCTING
    | ENDING
    | RETURNING
    | {
        "order.charge.capture.complete",
        "order.charge.complete",
        "order.complete",
        "order.fulfilled",
        "order.pending_payment",
        "order.review_opened",
        "refund.complete",
        "refund.pending",
    }
)
"""Types that metrics tell apart; all others count as `other`."""
