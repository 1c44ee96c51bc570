"""Credit lines, entries and deductions as CSV or JSON Lines, a page at a time and in bounded memory.

Rows have the shapes of the merchant API. Where the API tells from the path whose rows they are, an export
says it in each: `creditLineId` and `currency`. A page shows what is true when it is read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

from store_credit import money
from store_credit.exchange import queries
from store_credit.ledger.ledger import Ledger
from store_credit.merchant import rendering, schemas

Noun = Literal["lines", "entries", "deductions"]
Format = Literal["csv", "jsonl"]
Shown = dict[str, Any]
Pages = Callable[[Ledger], AsyncIterator[list[Shown]]]

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""Spreadsheets take a cell for a formula that begins so; a quote before it makes it a text."""

_AMOUNTS = frozenset({"balance", "held", "available", "amount", "returned", "balanceAfter", "heldAfter"})
_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


async def export(ledger: Ledger, noun: Noun, form: Format) -> AsyncIterator[bytes]:
    """The whole export, in pieces of a page each. The header of CSV is there even without rows."""
    if form == "csv":
        yield _csv([_COLUMNS[noun]])
    async for page in _PAGES[noun](ledger):
        if form == "csv":
            yield _csv([[_cell(name, row) for name in _COLUMNS[noun]] for row in page])
        else:
            yield "".join(f"{_encode(row)}\n" for row in page).encode("ascii")


async def _lines(ledger: Ledger) -> AsyncIterator[list[Shown]]:
    after = None
    while page := await ledger.database.read(queries.line_page, after, await ledger.now()):
        yield [rendering.line(figures) for figures in page]
        after = page[-1].row["id"]


async def _entries(ledger: Ledger) -> AsyncIterator[list[Shown]]:
    after = None
    while page := await ledger.database.read(queries.entry_page, after):
        yield [
            rendering.entry(row, row["currency"])
            | {"creditLineId": row["line_id"], "currency": row["currency"]}
            for row in page
        ]
        after = (page[-1]["line_id"], page[-1]["seq"])


async def _deductions(ledger: Ledger) -> AsyncIterator[list[Shown]]:
    after = None
    while page := await ledger.database.read(queries.deduction_page, after):
        yield [rendering.deduction(row, row["currency"]) | {"currency": row["currency"]} for row in page]
        after = page[-1]["id"]


def _names(model: type[Any]) -> list[str]:
    return [str(field.alias) for field in model.model_fields.values()]


_PAGES: dict[Noun, Pages] = {"lines": _lines, "entries": _entries, "deductions": _deductions}
_COLUMNS: dict[Noun, list[str]] = {
    "lines": _names(schemas.CreditLine),
    "entries": [*_names(schemas.Entry), "creditLineId", "currency"],
    "deductions": [*_names(schemas.Deduction), "currency"],
}


def _csv(table: list[list[str]]) -> bytes:
    """RFC 4180: rows end in CR LF, and cells are quoted where they must be."""
    written = io.StringIO(newline="")
    csv.writer(written).writerows(table)
    return written.getvalue().encode()


def _cell(name: str, row: Shown) -> str:
    """One cell. Amounts have all decimals of their currency; only texts can be formulas."""
    value = row[name]
    if value is None:
        return ""
    if name in _AMOUNTS:
        return f"{value:.{money.EXPONENTS[row['currency']]}f}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        value = " ".join(value)
    elif isinstance(value, dict):
        value = _encode(value)
    return f"'{value}" if value.startswith(_FORMULA_STARTS) else str(value)
