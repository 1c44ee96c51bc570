"""The journal as double-entry books, for beancount and hledger.

Each entry that moves money is a transaction of two postings: what is owed to customers, and where that
comes from or goes to. Accounts are per currency. The balance of each account is asserted at the end of
each day (UTC) on which it moved. Entries come line by line, oldest first, so that an export only ever
grows; both programs sort by date themselves. Only the sums of the days are kept in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime
from typing import Literal, Protocol

from sqlalchemy import RowMapping

from store_credit.exchange import queries
from store_credit.exchange.plain_text import Beancount, Hledger
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.state import EntryKind

Program = Literal["beancount", "hledger"]

LIABILITY = "Liabilities:StoreCredit"
ISSUANCE = "Expenses:StoreCredit:Issuance"
ADJUSTMENTS = "Expenses:StoreCredit:Adjustments"
SALES = "Income:StoreCredit:Sales"
BREAKAGE = "Income:StoreCredit:Breakage"

COUNTER_ACCOUNTS = {
    EntryKind.ISSUED: ISSUANCE,
    EntryKind.ADJUSTED: ADJUSTMENTS,
    EntryKind.DEDUCTED: SALES,
    EntryKind.RETURNED: SALES,
    EntryKind.EXPIRED: BREAKAGE,
    EntryKind.VOIDED: BREAKAGE,
    EntryKind.WRITE_OFF_REVERSED: BREAKAGE,
}
"""Where the other half of each kind of movement is booked."""

Movements = defaultdict[tuple[str, str], defaultdict[date, int]]
"""By account and currency, what each day added, in minor units; debits are positive."""


class Writer(Protocol):
    """How a program wants its books written. Amounts are in minor units; debits are positive."""

    def title(self) -> str: ...

    def account(self, name: str, currency: str) -> str: ...

    def transaction(self, entry: RowMapping, day: date, postings: list[tuple[str, int]]) -> str: ...

    def assertion(self, day: date, name: str, currency: str, balance: int) -> str: ...


async def journal(ledger: Ledger, program: Program) -> AsyncIterator[bytes]:
    """The books up to now, in pieces of a page each."""
    writer: Writer = Beancount() if program == "beancount" else Hledger()
    until = await ledger.now()
    moved: Movements = defaultdict(lambda: defaultdict(int))
    yield writer.title().encode()
    after = None
    while page := await ledger.database.read(queries.entry_page, after):
        text = "".join(part for entry in page for part in _booked(writer, entry, until, moved))
        yield text.encode()
        after = (page[-1]["line_id"], page[-1]["seq"])
    for account in sorted(moved):
        yield "".join(_asserted(writer, account, moved[account])).encode()


def _booked(writer: Writer, entry: RowMapping, until: datetime, moved: Movements) -> Iterator[str]:
    """An entry's transaction, after the accounts that it is the first to use."""
    if entry["amount"] == 0 or entry["created_at"] > until:
        return
    day = entry["created_at"].astimezone(UTC).date()
    currency = entry["currency"]
    counter = COUNTER_ACCOUNTS[EntryKind(entry["kind"])]
    postings = [(f"{LIABILITY}:{currency}", -entry["amount"]), (f"{counter}:{currency}", entry["amount"])]
    for name, minor in postings:
        if (name, currency) not in moved:
            yield writer.account(name, currency)
        moved[name, currency][day] += minor
    yield writer.transaction(entry, day, postings)


def _asserted(writer: Writer, account: tuple[str, str], days: dict[date, int]) -> Iterator[str]:
    balance = 0
    for day in sorted(days):
        balance += days[day]
        yield writer.assertion(day, *account, balance)
