"""Recomputing every line from its entries, and naming what differs.

The journal is the truth; a line's cached figures, its open holds and its deductions must agree with
it, and the hash chain must show that no entry was changed, removed or put in. An overdrawn line is a
fact, not a finding. Reads only; memory stays bounded whatever the number of lines and entries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    case,
    func,
    literal_column,
    or_,
    select,
    tuple_,
)

from store_credit.ledger import journal
from store_credit.ledger.state import Entry, EntryKind, HoldState
from store_credit.ledger.tables import credit_line, deduction, hold, ledger_entry

PAGE = 500
"""Lines, and entries, that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the journal does not bear out."""

    line_id: str
    seq: int | None
    """The entry that is wrong; None when what is wrong stands beside the journal."""
    problem: str
    """A sentence for people; it leaves out the line and the entry."""


def audit(
    connection: Connection, *, page: int = PAGE, on_line: Callable[[], None] | None = None
) -> Iterator[Finding]:
    """Findings line by line: the first bad entry of each, then the figures that do not agree.

    Must come first in its transaction and be consumed within it: on PostgreSQL the transaction
    becomes a snapshot, so that what is booked meanwhile does not look like a finding. `on_line` is
    called once for each line.
    """
    scope = _Scope(after="", up_to=None)
    while lines := _lines(connection, scope, page):
        yield from _audit_page(connection, scope.until(lines[-1].id), lines, page, on_line)
        scope = _Scope(after=lines[-1].id, up_to=None)
    for line_id, _ in groupby(_entries(connection, scope, page), attrgetter("line_id")):
        yield _stray(line_id)


@dataclass(frozen=True, slots=True)
class _Scope:
    """Line ids after `after`, up to and including `up_to`; None has no end."""

    after: str
    up_to: str | None

    def until(self, line_id: str) -> _Scope:
        return _Scope(self.after, line_id)

    def has(self, line_id: ColumnElement[str]) -> ColumnElement[bool]:
        inside = line_id > self.after
        return inside if self.up_to is None else and_(inside, line_id <= self.up_to)


def _audit_page(
    connection: Connection,
    scope: _Scope,
    lines: list[Row[Any]],
    page: int,
    on_line: Callable[[], None] | None,
) -> Iterator[Finding]:
    replays = {line.id: _Replay(line.id) for line in lines}
    for line_id, entries in groupby(_entries(connection, scope, page), attrgetter("line_id")):
        if line_id not in replays:
            yield _stray(line_id)
            continue
        for entry in entries:
            replays[line_id].add(entry)
    promised = _promised(connection, scope)
    beside = _bad_deductions(connection, scope)
    for line in lines:
        yield from replays[line.id].findings(line, promised.get(line.id, 0))
        yield from beside[line.id]
        if on_line is not None:
            on_line()


class _Replay:
    """A line's figures, recomputed entry by entry."""

    def __init__(self, line_id: str) -> None:
        self.line_id = line_id
        self.seq = 0
        self.balance = 0
        self.held = 0
        self.written_off = 0
        self.head_hash = journal.FIRST_HASH
        self.last_entry_at: datetime | None = None
        self.first_bad: Finding | None = None

    def add(self, entry: Entry) -> None:
        self.balance += entry.amount
        self.held += entry.held
        self.written_off += journal.written_off_by(entry.kind, entry.amount)
        if self.first_bad is None and (problem := self._problem(entry)) is not None:
            self.first_bad = Finding(self.line_id, entry.seq, problem)
        self.seq = entry.seq
        self.head_hash = entry.hash
        self.last_entry_at = entry.created_at

    def _problem(self, entry: Entry) -> str | None:
        if entry.seq != self.seq + 1:
            return f"Entry {self.seq + 1} is missing before it."
        if entry.previous_hash != self.head_hash:
            return "It does not carry the hash of the entry before it."
        if entry.balance_after != self.balance:
            return f"Its balance_after is {entry.balance_after}, the sum of the amounts is {self.balance}."
        if entry.held_after != self.held:
            return f"Its held_after is {entry.held_after}, the sum of what is held is {self.held}."
        if entry.hash != journal.entry_hash(entry):
            return "It was changed: its hash is not the hash of what it says."
        return None

    def findings(self, line: Row[Any], promised: int) -> Iterator[Finding]:
        """The first bad entry, then what the line itself says wrongly."""
        if self.first_bad is not None:
            yield self.first_bad
        if self.seq == 0:
            yield Finding(self.line_id, None, "The line has no entries.")
        for name in ("balance", "held", "written_off", "seq", "head_hash", "last_entry_at"):
            cached, told = getattr(line, name), getattr(self, name)
            if cached != told and self.seq > 0:
                yield Finding(self.line_id, None, f"The line's {name} is {cached}, its entries say {told}.")
        if promised != self.held:
            problem = f"The open holds add up to {promised}, the entries hold {self.held}."
            yield Finding(self.line_id, None, problem)


def _stray(line_id: str) -> Finding:
    return Finding(line_id, None, "There are entries of this line, but no such line.")


def _lines(connection: Connection, scope: _Scope, page: int) -> list[Row[Any]]:
    columns = (
        credit_line.c.id,
        credit_line.c.balance,
        credit_line.c.held,
        credit_line.c.written_off,
        credit_line.c.seq,
        credit_line.c.head_hash,
        credit_line.c.last_entry_at,
    )
    query = select(*columns).where(scope.has(credit_line.c.id)).order_by(credit_line.c.id).limit(page)
    return list(connection.execute(query))


def _entries(connection: Connection, scope: _Scope, page: int) -> Iterator[Entry]:
    """All entries of the lines in scope, in order, a page at a time."""
    key = (ledger_entry.c.line_id, ledger_entry.c.seq)
    query = select(ledger_entry).where(scope.has(ledger_entry.c.line_id)).order_by(*key).limit(page)
    rows = connection.execute(query).all()
    while rows:
        for row in rows:
            yield Entry(**row._mapping)
        rows = connection.execute(query.where(tuple_(*key) > (row.line_id, row.seq))).all()


def _promised(connection: Connection, scope: _Scope) -> dict[str, int]:
    """What the open holds of each line add up to."""
    query = (
        select(hold.c.line_id, func.sum(hold.c.amount))
        .where(scope.has(hold.c.line_id), hold.c.state == HoldState.OPEN.value)
        .group_by(hold.c.line_id)
    )
    return {line_id: int(amount) for line_id, amount in connection.execute(query)}


def _bad_deductions(connection: Connection, scope: _Scope) -> dict[str, list[Finding]]:
    """Findings by line: deductions without their entries, and entries without their deduction."""
    findings: defaultdict[str, list[Finding]] = defaultdict(list)
    _join_by_hashes(connection)
    for row in connection.execute(_wrongly_booked(scope)):
        problem = (
            f"Deduction {row.id} of {row.amount}, {row.returned} returned, has {row.times} deducted"
            f" entries of {row.deducted} together and returned entries of {row.came_back}."
        )
        findings[row.line_id].append(Finding(row.line_id, row.seq, problem))
    for row in connection.execute(_without_deduction(scope)):
        findings[row.line_id].append(Finding(row.line_id, row.seq, "Its deduction does not exist."))
    return findings


def _join_by_hashes(connection: Connection) -> None:
    """Without statistics, as after a restore, PostgreSQL would read a whole line for each deduction."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.set_config("enable_nestloop", "off", True)))


def _sum_of(kind: EntryKind, value: ColumnElement[int]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((ledger_entry.c.kind == kind.value, value), else_=0)), 0)


def _wrongly_booked(scope: _Scope) -> Select[Any]:
    times = _sum_of(EntryKind.DEDUCTED, literal_column("1", BigInteger))
    deducted = -_sum_of(EntryKind.DEDUCTED, ledger_entry.c.amount)
    came_back = _sum_of(EntryKind.RETURNED, ledger_entry.c.amount)
    same = and_(
        ledger_entry.c.line_id == deduction.c.line_id,
        ledger_entry.c.deduction_id == deduction.c.id,
        scope.has(ledger_entry.c.line_id),
    )
    return (
        select(
            deduction.c.line_id,
            deduction.c.id,
            deduction.c.amount,
            deduction.c.returned,
            times.label("times"),
            deducted.label("deducted"),
            came_back.label("came_back"),
            func.min(ledger_entry.c.seq).label("seq"),
        )
        .outerjoin(ledger_entry, same)
        .where(scope.has(deduction.c.line_id))
        .group_by(deduction.c.id)
        .having(or_(times < 1, deducted != deduction.c.amount, came_back != deduction.c.returned))
        .order_by(deduction.c.id)
    )


def _without_deduction(scope: _Scope) -> Select[Any]:
    its_own = and_(
        deduction.c.id == ledger_entry.c.deduction_id,
        deduction.c.line_id == ledger_entry.c.line_id,
        scope.has(deduction.c.line_id),
    )
    kinds = (EntryKind.DEDUCTED.value, EntryKind.RETURNED.value)
    return (
        select(ledger_entry.c.line_id, func.min(ledger_entry.c.seq).label("seq"))
        .outerjoin(deduction, its_own)
        .where(scope.has(ledger_entry.c.line_id), ledger_entry.c.kind.in_(kinds), deduction.c.id.is_(None))
        .group_by(ledger_entry.c.line_id, ledger_entry.c.deduction_id)
        # A deduction that was moved to another line leaves entries behind that cancel each other.
        .having(func.sum(ledger_entry.c.amount) != 0)
    )
