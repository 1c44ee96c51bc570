"""What comes back of an order: once, never more than was deducted, in whatever order it is told."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store_credit.ledger.commands import Command, Policy, Return
from store_credit.ledger.refusals import OutOfRange
from store_credit.ledger.state import Flag, LineStatus, Outcome, Reason
from tests.making import DAY, HOUR, Desk, authorize, deduct, give_back, issue


def desk_with_a_deduction(amount: str = "20", **policy: timedelta) -> Desk:
    """A line of 100.00, of which an order spent this much."""
    desk = Desk(Policy(hold_ttl=DAY, **policy))
    desk.do(issue())
    desk.do(deduct(amount))
    return desk


def returned(desk: Desk, source_id: str = "source-1") -> int:
    return desk.book.deductions[source_id].returned


def tell(desk: Desk, *commands: Command) -> list[Outcome]:
    return [desk.do(command) for command in commands]


# Amounts


def test_a_refund_comes_back() -> None:
    desk = desk_with_a_deduction("20")
    outcome = desk.do(give_back(refunds={"r1": "5"}))
    assert (outcome.reason, outcome.returned, outcome.accepted) == (Reason.RETURNED, 5_00, True)
    assert (desk.line().balance, returned(desk)) == (85_00, 5_00)
    assert desk.kinds() == ["issued", "deducted", "returned"]


def test_the_entry_names_what_came_back_and_the_event() -> None:
    desk = desk_with_a_deduction()
    desk.do(give_back(refunds={"r1": "5"}, event_id="event-9"))
    entry = desk.entries[-1]
    assert (entry.reason, entry.event_id, entry.amount) == ("told by event-9", "event-9", 5_00)
    assert entry.deduction_id == desk.book.deductions["source-1"].id


TOLD: dict[str, tuple[list[Return], int]] = {
    "cumulative": ([give_back(refunds={"a": "5"}), give_back(refunds={"a": "5", "b": "4"})], 9_00),
    "partial": ([give_back(refunds={"a": "5"}), give_back(refunds={"b": "4"})], 9_00),
    "replayed": ([give_back(refunds={"a": "5"}), give_back(refunds={"a": "5"})], 5_00),
    "without ids": ([give_back(refunds=["5"]), give_back(refunds=["5", "4"])], 9_00),
    "with and without ids": ([give_back(refunds={"a": "5"}), give_back(refunds=["5", "4"])], 9_00),
    "one amount that grew": ([give_back(refunds={"a": "5"}), give_back(refunds={"a": "6"})], 6_00),
    "same amounts": ([give_back(refunds={"a": "5"}), give_back(refunds={"b": "5"})], 10_00),
    "cancel and refund": ([give_back(cancels={"a": "5"}), give_back(refunds={"a": "5"})], 10_00),
    "more than deducted": ([give_back(refunds={"a": "15"}), give_back(refunds={"b": "15"})], 20_00),
    "cancel and refund, too much": (
        [give_back(cancels={"a": "15"}), give_back(refunds={"b": "15"})],
        20_00,
    ),
    "two charges without ids": (
        [give_back(refunds=["10"], charge="A"), give_back(refunds=["5"], charge="B")],
        15_00,
    ),
    "two charges, growing without ids": (
        [
            give_back(refunds=["6"], charge="A"),
            give_back(refunds=["6", "4"], charge="A"),
            give_back(refunds=["5"], charge="B"),
        ],
        15_00,
    ),
    "two charges, one of them with ids": (
        [give_back(cancels={"a": "10"}, charge="A"), give_back(cancels=["5"], charge="B")],
        15_00,
    ),
    "a charge with and without ids": (
        [give_back(cancels={"a": "5"}, charge="A"), give_back(cancels=["5"], charge="A")],
        5_00,
    ),
    "a charge with and without its own id": (
        [give_back(refunds=["5"], charge="A"), give_back(refunds=["5"])],
        5_00,
    ),
    "an id with and without its charge": (
        [give_back(refunds={"a": "5"}), give_back(refunds=["5"], charge="A")],
        5_00,
    ),
    "an id under two charges": (
        [
            give_back(refunds={"a": "5"}, charge="A"),
            give_back(refunds={"b": "2"}, charge="A"),
            give_back(refunds={"a": "5"}, charge="B"),
        ],
        7_00,
    ),
    "charge cancelled": ([give_back(captured="0")], 20_00),
    "charge cancelled but for a capture": ([give_back(captured="12")], 8_00),
    "cancels, then the charge": ([give_back(cancels={"a": "5"}), give_back(captured="12")], 8_00),
    "cancelled, and the captured refunded": (
        [give_back(captured="12"), give_back(refunds={"a": "12"})],
        20_00,
    ),
    "captured more than deducted": ([give_back(captured="30")], 0),
    "everything": ([give_back(everything=True), give_back(refunds={"a": "5"})], 20_00),
    "three parts": (
        [
            give_back(refunds={"a": "6.67"}),
            give_back(refunds={"a": "6.67", "b": "6.67"}),
            give_back(refunds={"a": "6.67", "b": "6.67", "c": "6.66"}),
        ],
        20_00,
    ),
}


@pytest.mark.parametrize(("told", "expected"), TOLD.values(), ids=TOLD.keys())
def test_in_any_order_and_repeated_the_same_comes_back(told: list[Return], expected: int) -> None:
    spending: Command = deduct("20")
    for commands in permutations([spending, *told]):
        desk = Desk()
        desk.do(issue())
        tell(desk, *commands, *commands)
        assert (returned(desk), desk.line().balance) == (expected, 80_00 + expected)
        assert desk.line().flags == frozenset()


def test_what_is_told_again_books_nothing() -> None:
    desk = desk_with_a_deduction()
    desk.do(give_back(refunds={"a": "5", "b": "4"}))
    before = len(desk.entries)
    outcome = desk.do(give_back(refunds={"a": "5"}))
    assert (outcome.reason, outcome.returned) == (Reason.NOTHING_NEW, 0)
    assert len(desk.entries) == before


amounts = st.integers(1, 400)


@settings(deadline=None)
@given(
    refunds=st.lists(amounts, max_size=4),
    cancels=st.lists(amounts, max_size=3),
    spent=st.integers(1, 1_000),
    random=st.randoms(use_true_random=False),
)
def test_any_telling_of_a_history_gives_the_same(
    refunds: list[int], cancels: list[int], spent: int, random: st.DrawFn
) -> None:
    def growing(kind: str, minor: list[int]) -> list[Return]:
        """Cumulative payloads with ids, and the last one without."""
        named = {f"{kind}-{n}": str(amount / 100) for n, amount in enumerate(minor)}
        some = [dict(list(named.items())[: n + 1]) for n in range(len(named))]
        last = [list(named.values())] if named else []
        payloads: list[dict[str, str] | list[str]] = [*some, *last]
        return [give_back(**{kind: payload}) for payload in payloads]  # type: ignore[arg-type]

    told: list[Command] = [*growing("refunds", refunds), *growing("cancels", cancels)]
    told += [*told, deduct(str(spent / 100)), deduct(str(spent / 100), session_id=None)]
    random.shuffle(told)  # type: ignore[attr-defined]
    desk = Desk()
    desk.do(issue())
    tell(desk, *told)
    expected = min(spent, sum(refunds) + sum(cancels))
    assert (returned(desk), desk.line().balance) == (expected, 100_00 - spent + expected)
    assert sum(entry.amount for entry in desk.entries) == desk.line().balance


@settings(deadline=None)
@given(
    charges=st.lists(st.lists(amounts, min_size=1, max_size=3), max_size=3),
    named=st.lists(st.booleans(), min_size=3, max_size=3),
    random=st.randoms(use_true_random=False),
)
def test_what_comes_back_of_several_charges_adds_up(
    charges: list[list[int]], named: list[bool], random: st.DrawFn
) -> None:
    """Each charge is told by itself, growing; some of them never say an id of a cancel or refund."""

    def growing(kind: str, number: int) -> list[Command]:
        told = {f"{kind}-{number}-{n}": str(minor / 100) for n, minor in enumerate(charges[number])}
        payloads = [dict(list(told.items())[: n + 1]) for n in range(len(told))]
        amounts = [payload if named[number] else list(payload.values()) for payload in payloads]
        return [give_back(**{kind: one}, charge=f"{number}") for one in amounts]  # type: ignore[arg-type]

    told = [one for n in range(len(charges)) for kind in ("cancels", "refunds") for one in growing(kind, n)]
    told += [*told, deduct("90")]
    random.shuffle(told)  # type: ignore[attr-defined]
    desk = Desk()
    desk.do(issue())
    tell(desk, *told)
    assert returned(desk) == min(90_00, 2 * sum(map(sum, charges)))


# What is no return


REFUSED = {
    "zero": (give_back(refunds={"a": "0"}), Reason.INVALID_AMOUNT),
    "negative": (give_back(refunds={"a": "-5"}), Reason.INVALID_AMOUNT),
    "one bad of two": (give_back(refunds={"a": "5", "b": "-5"}), Reason.INVALID_AMOUNT),
    "too many decimals": (give_back(cancels={"a": "5.005"}), Reason.INVALID_AMOUNT),
    "negative captured": (give_back(captured="-1"), Reason.INVALID_AMOUNT),
    "too many": (give_back(refunds=["0.01"] * 1_001), Reason.INVALID_AMOUNT),
    "another currency": (give_back(refunds={"a": "5"}, currency="EUR"), Reason.OTHER_CURRENCY),
    "no currency at all": (give_back(refunds={"a": "5"}, currency="???"), Reason.OTHER_CURRENCY),
}


@pytest.mark.parametrize(("told", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_return_books_nothing(told: Return, reason: Reason) -> None:
    desk = desk_with_a_deduction()
    before = desk.line()
    outcome = desk.do(told)
    assert (outcome.reason, outcome.accepted) == (reason, False)
    assert outcome.detail
    assert desk.line() == before
    assert desk.do(give_back(refunds={"c": "3"})).returned == 3_00


def test_an_unsaid_currency_is_the_line_s() -> None:
    desk = desk_with_a_deduction()
    assert desk.do(give_back(refunds={"a": "5"}, currency=None)).returned == 5_00


# Expiry and status


def expiring_desk(grace: timedelta, expires_in: timedelta = DAY) -> Desk:
    desk = Desk(Policy(hold_ttl=DAY, return_grace=grace))
    desk.do(issue(100_00, expires_at=desk.clock() + expires_in))
    desk.do(deduct("20"))
    return desk


def test_a_return_revives_an_expired_line() -> None:
    desk = expiring_desk(30 * DAY)
    desk.clock.advance(2 * DAY)
    desk.do(give_back(refunds={"a": "5"}))
    assert desk.kinds() == ["issued", "deducted", "expired", "returned"]
    assert desk.line().expires_at == desk.clock() + 30 * DAY
    assert desk.available() == 5_00
    assert "usable until 2026-12-22 12:00 UTC" in (desk.entries[-1].reason or "")


def test_without_grace_what_comes_back_to_an_expired_line_is_written_off() -> None:
    desk = expiring_desk(timedelta())
    desk.clock.advance(2 * DAY)
    outcome = desk.do(give_back(refunds={"a": "5"}))
    assert outcome.returned == 5_00
    assert desk.kinds() == ["issued", "deducted", "expired", "returned", "expired"]
    assert [entry.amount for entry in desk.entries[-2:]] == [5_00, -5_00]
    assert (desk.line().balance, desk.line().written_off, desk.available()) == (0, 85_00, 0)


def test_a_line_about_to_expire_is_prolonged() -> None:
    desk = expiring_desk(30 * DAY)
    desk.do(give_back(refunds={"a": "5"}))
    assert desk.line().expires_at == desk.clock() + 30 * DAY


def test_a_later_expiry_stays() -> None:
    desk = expiring_desk(30 * DAY, expires_in=31 * DAY)
    before = desk.line().expires_at
    desk.do(give_back(refunds={"a": "5"}))
    assert desk.line().expires_at == before


def test_a_parked_return_does_not_outlive_the_grace_of_its_deduction() -> None:
    desk = Desk(Policy(hold_ttl=DAY, return_grace=30 * DAY))
    desk.do(issue(100_00, expires_at=desk.clock() + DAY))
    desk.do(give_back(refunds={"a": "5"}))
    desk.clock.advance(2 * DAY)
    desk.do(deduct("20"))
    assert desk.kinds() == ["issued", "expired", "write_off_reversed", "deducted", "returned"]
    assert desk.available() == 5_00


def put(desk: Desk, status: LineStatus) -> None:
    desk.book.add_line(desk.line()._replace(status=status))


def test_a_suspended_line_stays_suspended() -> None:
    desk = desk_with_a_deduction()
    put(desk, LineStatus.SUSPENDED)
    assert desk.do(give_back(refunds={"a": "5"})).returned == 5_00
    assert (desk.line().status, desk.line().balance, desk.available()) == (LineStatus.SUSPENDED, 85_00, 0)
    assert desk.line().flags == frozenset()


def test_a_closed_line_is_flagged() -> None:
    desk = desk_with_a_deduction()
    put(desk, LineStatus.CLOSED)
    assert desk.do(give_back(refunds={"a": "5"})).returned == 5_00
    assert (desk.line().balance, desk.available()) == (85_00, 0)
    assert desk.line().flags == {Flag.RETURN_TO_CLOSED}


# Parked


def test_a_return_waits_for_its_deduction() -> None:
    desk = Desk()
    desk.do(issue())
    waiting = desk.do(give_back(refunds={"a": "5"}, event_id="event-1"))
    assert (waiting.reason, waiting.accepted) == (Reason.PARKED, True)
    assert desk.book.sources["source-1"].parked_at == desk.clock()
    desk.do(give_back(refunds={"a": "5", "b": "1"}, event_id="event-2"))
    outcome = desk.do(deduct("20"))
    assert (outcome.reason, outcome.returned) == (Reason.DEDUCTED, 6_00)
    assert outcome.unparked == ("receipt of event-1", "receipt of event-2")
    assert outcome.deduction is not None
    assert outcome.deduction.returned == 6_00
    assert desk.book.sources["source-1"].parked_at is None
    assert desk.entries[-1].reason == "told by event-1; told by event-2"
    assert desk.entries[-1].event_id == "event-2"


def test_waiting_since_the_first_of_several() -> None:
    desk = Desk()
    desk.do(give_back(refunds={"a": "5"}))
    first = desk.clock()
    desk.clock.advance(HOUR)
    desk.do(give_back(refunds={"b": "5"}, event_id="event-2"))
    assert desk.book.sources["source-1"].parked_at == first


def test_a_waiting_return_of_another_currency_books_nothing_and_spoils_nothing() -> None:
    desk = Desk()
    desk.do(issue())
    desk.do(give_back(refunds={"a": "5"}, currency="EUR"))
    assert desk.do(deduct("20")).returned == 0
    assert desk.line().flags == {Flag.SOURCE_CONFLICT}
    assert desk.do(give_back(refunds={"b": "3"})).returned == 3_00


def test_an_order_s_end_needs_no_currency() -> None:
    desk = Desk()
    desk.do(issue())
    desk.do(give_back(everything=True, currency="EUR"))
    assert desk.do(deduct("20")).returned == 20_00
    assert desk.line().flags == frozenset()


def test_an_unmatched_source_tells_its_later_deduction() -> None:
    desk = Desk()
    desk.do(issue())
    assert desk.do(deduct("20", upstream_id=None)).reason == Reason.NO_UPSTREAM_ID
    desk.do(give_back(refunds={"a": "5"}))
    outcome = desk.do(deduct("20"))
    assert (outcome.awaited, outcome.returned) == (True, 5_00)
    assert not desk.do(deduct("7", "source-2")).awaited


# On the operator's line


def two_lines(**more: object) -> Desk:
    desk = Desk()
    desk.do(issue(100_00, "wrong", **more))
    desk.do(issue(50_00, "right"))
    return desk


def sums(desk: Desk, name: str) -> int:
    line_id = desk.line(name).id
    return sum(entry.amount for entry in desk.entries if entry.line_id == line_id)


@pytest.mark.parametrize("named", [None, "no line's"])
def test_the_operator_s_line_ends_the_session_s_hold(named: str | None) -> None:
    desk = two_lines()
    desk.do(authorize("20", upstream_id="right"))
    outcome = desk.do(deduct("20", upstream_id=named, line_id=desk.line("right").id))
    assert outcome.reason == Reason.DEDUCTED
    assert (desk.line("right").balance, desk.line("right").held) == (30_00, 0)


def test_a_source_on_the_wrong_line_moves_with_what_came_back() -> None:
    desk = two_lines()
    desk.do(authorize("20", upstream_id="right"))
    desk.do(deduct("20", upstream_id=None, line_id=desk.line("wrong").id))
    desk.do(give_back(refunds={"a": "5"}))
    outcome = desk.do(deduct("20", upstream_id=None, line_id=desk.line("right").id))
    assert outcome.reason == Reason.REASSIGNED
    assert outcome.line == desk.line("right")
    assert (desk.line("wrong").balance, desk.line("right").balance) == (100_00, 35_00)
    assert desk.line("right").held == 0
    assert desk.kinds("wrong") == ["issued", "deducted", "returned", "deducted", "returned"]
    assert desk.kinds("right") == ["issued", "held", "released", "deducted", "returned"]
    for name in ("wrong", "right"):
        assert sums(desk, name) == desk.line(name).balance
    reasons = [entry.reason for entry in desk.entries if entry.kind == "deducted"][1:]
    assert reasons == [
        f"moved to {desk.line('right').id}",
        f"moved from {desk.line('wrong').id}",
    ]
    assert desk.do(give_back(refunds={"a": "5", "b": "1"})).returned == 1_00
    assert desk.line("right").balance == 36_00


def test_a_source_moves_back_and_forth() -> None:
    desk = two_lines()
    for name in ("wrong", "right", "wrong", "wrong"):
        desk.do(deduct("20", upstream_id=None, line_id=desk.line(name).id))
    assert (desk.line("wrong").balance, desk.line("right").balance) == (80_00, 50_00)


def test_moving_off_an_expired_line_revives_it_and_says_so() -> None:
    desk = two_lines(expires_at=Desk().clock() + DAY)
    desk.do(deduct("20", upstream_id="wrong"))
    desk.clock.advance(2 * DAY)
    desk.do(deduct("20", upstream_id="wrong", line_id=desk.line("right").id))
    assert desk.available("wrong") == 20_00
    moved = [e for e in desk.entries if e.line_id == desk.line("wrong").id][-1]
    assert "usable until" in (moved.reason or "")


def test_moving_to_a_line_with_too_little_flags_it() -> None:
    desk = two_lines()
    desk.do(deduct("60", upstream_id="wrong"))
    desk.do(deduct("60", upstream_id="wrong", line_id=desk.line("right").id))
    assert desk.line("right").balance == -10_00
    assert desk.line("right").flags == {Flag.OVERDRAWN}


def test_an_operator_s_line_must_fit() -> None:
    desk = two_lines()
    desk.do(issue(100_00, "euros", currency="EUR"))
    euros = desk.line("euros").id
    with pytest.raises(OutOfRange):
        desk.do(deduct("20", currency="USD", line_id=euros))
    with pytest.raises(OutOfRange):
        desk.do(deduct("20", line_id="cl_nowhere"))
    desk.do(deduct("20", upstream_id="wrong"))
    with pytest.raises(OutOfRange):
        desk.do(deduct("20", line_id=euros))
    assert (desk.line("wrong").balance, desk.line("euros").balance) == (80_00, 100_00)
