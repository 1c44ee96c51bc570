"""Histories to export: random ones with every kind of movement, and names that try to be syntax."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from decimal import Decimal

from store_credit.ledger.commands import Adjust, Cause, Command, Issue, Return, SetExpiry, SetStatus
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.refusals import Refusal
from tests.making import DAY, HOUR, Clock, authorize, deduct, issue, settle

CURRENCIES = ("USD", "JPY", "KWD", "CLF")
NASTY = (
    '=HYPERLINK("x")',
    '"; drop',
    "back\\slash",
    "two\r\nlines\n2026-01-01 open Assets:X",
    "a | b, c:d ; e",
    "naïve ☃",
    # A comment with it would change the date of the transaction.
    "x, date:1999-99-99",
)


async def random_history(ledger: Ledger, clock: Clock, seed: int, steps: int = 150) -> None:
    """Some lines in some currencies, and what happened to them over a few weeks."""
    chance = random.Random(seed)
    lines = []
    for number in range(8):
        currency = CURRENCIES[number % len(CURRENCIES)]
        command = issue(
            chance.randint(1, 10**6), f"line-{number}", currency=currency, name=NASTY[number % len(NASTY)]
        )
        lines.append(command)
        await ledger.execute(command)
    for step in range(steps):
        clock.advance(timedelta(minutes=chance.randint(0, 12 * 60)))
        try:
            await ledger.execute(_random_command(chance, chance.choice(lines), step, clock()))
        except Refusal:
            continue


def _random_command(chance: random.Random, line: Issue, step: int, now: datetime) -> Command:
    amount = Decimal(chance.randint(1, 300))
    cause = Cause("test", chance.choice(NASTY))
    session = f"session-{chance.randint(1, 30)}"
    known = f"source-{chance.randint(0, step)}"
    return chance.choice(
        [
            authorize(amount, session, line.upstream_id),
            authorize(amount, session, line.upstream_id),
            deduct(amount, f"source-{step}", session, line.upstream_id),
            deduct(amount, f"source-{step}", None, line.upstream_id),
            Return(known, None, None, "refund", cause, everything=True),
            Adjust(line.line_id, chance.choice([amount, -amount]), cause),
            SetExpiry(line.line_id, now + chance.choice([HOUR, DAY]), cause),
            SetStatus(line.line_id, chance.choice(["close", "reopen"]), cause),
            settle(line.line_id),
        ]
    )
