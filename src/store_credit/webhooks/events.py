"""Digital River's events as the ledger understands them. Pure: no SQL, no HTTP.

The envelope has `id`, `type` and `data.object` always; everything else varies, and unknown fields are
ignored. Objects are read by their own fields, as a charge's event may hold an order; older API versions
put an order's `sources` and `charges` at its top level, later ones under `payment`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from store_credit.ledger.commands import CancelledCharge, Part
from store_credit.metadata import ID_LENGTH_MAX, UPSTREAM_ID_LENGTH_MAX
from store_credit.webhooks import reading
from store_credit.webhooks.reading import Object, amount_of, identifier, objects, plain, text, time

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

CUSTOMER_CREDIT = "customerCredit"
_ENDED_STATES = frozenset({"cancelled", "blocked"})


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
class CameBack:
    """What an event tells of one source's cancels and refunds; only complete ones are in it."""

    source_id: str | None
    currency: str | None
    what: str
    cancels: tuple[Part, ...] = ()
    refunds: tuple[Part, ...] = ()
    captured: Decimal | None = None
    """Of a cancelled charge: what was captured before."""
    charges: tuple[CancelledCharge, ...] = ()
    """Cancelled charges that say their amount."""
    everything: bool = False
    problem: str | None = None

    def with_charge(self, other: CameBack) -> CameBack:
        """This together with another charge of the same source: one payload, and so one total."""
        captures = [back.captured for back in (self, other) if back.captured is not None]
        return replace(
            self,
            what=f"{self.what}; {other.what}"[: reading.TEXT_LENGTH_MAX],
            cancels=(*self.cancels, *other.cancels),
            refunds=(*self.refunds, *other.refunds),
            captured=sum(captures, Decimal()) if captures else None,
            charges=(*self.charges, *other.charges),
            problem=self.problem or other.problem,
        )


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
    return replace(envelope, spent=_spent(event_type, about), came_back=_came_back(event_type, about))


def _spent(event_type: str, order: Object) -> tuple[Spent, ...]:
    if event_type not in DEDUCTING:
        return ()
    return tuple(_spent_source(source, order) for source in _sources(order) if _is_credit(source))


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


def _came_back(event_type: str, about: Object) -> tuple[CameBack, ...]:
    state = identifier(about.get("state"))
    ended = event_type in DEDUCTING and state in _ENDED_STATES
    if event_type in ENDING or ended:
        state = event_type.removeprefix("order.") if event_type in ENDING else state
        return _everything(about, f"order {state}")
    if event_type not in RETURNING:
        return ()
    told: dict[str | None, CameBack] = {}
    for charge in _charges(about):
        if (back := _of_charge(event_type, charge, about)) is not None:
            earlier = told.get(back.source_id)
            told[back.source_id] = earlier.with_charge(back) if earlier else back
    return tuple(told.values())


def _everything(order: Object, what: str) -> tuple[CameBack, ...]:
    """All that is left of each source; of the charges' sources where the order lists none."""
    currency = identifier(order.get("currency"))
    sources = [identifier(s.get("id")) for s in _sources(order) if _is_credit(s)]
    if not _sources(order):
        sources = [identifier(charge.get("sourceId")) for charge in _charges(order)]
    named = dict.fromkeys(source for source in sources if source is not None)
    return tuple(CameBack(source, currency, what, everything=True) for source in named)


def _of_charge(event_type: str, charge: Object, about: Object) -> CameBack | None:
    """What a charge tells of its source; None when nothing is complete, or it is no credit's."""
    source_id = identifier(charge.get("sourceId"))
    if source_id in {identifier(s.get("id")) for s in _sources(about) if not _is_credit(s)}:
        return None
    cancels, refunds, captures = (_complete(charge, kind) for kind in ("cancels", "refunds", "captures"))
    cancelled = event_type == CHARGE_CANCELLED and (charge is about or charge.get("state") == "cancelled")
    if not cancels and not refunds and not cancelled:
        return None
    usable = [part for part in [*cancels, *refunds, *captures] if part is not None]
    problem = None
    if source_id is None:
        problem = "the charge has no usable sourceId"
    elif len(usable) < len(cancels) + len(refunds) + len(captures):
        problem = "a cancel or refund of the charge has no usable amount"
    captured = sum((part.amount for part in captures if part), Decimal()) if cancelled else None
    return CameBack(
        source_id=source_id,
        currency=identifier(charge.get("currency") or about.get("currency")),
        what=_what(cancels, refunds, cancelled),
        cancels=tuple(part for part in cancels if part),
        refunds=tuple(part for part in refunds if part),
        captured=captured,
        charges=() if captured is None else _cancelled_charge(charge, captured),
        problem=problem,
    )


def _cancelled_charge(charge: Object, captured: Decimal) -> tuple[CancelledCharge, ...]:
    """The cancelled charge, if it can be told from its source's others: its `amount` never changes."""
    charge_id, amount = identifier(charge.get("id")), amount_of(charge.get("amount"))
    if charge_id is None or amount is None or amount <= 0:
        return ()
    return (CancelledCharge(charge_id, amount, captured),)


def _what(cancels: list[Part | None], refunds: list[Part | None], cancelled: bool) -> str:
    """The cancels and refunds by their ids, for the journal."""
    told = ["charge cancelled"] if cancelled else []
    for kind, parts in (("cancel", cancels), ("refund", refunds)):
        if parts:
            ids = [part.id for part in parts if part and part.id]
            told.append(f"{kind} {', '.join(ids)}" if ids else kind)
    return "; ".join(told)[: reading.TEXT_LENGTH_MAX]


def _complete(charge: Object, kind: str) -> list[Part | None]:
    """The complete cancels, refunds or captures; None for one without a usable amount."""
    parts: list[Part | None] = []
    charge_id = identifier(charge.get("id"))
    for element in objects(charge.get(kind)):
        if element.get("state") == "complete":
            amount = amount_of(element.get("amount"))
            part_id = identifier(element.get("id"))
            parts.append(Part(part_id, amount, charge_id) if amount is not None else None)
    return parts


def _sources(order: Object) -> list[Object]:
    return _of_payment(order, "sources")


def _charges(about: Object) -> list[Object]:
    """The charges of an order, or the charge itself."""
    return [about] if "sourceId" in about else _of_payment(about, "charges")


def _of_payment(order: Object, name: str) -> list[Object]:
    payment = order.get("payment")
    nested = payment.get(name) if isinstance(payment, dict) else None
    return objects(nested if isinstance(nested, list) else order.get(name))


def _is_credit(source: Object) -> bool:
    return source.get("type") == CUSTOMER_CREDIT


def _required(document: Object, name: str) -> str:
    found = identifier(document.get(name))
    if found is None:
        raise MalformedEvent(name, f"An event needs a {name} of 1 to {ID_LENGTH_MAX} characters.")
    return found


def _parts(parts: tuple[Part, ...]) -> list[list[str]]:
    return sorted([part.id or "", plain(part.amount)] for part in parts)
