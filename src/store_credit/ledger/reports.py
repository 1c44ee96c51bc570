"""What finance asks: what the merchant owes its customers, at any past instant, from the journal alone.

Currencies are never added together. For each of them, at every instant and to the minor unit,

    issued + adjusted = deducted - returned + expired + voided - write-offs reversed + outstanding

where outstanding is the sum of all balances. Amounts are in minor units, and positive as named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, String, case, func, select

from store_credit.ledger.state import EntryKind, LineStatus
from store_credit.ledger.tables import credit_line, deduction, ledger_entry

MOVEMENTS_MAX = 10_000
"""Movements in one statement."""

_STATUS_AFTER = {
    EntryKind.SUSPENDED.value: LineStatus.SUSPENDED,
    EntryKind.RESUMED.value: LineStatus.ACTIVE,
    EntryKind.CLOSED.value: LineStatus.CLOSED,
    EntryKind.REOPENED.value: LineStatus.ACTIVE,
}
_WRITE_OFFS = (EntryKind.EXPIRED, EntryKind.VOIDED, EntryKind.WRITE_OFF_REVERSED)


@dataclass(frozen=True, slots=True)
class Liability:
    """The sums of one currency's journal."""

    currency: str
    issued: int
    adjusted: int
    deducted: int
    returned: int
    expired: int
    voided: int
    write_offs_reversed: int
    held: int
    outstanding: int

    @property
    def available(self) -> int:
        """What is owed and not promised to a checkout session."""
        return self.outstanding - self.held


def liability(connection: Connection, as_of: datetime) -> list[Liability]:
    """The books as they stood at `as_of`, its own instant included; one row a currency."""
    statement = (
        select(
            credit_line.c.currency,
            ledger_entry.c.kind,
            func.sum(ledger_entry.c.amount).label("amount"),
            func.sum(ledger_entry.c.held).label("held"),
        )
        .join(credit_line, credit_line.c.id == ledger_entry.c.line_id)
        .where(ledger_entry.c.created_at <= as_of)
        .group_by(credit_line.c.currency, ledger_entry.c.kind)
    )
    amounts: defaultdict[str, dict[str, int]] = defaultdict(dict)
    held: defaultdict[str, int] = defaultdict(int)
    for row in connection.execute(statement):
        amounts[row.currency][row.kind] = int(row.amount)
        held[row.currency] += int(row.held)
    return [_liability(currency, amounts[currency], held[currency]) for currency in sorted(amounts)]


def _liability(currency: str, by_kind: dict[str, int], held: int) -> Liability:
    def of(kind: EntryKind) -> int:
        return by_kind.get(kind.value, 0)

    return Liability(
        currency=currency,
        issued=of(EntryKind.ISSUED),
        adjusted=of(EntryKind.ADJUSTED),
        deducted=-of(EntryKind.DEDUCTED),
        returned=of(EntryKind.RETURNED),
        expired=-of(EntryKind.EXPIRED),
        voided=-of(EntryKind.VOIDED),
        write_offs_reversed=of(EntryKind.WRITE_OFF_REVERSED),
        held=held,
        outstanding=sum(by_kind.values()),
    )


@dataclass(frozen=True, slots=True)
class Breakage:
    """What one month wrote off of one currency."""

    currency: str
    month: str
    """Such as `2026-11`, in UTC."""
    expired: int
    voided: int
    write_offs_reversed: int

    @property
    def breakage(self) -> int:
        """What is left of the write-offs; below zero in a month that reversed more of earlier ones."""
        return self.expired + self.voided - self.write_offs_reversed


def breakage(connection: Connection, as_of: datetime, currency: str | None = None) -> list[Breakage]:
    """What was written off by currency and month, up to `as_of`, its own instant included."""
    month = _month(connection).label("month")
    statement = (
        select(
            credit_line.c.currency,
            month,
            *(
                func.sum(case((ledger_entry.c.kind == kind.value, ledger_entry.c.amount), else_=0))
                for kind in _WRITE_OFFS
            ),
        )
        .join(credit_line, credit_line.c.id == ledger_entry.c.line_id)
        .where(ledger_entry.c.created_at <= as_of, ledger_entry.c.kind.in_([k.value for k in _WRITE_OFFS]))
        .group_by(credit_line.c.currency, month)
        .order_by(credit_line.c.currency, month)
    )
    rows = connection.execute(_only(statement, currency))
    return [
        Breakage(found, when, -int(expired), -int(voided), int(reversed_))
        for found, when, expired, voided, reversed_ in rows
    ]


@dataclass(frozen=True, slots=True)
class Activity:
    """The entries of one kind in one currency."""

    currency: str
    kind: str
    count: int
    amount: int
    """Their signed sum: what they did to the balances."""
    held: int
    """Their signed sum: what they did to what is held."""


def activity(
    connection: Connection, start: datetime | None, end: datetime, currency: str | None = None
) -> list[Activity]:
    """What happened from `start` on and before `end`, by currency and kind of entry."""
    entry = ledger_entry.c
    statement = (
        select(
            credit_line.c.currency,
            entry.kind,
            func.count().label("count"),
            func.sum(entry.amount).label("amount"),
            func.sum(entry.held).label("held"),
        )
        .join(credit_line, credit_line.c.id == entry.line_id)
        .where(entry.created_at < end)
        .group_by(credit_line.c.currency, entry.kind)
        .order_by(credit_line.c.currency, entry.kind)
    )
    if start is not None:
        statement = statement.where(entry.created_at >= start)
    rows = connection.execute(_only(statement, currency))
    return [
        Activity(found, kind, count, int(amount), int(held)) for found, kind, count, amount, held in rows
    ]


@dataclass(frozen=True, slots=True)
class PastLine:
    """A line's figures at a past instant, as its journal had them then."""

    status: str
    """What its entries made of it; the journal tells of an expiry by its write-off alone."""
    balance: int
    held: int
    last_entry_at: datetime

    @property
    def available(self) -> int:
        return max(0, self.balance - self.held) if self.status == LineStatus.ACTIVE else 0


def line_as_of(connection: Connection, line_id: str, as_of: datetime) -> PastLine | None:
    """The line after its last entry not after `as_of`; None before its first."""
    entry = ledger_entry.c
    until = select(ledger_entry).where(entry.line_id == line_id, entry.created_at <= as_of)
    newest_first = until.order_by(entry.seq.desc()).limit(1)
    last = connection.execute(newest_first).first()
    if last is None:
        return None
    of_status = newest_first.where(entry.kind.in_(_STATUS_AFTER))
    told = connection.execute(of_status).first()
    status = _STATUS_AFTER[told.kind] if told is not None else LineStatus.ACTIVE
    return PastLine(status.value, last.balance_after, last.held_after, last.created_at)


@dataclass(frozen=True, slots=True)
class Statement:
    """What a line was worth before a period, what moved its balance within, and its worth after."""

    opening: int
    movements: Sequence[RowMapping]
    """The entries that changed the balance, oldest first."""
    closing: int


class TooManyMovements(Exception):
    """The period has more than MOVEMENTS_MAX movements of one line."""


def statement(
    connection: Connection,
    line_id: str,
    start: datetime | None,
    end: datetime | None,
    *,
    movements_max: int = MOVEMENTS_MAX,
) -> Statement:
    """The line's movements from `start` on and before `end`; None leaves that side open.

    Raises TooManyMovements.
    """
    entry = ledger_entry.c
    moves = (
        select(ledger_entry, deduction.c.order_id)
        .outerjoin(deduction, deduction.c.id == entry.deduction_id)
        .where(entry.line_id == line_id, entry.amount != 0)
    )
    opening = 0
    if start is not None:
        earlier = moves.where(entry.created_at < start).order_by(entry.seq.desc()).limit(1)
        before = connection.execute(earlier).first()
        opening = before.balance_after if before is not None else 0
        moves = moves.where(entry.created_at >= start)
    if end is not None:
        moves = moves.where(entry.created_at < end)
    movements = connection.execute(moves.order_by(entry.seq).limit(movements_max + 1)).mappings().all()
    if len(movements) > movements_max:
        raise TooManyMovements
    closing = movements[-1]["balance_after"] if movements else opening
    return Statement(opening, movements, closing)


def _month(connection: Connection) -> ColumnElement[str]:
    """The month of an entry in UTC, such as `2026-11`."""
    moment = ledger_entry.c.created_at
    if connection.dialect.name == "postgresql":
        return func.to_char(func.timezone("UTC", moment), "YYYY-MM", type_=String)
    return func.strftime("%Y-%m", moment, type_=String)


def _only(statement: Select[Any], currency: str | None) -> Select[Any]:
    return statement if currency is None else statement.where(credit_line.c.currency == currency)
