"""What is handed to the ledger's one way in, and what comes back: commands that happen together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from store_credit.bulk import Record
from store_credit.ledger.commands import Command
from store_credit.ledger.state import Outcome


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a work: an outcome for each of its commands, or the answer to an earlier claim."""

    outcomes: tuple[Outcome, ...]
    at: datetime
    earlier_answer: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """Makes a work happen once: the same key and fingerprint get the first answer again."""

    key: str
    fingerprint: str
    answer: Callable[[Sequence[Outcome]], str]
    """The answer to keep, for the first time that the key is claimed."""


@dataclass(frozen=True, slots=True)
class Work:
    """Commands that happen together or not at all, with what goes along in the same transaction."""

    commands: tuple[Command, ...]
    claim: Claim | None = None
    record: Callable[[Sequence[Outcome], datetime], Iterable[Record]] | None = None
    """Rows of the caller's own room; the ledger does not know what they are."""


@dataclass(slots=True)
class Pending:
    """A work whose caller waits; the deadline is on the monotonic clock, which all threads share."""

    work: Work
    deadline: float
    future: asyncio.Future[Result]


def waiting(batch: list[Pending]) -> list[Pending]:
    """Those whose callers still wait for an answer."""
    now = time.monotonic()
    return [pending for pending in batch if not pending.future.done() and now < pending.deadline]


def answer(future: asyncio.Future[Result], result: Result | Exception) -> None:
    if future.done():  # The caller did not wait.
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
