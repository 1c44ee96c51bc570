"""Events about what comes back of an order, as Digital River may write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.http_fixtures import Json

Amounts = Mapping[str, Any] | Sequence[Any]
"""Amounts by id, or without ids."""


def parts(amounts: Amounts, state: str = "complete") -> list[Json]:
    if isinstance(amounts, Mapping):
        return [{"id": part_id, "amount": amount, "state": state} for part_id, amount in amounts.items()]
    return [{"amount": amount, "state": state} for amount in amounts]


def charge(source_id: str = "source-1", currency: Any = "USD", **lists: Amounts) -> Json:
    """A charge with its `cancels`, `refunds` and `captures`, all complete."""
    told = {name: parts(amounts) for name, amounts in lists.items()}
    return {"id": f"charge of {source_id}", "sourceId": source_id, "currency": currency} | told


def event(event_type: str, about: Json, event_id: str) -> Json:
    return {"id": event_id, "type": event_type, "liveMode": False, "data": {"object": about}}


def refund_event(event_id: str, amounts: Amounts, source_id: str = "source-1", **more: Any) -> Json:
    """`order.charge.refund.complete` of a source's charge."""
    about = {"orderId": "order-1"} | charge(source_id, refunds=amounts) | more
    return event("order.charge.refund.complete", about, event_id)


def cancel_event(event_id: str, amounts: Amounts, source_id: str = "source-1", **more: Any) -> Json:
    about = {"orderId": "order-1"} | charge(source_id, cancels=amounts) | more
    return event("order.charge.cancel.complete", about, event_id)


def cancelled_charge_event(event_id: str, captured: Amounts, source_id: str = "source-1") -> Json:
    about = {"orderId": "order-1", "state": "cancelled"} | charge(source_id, captures=captured)
    return event("order.charge.cancelled", about, event_id)


def order_told(
    event_type: str,
    event_id: str,
    *,
    sources: Sequence[Json] = (),
    charges: Sequence[Json] = (),
    **more: Any,
) -> Json:
    """An event about an order with sources, charges, or both."""
    payment = {name: list(found) for name, found in (("sources", sources), ("charges", charges)) if found}
    about = {"id": "order-1", "currency": "USD", "payment": payment} | more
    return event(event_type, about, event_id)
