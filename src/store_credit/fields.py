"""The field types that request models are made of: each bounds what it takes.

Identifiers refuse NUL and lone surrogates, which no database would store.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from starlette.convertors import Convertor, register_url_convertor

from store_credit import money
from store_credit.metadata import ID_LENGTH_MAX, UPSTREAM_ID_LENGTH_MAX

TEXT_LENGTH_MAX = 1_024


def storable(value: str) -> str:
    """Text that every database can store. Raises ValueError for NUL and lone surrogates."""
    if "\0" in value:
        raise ValueError("must not contain NUL")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode") from None
    return value


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("must be a finite number")
    return money.decimal_of(value)


def _currency(value: str) -> str:
    if value not in money.EXPONENTS:
        raise ValueError("must be an ISO 4217 currency code in capitals")
    return value


def instant(value: Any) -> datetime:
    """An ISO 8601 text with a time zone as a time in UTC. Raises ValueError."""
    if not isinstance(value, str) or len(value) > 64:
        raise ValueError("must be an ISO 8601 time")
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be an ISO 8601 time") from None
    raise ValueError("must say its time zone, such as 2026-11-20T12:00:00Z")


Identifier = Annotated[
    str,
    StringConstraints(min_length=1, max_length=ID_LENGTH_MAX, strict=True),
    AfterValidator(storable),
]
UpstreamId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=UPSTREAM_ID_LENGTH_MAX, strict=True),
    AfterValidator(storable),
]
Text = Annotated[str, StringConstraints(max_length=TEXT_LENGTH_MAX, strict=True), AfterValidator(storable)]
Amount = Annotated[
    Decimal, PlainValidator(_decimal), WithJsonSchema({"type": "number", "format": "double"})
]
Currency = Annotated[
    str,
    StringConstraints(strict=True),
    AfterValidator(_currency),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$", "description": "ISO 4217"}),
]
Time = Annotated[
    datetime, PlainValidator(instant), WithJsonSchema({"type": "string", "format": "date-time"})
]


class Model(BaseModel):
    """camelCase outside, snake_case inside."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=False, validate_by_alias=True, frozen=True
    )


class TolerantRequest(Model):
    """A body from Digital River: fields that we do not know are none of our business."""

    model_config = ConfigDict(extra="ignore")


class StrictRequest(Model):
    """A body from the merchant: a field that we do not know is a mistake worth telling."""

    model_config = ConfigDict(extra="forbid")


class _Anything(Convertor[str]):
    """The rest of a path as an identifier, `{id:anything}`: Starlette's `path` ends at a line feed."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anything", _Anything())


def time_text(moment: datetime | None) -> str | None:
    """A time as the interfaces show it: `2026-11-20T12:00:00.123456Z`, without a zero fraction."""
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
