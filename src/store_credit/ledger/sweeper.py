"""The background sweeper: settles the lines that nobody touches.

The rules never use what is past its time, swept or not; the sweeper only makes the journal say so
soon. Any number of processes may sweep at once: settling twice changes nothing the second time.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta

from store_credit.failures import is_passing
from store_credit.ledger import store
from store_credit.ledger.commands import Settle
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.refusals import Unavailable

LINES_PER_ROUND = 50
"""Few enough that no shopper waits for them."""
MARKERS_PER_ROUND = 1_000
MARKERS_KEPT = timedelta(days=1)
"""Far longer than any lost connection can keep a transaction alive."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a round did."""

    lines: int
    """How many were settled."""
    more: bool
    """Whether another round has something to do at once."""


async def sweep(ledger: Ledger) -> Swept:
    """One round: settle some of the lines that are due, prune some old markers.

    A transaction ends a bounded number of holds, so that nobody waits for it long; a line that has more of
    them past their time is due again in the next round.
    """
    now = await ledger.now()
    pruned = await ledger.database.write(store.prune_batches, now - MARKERS_KEPT, MARKERS_PER_ROUND)
    due, more = await ledger.database.read(store.due_lines, now, LINES_PER_ROUND)
    works = [ledger.execute(Settle(line_id)) for line_id in due]
    results = await asyncio.gather(*works, return_exceptions=True)
    for line_id, result in zip(due, results, strict=True):
        if isinstance(result, BaseException):
            _log.error("line %s could not be settled: %r", line_id, result)
    settled = sum(not isinstance(result, BaseException) for result in results)
    # Lines that can not be settled must not keep it busy.
    return Swept(settled, pruned == MARKERS_PER_ROUND or (more and settled > 0))


async def keep_sweeping(ledger: Ledger, interval: timedelta, stopped: asyncio.Event) -> None:
    """Sweep until stopped; without a pause while there is much to do."""
    while not stopped.is_set():
        if not await _sweep_if_possible(ledger):
            try:
                await asyncio.wait_for(stopped.wait(), interval.total_seconds())
            except TimeoutError:
                continue


async def _sweep_if_possible(ledger: Ledger) -> bool:
    """Whether another round has something to do at once."""
    try:
        return (await sweep(ledger)).more
    except Unavailable as error:
        _log.warning("sweeping was put off: %s", error.message)
    except Exception as error:
        # The sweeper outlives whatever goes wrong: the next round may do better.
        level = logging.WARNING if is_passing(error) else logging.ERROR
        _log.log(level, "sweeping failed: %r", error)
    return False
