"""What Digital River's events tell of cancels and refunds. Pure: no SQL, no HTTP.

Only what is complete counts. Objects are read by their own fields: a charge's event may hold the charge or
its order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from store_credit.ledger.commands import CancelledCharge, Part
from store_credit.webhooks.event_types import CHARGE_CANCELLED, DEDUCTING, ENDING, RETURNING
from store_credit.webhooks.reading import (
    TEXT_LENGTH_MAX,
    Object,
    amount_of,
    charges_of,
    identifier,
    is_credit,
    objects,
    sources_of,
)

_ENDED_STATES = frozenset({"cancelled", "blocked"})


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
            what=f"{self.what}; {other.what}"[:TEXT_LENGTH_MAX],
            cancels=(*self.cancels, *other.cancels),
            refunds=(*self.refunds, *other.refunds),
            captured=sum(captures, Decimal()) if captures else None,
            charges=(*self.charges, *other.charges),
            problem=self.problem or other.problem,
        )


def read(event_type: str, about: Object) -> tuple[CameBack, ...]:
    state = identifier(about.get("state"))
    ended = event_type in DEDUCTING and state in _ENDED_STATES
    if event_type in ENDING or ended:
        state = event_type.removeprefix("order.") if event_type in ENDING else state
        return _everything(about, f"order {state}")
    if event_type not in RETURNING:
        return ()
    told: dict[str | None, CameBack] = {}
    for charge in charges_of(about):
        if (back := _of_charge(event_type, charge, about)) is not None:
            earlier = told.get(back.source_id)
            told[back.source_id] = earlier.with_charge(back) if earlier else back
    return tuple(told.values())


def _everything(order: Object, what: str) -> tuple[CameBack, ...]:
    """All that is left of each source; of the charges' sources where the order lists none."""
    currency = identifier(order.get("currency"))
    sources = [identifier(s.get("id")) for s in sources_of(order) if is_credit(s)]
    if not sources_of(order):
        sources = [identifier(charge.get("sourceId")) for charge in charges_of(order)]
    named = dict.fromkeys(source for source in sources if source is not None)
    return tuple(CameBack(source, currency, what, everything=True) for source in named)


def _of_charge(event_type: str, charge: Object, about: Object) -> CameBack | None:
    """What a charge tells of its source; None when nothing is complete, or it is no credit's."""
    source_id = identifier(charge.get("sourceId"))
    if source_id in {identifier(s.get("id")) for s in sources_of(about) if not is_credit(s)}:
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
    return "; ".join(told)[:TEXT_LENGTH_MAX]


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
