"""The rules about a line's life, case by case: what an operator may change, and what stays as it is.

A `Desk` holds a whole ledger in memory; amounts in commands are decimals, figures are minor units.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from store_credit.ledger.commands import Command, Describe
from store_credit.ledger.refusals import NotAllowed, OutOfRange, UnknownLine
from store_credit.ledger.state import Flag, Hold, HoldState, Line, LineStatus, Reason
from tests.making import (
    DAY,
    HOUR,
    NOON,
    SUPPORT,
    Desk,
    adjust,
    authorize,
    deduct,
    issue,
    release_holds,
    set_expiry,
    set_flag,
    set_status,
    settle,
)


@pytest.fixture
def desk() -> Desk:
    """One active line with 100.00 USD."""
    opened = Desk()
    opened.do(issue(100_00))
    return opened


@pytest.fixture
def expiring() -> Desk:
    """One active line with 100.00 USD, for an hour."""
    opened = Desk()
    opened.do(issue(100_00, expires_at=NOON + HOUR))
    return opened


def held(desk: Desk, amount: str, session_id: str = "session-1", upstream_id: str = "line-1") -> Hold:
    hold = desk.do(authorize(amount, session_id, upstream_id)).hold
    assert hold is not None
    return hold


def refused(desk: Desk, command: Command, refusal: type[Exception], message: str) -> None:
    """A refused command leaves the book as it was."""
    line, count = desk.line(), len(desk.entries)
    with pytest.raises(refusal, match=message):
        desk.do(command)
    assert (desk.line(), len(desk.entries)) == (line, count)


# Every command


@pytest.mark.parametrize(
    "command",
    [
        lambda line: adjust(line, "1"),
        lambda line: set_status(line, "suspend"),
        lambda line: set_expiry(line, NOON + DAY),
        lambda line: set_flag(line, "overdrawn", True),
        lambda line: Describe(line.id, {"name": "Gift card"}, SUPPORT),
    ],
    ids=["adjust", "set status", "set expiry", "set flag", "describe"],
)
def test_a_line_that_is_not_there_is_not_changed(desk: Desk, command: Callable[[Line], Command]) -> None:
    refused(desk, command(desk.line()._replace(id="cl_other")), UnknownLine, "no such credit line")


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (lambda line: adjust(line, "1"), "adjusted"),
        (lambda line: set_status(line, "suspend"), "suspended"),
        (lambda line: set_status(line, "close"), "closed"),
        (lambda line: set_expiry(line, NOON + DAY), "expiry_set"),
        (lambda line: set_flag(line, "overdrawn", True), "flagged"),
        (lambda line: Describe(line.id, {"name": "Gift card"}, SUPPORT), "described"),
    ],
    ids=["adjust", "suspend", "close", "set expiry", "set flag", "describe"],
)
def test_every_change_names_its_actor_and_its_reason(
    desk: Desk, command: Callable[[Line], Command], kind: str
) -> None:
    desk.do(command(desk.line()))

    entry = desk.entries[-1]
    assert (entry.kind, entry.actor) == (kind, "support")
    assert "a good reason" in (entry.reason or "")


def test_what_fell_due_is_settled_first(expiring: Desk) -> None:
    expiring.clock.advance(HOUR)

    expiring.do(set_flag(expiring.line(), "overdrawn", True))

    assert expiring.kinds() == ["issued", "expired", "flagged"]
    assert [entry.actor for entry in expiring.entries] == ["test", "system", "support"]


# Adjust


def test_an_adjustment_changes_the_balance_either_way(desk: Desk) -> None:
    outcome = desk.do(adjust(desk.line(), "25.50"))
    assert (outcome.reason, desk.line().balance) == (Reason.ADJUSTED, 125_50)

    desk.do(adjust(desk.line(), "-125.50"))

    assert desk.line().balance == 0
    assert [entry.amount for entry in desk.entries] == [100_00, 25_50, -125_50]


def test_a_decrease_stops_at_what_is_held(desk: Desk) -> None:
    held(desk, "60")
    refused(desk, adjust(desk.line(), "-40.01"), NotAllowed, "below what is held")

    desk.do(adjust(desk.line(), "-40"))

    assert (desk.line().balance, desk.line().held, desk.available()) == (60_00, 60_00, 0)


def test_a_decrease_never_goes_below_zero(desk: Desk) -> None:
    refused(desk, adjust(desk.line(), "-100.01"), NotAllowed, "below what is held")


def test_credit_of_a_hold_past_its_time_can_be_taken_off(desk: Desk) -> None:
    held(desk, "60")
    desk.clock.advance(DAY)

    desk.do(adjust(desk.line(), "-100"))

    assert (desk.line().balance, desk.line().held) == (0, 0)


@pytest.mark.parametrize("amount", ["0", "0.001", "1E+13", "-1E+13", "1E+400"])
def test_a_number_that_is_no_amount_is_refused(desk: Desk, amount: str) -> None:
    refused(desk, adjust(desk.line(), amount), OutOfRange, "The amount")


def test_float_noise_is_rounded_away(desk: Desk) -> None:
    desk.do(adjust(desk.line(), "-53.769999999999996"))

    assert desk.line().balance == 46_23


def test_a_balance_has_an_upper_bound(desk: Desk) -> None:
    desk.do(adjust(desk.line(), "9999999999899.99"))
    assert desk.line().balance == 10**15 - 1

    refused(desk, adjust(desk.line(), "0.01"), OutOfRange, "too large")


def test_a_suspended_line_may_be_adjusted(desk: Desk) -> None:
    desk.do(set_status(desk.line(), "suspend"))

    desk.do(adjust(desk.line(), "1"))

    assert desk.line().balance == 101_00


@pytest.mark.parametrize("amount", ["1", "-1"])
def test_a_closed_line_is_not_adjusted(desk: Desk, amount: str) -> None:
    desk.do(set_status(desk.line(), "close"))

    refused(desk, adjust(desk.line(), amount), NotAllowed, "closed line")


def test_an_expired_line_is_not_adjusted_upwards(expiring: Desk) -> None:
    expiring.do(settle(expiring.line().id))
    expiring.clock.advance(HOUR)
    expiring.do(settle(expiring.line().id))

    refused(expiring, adjust(expiring.line(), "1"), NotAllowed, "change its expiry")


def test_an_overdrawn_line_may_always_be_increased(desk: Desk) -> None:
    desk.do(deduct("150"))
    refused(desk, adjust(desk.line(), "-0.01"), NotAllowed, "below what is held")

    desk.do(adjust(desk.line(), "20"))

    assert desk.line().balance == -30_00
    assert Flag.OVERDRAWN in desk.line().flags


# Suspend, resume, close, reopen


def test_a_suspended_line_takes_no_new_holds_and_keeps_the_open_ones(desk: Desk) -> None:
    held(desk, "30")

    desk.do(set_status(desk.line(), "suspend"))

    assert desk.do(authorize("1", "session-2")).reason == Reason.LINE_SUSPENDED
    assert (desk.line().held, desk.available()) == (30_00, 0)


def test_the_order_of_an_open_hold_is_deducted_from_a_suspended_line(desk: Desk) -> None:
    held(desk, "30")
    desk.do(set_status(desk.line(), "suspend"))

    desk.do(deduct("30"))

    assert (desk.line().balance, desk.line().held, desk.line().flags) == (70_00, 0, frozenset())


def test_a_resumed_line_takes_holds_again(desk: Desk) -> None:
    desk.do(set_status(desk.line(), "suspend"))

    desk.do(set_status(desk.line(), "resume"))

    assert desk.do(authorize("100")).accepted
    assert desk.kinds() == ["issued", "suspended", "resumed", "held"]


def test_a_suspended_line_expires_all_the_same(expiring: Desk) -> None:
    expiring.do(set_status(expiring.line(), "suspend"))
    expiring.clock.advance(HOUR)

    expiring.do(set_status(expiring.line(), "resume"))

    assert expiring.line().balance == 0
    assert expiring.do(authorize("1")).reason == Reason.LINE_EXPIRED


@pytest.mark.parametrize("status", ["active", "suspended"])
def test_closing_voids_what_is_left(desk: Desk, status: str) -> None:
    if status == "suspended":
        desk.do(set_status(desk.line(), "suspend"))

    outcome = desk.do(set_status(desk.line(), "close"))

    line = desk.line()
    assert (outcome.reason, line.status) == (Reason.CHANGED, LineStatus.CLOSED)
    assert (line.balance, line.written_off) == (0, 100_00)
    assert desk.kinds()[-2:] == ["voided", "closed"]
    assert desk.do(authorize("1")).reason == Reason.LINE_CLOSED


def test_an_empty_line_is_closed_without_a_void(desk: Desk) -> None:
    desk.do(deduct("100"))

    desk.do(set_status(desk.line(), "close"))

    assert desk.kinds() == ["issued", "deducted", "closed"]


def test_a_line_with_held_credit_is_not_closed(desk: Desk) -> None:
    held(desk, "0.01")

    refused(desk, set_status(desk.line(), "close"), NotAllowed, "held")


def test_a_line_is_closed_once_its_holds_are_past_their_time(desk: Desk) -> None:
    held(desk, "40")
    desk.clock.advance(DAY)

    desk.do(set_status(desk.line(), "close"))

    assert desk.kinds() == ["issued", "held", "hold_expired", "voided", "closed"]
    assert (desk.line().balance, desk.line().held) == (0, 0)


def test_an_overdrawn_line_is_adjusted_before_it_is_closed(desk: Desk) -> None:
    desk.do(deduct("150"))
    refused(desk, set_status(desk.line(), "close"), NotAllowed, "overdrawn")

    desk.do(adjust(desk.line(), "50"))
    desk.do(set_status(desk.line(), "close"))

    assert (desk.line().status, desk.line().balance) == (LineStatus.CLOSED, 0)


def test_a_reopened_line_starts_from_nothing(desk: Desk) -> None:
    desk.do(set_status(desk.line(), "close"))

    desk.do(set_status(desk.line(), "reopen"))

    assert (desk.line().status, desk.line().balance) == (LineStatus.ACTIVE, 0)
    desk.do(adjust(desk.line(), "5"))
    assert desk.do(authorize("5")).accepted


def test_what_came_back_to_a_closed_line_is_there_when_it_is_reopened(desk: Desk) -> None:
    desk.do(set_status(desk.line(), "close"))
    desk.book.add_line(desk.line()._replace(balance=7_00))

    desk.do(set_status(desk.line(), "reopen"))

    assert desk.available() == 7_00


@pytest.mark.parametrize(
    ("before", "action"),
    [
        ([], "resume"),
        ([], "reopen"),
        (["suspend"], "suspend"),
        (["suspend"], "reopen"),
        (["close"], "close"),
        (["close"], "suspend"),
        (["close"], "resume"),
    ],
)
def test_a_change_that_the_status_does_not_allow(desk: Desk, before: list[str], action: str) -> None:
    for done in before:
        desk.do(set_status(desk.line(), done))

    refused(desk, set_status(desk.line(), action), NotAllowed, action)


# Expiry


def test_an_expiry_can_be_set_changed_and_removed(desk: Desk) -> None:
    for expires_at in (NOON + HOUR, NOON + DAY, None):
        desk.do(set_expiry(desk.line(), expires_at))
        assert desk.line().expires_at == expires_at

    assert desk.kinds() == ["issued", "expiry_set", "expiry_set", "expiry_set"]
    assert [entry.reason for entry in desk.entries[1:]] == [
        "a good reason; expires 2026-11-20 13:00:00 UTC",
        "a good reason; expires 2026-11-21 12:00:00 UTC",
        "a good reason; expires never",
    ]


def test_a_line_expires_at_its_new_expiry(expiring: Desk) -> None:
    expiring.do(set_expiry(expiring.line(), NOON + 2 * HOUR))

    expiring.clock.advance(HOUR)
    assert expiring.do(authorize("1")).accepted
    expiring.clock.advance(HOUR)
    assert expiring.do(authorize("1", "session-2")).reason == Reason.LINE_EXPIRED


def test_the_expiry_that_a_line_has_is_no_change(expiring: Desk) -> None:
    expiring.do(set_expiry(expiring.line(), NOON + HOUR))

    assert expiring.kinds() == ["issued"]


@pytest.mark.parametrize("expires_at", [NOON, NOON - timedelta(microseconds=1), NOON - 9_999 * DAY])
def test_an_expiry_is_in_the_future(desk: Desk, expires_at: datetime) -> None:
    refused(desk, set_expiry(desk.line(), expires_at), OutOfRange, "in the future")


def test_a_clock_that_jumps_back_opens_no_past(desk: Desk) -> None:
    desk.clock.advance(DAY)
    desk.do(adjust(desk.line(), "1"))
    desk.clock.advance(-DAY)

    refused(desk, set_expiry(desk.line(), NOON + HOUR), OutOfRange, "in the future")


def test_an_expired_line_can_be_revived_but_what_expired_stays_written_off(expiring: Desk) -> None:
    expiring.clock.advance(HOUR)

    expiring.do(set_expiry(expiring.line(), None))

    assert (expiring.line().balance, expiring.line().written_off) == (0, 100_00)
    expiring.do(adjust(expiring.line(), "10"))
    assert expiring.do(authorize("10")).accepted


def test_held_credit_outlives_an_expiry_that_is_brought_forward(desk: Desk) -> None:
    held(desk, "60")
    desk.do(set_expiry(desk.line(), NOON + HOUR))
    desk.clock.advance(HOUR)

    desk.do(settle(desk.line().id))

    assert (desk.line().balance, desk.line().held) == (60_00, 60_00)


def test_a_closed_line_does_not_expire(desk: Desk) -> None:
    desk.do(set_status(desk.line(), "close"))

    refused(desk, set_expiry(desk.line(), NOON + DAY), NotAllowed, "reopen")


# Flags


def test_a_flag_is_raised_and_taken_off(desk: Desk) -> None:
    desk.do(set_flag(desk.line(), "source_conflict", True))
    assert desk.line().flags == {"source_conflict"}

    desk.do(set_flag(desk.line(), "source_conflict", False))

    assert desk.line().flags == frozenset()
    assert desk.kinds() == ["issued", "flagged", "flag_cleared"]
    assert desk.entries[-1].reason == "source_conflict; a good reason"


def test_one_flag_leaves_the_others(desk: Desk) -> None:
    desk.do(deduct("150"))
    desk.do(set_flag(desk.line(), "source_conflict", True))

    desk.do(set_flag(desk.line(), "overdrawn", False))

    assert desk.line().flags == {"source_conflict"}


@pytest.mark.parametrize("raised", [True, False])
def test_a_flag_that_is_as_it_should_be_is_no_change(desk: Desk, raised: bool) -> None:
    if raised:
        desk.do(set_flag(desk.line(), "overdrawn", True))
    count = len(desk.entries)

    desk.do(set_flag(desk.line(), "overdrawn", raised))

    assert len(desk.entries) == count


@pytest.mark.parametrize("raised", [True, False])
def test_a_flag_that_nobody_knows_is_refused(desk: Desk, raised: bool) -> None:
    refused(desk, set_flag(desk.line(), "zebra", raised), OutOfRange, "no such flag")


# Describe


def test_a_description_names_what_changed_and_moves_nothing(desk: Desk) -> None:
    before = desk.line()

    desk.do(Describe(before.id, {"icon_url": None, "name": "Gift card"}, SUPPORT))

    after, entry = desk.line(), desk.entries[-1]
    assert (after.balance, after.held, after.seq) == (before.balance, before.held, before.seq + 1)
    assert (entry.amount, entry.held) == (0, 0)
    assert entry.reason == "a good reason; icon_url, name"


@pytest.mark.parametrize("allowed", [True, False, None])
def test_partial_approval_is_a_setting_of_the_line(desk: Desk, allowed: bool | None) -> None:
    desk.do(Describe(desk.line().id, {"allow_partial": allowed}, SUPPORT))

    outcome = desk.do(authorize("150"))

    assert desk.line().allow_partial is allowed
    assert outcome.reason == (Reason.APPROVED_PARTIALLY if allowed else Reason.INSUFFICIENT_CREDIT)


# Releases


def test_an_operator_releases_one_of_several_holds(desk: Desk) -> None:
    first, second = held(desk, "30"), held(desk, "40", "session-2")

    outcome = desk.do(release_holds(first))

    assert (outcome.reason, outcome.accepted) == (Reason.RELEASED, True)
    assert [(hold.id, hold.state) for hold in outcome.ended] == [(first.id, HoldState.RELEASED)]
    assert list(desk.book.holds_of(desk.line().id).values()) == [second]
    assert (desk.line().held, desk.available()) == (40_00, 60_00)


def test_holds_of_several_lines_are_released_together(desk: Desk) -> None:
    desk.do(issue(50_00, "line-2"))
    holds = held(desk, "30"), held(desk, "40", upstream_id="line-2")

    outcome = desk.do(release_holds(*holds))

    assert {hold.id for hold in outcome.ended} == {hold.id for hold in holds}
    assert (desk.line().held, desk.line("line-2").held) == (0, 0)
    assert desk.kinds("line-2")[-1] == "released"


def test_a_released_hold_names_who_released_it(desk: Desk) -> None:
    desk.do(release_holds(held(desk, "30")))

    entry = desk.entries[-1]
    assert (entry.kind, entry.actor, entry.reason) == ("released", "support", "a good reason")


def test_a_hold_is_released_once(desk: Desk) -> None:
    hold = held(desk, "30")
    desk.do(release_holds(hold))
    count = len(desk.entries)

    outcome = desk.do(release_holds(hold))

    assert (outcome.reason, outcome.accepted, outcome.ended) == (Reason.NOTHING_HELD, False, ())
    assert len(desk.entries) == count


def test_a_hold_past_its_time_has_expired_and_is_not_released(desk: Desk) -> None:
    hold = held(desk, "30")
    desk.clock.advance(DAY)

    outcome = desk.do(release_holds(hold))

    assert (outcome.reason, outcome.accepted) == (Reason.NOTHING_HELD, False)
    assert desk.kinds() == ["issued", "held", "hold_expired"]


def test_a_hold_that_became_an_order_is_left_alone(desk: Desk) -> None:
    hold = held(desk, "30")
    desk.do(deduct("30"))

    assert desk.do(release_holds(hold)).reason == Reason.NOTHING_HELD
    assert desk.line().balance == 70_00


def test_the_hold_that_a_session_opened_afterwards_is_left_alone(desk: Desk) -> None:
    old = held(desk, "30")
    desk.do(release_holds(old))
    held(desk, "20")

    assert desk.do(release_holds(old)).reason == Reason.NOTHING_HELD
    assert desk.line().held == 20_00


def test_what_is_released_on_an_expired_line_is_written_off(expiring: Desk) -> None:
    hold = held(expiring, "30")
    expiring.clock.advance(HOUR)

    expiring.do(release_holds(hold))

    assert (expiring.line().balance, expiring.line().held) == (0, 0)
    assert expiring.kinds() == ["issued", "held", "expired", "released", "expired"]


def test_nothing_to_release_is_no_mistake(desk: Desk) -> None:
    assert desk.do(release_holds()).reason == Reason.NOTHING_HELD
