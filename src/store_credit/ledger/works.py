"""What is handed to the ledger's one way in, and what comes back: commands that happen together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from store_credit.bulk import Record
from store_credit.ledger.commands import Command
from store_credit.ledger.refusals import Unavailable
from store_credit.ledger.state import Outcome

LATE = "The ledger did not answer in time; what was under way may still take effect. Ask again."


class Result(NamedTuple):
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


class Work(NamedTuple):
    """Commands that happen together or not at all, with what goes along in the same transaction."""

    commands: tuple[Command, ...]
    claim: Claim | None = None
    record: Callable[[Sequence[Outcome], datetime], Iterable[Record]] | None = None
    """Rows of the caller's own room; the ledger does not know what they are.

    It may be asked several times, as the claim's answer may, of which one counts: they have no effects.
    """


@dataclass(slots=True)
class Pending:
    """A work whose caller waits; the deadline is on the monotonic clock, which all threads share."""

    work: Work
    deadline: float
    future: asyncio.Future[Result]


Answer = tuple[Pending, Result | Exception]
"""What becomes of a work, for its caller."""


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


class Deadlines:
    """Sees to it that every caller is answered in time. One timer serves all: the oldest is due first."""

    def __init__(self) -> None:
        self._kept: deque[Pending] = deque()
        self._alarm: asyncio.TimerHandle | None = None

    def keep(self, pending: Pending) -> None:
        """The work's caller gets Unavailable when its deadline passes without an answer.

        Deadlines must come in the order of the calls.
        """
        while self._kept and self._kept[0].future.done():
            self._kept.popleft()
        self._kept.append(pending)
        if self._alarm is None:
            self._set_alarm()

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _set_alarm(self) -> None:
        seconds = self._kept[0].deadline - time.monotonic()
        self._alarm = asyncio.get_running_loop().call_later(seconds, self._answer_late)

    def _answer_late(self) -> None:
        while self._kept and not waiting([self._kept[0]]):
            answer(self._kept.popleft().future, Unavailable(LATE))
        self._alarm = None
        if self._kept:
            self._set_alarm()
