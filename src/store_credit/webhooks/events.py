"""Digital River's events as the ledger understands them. Pure: no SQL, no HTTP.

The envelope has `id`, `type` and `data.object` always; everything else varies, and unknown fields are
ignored.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from store_credit.ledger.commands import Part
from store_credit.metadata import ID_LENGTH_MAX, UPSTREAM_ID_LENGTH_MAX
from store_credit.webhooks import came_back
from store_credit.webhooks.came_back import CameBack
from store_credit.webhooks.event_types import DEDUCTING
from store_credit.webhooks.reading import (
    Object,
    amount_of,
    identifier,
    is_credit,
    plain,
    sources_of,
    text,
    time,
)


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
    came_back: tuple[CameBack, ...] = ()
    email: str | None = field(default=None, compare=False)
    """The shopper's, for an operator who looks for the right line."""
    customer_names: frozenset[str] = field(default=frozenset(), compare=False)
    """By what the merchant may know the shopper."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the event does: a body that is rendered anew is still the same event.

        The amounts of cancelled charges are left out: fingerprints were kept before they were read.
        """
        spent = [
            [
                "deduct",
                self.order_id,
                self.session_id,
                s.source_id,
                plain(s.amount),
                s.currency,
                s.upstream_id,
            ]
            for s in self.spent
        ]
        back = [
            [
                *("return", self.order_id, b.source_id, b.currency),
                *(_parts(b.cancels), _parts(b.refunds), plain(b.captured), b.everything),
            ]
            for b in self.came_back
        ]
        effects = sorted(json.dumps(effect) for effect in [*spent, *back])
        return hashlib.sha256("\n".join(effects).encode()).hexdigest()


def read(document: Object) -> Event:
    """The event of a parsed body. Raises MalformedEvent when the envelope is none."""
    event_id, event_type = _required(document, "id"), _required(document, "type")
    data = document.get("data")
    about = data.get("object") if isinstance(data, dict) else None
    if not isinstance(about, dict):
        raise MalformedEvent("data.object", "An event needs the object that it is about.")
    live_mode = document.get("liveMode")
    is_charge = "orderId" in about or "sourceId" in about
    envelope = Event(
        id=event_id,
        type=event_type,
        created_at=time(document.get("createdTime")),
        live_mode=live_mode if isinstance(live_mode, bool) else None,
        order_id=identifier(about.get("orderId" if is_charge else "id")),
        session_id=identifier(about.get("checkoutSessionId")),
        email=identifier(about.get("email")),
        customer_names=frozenset(
            name for key in ("email", "customerId") if (name := identifier(about.get(key))) is not None
        ),
    )
    return replace(envelope, spent=_spent(event_type, about), came_back=came_back.read(event_type, about))


def _spent(event_type: str, order: Object) -> tuple[Spent, ...]:
    if event_type not in DEDUCTING:
        return ()
    return tuple(_spent_source(source, order) for source in sources_of(order) if is_credit(source))


def _spent_source(source: Object, order: Object) -> Spent:
    source_id, amount = identifier(source.get("id")), amount_of(source.get("amount"))
    given = (source.get("currency"), order.get("currency"))
    currency = next((code for code in given if code not in (None, "")), None)
    problem = None
    if source_id is None:
        problem = "the source has no usable id"
    elif amount is None:
        problem = "the source has no usable amount"
    elif currency is not None and identifier(currency) is None:
        problem = "the source has no usable currency"
    return Spent(
        source_id=source_id,
        amount=amount,
        currency=identifier(currency),
        upstream_id=text(source.get("upstreamId"), UPSTREAM_ID_LENGTH_MAX),
        problem=problem,
    )


def _required(document: Object, name: str) -> str:
    found = identifier(document.get(name))
    if found is None:
        raise MalformedEvent(name, f"An event needs a {name} of 1 to {ID_LENGTH_MAX} characters.")
    return found


def _parts(parts: tuple[Part, ...]) -> list[list[str]]:
    return sorted([part.id or "", plain(part.amount)] for part in parts)
