"""The SQL of the ledger's one way in: lock and load what a batch names, save what the rules decided.

Rows are locked in one order everywhere, sources before lines and each sorted, and everything else is
read after that: no deadlocks, also across processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select

from store_credit import bulk
from store_credit.bulk import Row
from store_credit.ledger.commands import Issue
from store_credit.ledger.needs import Needs
from store_credit.ledger.sources import Returned, Source
from store_credit.ledger.state import (
    Book,
    Change,
    Deduction,
    Hold,
    HoldState,
    Line,
    LineStatus,
)
from store_credit.ledger.statements import (
    CLAIMS,
    COMPLETED_SESSIONS,
    DEDUCTIONS,
    DUE_HOLDS,
    LINES,
    LOCK_SOURCES,
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
    source,
)
from store_credit.metadata import upstream_key

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


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
                book.sources[source_id] = _source(source_id, told, order_id, parked_at)
        for row in DEDUCTIONS.rows(connection, ids=source_ids):
            book.add_deduction(Deduction(*row))
        line_ids.update(spent.line_id for spent in book.deductions.values())
        needs.add_spent_holds(book.deductions.values())
    locked_at = _load_lines(connection, book, needs.upstream_ids, line_ids)
    now = max(started_at, locked_at) if own_clock and locked_at is not None else started_at
    if book.lines:
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


def _load_lines(
    connection: Connection, book: Book, upstream_ids: set[str], line_ids: set[str]
) -> datetime | None:
    if not upstream_ids and not line_ids:
        return None
    keys = [upstream_key(upstream_id) for upstream_id in upstream_ids]
    locked_at = None
    for *figures, clock in LINES.rows(connection, keys=keys, ids=list(line_ids)):
        book.add_line(_line(figures))
        locked_at = clock
    return locked_at


def _load_holds(connection: Connection, book: Book, needs: Needs, now: datetime) -> None:
    latest = max(now, *(line.last_entry_at for line in book.lines.values()))
    due = DUE_HOLDS.rows(connection, line_ids=list(book.lines), now=latest)
    _add_holds(book, due)
    if needs.hold_keys:
        sessions = list({session for session, _ in needs.hold_keys})
        _add_holds(book, SESSION_HOLDS.rows(connection, session_ids=sessions))
    if needs.released:
        # More than the batch can end, those past their time aside, which are all loaded already: a
        # rule must see that there are several.
        keys = [upstream_key(upstream_id) for upstream_id in needs.released]
        most = needs.commands + 2
        _add_holds(book, RELEASED_HOLDS.rows(connection, keys=keys, now=latest, most=most))


def _add_holds(book: Book, rows: Iterable[Any]) -> None:
    for row in rows:
        book.add_hold(_hold(row))


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
    new = [_new_line_row(lines[line_id], issue, now) for line_id, issue in opened.items()]
    known = [_line_row(line, now) for line in lines.values() if line.id not in opened]
    bulk.insert(connection, credit_line, sorted(new, key=lambda row: row["upstream_key"]))
    bulk.update_by_id(connection, credit_line, known)
    bulk.insert(connection, deduction, [_row(spent) for spent in deductions.values()], "replace")
    bulk.insert(connection, hold, [_hold_row(held) for held in holds.values()], "replace")
    sources = {told.id: told for change in changes for told in change.sources}
    bulk.update_by_id(connection, source, [_source_row(told) for told in sources.values()])
    entries = [_row(entry) for change in changes for entry in change.entries]
    bulk.insert(connection, ledger_entry, entries)


def save_claims(connection: Connection, made: Iterable[Claimed], now: datetime) -> None:
    """Keep new claims. One that another process made meanwhile fails the whole batch."""
    rows = [_row(claimed) | {"created_at": now} for claimed in made]
    bulk.insert(connection, claim, sorted(rows, key=lambda row: row["key"]))


def due_lines(connection: Connection, now: datetime, limit: int) -> list[str]:
    """Some of the lines on which a hold or the line itself is past its time."""
    holds = (
        select(hold.c.line_id)
        .where(hold.c.state == HoldState.OPEN.value, hold.c.expires_at <= now)
        .order_by(hold.c.expires_at)
        .limit(limit)
    )
    lines = select(credit_line.c.id).where(credit_line.c.due_at <= now).limit(limit)
    found = dict.fromkeys(connection.scalars(holds)) | dict.fromkeys(connection.scalars(lines))
    return list(found)[:limit]


def prune_batches(connection: Connection, before: datetime, limit: int) -> int:
    """Delete some of the markers of old batches; returns how many."""
    old = select(ledger_batch.c.id).where(ledger_batch.c.created_at < before).limit(limit)
    if connection.dialect.name == "postgresql":
        old = old.with_for_update(skip_locked=True)
    return connection.execute(ledger_batch.delete().where(ledger_batch.c.id.in_(old))).rowcount


def current_time(connection: Connection) -> datetime:
    """PostgreSQL's clock."""
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now


def _line(row: Any) -> Line:
    flags = frozenset(filter(None, row[-1].split(",")))
    values: list[Any] = [*row[:3], LineStatus(row[3]), *row[4:-1], flags]
    return Line(*values)


def _hold(row: Any) -> Hold:
    values: list[Any] = [*row[:5], HoldState.OPEN, *row[6:]]
    return Hold(*values)


@cache
def _fields(kind: type[DataclassInstance]) -> tuple[tuple[str, ...], attrgetter[tuple[Any, ...]]]:
    names = tuple(field.name for field in fields(kind))
    return names, attrgetter(*names)


def _row(value: DataclassInstance) -> Row:
    names, values = _fields(type(value))
    return dict(zip(names, values(value), strict=True))


def _hold_row(held: Hold) -> Row:
    return _row(held) | {"upstream_key": upstream_key(held.upstream_id)}


def _source_row(told: Source) -> Row:
    facts = asdict(told)
    del facts["id"], facts["order_id"], facts["parked_at"]
    row = {"id": told.id, "told": json.dumps(facts), "order_id": told.order_id}
    return row | {"parked_at": told.parked_at}


def _source(source_id: str, told: str, order_id: str | None, parked_at: datetime | None) -> Source:
    facts = json.loads(told)
    for kind in ("cancelled", "refunded"):
        facts[kind] = Returned(**facts[kind])
    facts["references"] = tuple(facts["references"])
    return Source(source_id, order_id=order_id, parked_at=parked_at, **facts)


def _line_row(line: Line, now: datetime) -> Row:
    return {
        "id": line.id,
        "status": line.status,
        "balance": line.balance,
        "held": line.held,
        "written_off": line.written_off,
        "seq": line.seq,
        "head_hash": line.head_hash,
        "allow_partial": line.allow_partial,
        "expires_at": line.expires_at,
        "due_at": _due_at(line, now),
        "flags": ",".join(sorted(line.flags)),
        "last_entry_at": line.last_entry_at,
    }


def _new_line_row(line: Line, issue: Issue, now: datetime) -> Row:
    return _line_row(line, now) | {
        "upstream_id": line.upstream_id,
        "upstream_key": upstream_key(line.upstream_id),
        "customer_id": issue.customer_id,
        "currency": line.currency,
        "name": issue.name,
        "icon_url": issue.icon_url,
        "last_four": issue.last_four,
        "metadata": json.dumps(issue.metadata),
        "created_at": now,
    }


def _due_at(line: Line, now: datetime) -> datetime | None:
    """When the sweeper must look at the line; None when there is nothing left to write off by itself."""
    waiting = line.expires_at is not None and (line.expires_at > now or line.unheld > 0)
    return line.expires_at if waiting and line.status != LineStatus.CLOSED else None
