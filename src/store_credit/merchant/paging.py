"""What the merchant API's routes share: pages of lists, and looking a line up by its id."""

from __future__ import annotations

from sqlalchemy import Connection

from store_credit import ids
from store_credit.errors import BadRequest, NotFound
from store_credit.ledger import queries
from store_credit.ledger.pages import Page
from store_credit.ledger.queries import LineFigures
from store_credit.merchant.schemas import PageQuery
from store_credit.metadata import ID_LENGTH_MAX
from store_credit.service import Service


def page_of(query: PageQuery, prefix: str) -> Page:
    """The page of a list whose ids have this prefix. Raises BadRequest for a cursor that is no such id.

    A cursor is a place in the order of time: it need not be in the list, nor still be there.
    """
    for parameter, cursor in (
        ("startingAfter", query.starting_after),
        ("endingBefore", query.ending_before),
    ):
        if cursor is not None and not ids.is_minted(cursor, prefix):
            raise BadRequest.parameter(parameter, "The cursor is no id of this list.")
    return Page(query.limit, query.starting_after, query.ending_before)


def stored_id(value: str, noun: str) -> str:
    """An id that could be stored at all; any other names nothing. Raises NotFound."""
    if len(value) > ID_LENGTH_MAX or "\0" in value:
        raise NotFound.of(noun)
    return value


async def line_of(service: Service, line_id: str) -> LineFigures:
    """The line of this id, its figures settled. Raises NotFound."""

    def read(connection: Connection) -> LineFigures | None:
        return queries.line(connection, line_id, service.ledger.now_within(connection))

    stored_id(line_id, "credit line")
    found = await service.database.read(read)
    if found is None:
        raise NotFound.of("credit line")
    return found
