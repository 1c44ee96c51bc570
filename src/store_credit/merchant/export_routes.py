"""Exports over HTTP: the same as `store-credit export`, streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.responses import StreamingResponse

from store_credit.exchange import exporting
from store_credit.exchange.exporting import Format, Noun
from store_credit.fields import StrictRequest
from store_credit.ledger.ledger import Ledger
from store_credit.openapi import answers
from store_credit.security import may_read
from store_credit.service import TheService

router = APIRouter(prefix="/exports", tags=["Exports"])

_MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv; charset=utf-8; header=present",
    "jsonl": "application/x-ndjson",
}
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The whole export: CSV (RFC 4180) or JSON Lines.",
        "content": {
            media_type.partition(";")[0]: {"schema": {"type": "string"}}
            for media_type in _MEDIA_TYPES.values()
        },
    }
}
_EXPORT: Any = {
    "response_class": StreamingResponse,
    "dependencies": [Depends(may_read)],
    "responses": _STREAMED | answers(400, 401, 403, 429, 503),
}


class ExportQuery(StrictRequest):
    """How an export is written."""

    format: Format = "csv"


@router.get("/lines", **_EXPORT)
async def export_lines(service: TheService, query: Annotated[ExportQuery, Query()]) -> StreamingResponse:
    """All credit lines, oldest first."""
    return await _streamed(service.ledger, "lines", query.format)


@router.get("/entries", **_EXPORT)
async def export_entries(service: TheService, query: Annotated[ExportQuery, Query()]) -> StreamingResponse:
    """The journal, line by line."""
    return await _streamed(service.ledger, "entries", query.format)


@router.get("/deductions", **_EXPORT)
async def export_deductions(
    service: TheService, query: Annotated[ExportQuery, Query()]
) -> StreamingResponse:
    """What was spent on orders, oldest first."""
    return await _streamed(service.ledger, "deductions", query.format)


async def _streamed(ledger: Ledger, noun: Noun, form: Format) -> StreamingResponse:
    """The export as an answer. Its first page is read before: a database that is away is a 503.

    If it goes away later, the connection is cut, so that nobody takes a part for the whole.
    """
    pieces = exporting.export(ledger, noun, form)
    begun = [piece async for piece in _first(pieces, 2)]

    async def all_of_it() -> AsyncIterator[bytes]:
        for piece in begun:
            yield piece
        async for piece in pieces:
            yield piece

    headers = {"Content-Disposition": f'attachment; filename="{noun}.{form}"'}
    return StreamingResponse(all_of_it(), media_type=_MEDIA_TYPES[form], headers=headers)


async def _first(pieces: AsyncIterator[bytes], count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        try:
            yield await anext(pieces)
        except StopAsyncIteration:
            return
