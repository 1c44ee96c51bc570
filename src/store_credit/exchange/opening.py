"""The file of opening balances: its rows, each checked like a request of the merchant API.

No SQL and no ledger here. Rows are counted as spreadsheets count them: the header is row 1, and empty
rows count.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, BinaryIO

from pydantic import PlainValidator, ValidationError

from store_credit import money
from store_credit.fields import Currency, Identifier, StrictRequest, Text, Time, UpstreamId, time_text
from store_credit.responses import validation_problems

REQUIRED_COLUMNS = ("customerId", "currency", "amount", "upstreamId")
COLUMNS = (*REQUIRED_COLUMNS, "name", "expiresTime", "reason")
ROWS_MAX = 1_000_000
_UTF_16 = ("\udcff\udcfe", "\udcfe\udcff")
"""As what the byte order marks of UTF-16 are read, which are no UTF-8."""
_DECIMAL = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?")


class UnreadableFile(ValueError):
    """The file as a whole can not be read. The message is a sentence, fit to show."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one row."""

    row: int
    message: str


@dataclass(frozen=True, slots=True)
class OpeningBalance:
    """One row that is right as far as the row alone can tell."""

    row: int
    customer_id: str
    currency: str
    amount_minor: int
    upstream_id: str
    name: str | None
    expires_at: datetime | None
    reason: str | None

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that the row says; its place in the file is of no account."""
        content = [self.customer_id, self.currency, self.amount_minor, self.upstream_id]
        content += [self.name, time_text(self.expires_at), self.reason]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def rows(file: BinaryIO) -> Generator[OpeningBalance | Problem, None, None]:
    """All rows of a CSV file, from its beginning, one after the other. Raises UnreadableFile.

    UTF-8, with or without a byte order mark. What is no UTF-8 becomes lone surrogates, which the fields
    refuse by themselves. Close the generator before the file.
    """
    file.seek(0)
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    row = 0
    try:
        reader = csv.reader(text, strict=True)
        columns = _columns(next(reader, []))
        for row, cells in enumerate(reader, start=2):
            if row > ROWS_MAX + 1:
                raise UnreadableFile(f"A file may have {ROWS_MAX:,} rows at most; split it.")
            if any(cell.strip() for cell in cells):
                yield _parsed(row, columns, cells)
    except csv.Error as error:
        raise UnreadableFile(f"The file is no CSV after row {max(row, 1)}: {error}.") from None
    finally:
        text.detach()


def _columns(header: list[str]) -> list[str]:
    found = [name.strip() for name in header]
    missing = [name for name in REQUIRED_COLUMNS if name not in found]
    unknown = [name for name in found if name not in COLUMNS]
    if found and found[0].startswith(_UTF_16):
        raise UnreadableFile("The file is in UTF-16: save it as CSV in UTF-8.")
    if missing and len(found) == 1 and re.search(r"[;\t]", found[0]):
        raise UnreadableFile("The cells must be separated by commas, with a point in amounts.")
    if missing:
        raise UnreadableFile(f"The first row must name the columns; missing: {', '.join(missing)}.")
    if unknown or len(set(found)) < len(found):
        raise UnreadableFile(f"The columns may be {', '.join(COLUMNS)}, each once.")
    return found


def _parsed(row: int, columns: list[str], cells: list[str]) -> OpeningBalance | Problem:
    if len(cells) != len(columns):
        return Problem(row, f"{len(cells)} cells, but there are {len(columns)} columns")
    try:
        given = _Row.model_validate({name: cell for name, cell in zip(columns, cells, strict=True) if cell})
        amount_minor = _exact_minor(given.amount, given.currency)
    except ValidationError as error:
        problems = validation_problems(error.errors()).problems
        return Problem(row, "; ".join(f"{found.parameter}: {found.message}" for found in problems))
    except money.InvalidAmount as error:
        return Problem(row, f"amount: {error}")
    return OpeningBalance(
        row,
        given.customer_id,
        given.currency,
        amount_minor,
        given.upstream_id,
        given.name,
        given.expires_time,
        given.reason,
    )


def _exact_minor(amount: Decimal, currency: str) -> int:
    """Minor units of an amount that people wrote: unlike a JSON number it has no noise to round away."""
    minor = money.positive_minor(amount, currency)
    if money.to_decimal(minor, currency) != amount:
        raise money.InvalidAmount(f"has more decimals than {currency} allows ({money.EXPONENTS[currency]})")
    return minor


def _decimal(text: Any) -> Decimal:
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text.strip()):
        raise ValueError("must be a decimal number such as 1234.50")
    return Decimal(text.strip())


class _Row(StrictRequest):
    customer_id: Identifier
    currency: Currency
    amount: Annotated[Decimal, PlainValidator(_decimal)]
    upstream_id: UpstreamId
    name: Text | None = None
    expires_time: Time | None = None
    reason: Text | None = None
