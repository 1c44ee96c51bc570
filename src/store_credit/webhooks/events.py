"""Digital River's events as the ledger understands them. Pure: no SQL, no HTTP.

The envelope has `id`, `type` and `data.object` always; everything else varies, and unknown fields are
ignored. Older API versions put an order's `sources` at its top level, later ones under `payment`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from store_credit import money
from store_credit.fields import storable
from store_credit.metadata import ID_LENGTH_MAX, UPSTREAM_ID_LENGTH_MAX
from store_credit.webhooks.signature import moment

ORDER_CREATED = frozenset({"checkout_session.order.created", "checkout_session.order.create"})
"""Digital River's documentation once spells the type without its last letter."""

KNOWN_TYPES = ORDER_CREATED | {
    "order.accepted",
    "order.blocked",
    "order.cancelled",
    "order.charge.cancel.complete",
    "order.charge.cancelled",
    "order.charge.capture.complete",
    "order.charge.complete",
    "order.charge.refund.complete",
    "order.complete",
    "order.fulfilled",
    "order.pending_payment",
    "order.refunded",
    "order.review_opened",
    "refund.complete",
    "refund.pending",
}
"""Types that metrics tell apart; all others count as `other`."""

CUSTOMER_CREDIT = "customerCredit"
_FINEST = Decimal("0.000001")


class MalformedEvent(ValueError):
    """The body is no event. The message is fit to show; `parameter` names what is wrong."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class Spent:
    """A payment source of type `customerCredit`: credit that an order spent."""

    source_id: str | None
    amount: Decimal | None
    currency: str | None
    upstream_id: str | None
    problem: str | None = None
    """Why it can not be booked, when it is malformed."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event, with what it means for store credit."""

    id: str
    type: str
    created_at: datetime | None
    live_mode: bool | None
    order_id: str | None = None
    session_id: str | None = None
    spent: tuple[Spent, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the event does: a body that is rendered anew is still the same event."""
        effects = [
            [
                "deduct",
                self.order_id,
                self.session_id,
                s.source_id,
                _plain(s.amount),
                s.currency,
                s.upstream_id,
            ]
            for s in sorted(self.spent, key=lambda s: (s.source_id or "", _plain(s.amount)))
        ]
        return hashlib.sha256(json.dumps(effects).encode()).hexdigest()


def read(document: dict[str, Any]) -> Event:
    """The event of a parsed body. Raises MalformedEvent when the envelope is none."""
    event_id = _required(document, "id")
    event_type = _required(document, "type")
    data = document.get("data")
    about = data.get("object") if isinstance(data, dict) else None
    if not isinstance(about, dict):
        raise MalformedEvent("data.object", "An event needs the object that it is about.")
    live_mode = document.get("liveMode")
    envelope = Event(
        id=event_id,
        type=event_type,
        created_at=_time(document.get("createdTime")),
        live_mode=live_mode if isinstance(live_mode, bool) else None,
        order_id=_identifier(about.get("orderId")),
    )
    return _order_created(envelope, about) if event_type in ORDER_CREATED else envelope


def _order_created(envelope: Event, order: dict[str, Any]) -> Event:
    return Event(
        id=envelope.id,
        type=envelope.type,
        created_at=envelope.created_at,
        live_mode=envelope.live_mode,
        order_id=_identifier(order.get("id")),
        session_id=_identifier(order.get("checkoutSessionId")),
        spent=tuple(
            _spent(source, order) for source in _sources(order) if source.get("type") == CUSTOMER_CREDIT
        ),
    )


def _sources(order: dict[str, Any]) -> list[dict[str, Any]]:
    payment = order.get("payment")
    nested = payment.get("sources") if isinstance(payment, dict) else None
    found = nested if isinstance(nested, list) else order.get("sources")
    return [source for source in found if isinstance(source, dict)] if isinstance(found, list) else []


def _spent(source: dict[str, Any], order: dict[str, Any]) -> Spent:
    source_id, amount = _identifier(source.get("id")), source.get("amount")
    given = (source.get("currency"), order.get("currency"))
    currency = next((code for code in given if code not in (None, "")), None)
    upstream_id = source.get("upstreamId")
    problem = None
    if source_id is None:
        problem = "the source has no usable id"
    elif isinstance(amount, bool) or not isinstance(amount, (int, float)):
        problem, amount = "the source has no usable amount", None
    elif currency is not None and _identifier(currency) is None:
        problem = "the source has no usable currency"
    return Spent(
        source_id=source_id,
        amount=money.decimal_of(amount) if problem is None and amount is not None else None,
        currency=_identifier(currency),
        upstream_id=_text(upstream_id, UPSTREAM_ID_LENGTH_MAX),
        problem=problem,
    )


def _required(document: dict[str, Any], name: str) -> str:
    found = _identifier(document.get(name))
    if found is None:
        raise MalformedEvent(name, f"An event needs a {name} of 1 to {ID_LENGTH_MAX} characters.")
    return found


def _identifier(value: Any) -> str | None:
    return _text(value, ID_LENGTH_MAX)


def _text(value: Any, length_max: int) -> str | None:
    """The value if it is text that can be stored, not empty and not too long."""
    if not isinstance(value, str) or not 0 < len(value) <= length_max:
        return None
    try:
        return storable(value)
    except ValueError:
        return None


def _time(value: Any) -> datetime | None:
    try:
        return moment(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def _plain(amount: Decimal | None) -> str:
    """One text for one amount: float noise and trailing zeros do not make another event."""
    if amount is None:
        return ""
    bounded = amount if abs(amount) >= money.AMOUNT_MINOR_LIMIT else amount.quantize(_FINEST)
    # Adding zero takes the sign off a negative zero.
    return str(bounded.normalize() + 0)
