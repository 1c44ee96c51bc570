"""Reading what Digital River sends, field by field: what is not usable is None, never an error. Pure.

Older API versions put an order's `sources` and `charges` at its top level, later ones under `payment`.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from store_credit import money
from store_credit.fields import TEXT_LENGTH_MAX, storable
from store_credit.metadata import ID_LENGTH_MAX
from store_credit.webhooks.signature import moment

__all__ = [
    "TEXT_LENGTH_MAX",
    "Object",
    "amount_of",
    "charges_of",
    "identifier",
    "is_credit",
    "objects",
    "plain",
    "sources_of",
    "text",
    "time",
]

Object = dict[str, Any]

CUSTOMER_CREDIT = "customerCredit"

_FINEST = Decimal("0.000001")


def identifier(value: Any) -> str | None:
    return text(value, ID_LENGTH_MAX)


def text(value: Any, length_max: int) -> str | None:
    """The value if it is text that can be stored, not empty and not too long."""
    if not isinstance(value, str) or not 0 < len(value) <= length_max:
        return None
    try:
        return storable(value)
    except ValueError:
        return None


def amount_of(value: Any) -> Decimal | None:
    """A JSON number as the decimal that it was written as; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return money.decimal_of(value)


def objects(value: Any) -> list[Object]:
    """The objects of a list; nothing when it is none."""
    return [element for element in value if isinstance(element, dict)] if isinstance(value, list) else []


def time(value: Any) -> datetime | None:
    try:
        return moment(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def plain(amount: Decimal | None) -> str:
    """One text for one amount: float noise and trailing zeros do not make another event."""
    if amount is None:
        return ""
    bounded = amount if abs(amount) >= money.AMOUNT_MINOR_LIMIT else amount.quantize(_FINEST)
    # Adding zero takes the sign off a negative zero.
    return str(bounded.normalize() + 0)


def sources_of(order: Object) -> list[Object]:
    return _of_payment(order, "sources")


def charges_of(about: Object) -> list[Object]:
    """The charges of an order, or the charge itself."""
    return [about] if "sourceId" in about else _of_payment(about, "charges")


def _of_payment(order: Object, name: str) -> list[Object]:
    payment = order.get("payment")
    nested = payment.get(name) if isinstance(payment, dict) else None
    return objects(nested if isinstance(nested, list) else order.get(name))


def is_credit(source: Object) -> bool:
    return source.get("type") == CUSTOMER_CREDIT
