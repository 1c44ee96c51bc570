"""Bodies and queries of a shop's checkout page."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from store_credit.fields import Amount, Currency, Identifier, StrictRequest
from store_credit.merchant.schemas import Number, Shown


class SpendableQuery(StrictRequest):
    """In which currency."""

    currency: Currency


class OfferRequest(StrictRequest):
    """What a customer's next checkout session may spend."""

    currency: Currency = Field(examples=["USD"])
    amount: Amount | None = Field(
        None, description="Spread over lines; all that is there by default.", examples=[25]
    )
    session_upstream_id: Identifier | None = Field(
        None, description="The merchant's own id of the session, to be kept with the offers."
    )
    ttl: Annotated[int, Field(strict=True, ge=60, le=30 * 86_400)] | None = Field(
        None, description="Seconds until it expires; as long as a hold lives by default."
    )
    supersede: Annotated[bool, Field(strict=True)] = Field(
        False, description="Release what earlier sessions of the customer still hold: they are dead."
    )


class StoreCredit(Shown):
    """One element of `options.storeCredits[]` of Digital River's create checkout-session request."""

    amount: Number
    upstream_id: str
    name: str
    icon_url: str | None = None
    last_four: str | None = None


class StoreCredits(Shown):
    """Soonest expiring first, then oldest; only what can be spent."""

    store_credits: list[StoreCredit]
