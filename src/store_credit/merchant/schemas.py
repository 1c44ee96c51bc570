"""The merchant API's bodies: camelCase, ids as strings, amounts as JSON numbers, times in UTC."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic.alias_generators import to_camel

from store_credit.fields import (
    Amount,
    Currency,
    Identifier,
    StrictRequest,
    Text,
    Time,
    UpstreamId,
    storable,
)

PAGE_LIMIT_MAX = 100
METADATA_KEYS_MAX = 50
METADATA_TEXT_MAX = 500

T = TypeVar("T")


def _bounded_metadata(value: dict[str, str | int | float | bool | None]) -> dict[str, object]:
    if len(value) > METADATA_KEYS_MAX:
        raise ValueError(f"must have at most {METADATA_KEYS_MAX} keys")
    for text in [*value, *(v for v in value.values() if isinstance(v, str))]:
        if len(text) > METADATA_TEXT_MAX:
            raise ValueError(f"must have keys and values of at most {METADATA_TEXT_MAX} characters")
        storable(text)
    return dict(value)


def _plain_value(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ValueError("must be a text, a number, a boolean or null")


_PlainValue = Annotated[
    str | int | float | bool | None,
    PlainValidator(_plain_value),
    WithJsonSchema({"type": ["string", "number", "boolean", "null"]}),
]
Metadata = Annotated[dict[str, _PlainValue], AfterValidator(_bounded_metadata)]


Reason = Annotated[Text, Field(min_length=1)]


class CreditLineRequest(StrictRequest):
    """A new credit line."""

    customer_id: Identifier = Field(examples=["customer-4711"])
    currency: Currency = Field(examples=["USD"])
    amount: Amount = Field(description="The opening balance, above 0.", examples=[100])
    upstream_id: UpstreamId | None = Field(
        None,
        description="The id that Digital River will know the line by; minted when none is given.",
        examples=["7654-2345-0987-123456"],
    )
    name: Text | None = Field(None, examples=["Gift card"])
    icon_url: Text | None = None
    last_four: Text | None = Field(None, examples=["7831"])
    expires_time: Time | None = Field(None, description="In the future; none means never.")
    allow_partial: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="Approve what is left when more is asked; null follows the service."
    )
    reason: Text | None = Field(None, examples=["Refund of order 1001"])
    metadata: Metadata = Field(default_factory=dict, description="At most 50 keys with plain values.")


class Shown(BaseModel):
    """A body that we answer with."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_alias=True)


Number = Annotated[float, Field(json_schema_extra={"type": "number"})]
Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class CreditLine(Shown):
    """A credit line, its figures settled at the time of the answer."""

    id: str = Field(examples=["cl_01kajw2v9ye8g5q1bmbdsm0c9t"])
    upstream_id: str
    customer_id: str
    currency: str
    status: Literal["active", "suspended", "closed", "expired"]
    balance: Number = Field(description="What the line is worth; below 0 when it is overdrawn.")
    held: Number = Field(description="Promised to checkout sessions.")
    available: Number = Field(description="What a new session may use.")
    name: str | None
    icon_url: str | None
    last_four: str | None
    allow_partial: bool | None
    expires_time: Moment | None
    created_time: Moment
    updated_time: Moment
    flags: list[Literal["overdrawn", "source_conflict", "return_to_closed"]]
    metadata: dict[str, str | int | float | bool | None]


class Entry(Shown):
    """One row of the journal. `amount` and `held` are signed changes."""

    id: str
    seq: int
    kind: str
    amount: Number
    held: Number
    balance_after: Number
    held_after: Number
    hold_id: str | None
    deduction_id: str | None
    event_id: str | None
    actor: str
    reason: str | None
    idempotency_key: str | None
    created_time: Moment
    previous_hash: str
    hash: str


HoldState = Literal["open", "consumed", "released", "expired"]


class Hold(Shown):
    """Credit promised to one checkout session."""

    id: str
    credit_line_id: str
    session_id: str
    session_upstream_id: str | None
    upstream_id: str
    amount: Number
    state: HoldState
    created_time: Moment
    expires_time: Moment
    ended_time: Moment | None
    deduction_id: str | None


class Deduction(Shown):
    """Credit spent on one order."""

    id: str
    credit_line_id: str
    source_id: str
    upstream_id: str
    order_id: str | None
    session_id: str | None
    amount: Number
    returned: Number
    created_time: Moment


class Decision(Shown):
    """One answer given to Digital River, and why."""

    id: str
    kind: Literal["authorize", "release"]
    credit_line_id: str | None
    upstream_id: str
    session_id: str | None
    session_upstream_id: str | None
    amount_asked: Number | None
    amount: Number | None
    currency: str | None
    accepted: bool = Field(description="Approved, or released.")
    reason: str
    detail: str | None
    hold_id: str | None
    actor: str
    request_id: str
    created_time: Moment


EventState = Literal["applied", "ignored", "parked", "unmatched", "failed", "conflict", "dismissed"]


class Effect(Shown):
    """What became of one payment source of an event."""

    kind: Literal["deduct", "return"]
    source_id: str | None
    upstream_id: str | None
    amount: Number | None
    currency: str | None
    outcome: str | None
    detail: str | None
    credit_line_id: str | None
    deduction_id: str | None


class WebhookEvent(Shown):
    """An event of the inbox."""

    id: str = Field(description="Digital River's id.")
    receipt_id: str = Field(description="Ours; several receipts may claim one id.")
    type: str
    state: EventState
    order_id: str | None
    live_mode: bool | None
    note: str | None = Field(description="Why it failed, was set aside or dismissed.")
    effects: list[Effect]
    created_time: Moment | None
    received_time: Moment


class WebhookEventDetail(WebhookEvent):
    """An event with its body as delivered, and others that claimed its id with other effects."""

    body: str | None
    email: str | None = Field(description="The shopper's, if the body holds it.")
    candidates: list[CreditLine] = Field(description="Lines that an unmatched event may mean.")
    conflicts: list[WebhookEvent]


class ApplyRequest(StrictRequest):
    """Apply an event again; with a credit line, take its unmatched sources from that one."""

    credit_line_id: Identifier | None = Field(None, examples=["cl_01kajw2v9ye8g5q1bmbdsm0c9t"])
    source_id: Identifier | None = Field(
        None, description="One source of several.", examples=["source-2002"]
    )
    reason: Text | None = Field(None, examples=["The shopper's gift card"])


class DismissRequest(StrictRequest):
    """Set an event aside."""

    reason: Annotated[Text, Field(min_length=1)] = Field(examples=["Paid with another shop's credit"])


class Listed(BaseModel, Generic[T]):
    """A page of a list."""

    hasMore: bool  # noqa: N815
    data: list[T]


CURSOR = (
    "The id of an element, as such a list shows it. It marks a place in the order, whether or not the"
    " element is in this list; what can be no id of the list is refused."
)


class PageQuery(StrictRequest):
    """Which part of a list: at most `limit` elements after or before an element's id."""

    limit: Annotated[int, Field(ge=1, le=PAGE_LIMIT_MAX)] = 10
    starting_after: Identifier | None = Field(None, description=CURSOR)
    ending_before: Identifier | None = Field(None, description=CURSOR)


class AsOfQuery(StrictRequest):
    """At which instant; now by default."""

    as_of: Time | None = None


class LineQuery(PageQuery):
    upstream_id: UpstreamId | None = None
    customer_id: Identifier | None = None
    status: Literal["active", "suspended", "closed", "expired"] | None = None
    currency: Currency | None = None
    flagged: bool | None = None
    order_id: Identifier | None = Field(None, description="Lines from which this order was deducted.")
    session_id: Identifier | None = Field(
        None, description="Lines with a hold or a deduction of this checkout session."
    )


class DecisionQuery(PageQuery):
    upstream_id: UpstreamId | None = None
    session_id: Identifier | None = None
    since: Time | None = None
    until: Time | None = None


class EventQuery(PageQuery):
    state: EventState | None = None
    type: Identifier | None = None
    order_id: Identifier | None = None
