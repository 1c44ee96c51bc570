"""A client that records every answer: shoppers in threads, and the questions that they asked."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tests.faults.questions import Attempt, Question, check, read_ledger
from tests.faults.shopper import Shopper
from tests.faults.sizes import ANSWERS_BETWEEN
from tests.server import Server, check_books, poll

SHOPPERS = 8


class Recorder:
    """Shoppers who shop at these servers, each in a thread of its own, and what all were told."""

    def __init__(self, servers: Sequence[Server], chance: random.Random, shoppers: int = SHOPPERS) -> None:
        self.servers = servers
        self.questions: list[Question] = []
        """Those that are over: answered, or given up."""
        self._chance = chance
        self._stopped = threading.Event()
        self._threads = ThreadPoolExecutor(shoppers)
        self._shopping: list[Future[None]] = []
        self._shoppers = [Shopper(self, random.Random(chance.random())) for _ in range(shoppers)]
        issued = [self._shoppers[0].issue(amount) for amount in (100_000.00, 150.00)]
        self.shared_lines = [line for line in issued if line is not None]
        """On the second, credit runs out."""

    @contextlib.contextmanager
    def shopping(self) -> Iterator[None]:
        """All shop meanwhile. At the end they finish what they began: there are answers again."""
        self._shopping = [self._threads.submit(s.shop_until, self._stopped) for s in self._shoppers]
        try:
            yield
        finally:
            self._stopped.set()
            self._threads.shutdown()
            _results(self._shopping)

    def wait_for_answers(self) -> None:
        """Until a random number of further questions was answered, at a random moment."""
        wanted = len(self.questions) + self._chance.randint(*ANSWERS_BETWEEN)
        poll(lambda: len(self.questions) >= wanted or any(shopper.done() for shopper in self._shopping))
        time.sleep(self._chance.random() * 0.01)  # Anywhere between two answers.

    def attempts(self, status: int | None) -> list[Attempt]:
        """All that ended like this; None for those without an answer."""
        return [found for asked in self.questions for found in asked.attempts if found.status == status]

    def slowest(self) -> float:
        """The seconds of the attempt that took the longest."""
        return max(found.seconds for asked in self.questions for found in asked.attempts)

    def deliver_again(self) -> None:
        """Digital River delivers all events again, also those that were given up."""
        events = [asked for asked in self.questions if asked.kind in ("deducted", "returned")]
        of_each = len(self._shoppers)
        with ThreadPoolExecutor(of_each) as threads:
            delivered = [
                threads.submit(shopper.insist, events[n::of_each])
                for n, shopper in enumerate(self._shoppers)
            ]
        _results(delivered)

    def check(self, database_url: str) -> None:
        """Hold the ledger against all that was asked, and then against itself."""
        check(self.questions, read_ledger(database_url))
        check_books(database_url)
        for server in self.servers:
            assert "Traceback" not in server.log


def _results(done: Sequence[Future[None]]) -> None:
    """Raise what any of them raised; all of them are over."""
    for future in done:
        future.result()
