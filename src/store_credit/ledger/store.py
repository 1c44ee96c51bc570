"""The SQL of the ledger's one way in: lock and load what a batch names, save what the rules decided.

Rows are locked in one order everywhere, sources before lines and each sorted, and everything else is
read after that: no deadlocks, also across processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, any_, func, literal_column, select

from store_credit.bulk import Record, Row
from store_credit.ledger.asking import Parameters, Query, ask
from store_credit.ledger.book import Book
from store_credit.ledger.needs import Needs
from store_credit.ledger.offers import PREFIX, Offer
from store_credit.ledger.rows import (
    described_row,
    figures_row,
    hold_row,
    new_line_row,
    read_hold,
    read_line,
    read_source,
    source_row,
    terms_row,
    used_offer_row,
)
from store_credit.ledger.state import (
    Change,
    Deduction,
    HoldState,
    Line,
)
from store_credit.ledger.statements import (
    CLAIM_BATCH,
    CLAIMS,
    COMPLETED_SESSIONS,
    DEDUCTIONS,
    DUE_HOLDS,
    HOLDS_BY_ID,
    LINES,
    LOCK_SOURCES,
    NAMED_LINES,
    OFFERS,
    OVERDUE,
    PLAN_ONCE,
    RELEASED_HOLDS,
    SESSION_HOLDS,
)
from store_credit.ledger.tables import (
    OF_ALL_LINES,
    claim,
    credit_line,
    deduction,
    hold,
    ledger_batch,
    ledger_entry,
    offer,
    source,
)
from store_credit.metadata import upstream_key

DUE_HOLDS_MAX = 500
"""Holds past their time that one transaction ends: after a long pause, a line may have any number."""

HOLDS_PER_LINE = 20
"""Holds that the sweeper looks at for each line that it wants."""


class Claimed(NamedTuple):
    """Something that was claimed once, and the answer it got."""

    key: str
    fingerprint: str
    answer: str


def marker(batch_id: str, now: datetime) -> Record:
    """What each try of a batch leaves behind, so that after a COMMIT of unknown fate it can be told.

    It goes with the last rows before COMMIT: whoever is in doubt about one finds its marker, or waits for
    it; and what failed before COMMIT can not have happened.
    """
    return ledger_batch, {"id": batch_id, "created_at": now}, "refuse"


def claim_batch(connection: Connection, batch_id: str, now: datetime) -> bool:
    """Leave the marker of a try whose fate is unknown. True: it will never be committed.

    False: it was, or another try that was in doubt about it, and left the marker so. Those come later.

    While the earlier try is still under way in a connection that was lost, PostgreSQL makes this
    statement wait for its end.
    """
    return bool(CLAIM_BATCH.rows(connection, id=batch_id, created_at=now))


def load(
    connection: Connection, needs: Needs, clock: datetime | None
) -> tuple[Book, datetime, dict[str, Claimed]]:
    """Lock and read what the batch names.

    Returns the book, the time and those of the claims that were made before. `clock` is the time to use;
    None asks PostgreSQL's own clock, when the last line is locked.
    """
    book = Book()
    if needs.source_ids:
        rows = LOCK_SOURCES.rows(connection, ids=sorted(needs.source_ids))
        book.sources = {row[0]: read_source(*row) for row in rows if row[1] is not None}
    line_ids = needs.line_ids | _lines_named_elsewhere(connection, book, needs)
    locked_at = _lock_lines(connection, book, needs.upstream_ids, line_ids)
    now = clock or locked_at or current_time(connection)
    found = ask(connection, _questions(book, needs, now))
    for query in (DUE_HOLDS, SESSION_HOLDS, HOLDS_BY_ID, RELEASED_HOLDS):
        for row in found.get(query, ()):
            book.add_hold(read_hold(row))
    if len(found.get(DUE_HOLDS, ())) == DUE_HOLDS_MAX and needs.commands > needs.settles:
        _sum_overdue(connection, book, now)
    book.completed_sessions.update((row[0], row[1]) for row in found.get(COMPLETED_SESSIONS, ()))
    book.offers = {row[0]: Offer(*row) for row in found.get(OFFERS, ())}
    return book, now, {row[0]: Claimed(*row) for row in found.get(CLAIMS, ())}


def _sum_overdue(connection: Connection, book: Book, now: datetime) -> None:
    """What holds past their time hold beyond those that are loaded, at the earliest time of any line."""
    for line_id, total in OVERDUE.rows(connection, line_ids=list(book.lines), now=now):
        holds = book.holds_of(line_id).values()
        book.overdue[line_id] = total - sum(held.amount for held in holds if held.expires_at <= now)


def _lines_named_elsewhere(connection: Connection, book: Book, needs: Needs) -> set[str]:
    """The lines of known deductions, which are read with their sources locked, and those of offers.

    An offer's line never changes, so that needs no lock; the offer itself is read again later.
    """
    questions: dict[Query, Parameters] = {}
    if needs.source_ids:
        questions[DEDUCTIONS] = {"ids": list(needs.source_ids)}
    if offers := offers_of(needs):
        questions[OFFERS] = {"ids": offers}
    found = ask(connection, questions)
    for row in found.get(DEDUCTIONS, ()):
        book.add_deduction(Deduction(*row))
    spent = {deduction.line_id for deduction in book.deductions.values()}
    return spent | {row[1] for row in found.get(OFFERS, ())}


def offers_of(needs: Needs) -> list[str]:
    """The offers among the upstream ids."""
    return [upstream_id for upstream_id in needs.upstream_ids if upstream_id.startswith(PREFIX)]


def _lock_lines(
    connection: Connection, book: Book, upstream_ids: set[str], line_ids: set[str]
) -> datetime | None:
    if not upstream_ids and not line_ids:
        return None
    keys = [upstream_key(upstream_id) for upstream_id in upstream_ids]
    locked_at = None
    for *figures, clock in LINES.rows(connection, keys=keys, ids=list(line_ids)):
        book.add_line(read_line(figures))
        locked_at = clock
    return locked_at


def _questions(book: Book, needs: Needs, now: datetime) -> dict[Query, Parameters]:
    """What is to be read once the lines are locked, when nobody else changes it any more."""
    questions: dict[Query, Parameters] = {}
    if needs.claims:
        questions[CLAIMS] = {"keys": list(needs.claims)}
    if not book.lines:
        return questions
    questions[PLAN_ONCE] = {}
    line_ids = list(book.lines)
    latest = max(now, *(line.last_entry_at for line in book.lines.values()))
    questions[DUE_HOLDS] = {"line_ids": line_ids, "now": latest, "most": DUE_HOLDS_MAX}
    if sessions := list(needs.session_ids):
        questions[SESSION_HOLDS] = {"session_ids": sessions}
        questions[COMPLETED_SESSIONS] = {"session_ids": sessions}
    if needs.hold_ids:
        questions[HOLDS_BY_ID] = {"ids": list(needs.hold_ids)}
    if needs.released:
        # More than the batch can end, those past their time aside, which no rule uses: a rule must see
        # that there are several. Those that end last, as a rule's time may be later than this one.
        names = list(needs.released)
        questions[RELEASED_HOLDS] = {
            "keys": [upstream_key(upstream_id) for upstream_id in names],
            "ids": names,
            "now": now,
            "most": needs.commands + 2,
        }
    if offers := offers_of(needs):
        questions[OFFERS] = {"ids": offers}
    return questions


def locked_names(connection: Connection, needs: Needs) -> set[str]:
    """Of what the batch names, the names of lines that somebody else has locked now."""
    rows = NAMED_LINES.rows(
        connection,
        keys=[upstream_key(upstream_id) for upstream_id in needs.upstream_ids],
        ids=list(needs.line_ids),
        sources=list(needs.source_ids),
        offers=offers_of(needs),
    )
    return {name for name, is_locked in rows if is_locked}


def claims(connection: Connection, keys: Sequence[str]) -> dict[str, Claimed]:
    """Those of the keys that were claimed before."""
    return {row[0]: Claimed(*row) for row in CLAIMS.rows(connection, keys=list(keys))}


def changed(changes: Sequence[Change], before: Mapping[str, Line], now: datetime) -> Iterator[Record]:
    """The rows that keep what the rules decided: of everything its newest version, and all entries.

    `before` has the lines as they were loaded, by id.
    """
    yield from _changed_lines(changes, before, now)
    for spent in {one.id: one for change in changes for one in change.deductions}.values():
        yield deduction, spent._asdict(), "replace"
    for held in {one.id: one for change in changes for one in change.holds}.values():
        yield hold, hold_row(held), "replace"
    for told in {one.id: one for change in changes for one in change.sources}.values():
        yield source, source_row(told), "update"
    for used in {one.upstream_id: one for change in changes for one in change.offers}.values():
        yield offer, used_offer_row(used), "update"
    for change in changes:
        for entry in change.entries:
            yield ledger_entry, entry._asdict(), "refuse"
    descriptions: dict[str, Row] = {}
    for command in [change.described for change in changes if change.described is not None]:
        descriptions[command.line_id] = descriptions.get(command.line_id, {}) | described_row(command)
    for row in descriptions.values():
        yield credit_line, row, "update"


def _changed_lines(
    changes: Sequence[Change], before: Mapping[str, Line], now: datetime
) -> Iterator[Record]:
    lines = {line.id: line for change in changes for line in change.lines}
    opened = {change.opened.line_id: change.opened for change in changes if change.opened}
    new = [new_line_row(lines[line_id], issue, now) for line_id, issue in opened.items()]
    for row in sorted(new, key=lambda row: row["upstream_key"]):
        yield credit_line, row, "refuse"
    old = [line for line in lines.values() if line.id not in opened]
    for line in old:
        yield credit_line, figures_row(line, now), "update"
    for line in old:
        if (terms := terms_row(line)) != terms_row(before[line.id]):
            yield credit_line, terms, "update"


def claimed(made: Iterable[Claimed], now: datetime) -> Iterator[Record]:
    """New claims, in one order everywhere. One that another process made meanwhile fails the batch."""
    for new in sorted(made, key=lambda new: new.key):
        yield claim, new._asdict() | {"created_at": now}, "refuse"


def due_lines(connection: Connection, now: datetime, limit: int) -> tuple[list[str], bool]:
    """Some of the lines on which a hold or the line itself is past its time, and whether there may be more.

    Of holds it looks at twenty times as many: those of a line that can not be settled shall not hide all
    others.
    """
    holds = (
        select(hold.c.line_id)
        .where(hold.c.state == HoldState.OPEN.value, OF_ALL_LINES, hold.c.expires_at <= now)
        .order_by(hold.c.expires_at)
        .limit(HOLDS_PER_LINE * limit)
    )
    lines = select(credit_line.c.id).where(credit_line.c.due_at <= now)
    lines = lines.order_by(credit_line.c.due_at).limit(limit)
    of_holds, of_lines = list(connection.scalars(holds)), list(connection.scalars(lines))
    found = list(dict.fromkeys([*of_holds, *of_lines]))
    more = len(of_holds) >= limit or len(of_lines) == limit or len(found) > limit
    return found[:limit], more


def prune_batches(connection: Connection, before: datetime, limit: int) -> int:
    """Delete some of the markers of old batches; returns how many.

    In the order of an index, or each step would read over what the steps before it deleted. On
    PostgreSQL by their places: looked up by their ids, they would not be worth an index to its planner.
    """
    postgresql = connection.dialect.name == "postgresql"
    key: ColumnElement[Any] = literal_column("ctid") if postgresql else ledger_batch.c.id
    old = select(key).select_from(ledger_batch).where(ledger_batch.c.created_at < before)
    old = old.order_by(ledger_batch.c.created_at).limit(limit)
    if not postgresql:
        return connection.execute(ledger_batch.delete().where(key.in_(old))).rowcount
    places = func.array(old.with_for_update(skip_locked=True).scalar_subquery())
    return connection.execute(ledger_batch.delete().where(key == any_(places))).rowcount


def current_time(connection: Connection) -> datetime:
    """PostgreSQL's clock."""
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now
