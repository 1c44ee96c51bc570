"""What one transaction decides, works in order of arrival, and the rows that keep it. No SQL, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import chain

from store_credit.bulk import Record
from store_credit.ledger import rules, store
from store_credit.ledger.book import Book
from store_credit.ledger.commands import Policy
from store_credit.ledger.refusals import KeyReused, Refusal, Unavailable
from store_credit.ledger.state import Change
from store_credit.ledger.store import Claimed
from store_credit.ledger.works import LATE, Answer, Pending, Result, Work, waiting


class Batch:
    """The works of one transaction, as far as they are decided."""

    def __init__(self, book: Book, claimed: dict[str, Claimed], now: datetime, policy: Policy) -> None:
        self.changes: list[Change] = []
        self._book = book
        self._before = dict(book.lines)
        self._claimed = claimed
        self._now = now
        self._policy = policy
        self._made: list[Claimed] = []
        self._records: list[Record] = []

    def decide_all(self, pendings: list[Pending]) -> list[Answer]:
        """What becomes of each. Works whose deadline passed meanwhile are left out."""
        in_time = set(map(id, waiting(pendings)))
        return [
            (pending, self._decide(pending.work) if id(pending) in in_time else Unavailable(LATE))
            for pending in pendings
        ]

    def records(self, marker: Record) -> Iterator[Record]:
        """The rows to write, the batch's marker the last of them."""
        made = store.claimed(self._made, self._now)
        changed = store.changed(self.changes, self._before, self._now)
        return chain(made, changed, self._records, (marker,))

    def _decide(self, work: Work) -> Result | Exception:
        """Apply a work to the batch. A refused work leaves nothing; an error fails the batch."""
        if work.claim is not None and (claimed := self._claimed.get(work.claim.key)) is not None:
            if claimed.fingerprint != work.claim.fingerprint:
                return KeyReused("This was asked before, with another content.")
            return Result((), self._now, claimed.answer)
        mark = len(self.changes)
        try:
            for command in work.commands:
                change = rules.decide(self._book, command, self._now, self._policy)
                self._book.apply(change)
                self.changes.append(change)
        except Refusal as refusal:
            if len(self.changes) > mark:
                raise  # Part of it is in the book: this transaction is lost, see `Ledger`.
            return refusal
        outcomes = tuple(change.outcome for change in self.changes[mark:])
        if work.claim is not None:
            made = Claimed(work.claim.key, work.claim.fingerprint, work.claim.answer(outcomes))
            self._claimed[made.key] = made
            self._made.append(made)
        if work.record is not None:
            self._records.extend(work.record(outcomes, self._now))
        return Result(outcomes, self._now)
