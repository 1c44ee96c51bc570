"""The callout's bodies, as Digital River documents them (API version 2021-12-13)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from store_credit.fields import Amount, Identifier, Text, TolerantRequest, UpstreamId


class AuthorizationRequest(TolerantRequest):
    """May this checkout session use this much of this credit line?

    There is no currency: the amount is in the currency of the credit line.
    """

    session_id: Identifier = Field(description="The checkout session.", examples=["7765374748"])
    session_upstream_id: Identifier | None = Field(
        None, description="The merchant's own id of the session.", examples=["8234373746"]
    )
    amount: Amount = Field(description="The amount of store credit asked for.", examples=[11.4])
    upstream_id: UpstreamId = Field(description="The credit line.", examples=["7654-2345-0987-123456"])
    name: Text | None = Field(None, description="For display.", examples=["Gift card"])
    icon_url: Text | None = Field(None, description="For display.")
    last_four: Text | None = Field(None, description="For display.", examples=["7831"])

    @field_validator("session_upstream_id", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: object) -> object:
        return None if value == "" else value


class AuthorizationAnswer(BaseModel):
    """The decision. The amount is left out when the credit is declined."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"approval": True, "upstreamId": "7654-2345-0987-123456", "amount": 11.4},
                {"approval": False, "upstreamId": "7654-2345-0987-123456"},
            ]
        }
    )

    approval: bool
    upstreamId: str = Field(description="As asked.")  # noqa: N815
    amount: float | None = Field(
        default=None,
        json_schema_extra={"type": "number", "format": "double"},
        description="When approved: above 0, at most what was asked.",
    )
