"""A strict reader of the part of hledger's journal format that the service writes.

It takes nothing else, adds the postings up in the order in which hledger would, and checks the assertions.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_HEAD = re.compile(r"(\d{4}-\d\d-\d\d) \*(?: \([a-z0-9_.]+\))? [^;|\x00-\x1f]+")
_TAG = re.compile(r"    ; [a-z]+:[^,;|\x00-\x1f]*")
_POSTING = re.compile(rf"    ([A-Za-z:]+)  ({_NUMBER}) ([A-Z]{{3}})(?: = ({_NUMBER}) ([A-Z]{{3}}))?")
_ACCOUNT = re.compile(r"account ([A-Za-z:]+)")
_COMMODITY = re.compile(r"commodity 1000\.(0*) ([A-Z]{3})")


class Wrong(Exception):
    """The books do not balance, or are written otherwise than we think."""


@dataclass(slots=True)
class Books:
    balances: defaultdict[tuple[str, str], Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    transactions: int = 0
    assertions: int = 0


def read(text: str) -> Books:
    """Raises Wrong."""
    books, accounts, decimals = Books(), set(), {}
    dated: list[tuple[date, list[re.Match[str]]]] = []
    for block in text.rstrip("\n").split("\n\n"):
        head, *rest = block.split("\n")
        if found := _COMMODITY.fullmatch(head):
            decimals[found[2]] = len(found[1])
            head, *rest = rest
        if found := _ACCOUNT.fullmatch(head):
            accounts.add(found[1])
        elif found := _HEAD.fullmatch(head):
            postings = [_posting(line) for line in rest if not _TAG.fullmatch(line)]
            dated.append((date.fromisoformat(found[1]), postings))
            rest = []
        elif head != "; Store credit":
            raise Wrong(head)
        if rest:
            raise Wrong(block)
    for _, postings in sorted(dated, key=lambda one: one[0]):
        _book(books, postings, accounts, decimals)
    return books


def _posting(line: str) -> re.Match[str]:
    found = _POSTING.fullmatch(line)
    if found is None:
        raise Wrong(line)
    return found


def _book(
    books: Books, postings: list[re.Match[str]], accounts: set[str], decimals: dict[str, int]
) -> None:
    books.transactions += 1
    total: defaultdict[str, Decimal] = defaultdict(Decimal)
    for posting in postings:
        account, amount, currency, asserted, _ = posting.groups()
        if account not in accounts or len(amount.partition(".")[2]) != decimals[currency]:
            raise Wrong(posting[0])
        total[currency] += Decimal(amount)
        books.balances[account, currency] += Decimal(amount)
        if asserted is not None:
            books.assertions += 1
            if books.balances[account, currency] != Decimal(asserted):
                raise Wrong(posting[0])
    if any(total.values()):
        raise Wrong(postings[0][0])
