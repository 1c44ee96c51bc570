"""Opening balances from a file: everything is checked first, then the lines are issued.

A million lines fit in no transaction, so that "all or nothing" is made of two things. The whole file is
checked before the first line is issued. And each line is issued under a claim: its key is the row's
upstreamId, its fingerprint all that the row says. So the same file twice changes nothing, and an import
that was interrupted is ended by running it again. Between the two readings one byte a row is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import BinaryIO

from store_credit import ids
from store_credit.exchange import queries
from store_credit.exchange.opening import OpeningBalance, Problem, rows
from store_credit.ledger.commands import Cause, Issue
from store_credit.ledger.ledger import Claim, Ledger
from store_credit.ledger.refusals import Refusal, Unavailable
from store_credit.metadata import upstream_key

WORKS_MAX = 1_024
"""Lines under way at once: some batches of the ledger, and well within its queue."""

CHECKED_ROWS = 1_000
"""Rows that are looked up in the database together."""

DEFAULT_REASON = "opening balance"

Report = Callable[[Problem], None]
"""Is told each problem, once, in the order of the rows."""

Advance = Callable[[int], None]
"""Is told how far a phase is: of the check, bytes of the file; of the issue, lines."""


@dataclass(slots=True)
class Checked:
    """What the check of a file found, and which of its rows are to be issued."""

    new: int = 0
    present: int = 0
    """Rows that an earlier import of the same content issued."""
    bad: int = 0
    wanted: bytearray = field(default_factory=bytearray)
    """By row number: 1 for a row to be issued."""
    seen: dict[bytes, int] = field(default_factory=dict)
    """The first row of each upstream id, by its key."""


@dataclass(slots=True)
class Issued:
    """What became of the rows that were wanted."""

    issued: int = 0
    present: int = 0
    refused: int = 0


async def check(ledger: Ledger, file: BinaryIO, report: Report, advance: Advance) -> Checked:
    """Read the whole file and compare it with the ledger; nothing is changed. Raises UnreadableFile."""
    checked = Checked()
    now = await ledger.now()
    with closing(rows(file)) as every:
        while chunk := list(islice(every, CHECKED_ROWS)):
            found = [_first_of_its_name(checked, row) for row in chunk]
            for row in await _compared(ledger, checked, found, now):
                _note(checked, row, report)
            advance(file.tell())
    checked.seen.clear()
    return checked


async def issue(
    ledger: Ledger, file: BinaryIO, checked: Checked, actor: str, report: Report, advance: Advance
) -> Issued:
    """Issue the rows that the check found right; returns once all are durable.

    A row whose upstreamId was taken meanwhile is reported. Raises Unavailable when the database stays away.
    """
    done = Issued()
    stopped: list[Unavailable] = []

    async def work(wanted: Iterator[OpeningBalance]) -> None:
        for row in wanted:
            try:
                await _issue_one(ledger, row, actor, done)
            except Refusal as refusal:
                done.refused += 1
                report(Problem(row.row, refusal.message))
            except Unavailable as error:
                stopped.append(error)
            if stopped:
                return
            advance(done.issued + done.present + done.refused)

    with closing(_wanted(file, checked)) as wanted:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(WORKS_MAX, checked.new)):
                tasks.create_task(work(wanted))
    if stopped:
        raise stopped[0]
    return done


async def _issue_one(ledger: Ledger, row: OpeningBalance, actor: str, done: Issued) -> None:
    command = Issue(
        line_id=ids.mint("cl"),
        upstream_id=row.upstream_id,
        customer_id=row.customer_id,
        currency=row.currency,
        amount_minor=row.amount_minor,
        cause=Cause(actor, row.reason or DEFAULT_REASON),
        name=row.name,
        expires_at=row.expires_at,
    )
    claim = Claim(_claim_key(row), row.fingerprint, lambda _outcomes: command.line_id)
    result = await ledger.execute(command, claim=claim)
    if result.earlier_answer is None:
        done.issued += 1
    else:
        done.present += 1


def _note(checked: Checked, row: OpeningBalance | Problem, report: Report) -> None:
    if isinstance(row, Problem):
        checked.bad += 1
        report(row)
        return
    checked.new += 1
    checked.wanted.extend(bytes(row.row + 1 - len(checked.wanted)))
    checked.wanted[row.row] = 1


def _claim_key(row: OpeningBalance) -> str:
    return f"import:{upstream_key(row.upstream_id).hex()}"


def _first_of_its_name(checked: Checked, row: OpeningBalance | Problem) -> OpeningBalance | Problem:
    """The row, unless an earlier one has the same upstream id."""
    if isinstance(row, Problem):
        return row
    first = checked.seen.setdefault(upstream_key(row.upstream_id), row.row)
    return row if first == row.row else Problem(row.row, f"upstreamId: is that of row {first}, too")


async def _compared(
    ledger: Ledger, checked: Checked, found: Iterable[OpeningBalance | Problem], now: datetime
) -> list[OpeningBalance | Problem]:
    """The problems, and the rows that are not in the ledger yet; those that are, are counted."""
    given = list(found)
    named = [row for row in given if isinstance(row, OpeningBalance)]
    keys = [_claim_key(row) for row in named]
    claimed, taken = await ledger.database.read(queries.known, keys, [row.upstream_id for row in named])
    left: list[OpeningBalance | Problem] = []
    for row in given:
        if isinstance(row, Problem):
            left.append(row)
        elif (earlier := claimed.get(_claim_key(row))) is None:
            left.append(_issuable(row, upstream_key(row.upstream_id) in taken, now))
        elif earlier.fingerprint == row.fingerprint:
            checked.present += 1
        else:
            left.append(Problem(row.row, "upstreamId: was imported before, with another content"))
    return left


def _issuable(row: OpeningBalance, taken: bool, now: datetime) -> OpeningBalance | Problem:
    if taken:
        return Problem(row.row, "upstreamId: a credit line with it exists, and no import issued it")
    if row.expires_at is not None and row.expires_at <= now:
        return Problem(row.row, "expiresTime: must be in the future")
    return row


def _wanted(file: BinaryIO, checked: Checked) -> Generator[OpeningBalance, None, None]:
    with closing(rows(file)) as every:
        for row in every:
            wanted = row.row < len(checked.wanted) and checked.wanted[row.row]
            if wanted and isinstance(row, OpeningBalance):
                yield row
