"""Bodies and queries about the life of a credit line and its holds."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from store_credit.fields import Amount, StrictRequest, Text, Time
from store_credit.merchant.schemas import HoldState, Metadata, PageQuery, Reason, Shown
from store_credit.settings import Duration

Age = Annotated[
    Duration,
    Field(le=timedelta(days=36_500)),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]{1,9}(ms|s|m|h|d)?$"}),
]
"""`90s`, `15m`, `24h` or `30d`."""


class LineChanges(StrictRequest):
    """What is to change; what is not named stays. `null` takes a value away."""

    name: Text | None = Field(None, examples=["Gift card"])
    icon_url: Text | None = None
    last_four: Text | None = None
    allow_partial: Annotated[bool, Field(strict=True)] | None = None
    expires_time: Time | None = None
    metadata: Metadata = Field(default_factory=dict)
    reason: Reason | None = Field(None, examples=["The customer asked for it"])


class AdjustmentRequest(StrictRequest):
    """A signed correction of the balance."""

    amount: Amount = Field(description="Above or below 0.", examples=[-5])
    reason: Reason = Field(examples=["Goodwill for a late parcel"])


class ReasonRequest(StrictRequest):
    """Why."""

    reason: Reason = Field(examples=["Suspected fraud"])


class FlagRequest(StrictRequest):
    """Mark the line for an operator, or take the mark off."""

    flag: Literal["overdrawn", "source_conflict", "return_to_closed"] = Field(examples=["overdrawn"])
    raised: Annotated[bool, Field(strict=True)] = Field(examples=[False])
    reason: Reason = Field(examples=["Settled with the customer"])


class ReleaseRequest(StrictRequest):
    """End holds."""

    reason: Reason | None = Field(None, examples=["The session was abandoned"])


class Released(Shown):
    """The holds that were ended; those that had ended before are not among them."""

    released: list[str] = Field(description="Ids of holds.")


class HoldQuery(PageQuery):
    state: HoldState | None = None
    older_than: Age | None = Field(None, description="Opened at least so long ago.", examples=["24h"])
