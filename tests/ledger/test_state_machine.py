"""The rules under random commands and clocks, against a model that knows only promises and sums.

And the ledger under random batches, against the rules: what it loads for a batch must be enough to
decide as they would with everything in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from store_credit import money
from store_credit.database import Database
from store_credit.ledger.audit import audit
from store_credit.ledger.commands import (
    Adjust,
    Authorize,
    Command,
    Deduct,
    Describe,
    ReleaseHolds,
    SetExpiry,
    SetFlag,
    SetStatus,
)
from store_credit.ledger.journal import FIRST_HASH, entry_hash
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.offers import PREFIX
from store_credit.ledger.refusals import AlreadyExists, NotAllowed, OutOfRange, Refusal
from store_credit.ledger.state import Flag, LineStatus, Outcome, Reason
from store_credit.ledger.tables import offer
from tests.making import (
    CAUSE,
    DAY,
    HOUR,
    NOON,
    POLICY,
    Clock,
    Desk,
    adjust,
    authorize,
    deduct,
    give_back,
    issue,
    release,
    release_holds,
    set_expiry,
    set_status,
    settle,
)

STATUS_ACTIONS: tuple[Literal["suspend", "resume", "close", "reopen"], ...] = (
    "suspend",
    "resume",
    "resume",
    "close",
    "reopen",
    "reopen",
)
CURRENCIES = {"dollars": "USD", "yen": "JPY", "dinars": "KWD", "more dollars": "USD"}

OFFERS = [f"{PREFIX}{n}" for n in range(4)]

own_lines = st.sampled_from(list(CURRENCIES))
lines = st.sampled_from([*CURRENCIES, *OFFERS, "unknown"])
"""As Digital River asks: a line's own id, an offer that may not be made yet, or an id of no line."""
sessions = st.sampled_from(["s1", "s2", "s3", "s4"])
sources = st.sampled_from([f"source-{n}" for n in range(8)])
amounts = st.integers(min_value=1, max_value=120)
hours = st.integers(min_value=-30, max_value=30)


@dataclass
class Account:
    """What a line should be, told only by what was answered."""

    issued: int
    spent: int = 0
    promises: dict[tuple[str, str], tuple[int, datetime]] = field(default_factory=dict)
    """Amount and expiry by session and upstream id as asked."""

    @property
    def promised(self) -> int:
        return sum(amount for amount, _ in self.promises.values())


class Rules(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.accounts: dict[str, Account] = {}
        self.deducted: dict[str, Deduct] = {}
        self.offered: dict[str, str] = {}
        """The lines of the offers that were made."""

    @initialize(
        amount=amounts, hours=st.none() | st.integers(1, 60), partial=st.sampled_from([None, True, False])
    )
    def open_lines(self, amount: int, hours: int | None, partial: bool | None) -> None:
        for n, (name, currency) in enumerate(CURRENCIES.items()):
            expires_at = self.desk.clock() + hours * HOUR if hours and n % 2 == 0 else None
            more = {"currency": currency, "expires_at": expires_at, "allow_partial": partial}
            self.desk.do(issue(amount + n, name, **more))
            self.accounts[name] = Account(issued=amount + n)

    @rule(name=own_lines, amount=amounts)
    def issue_again(self, name: str, amount: int) -> None:
        with pytest.raises(AlreadyExists):
            self.desk.do(issue(amount, name))

    @rule(hours=hours)
    def move_clock(self, hours: int) -> None:
        self.desk.clock.advance(hours * HOUR)

    @rule(name=lines, session=sessions, amount=amounts)
    def authorize(self, name: str, session: str, amount: int) -> None:
        outcome = self._do(authorize(self._decimal(name, amount), session, name))
        if not outcome.accepted:
            return
        assert outcome.hold is not None
        approved, partial = outcome.hold.amount, outcome.reason == Reason.APPROVED_PARTIALLY
        assert 0 < approved <= amount
        assert (approved < amount) == partial
        account = self._account(name)
        assert account is not None
        account.promises[session, name] = (approved, outcome.at + DAY)

    @rule(name=lines)
    def release(self, name: str) -> None:
        outcome = self._do(release(name))
        account = self._account(name)
        if account is None:
            assert outcome.reason == Reason.UNKNOWN_LINE
            return
        asked = [key for key in account.promises if key[1] == name]
        expected = {0: Reason.NOTHING_HELD, 1: Reason.RELEASED}
        assert outcome.reason == expected.get(len(asked), Reason.SEVERAL_HOLDS)
        assert name in CURRENCIES or len(asked) < 2
        if outcome.accepted:
            del account.promises[asked[0]]

    @rule(name=st.none() | lines, source=sources, session=st.none() | sessions, amount=amounts)
    def deduct(self, name: str | None, source: str, session: str | None, amount: int) -> None:
        command = deduct(self._decimal(name, amount), source, session, name)
        outcome = self._do(command)
        first, account = self.deducted.get(source), self._account(name)
        if first is None and account is not None:
            assert outcome.reason == Reason.DEDUCTED
            self.deducted[source] = command
            account.spent += amount
            account.promises.pop((session or "", name or ""), None)
        elif first is not None and outcome.reason == Reason.ALREADY_DEDUCTED:
            assert first.upstream_id is not None
            account = self._account(first.upstream_id)
            assert account is not None
            account.promises.pop((session or "", name or first.upstream_id), None)
        else:
            assert not outcome.accepted

    @rule(name=own_lines, offer=st.sampled_from(OFFERS), cap=amounts, hours=st.integers(1, 60))
    def make_offer(self, name: str, offer: str, cap: int, hours: int) -> None:
        if offer not in self.offered:
            self.desk.offer(offer.removeprefix(PREFIX), cap, name, hours * HOUR)
            self.offered[offer] = name

    @rule(name=own_lines, amount=st.integers(min_value=-120, max_value=120).filter(bool))
    def adjust(self, name: str, amount: int) -> None:
        with contextlib.suppress(NotAllowed):
            self._do(adjust(self.desk.line(name), self._decimal(name, amount)))
            self.accounts[name].issued += amount
            assert amount > 0 or self.desk.line(name).unheld >= 0

    @rule(name=own_lines, action=st.sampled_from(["suspend", "resume", "close", "reopen"]))
    def set_status(self, name: str, action: str) -> None:
        with contextlib.suppress(NotAllowed):
            line = self._do(set_status(self.desk.line(name), action)).line
            assert line is not None
            assert action != "close" or (line.balance, line.held) == (0, 0)

    @rule(name=own_lines, hours=st.none() | st.integers(-5, 60))
    def set_expiry(self, name: str, hours: int | None) -> None:
        expires_at = self.desk.clock() + hours * HOUR if hours is not None else None
        with contextlib.suppress(NotAllowed, OutOfRange):
            self._do(set_expiry(self.desk.line(name), expires_at))
            assert self.desk.line(name).expires_at == expires_at

    @rule(name=own_lines, session=sessions)
    def release_session(self, name: str, session: str) -> None:
        self.settle(name)
        line_id, promises = self.desk.line(name).id, self.accounts[name].promises
        found = [hold for hold in self.desk.book.holds_of(line_id).values() if hold.session_id == session]
        outcome = self._do(release_holds(*found))
        assert {hold.key for hold in outcome.ended} == {key for key in promises if key[0] == session}
        for hold in found:
            del promises[hold.key]

    @rule(name=own_lines)
    def settle(self, name: str) -> None:
        self._do(settle(self.desk.line(name).id))

    def _do(self, command: Command) -> Outcome:
        outcome = self.desk.do(command)
        if outcome.line is not None:
            account = self.accounts[outcome.line.upstream_id]
            for key, (_, expires_at) in list(account.promises.items()):
                if outcome.at >= expires_at:
                    del account.promises[key]
        return outcome

    def _account(self, name: str | None) -> Account | None:
        """Of the line with this id, its own or an offer's."""
        return self.accounts.get(self.offered.get(name or "", name or ""))

    def _decimal(self, name: str | None, amount: int) -> str:
        line = self.offered.get(name or "", name or "")
        return str(money.to_decimal(amount, CURRENCIES.get(line, "USD")))

    @invariant()
    def every_entry_carries_the_sums_and_the_chain(self) -> None:
        entries = sorted(self.desk.entries, key=lambda entry: (entry.line_id, entry.seq))
        for line_id, of_line in groupby(entries, key=lambda entry: entry.line_id):
            seq, balance, held, head, at = 0, 0, 0, FIRST_HASH, NOON - 9_999 * DAY
            for entry in of_line:
                seq, balance, held = seq + 1, balance + entry.amount, held + entry.held
                assert (entry.seq, entry.balance_after, entry.held_after) == (seq, balance, held)
                assert (entry.previous_hash, entry.hash) == (head, entry_hash(entry))
                assert at <= entry.created_at
                head, at = entry.hash, entry.created_at
            line = self.desk.book.lines[line_id]
            assert (line.seq, line.balance, line.held, line.head_hash) == (seq, balance, held, head)

    @invariant()
    def held_is_what_the_open_holds_promise(self) -> None:
        for name, account in self.accounts.items():
            line = self.desk.line(name)
            holds = self.desk.book.holds_of(line.id).values()
            assert line.held == sum(hold.amount for hold in holds) == account.promised

    @invariant()
    def the_balance_is_what_was_issued_less_what_was_spent_and_written_off(self) -> None:
        for name, account in self.accounts.items():
            line = self.desk.line(name)
            assert line.balance == account.issued - account.spent - line.written_off
            assert line.written_off >= 0

    @invariant()
    def nothing_is_promised_twice(self) -> None:
        for name, account in self.accounts.items():
            if Flag.OVERDRAWN not in self.desk.line(name).flags:
                assert account.promised <= self.desk.line(name).balance

    @invariant()
    def an_offer_is_held_by_one_session_up_to_its_cap(self) -> None:
        for holds in self.desk.book.open_holds.values():
            for hold in holds.values():
                offer = self.desk.book.offers.get(hold.upstream_id)
                assert offer is None or (offer.session_id, offer.line_id) == (hold.session_id, hold.line_id)
                assert offer is None or hold.amount <= offer.amount

    @invariant()
    def available_is_never_negative_nor_more_than_is_there(self) -> None:
        for name in self.accounts:
            line, available = self.desk.line(name), self.desk.available(name)
            assert available == 0 or available == line.balance - line.held > 0
            if line.is_expired(self.desk.clock()) or line.status != LineStatus.ACTIVE:
                assert available == 0


TestRules = Rules.TestCase
TestRules.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# The ledger against the rules


class Dice:
    """Random batches of commands, and random moves of the clock."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._holds: list[Authorize] = []

    def batch(self, clock: Clock) -> list[Command]:
        return [self._command(clock) for _ in range(self._random.choice((1, 1, 2, 3, 8)))]

    def _return(self) -> Command:
        source = f"source-{self._random.randrange(12)}"
        refunds = {f"r{self._random.randrange(3)}": str(self._random.randrange(-1, 4))}
        match self._random.randrange(4):
            case 0:
                return give_back(source, cancels=["2"], refunds=refunds)
            case 1:
                return give_back(source, everything=self._random.random() < 0.3, captured="3")
            case _:
                return give_back(source, refunds=refunds)

    def hours(self) -> timedelta:
        return self._random.choice((0, 0, 1, 5, 20, -10)) * HOUR

    def _command(self, clock: Clock) -> Command:
        upstream_id = self._random.choice([*"abcabc", *OFFERS])
        session = f"session-{self._random.randrange(9)}"
        amount = str(self._random.randrange(1, 30))
        match self._random.randrange(18):
            case 0:
                name = self._random.choice("abc")
                expires_at = self._random.choice((None, clock.now + 40 * HOUR))
                return issue(100_00, name, line_id=f"cl_{name}", expires_at=expires_at)
            case 1 | 2 | 3 | 4 | 5:
                self._holds.append(authorize(amount, session, upstream_id))
                return self._holds[-1]
            case 6 | 7 | 8:
                return release(upstream_id)
            case 9:
                return settle(f"cl_{upstream_id}")
            case 10 | 11:
                return self._return()
            case 12:
                source = f"source-{self._random.randrange(12)}"
                return deduct("7", source, session, None, line_id=f"cl_{upstream_id}")
            case 13 | 14:
                return self._keeping(clock)
            case _:
                source = f"source-{self._random.randrange(12)}"
                named = self._random.choice((upstream_id, upstream_id, None))
                return deduct("7", source, self._random.choice((session, None)), named)

    def _keeping(self, clock: Clock) -> Command:
        line_id = f"cl_{self._random.choice('abcd')}"
        match self._random.randrange(6):
            case 0:
                return Adjust(line_id, Decimal(self._random.randrange(-40, 60)), CAUSE)
            case 1:
                return SetStatus(line_id, self._random.choice(STATUS_ACTIONS), CAUSE)
            case 2:
                return SetExpiry(line_id, clock.now + self._random.randrange(-5, 60) * HOUR, CAUSE)
            case 3:
                return SetFlag(line_id, "overdrawn", self._random.choice((True, False)), CAUSE)
            case 4:
                allowed = self._random.choice((True, False, None))
                return Describe(line_id, {"allow_partial": allowed, "name": "Gift card"}, CAUSE)
            case _:
                holds = tuple(asked.hold_id for asked in self._holds[-self._random.randrange(1, 20) :])
                return ReleaseHolds(holds, ("cl_a", "cl_b", "cl_c", "cl_d"), CAUSE)


def outcome_of(desk: Desk, command: Command) -> Outcome | Refusal:
    try:
        return desk.do(command)
    except Refusal as refusal:
        return refusal


@pytest.mark.parametrize("seed", range(6))
async def test_the_ledger_decides_as_the_rules_would_with_everything_in_memory(
    ledger: Ledger, database: Database, clock: Clock, seed: int
) -> None:
    dice, desk = Dice(seed), Desk(POLICY)
    desk.clock = clock
    for name in "ab":
        opened = issue(100_00, name, line_id=f"cl_{name}")
        desk.do(opened)
        await ledger.execute(opened)
    for n, name in enumerate(OFFERS):
        desk.offer(name.removeprefix(PREFIX), 20_00, "ab"[n % 2], ttl=9 * DAY)
    made = [asdict(minted) | {"created_at": clock()} for minted in desk.book.offers.values()]
    await ledger.execute(record=lambda _outcomes, _at: [(offer, row, "refuse") for row in made])
    for _ in range(120):
        clock.advance(dice.hours())
        batch = dice.batch(clock)
        results = await asyncio.gather(
            *(ledger.execute(command) for command in batch), return_exceptions=True
        )
        for command, result in zip(batch, results, strict=True):
            expected = outcome_of(desk, command)
            if isinstance(expected, Refusal):
                assert (type(result), str(result)) == (type(expected), str(expected))
                continue
            assert not isinstance(result, BaseException), result
            assert result.outcomes == (expected,)
        # A deduction that moved to another line completes its session there, and no more here.
        desk.book.completed_sessions = {
            (spent.line_id, spent.session_id)
            for spent in desk.book.deductions.values()
            if spent.session_id is not None
        }

    assert await database.read(lambda connection: list(audit(connection))) == []
