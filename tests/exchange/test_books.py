"""The books that accountants get: accepted by bean-check, balanced, and equal to the liability report."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from store_credit import money
from store_credit.exchange import books, queries
from store_credit.exchange.books import Program
from store_credit.ledger import reports
from store_credit.ledger.commands import Cause, SetStatus
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.state import EntryKind
from tests.exchange import bookkeeping
from tests.exchange.histories import NASTY, random_history
from tests.making import DAY, Clock, deduct, issue

BEAN_CHECK = Path(sys.executable).parent / "bean-check"
Balances = dict[tuple[str, str], Decimal]


async def written(ledger: Ledger, program: Program) -> str:
    return b"".join([piece async for piece in books.journal(ledger, program)]).decode()


def bean_check(text: str, folder: Path) -> str:
    """What bean-check finds wrong: nothing, if all is well."""
    path = folder / "books.beancount"
    path.write_text(text)
    done = subprocess.run([BEAN_CHECK, "--no-cache", path], capture_output=True, text=True, check=False)
    found = done.stdout + done.stderr
    assert (done.returncode == 0) == (found == ""), found
    return found


async def expected(ledger: Ledger) -> Balances:
    """The accounts' balances as the liability report has them; debits are positive."""
    balances: Balances = {}
    for row in await ledger.database.read(reports.liability, await ledger.now()):
        for account, minor in (
            (books.LIABILITY, -row.outstanding),
            (books.ISSUANCE, row.issued),
            (books.ADJUSTMENTS, row.adjusted),
            (books.SALES, row.returned - row.deducted),
            (books.BREAKAGE, row.write_offs_reversed - row.expired - row.voided),
        ):
            name = f"{account}:{row.currency}"
            balances[name, row.currency] = money.to_decimal(minor, row.currency)
    return balances


def asserted_last(text: str) -> Balances:
    """The last balance that beancount's books assert of each account."""
    found = re.findall(r"^\S+ balance (\S+)  (\S+) ~ 0 (\S+)$", text, re.MULTILINE)
    return {(account, currency): Decimal(number) for account, number, currency in found}


def not_zero(balances: Balances) -> Balances:
    return {account: balance for account, balance in balances.items() if balance}


@pytest.mark.parametrize("seed", [11, 12, 13])
async def test_bean_check_accepts_a_random_history(
    ledger: Ledger, clock: Clock, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await random_history(ledger, clock, seed)
    monkeypatch.setattr(queries, "PAGE_ROWS", 50)
    text = await written(ledger, "beancount")
    assert bean_check(text, tmp_path) == ""
    assert not_zero(asserted_last(text)) == not_zero(await expected(ledger))
    # The history has all kinds of movement, in all currencies.
    assert {account.rpartition(":")[0] for account, _ in asserted_last(text)} == {
        books.LIABILITY,
        books.ISSUANCE,
        books.ADJUSTMENTS,
        books.SALES,
        books.BREAKAGE,
    }
    assert {currency for _, currency in asserted_last(text)} == {"USD", "JPY", "KWD", "CLF"}


@pytest.mark.parametrize("seed", [11, 12, 13])
async def test_hledgers_books_balance(ledger: Ledger, clock: Clock, seed: int) -> None:
    await random_history(ledger, clock, seed)
    found = bookkeeping.read(await written(ledger, "hledger"))
    assert not_zero(found.balances) == not_zero(await expected(ledger))
    assert found.assertions > 20
    assert found.transactions > 50


@pytest.mark.parametrize("program", ["beancount", "hledger"])
async def test_the_same_history_gives_the_same_text(ledger: Ledger, clock: Clock, program: Program) -> None:
    await random_history(ledger, clock, seed=3)
    assert await written(ledger, program) == await written(ledger, program)


async def test_a_changed_amount_is_found(ledger: Ledger, tmp_path: Path) -> None:
    await ledger.execute(issue(100_00))
    await ledger.execute(deduct("11.4"))
    text = await written(ledger, "beancount")
    assert bean_check(text, tmp_path) == ""
    # By one cent, on both sides, so that the transaction itself still balances.
    changed = text.replace("11.40 USD\n", "11.41 USD\n")
    assert changed != text
    assert "Balance failed" in bean_check(changed, tmp_path)
    text = await written(ledger, "hledger")
    changed = re.sub(r"(-?)11.40 USD$", r"\g<1>11.41 USD", text, flags=re.MULTILINE)
    bookkeeping.read(text)
    with pytest.raises(bookkeeping.Wrong):
        bookkeeping.read(changed.replace("= -11.41", "= -11.40"))


@pytest.mark.parametrize("program", ["beancount", "hledger"])
async def test_texts_from_outside_are_no_syntax(ledger: Ledger, tmp_path: Path, program: Program) -> None:
    for number, reason in enumerate(NASTY):
        command = issue(1_00, f"line-{number}")
        await ledger.execute(command, SetStatus(command.line_id, "close", Cause(reason, reason)))
    text = await written(ledger, program)
    check: dict[str, Callable[[], object]] = {
        "beancount": lambda: bean_check(text, tmp_path),
        "hledger": lambda: "" if bookkeeping.read(text).balances else "no balances",
    }
    assert check[program]() == ""
    assert "naïve ☃" in text


async def test_a_day_ends_at_midnight_utc_with_its_balance(ledger: Ledger, clock: Clock) -> None:
    await ledger.execute(issue(100_00))
    await ledger.execute(deduct("10"))
    clock.advance(DAY)
    await ledger.execute(deduct("20", "source-2", None))
    text = await written(ledger, "beancount")
    assert re.findall(r"^.* balance Liabilities.*$", text, re.MULTILINE) == [
        "2026-11-21 balance Liabilities:StoreCredit:USD  -90.00 ~ 0 USD",
        "2026-11-22 balance Liabilities:StoreCredit:USD  -70.00 ~ 0 USD",
    ]
    text = await written(ledger, "hledger")
    assert "2026-11-20 * end of day\n    Liabilities:StoreCredit:USD  0.00 USD = -90.00 USD\n" in text


@pytest.mark.parametrize("program", ["beancount", "hledger"])
async def test_an_empty_ledger_has_empty_books(ledger: Ledger, tmp_path: Path, program: Program) -> None:
    text = await written(ledger, program)
    assert text.count("\n") == 2
    assert program == "hledger" or bean_check(text, tmp_path) == ""


def test_each_kind_that_moves_money_has_an_account() -> None:
    of_holds = {EntryKind.HELD, EntryKind.HOLD_CHANGED, EntryKind.RELEASED, EntryKind.HOLD_EXPIRED}
    of_words = set(list(EntryKind)[list(EntryKind).index(EntryKind.SUSPENDED) :])
    assert books.COUNTER_ACCOUNTS.keys() == set(EntryKind) - of_holds - of_words
