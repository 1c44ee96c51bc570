"""Reports at random past instants, against a replay of the journal up to there."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Connection, RowMapping, select

from store_credit.database import Database
from store_credit.ledger import reports
from store_credit.ledger.commands import Adjust, Part, Return, SetExpiry, SetStatus, Settle
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.refusals import Refusal
from store_credit.ledger.tables import credit_line, ledger_entry
from tests.making import CAUSE, DAY, HOUR, NOON, Clock, authorize, deduct, issue, release

INSTANT = timedelta(microseconds=1)
CURRENCIES = ("USD", "JPY", "KWD")


async def live(ledger: Ledger, clock: Clock, dice: random.Random) -> None:
    """Some months of a random programme in three currencies."""
    for n, currency in enumerate(CURRENCIES * 2):
        expires_at = NOON + DAY * dice.randrange(20, 90) if n % 2 else None
        given = {"line_id": f"cl_{n}", "currency": currency, "expires_at": expires_at}
        await ledger.execute(issue(dice.randrange(100, 900_000), f"line-{n}", **given))
    for n in range(120):
        clock.advance(HOUR * dice.randrange(1, 36))
        number = dice.randrange(6)
        try:
            await ledger.execute(random_command(dice, n, f"cl_{number}", f"line-{number}", clock.now))
        except Refusal:
            continue


def random_command(dice: random.Random, n: int, line_id: str, upstream_id: str, now: datetime) -> Any:
    match dice.randrange(9):
        case 0 | 1:
            return authorize(str(dice.randrange(1, 40)), f"session-{n}", upstream_id)
        case 2 | 3:
            return deduct(str(dice.randrange(1, 40)), f"source-{n}", None, upstream_id)
        case 4:
            part = Part(None, Decimal(dice.randrange(1, 20)))
            return Return(f"source-{dice.randrange(n + 1)}", None, None, "refund", CAUSE, refunds=(part,))
        case 5:
            return Adjust(line_id, Decimal(dice.choice([-7, -3, 5, 11])), CAUSE)
        case 6:
            return SetStatus(line_id, dice.choice(["close", "reopen", "suspend", "resume"]), CAUSE)
        case 7:
            return SetExpiry(line_id, now + DAY * dice.randrange(2, 60), CAUSE)
        case _:
            return dice.choice([Settle(line_id), release(upstream_id)])


def journal(connection: Connection) -> Sequence[RowMapping]:
    joined = select(ledger_entry, credit_line.c.currency).join(
        credit_line, credit_line.c.id == ledger_entry.c.line_id
    )
    rows = connection.execute(joined.order_by(ledger_entry.c.line_id, ledger_entry.c.seq))
    return rows.mappings().all()


@pytest.fixture(params=[1, 2, 3])
async def lived(
    request: pytest.FixtureRequest, ledger: Ledger, database: Database, clock: Clock
) -> tuple[Database, Sequence[RowMapping], list[datetime]]:
    """Books, their entries, and instants to look at: before, at and between the entries."""
    dice = random.Random(request.param)
    await live(ledger, clock, dice)
    entries = await database.read(journal)
    at = [dice.choice(entries)["created_at"] for _ in range(8)]
    return database, entries, [NOON - DAY, *at, *(moment - INSTANT for moment in at), clock.now + DAY]


Lived = tuple[Database, Sequence[RowMapping], list[datetime]]


async def test_the_liability_is_a_replay_of_the_journal(lived: Lived) -> None:
    database, entries, instants = lived
    for at in instants:
        until = [entry for entry in entries if entry["created_at"] <= at]
        worth: dict[str, int] = defaultdict(int)
        for entry in until:
            worth[entry["currency"]] += entry["amount"]
        found = {row.currency: row for row in await database.read(reports.liability, at)}
        assert {currency: row.outstanding for currency, row in found.items()} == worth
        for row in found.values():
            spent = row.deducted - row.returned + row.expired + row.voided - row.write_offs_reversed
            assert row.issued + row.adjusted == spent + row.outstanding


async def test_each_line_at_each_instant_is_its_last_entry(lived: Lived) -> None:
    database, entries, instants = lived
    for at in instants:
        for n in range(6):
            told = [e for e in entries if e["line_id"] == f"cl_{n}" and e["created_at"] <= at]
            found = await database.read(reports.line_as_of, f"cl_{n}", at)
            if not told:
                assert found is None
                continue
            assert found is not None
            last = told[-1]
            figures = (found.balance, found.held, found.last_entry_at)
            assert figures == (last["balance_after"], last["held_after"], last["created_at"])
            moves = [e["kind"] for e in told if e["kind"] in ("suspended", "resumed", "closed", "reopened")]
            is_active = not moves or moves[-1] in ("resumed", "reopened")
            assert (found.status == "active") == is_active
            assert found.available == (max(0, found.balance - found.held) if is_active else 0)


async def test_breakage_is_what_the_months_wrote_off(lived: Lived) -> None:
    database, entries, instants = lived
    for at in instants:
        told: dict[tuple[str, str], int] = defaultdict(int)
        for entry in entries:
            if entry["created_at"] <= at and entry["kind"] in ("expired", "voided", "write_off_reversed"):
                told[entry["currency"], f"{entry['created_at']:%Y-%m}"] -= entry["amount"]
        found = await database.read(reports.breakage, at)
        assert {(row.currency, row.month): row.breakage for row in found} == told
        liability = await database.read(reports.liability, at)
        for row in liability:
            written_off = row.expired + row.voided - row.write_offs_reversed
            assert written_off == sum(b.breakage for b in found if b.currency == row.currency)


async def test_activity_counts_and_adds_up(lived: Lived) -> None:
    database, entries, instants = lived
    for start, end in zip(sorted(instants), sorted(instants)[3:], strict=False):
        told: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        for entry in entries:
            if start <= entry["created_at"] < end and entry["currency"] == "JPY":
                sums = told["JPY", entry["kind"]]
                sums[0] += 1
                sums[1] += entry["amount"]
                sums[2] += entry["held"]
        found = await database.read(reports.activity, start, end, "JPY")
        assert {(row.currency, row.kind): [row.count, row.amount, row.held] for row in found} == told


async def test_statements_of_periods_that_follow_each_other_join(lived: Lived) -> None:
    database, entries, instants = lived
    for n in range(6):
        ends = [None, *sorted(instants), None]
        opening = 0
        seen: list[int] = []
        for start, end in itertools.pairwise(ends):
            found = await database.read(reports.statement, f"cl_{n}", start, end)
            assert found.opening == opening
            assert found.closing == opening + sum(row["amount"] for row in found.movements)
            opening = found.closing
            seen += [row["seq"] for row in found.movements]
        assert seen == [e["seq"] for e in entries if e["line_id"] == f"cl_{n}" and e["amount"]]


async def test_a_statement_has_an_end(ledger: Ledger, database: Database) -> None:
    await ledger.execute(issue(100_00, line_id="cl_1"))
    await ledger.execute(deduct("1"))

    with pytest.raises(reports.TooManyMovements):
        await database.read(lambda c: reports.statement(c, "cl_1", None, None, movements_max=1))
    whole = await database.read(lambda c: reports.statement(c, "cl_1", None, None, movements_max=2))
    assert whole.closing == 99_00
