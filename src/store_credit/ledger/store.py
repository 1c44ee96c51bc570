"""The SQL of the ledger's one way in: lock and load what a batch names, save what the rules decided.

Rows are locked in one order everywhere, sources before lines and each sorted, and everything else is
read after that: no deadlocks, also across processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, any_, func, literal_column, select, update

from store_credit import bulk
from store_credit.ledger.book import Book
from store_credit.ledger.commands import Describe
from store_credit.ledger.needs import Needs
from store_credit.ledger.offers import PREFIX, Offer
from store_credit.ledger.rows import (
    hold_row,
    line_row,
    new_line_row,
    plain_row,
    read_hold,
    read_line,
    read_source,
    source_row,
)
from store_credit.ledger.state import (
    Change,
    Deduction,
    HoldState,
)
from store_credit.ledger.statements import (
    CLAIMS,
    COMPLETED_SESSIONS,
    DEDUCTIONS,
    DUE_HOLDS,
    HOLDS_BY_ID,
    LINES,
    LOCK_SOURCES,
    OFFERS,
    OVERDUE,
    RELEASED_HOLDS,
    SESSION_HOLDS,
    START_BATCH,
)
from store_credit.ledger.tables import (
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


@dataclass(frozen=True, slots=True)
class Claimed:
    """Something that was claimed once, and the answer it got."""

    key: str
    fingerprint: str
    answer: str


def start_batch(connection: Connection, batch_id: str, clock: datetime | None) -> datetime | None:
    """Leave the batch's marker. Returns the time, or None when an earlier try was committed.

    While an earlier try is still under way in a connection that was lost, PostgreSQL makes this
    statement wait for its end. `clock` is the time to use; None asks PostgreSQL's own clock.
    """
    rows = START_BATCH.rows(connection, id=batch_id, created_at=clock)
    return rows[0][0] if rows else None


def load(
    connection: Connection, needs: Needs, started_at: datetime, *, own_clock: bool
) -> tuple[Book, datetime]:
    """Lock and read what the batch names.

    Returns the book, and the time: on the database's own clock, when the last line was locked.
    """
    book = Book()
    line_ids = set(needs.line_ids)
    if needs.source_ids:
        source_ids = sorted(needs.source_ids)
        for source_id, told, order_id, parked_at in _lock_sources(connection, source_ids):
            if told is not None:
                book.sources[source_id] = read_source(source_id, told, order_id, parked_at)
        for row in DEDUCTIONS.rows(connection, ids=source_ids):
            book.add_deduction(Deduction(*row))
        line_ids.update(spent.line_id for spent in book.deductions.values())
        needs.add_spent_holds(book.deductions.values())
    line_ids.update(_offered_lines(connection, needs.upstream_ids))
    locked_at = _load_lines(connection, book, needs.upstream_ids, line_ids)
    now = max(started_at, locked_at) if own_clock and locked_at is not None else started_at
    if book.lines:
        _load_offers(connection, book, needs.upstream_ids)
        needs.add_holds_on_named_lines({line.id: line.upstream_id for line in book.lines.values()})
        _load_holds(connection, book, needs, now)
        _load_completed_sessions(connection, book, needs)
    return book, now


def _lock_sources(connection: Connection, source_ids: list[str]) -> list[Any]:
    while True:
        bulk.insert(connection, source, [{"id": source_id} for source_id in source_ids], "skip")
        rows = LOCK_SOURCES.rows(connection, ids=source_ids)
        # A row that was there may have been pruned before it was locked: then it is made anew.
        if len(rows) == len(source_ids):
            return rows


def _offered_lines(connection: Connection, upstream_ids: set[str]) -> list[str]:
    """The lines that offers among these ids name. That never changes, so no lock is needed."""
    ids = [upstream_id for upstream_id in upstream_ids if upstream_id.startswith(PREFIX)]
    return [row[1] for row in OFFERS.rows(connection, ids=ids)] if ids else []


def _load_offers(connection: Connection, book: Book, upstream_ids: set[str]) -> None:
    """Read again once their lines are locked: nobody else changes them now."""
    ids = [upstream_id for upstream_id in upstream_ids if upstream_id.startswith(PREFIX)]
    if ids:
        book.offers.update((row[0], Offer(*row)) for row in OFFERS.rows(connection, ids=ids))


def _load_lines(
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


def _load_holds(connection: Connection, book: Book, needs: Needs, now: datetime) -> None:
    latest = max(now, *(line.last_entry_at for line in book.lines.values()))
    due = DUE_HOLDS.rows(connection, line_ids=list(book.lines), now=latest, most=DUE_HOLDS_MAX)
    _add_holds(book, due)
    if needs.hold_keys:
        sessions = list({session for session, _ in needs.hold_keys})
        _add_holds(book, SESSION_HOLDS.rows(connection, session_ids=sessions))
    if needs.hold_ids:
        _add_holds(book, HOLDS_BY_ID.rows(connection, ids=list(needs.hold_ids)))
    if needs.released:
        # More than the batch can end, those past their time aside, which no rule uses: a rule must see
        # that there are several.
        keys = [upstream_key(upstream_id) for upstream_id in needs.released]
        most = needs.commands + 2
        _add_holds(book, RELEASED_HOLDS.rows(connection, keys=keys, now=latest, most=most))
    if len(due) == DUE_HOLDS_MAX and needs.commands > needs.settles:
        _sum_overdue(connection, book, now)


def _sum_overdue(connection: Connection, book: Book, now: datetime) -> None:
    """What holds past their time hold beyond those that are loaded, at the earliest time of any line."""
    for line_id, total in OVERDUE.rows(connection, line_ids=list(book.lines), now=now):
        holds = book.holds_of(line_id).values()
        book.overdue[line_id] = total - sum(held.amount for held in holds if held.expires_at <= now)


def _add_holds(book: Book, rows: Iterable[Any]) -> None:
    for row in rows:
        book.add_hold(read_hold(row))


def _load_completed_sessions(connection: Connection, book: Book, needs: Needs) -> None:
    if needs.hold_keys:
        sessions = list({session for session, _ in needs.hold_keys})
        found = COMPLETED_SESSIONS.rows(connection, line_ids=list(book.lines), session_ids=sessions)
        book.completed_sessions.update((line_id, session) for line_id, session in found)


def claims(connection: Connection, keys: Sequence[str]) -> dict[str, Claimed]:
    """Those of the keys that were claimed before."""
    if not keys:
        return {}
    return {row[0]: Claimed(*row) for row in CLAIMS.rows(connection, keys=keys)}


def save(connection: Connection, changes: Sequence[Change], now: datetime) -> None:
    """Write what the rules decided, each table with one statement."""
    lines = {line.id: line for change in changes for line in change.lines}
    opened = {change.opened.line_id: change.opened for change in changes if change.opened}
    holds = {held.id: held for change in changes for held in change.holds}
    deductions = {spent.id: spent for change in changes for spent in change.deductions}
    new = [new_line_row(lines[line_id], issue, now) for line_id, issue in opened.items()]
    known = [line_row(line, now) for line in lines.values() if line.id not in opened]
    bulk.insert(connection, credit_line, sorted(new, key=lambda row: row["upstream_key"]))
    bulk.update_by_id(connection, credit_line, known)
    bulk.insert(connection, deduction, [plain_row(spent) for spent in deductions.values()], "replace")
    bulk.insert(connection, hold, [hold_row(held) for held in holds.values()], "replace")
    sources = {told.id: told for change in changes for told in change.sources}
    bulk.update_by_id(connection, source, [source_row(told) for told in sources.values()])
    offers = {used.upstream_id: used for change in changes for used in change.offers}
    for used in offers.values():
        _use_offer(connection, used)
    for change in changes:
        if change.described is not None:
            _describe(connection, change.described)
    entries = [plain_row(entry) for change in changes for entry in change.entries]
    bulk.insert(connection, ledger_entry, entries)


def save_claims(connection: Connection, made: Iterable[Claimed], now: datetime) -> None:
    """Keep new claims. One that another process made meanwhile fails the whole batch."""
    rows = [plain_row(claimed) | {"created_at": now} for claimed in made]
    bulk.insert(connection, claim, sorted(rows, key=lambda row: row["key"]))


def due_lines(connection: Connection, now: datetime, limit: int) -> tuple[list[str], bool]:
    """Some of the lines on which a hold or the line itself is past its time, and whether there may be more.

    Of holds it looks at so many: a line may have more that are past their time than lines are wanted.
    """
    holds = (
        select(hold.c.line_id)
        .where(hold.c.state == HoldState.OPEN.value, hold.c.expires_at <= now)
        .order_by(hold.c.expires_at)
        .limit(limit)
    )
    lines = select(credit_line.c.id).where(credit_line.c.due_at <= now)
    lines = lines.order_by(credit_line.c.due_at).limit(limit)
    of_holds, of_lines = list(connection.scalars(holds)), list(connection.scalars(lines))
    found = list(dict.fromkeys([*of_holds, *of_lines]))
    return found[:limit], limit in (len(of_holds), len(of_lines)) or len(found) > limit


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


def _use_offer(connection: Connection, used: Offer) -> None:
    statement = update(offer).where(offer.c.upstream_id == used.upstream_id)
    connection.execute(statement.values(session_id=used.session_id, spent_at=used.spent_at))


def _describe(connection: Connection, command: Describe) -> None:
    values = dict(command.changes)
    if "metadata" in values:
        values["metadata"] = json.dumps(values["metadata"])
    statement = update(credit_line).where(credit_line.c.id == command.line_id)
    connection.execute(statement.values({credit_line.c[name]: value for name, value in values.items()}))
