"""Bodies and queries of the reports."""

from __future__ import annotations

from pydantic import Field

from store_credit.merchant.schemas import Moment, Number, Shown


class LiabilityOfCurrency(Shown):
    """issued + adjusted = deducted - returned + expired + voided - writeOffsReversed + outstanding."""

    currency: str
    issued: Number
    adjusted: Number
    deducted: Number
    returned: Number
    expired: Number
    voided: Number
    write_offs_reversed: Number
    held: Number = Field(description="Promised to checkout sessions, as the journal tells it.")
    available: Number
    outstanding: Number = Field(description="The sum of all balances: what is owed.")


class LiabilityReport(Shown):
    """One row a currency; currencies are never added together."""

    as_of: Moment
    data: list[LiabilityOfCurrency]
