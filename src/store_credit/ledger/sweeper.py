"""The background sweeper: settles the lines that nobody touches.

The rules never use what is past its time, swept or not; the sweeper only makes the journal say so
soon. Any number of processes may sweep at once: settling twice changes nothing the second time.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from store_credit.database import is_passing
from store_credit.ledger import store
from store_credit.ledger.commands import Settle
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.refusals import Unavailable

LINES_PER_ROUND = 50
"""Few enough that no shopper waits for them."""
MARKERS_PER_ROUND = 5_000
MARKERS_KEPT = timedelta(days=1)
"""Far longer than any lost connection can keep a transaction alive."""

_log = logging.getLogger(__name__)


async def sweep(ledger: Ledger) -> int:
    """One round: settle some of the lines that are due, prune some old markers. Returns the lines."""
    now = await ledger.now()
    await ledger.database.write(store.prune_batches, now - MARKERS_KEPT, MARKERS_PER_ROUND)
    due = await ledger.database.read(store.due_lines, now, LINES_PER_ROUND)
    works = [ledger.execute(Settle(line_id)) for line_id in due]
    results = await asyncio.gather(*works, return_exceptions=True)
    for line_id, result in zip(due, results, strict=True):
        if isinstance(result, BaseException):
            _log.error("line %s could not be settled: %r", line_id, result)
    return sum(not isinstance(result, BaseException) for result in results)


async def keep_sweeping(ledger: Ledger, interval: timedelta, stopped: asyncio.Event) -> None:
    """Sweep until stopped; without a pause while there is much to do."""
    while not stopped.is_set():
        settled = await _sweep_if_possible(ledger)
        if settled < LINES_PER_ROUND:
            try:
                await asyncio.wait_for(stopped.wait(), interval.total_seconds())
            except TimeoutError:
                continue


async def _sweep_if_possible(ledger: Ledger) -> int:
    try:
        return await sweep(ledger)
    except Unavailable as error:
        _log.warning("sweeping was put off: %s", error.message)
    except Exception as error:
        # The sweeper outlives whatever goes wrong: the next round may do better.
        level = logging.WARNING if is_passing(error) else logging.ERROR
        _log.log(level, "sweeping failed: %r", error)
    return 0
