"""A batch in two trips to PostgreSQL and without waiting for locked lines: the way of nearly all of them.

All that the batch names is read in one statement, of one snapshot, without locks. What the rules make of it
is written by one statement, which commits by itself. It first locks the lines that change, and writes
nothing unless nobody else has one of them locked and each still has the version that was read. That
version tells of everything that the rules know of a line: whatever changes its holds, deductions or offers
changes its row too (`Draft.change`). A payment source must be new: its row is inserted, which fails when
somebody else did so meanwhile, and waits as long as they may still undo it.

What can not be done so is done under locks: see `store`. So is a batch that others were in the way of.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from store_credit.bulk import Record, Statement, Versions, if_unchanged
from store_credit.direct import Fetch
from store_credit.failures import CommitFailed, is_undone
from store_credit.ledger import store
from store_credit.ledger.asking import Parameters, Query, ask_together
from store_credit.ledger.batch import Batch
from store_credit.ledger.book import Book
from store_credit.ledger.needs import Needs
from store_credit.ledger.offers import Offer
from store_credit.ledger.rows import new_source_row, read_hold, read_line
from store_credit.ledger.statements import (
    CLAIMS,
    COMPLETED_SESSIONS,
    DUE_HOLDS_AT_ONCE,
    KNOWN_SOURCES,
    LINES_AT_ONCE,
    LINES_OF_OFFERS_AT_ONCE,
    OFFERS,
    READ_LINES,
    RELEASED_HOLDS_AT_ONCE,
    SESSION_HOLDS,
)
from store_credit.ledger.store import Claimed, offers_of
from store_credit.ledger.tables import credit_line, source
from store_credit.ledger.works import Answer
from store_credit.metadata import upstream_key

BATCHES_UNDER_LOCKS = 16
"""So many batches wait for locks when another process was in the way of one: it, and those after it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a batch names, of one snapshot."""

    book: Book
    now: datetime
    claimed: dict[str, Claimed]
    versions: dict[str, str]
    """Of the lines, by id."""


async def look(fetch: Fetch, needs: Needs, clock: datetime | None) -> Seen | None:
    """Read what the batch names, without locks. None: that would not do.

    `clock` is the time to use; None asks PostgreSQL's own.
    """
    offers = offers_of(needs)
    lines = LINES_OF_OFFERS_AT_ONCE if offers else LINES_AT_ONCE
    keys = [upstream_key(upstream_id) for upstream_id in needs.upstream_ids]
    given = {"keys": keys, "offers": offers, "clock": clock}
    now, found = await ask_together(fetch, lines, _questions(needs, offers, clock), given)
    if found.get(KNOWN_SOURCES) or len(found[DUE_HOLDS_AT_ONCE]) >= store.DUE_HOLDS_MAX:
        return None
    book = Book()
    for *figures, _ in found[READ_LINES]:
        book.add_line(read_line(figures))
    for query in (DUE_HOLDS_AT_ONCE, SESSION_HOLDS, RELEASED_HOLDS_AT_ONCE):
        for row in found.get(query, ()):
            book.add_hold(read_hold(row))
    book.completed_sessions.update((row[0], row[1]) for row in found.get(COMPLETED_SESSIONS, ()))
    book.offers = {row[0]: Offer(*row) for row in found.get(OFFERS, ())}
    claimed = {row[0]: Claimed(*row) for row in found.get(CLAIMS, ())}
    return Seen(book, now, claimed, {row[0]: row[-1] for row in found[READ_LINES]})


def _questions(needs: Needs, offers: list[str], clock: datetime | None) -> dict[Query, Parameters]:
    questions: dict[Query, Parameters] = {
        READ_LINES: {},
        DUE_HOLDS_AT_ONCE: {"clock": clock, "most": store.DUE_HOLDS_MAX},
    }
    if sessions := list(needs.session_ids):
        questions[SESSION_HOLDS] = {"session_ids": sessions}
        questions[COMPLETED_SESSIONS] = {"session_ids": sessions}
    if needs.released:
        names = list(needs.released)
        questions[RELEASED_HOLDS_AT_ONCE] = {
            "keys": [upstream_key(upstream_id) for upstream_id in names],
            "ids": names,
            "clock": clock,
            "most": needs.commands + 2,
        }
    if offers:
        questions[OFFERS] = {"ids": offers}
    if needs.source_ids:
        questions[KNOWN_SOURCES] = {"ids": list(needs.source_ids)}
    if needs.claims:
        questions[CLAIMS] = {"keys": list(needs.claims)}
    return questions


def saving(needs: Needs, seen: Seen, batch: Batch, marker: Record) -> Statement | None:
    """What writes all that the batch decided. None: that takes more than this one statement."""
    others = list(batch.records(marker))
    if any(table is source for table, _, _ in others):
        return None  # What is told of a source must not stay when the rest is not written.
    sources: list[Record] = [(source, new_source_row(id_), "refuse") for id_ in sorted(needs.source_ids)]
    changed = {line.id for change in batch.changes for line in change.lines}
    versions = Versions(credit_line, {id_: seen.versions[id_] for id_ in changed})
    return if_unchanged(sources, versions, others)


async def save(fetch: Fetch, saving: Statement, answers: list[Answer]) -> bool:
    """Write what a batch decided, if nobody else was in its way; returns whether it is done.

    Raises CommitFailed with the answers when it can not be told.
    """
    sql, values = saving
    try:
        (is_done,) = await fetch(sql, *values)
    except Exception as error:
        if is_undone(error):
            raise
        raise CommitFailed(answers) from error
    return bool(is_done)
