"""What the merchant API's routes share about lists and ids."""

from __future__ import annotations

from store_credit.errors import NotFound
from store_credit.ledger.queries import Page
from store_credit.merchant.schemas import PageQuery
from store_credit.metadata import ID_LENGTH_MAX


def page_of(query: PageQuery) -> Page:
    return Page(query.limit, query.starting_after, query.ending_before)


def stored_id(value: str, noun: str) -> str:
    """An id that could be stored at all; any other names nothing. Raises NotFound."""
    if len(value) > ID_LENGTH_MAX or "\0" in value:
        raise NotFound.of(noun)
    return value
