"""Offers: an upstream id minted for one session, which caps what that session may hold."""

from __future__ import annotations

import pytest

from store_credit.ledger.commands import Describe
from store_credit.ledger.refusals import AlreadyExists
from store_credit.ledger.state import Flag, HoldState, Reason
from tests.making import DAY, HOUR, NOON, SUPPORT, Desk, authorize, deduct, issue, release, set_status


@pytest.fixture
def desk() -> Desk:
    """One active line with 100.00 USD."""
    opened = Desk()
    opened.do(issue(100_00))
    return opened


def holds(desk: Desk) -> dict[str, int]:
    """What is held on the line, by upstream id as asked."""
    return {hold.upstream_id: hold.amount for hold in desk.book.holds_of(desk.line().id).values()}


def test_an_offer_promises_nothing_by_itself(desk: Desk) -> None:
    desk.offer("a", 60_00)

    assert (desk.line().held, desk.available()) == (0, 100_00)


def test_a_hold_under_an_offer_stands_on_its_line(desk: Desk) -> None:
    offer = desk.offer("a", 60_00)

    outcome = desk.do(authorize("60", upstream_id=offer))

    assert (outcome.reason, outcome.line) == (Reason.APPROVED, desk.line())
    assert (holds(desk), desk.available()) == ({offer: 60_00}, 40_00)


def test_an_offer_caps_the_hold(desk: Desk) -> None:
    offer = desk.offer("a", 60_00)

    outcome = desk.do(authorize("60.01", upstream_id=offer))

    assert (outcome.accepted, outcome.reason) == (False, Reason.INSUFFICIENT_CREDIT)
    assert holds(desk) == {}


def test_a_replaced_hold_is_capped_too(desk: Desk) -> None:
    offer = desk.offer("a", 60_00)
    desk.do(authorize("20", upstream_id=offer))

    assert desk.do(authorize("60.01", upstream_id=offer)).reason == Reason.INSUFFICIENT_CREDIT
    assert desk.do(authorize("60", upstream_id=offer)).reason == Reason.HOLD_REPLACED
    assert holds(desk) == {offer: 60_00}


def test_partial_approval_goes_up_to_the_cap(desk: Desk) -> None:
    desk.do(Describe(desk.line().id, {"allow_partial": True}, SUPPORT))
    offer = desk.offer("a", 60_00)

    outcome = desk.do(authorize("80", upstream_id=offer))

    assert outcome.reason == Reason.APPROVED_PARTIALLY
    assert holds(desk) == {offer: 60_00}


def test_partial_approval_goes_no_further_than_what_the_line_has_left(desk: Desk) -> None:
    desk.do(Describe(desk.line().id, {"allow_partial": True}, SUPPORT))
    desk.do(authorize("70", "session-2"))
    offer = desk.offer("a", 60_00)

    outcome = desk.do(authorize("60", upstream_id=offer))

    assert outcome.reason == Reason.APPROVED_PARTIALLY
    assert holds(desk)[offer] == 30_00


def test_an_offer_is_no_promise_when_the_credit_is_gone(desk: Desk) -> None:
    offer = desk.offer("a", 60_00)
    desk.do(authorize("100", "session-2"))

    assert desk.do(authorize("1", upstream_id=offer)).reason == Reason.INSUFFICIENT_CREDIT


def test_the_first_session_binds_the_offer(desk: Desk) -> None:
    offer = desk.offer("a")
    desk.do(authorize("10", "session-1", offer))

    other = desk.do(authorize("10", "session-2", offer))

    assert (other.accepted, other.reason) == (False, Reason.OFFER_OF_ANOTHER_SESSION)
    assert desk.do(authorize("20", "session-1", offer)).accepted


def test_a_declined_question_binds_nothing(desk: Desk) -> None:
    offer = desk.offer("a", 60_00)
    desk.do(authorize("60.01", "session-1", offer))

    assert desk.do(authorize("60", "session-2", offer)).accepted


def test_an_offer_stays_with_its_session_after_its_removal(desk: Desk) -> None:
    offer = desk.offer("a")
    desk.do(authorize("10", "session-1", offer))
    desk.do(release(offer))

    assert desk.do(authorize("10", "session-2", offer)).reason == Reason.OFFER_OF_ANOTHER_SESSION
    assert desk.do(authorize("10", "session-1", offer)).accepted


def test_an_offer_expires(desk: Desk) -> None:
    offer = desk.offer("a", ttl=HOUR)
    desk.clock.advance(HOUR)

    outcome = desk.do(authorize("10", upstream_id=offer))

    assert (outcome.accepted, outcome.reason) == (False, Reason.OFFER_EXPIRED)


def test_a_hold_outlives_its_offer(desk: Desk) -> None:
    offer = desk.offer("a", ttl=HOUR)
    desk.do(authorize("10", upstream_id=offer))
    desk.clock.advance(HOUR)

    assert desk.do(authorize("20", upstream_id=offer)).reason == Reason.OFFER_EXPIRED
    assert holds(desk) == {offer: 10_00}


def test_a_spent_offer_is_declined(desk: Desk) -> None:
    offer = desk.offer("a")
    desk.do(deduct("10", session_id=None, upstream_id=offer))

    outcome = desk.do(authorize("10", upstream_id=offer))

    assert (outcome.accepted, outcome.reason) == (False, Reason.OFFER_SPENT)


def test_the_session_that_spent_an_offer_is_completed(desk: Desk) -> None:
    offer = desk.offer("a")
    desk.do(authorize("10", upstream_id=offer))
    desk.do(deduct("10", upstream_id=offer))

    assert desk.do(authorize("10", upstream_id=offer)).reason == Reason.SESSION_COMPLETED
    assert desk.do(authorize("10", "session-2", offer)).reason == Reason.OFFER_SPENT


def test_what_the_line_forbids_comes_first(desk: Desk) -> None:
    offer = desk.offer("a", ttl=HOUR)
    desk.do(set_status(desk.line(), "suspend"))
    desk.clock.advance(HOUR)

    assert desk.do(authorize("10", upstream_id=offer)).reason == Reason.LINE_SUSPENDED


def test_two_offers_on_one_line_in_one_session_are_two_holds(desk: Desk) -> None:
    first, second = desk.offer("a", 60_00), desk.offer("b", 60_00)
    desk.do(authorize("60", upstream_id=first))

    assert desk.do(authorize("60", upstream_id=second)).reason == Reason.INSUFFICIENT_CREDIT
    assert desk.do(authorize("40", upstream_id=second)).accepted
    assert holds(desk) == {first: 60_00, second: 40_00}


def test_the_removal_of_an_offer_releases_exactly_its_hold(desk: Desk) -> None:
    first, second = desk.offer("a", 30_00), desk.offer("b", 30_00)
    desk.do(authorize("30", "session-1", first))
    desk.do(authorize("20", "session-2", second))
    desk.do(authorize("10", "session-3"))

    outcome = desk.do(release(first))

    assert outcome.reason == Reason.RELEASED
    assert holds(desk) == {second: 20_00, "line-1": 10_00}


def test_the_removal_of_the_lines_own_id_leaves_offers_alone(desk: Desk) -> None:
    offer = desk.offer("a")
    desk.do(authorize("30", "session-1", offer))
    desk.do(authorize("10", "session-2"))

    assert desk.do(release()).reason == Reason.RELEASED
    assert holds(desk) == {offer: 30_00}
    assert desk.do(release()).reason == Reason.NOTHING_HELD


def test_an_order_consumes_the_hold_under_its_offer(desk: Desk) -> None:
    offer = desk.offer("a", 60_00)
    desk.do(authorize("50", upstream_id=offer))

    outcome = desk.do(deduct("45", upstream_id=offer))

    assert outcome.reason == Reason.DEDUCTED
    assert outcome.hold is not None
    assert (outcome.hold.upstream_id, outcome.hold.state) == (offer, HoldState.CONSUMED)
    assert (desk.line().balance, desk.line().held) == (55_00, 0)
    assert desk.book.offers[offer].spent_at == NOON


def test_an_order_of_two_offers_consumes_each_hold_once(desk: Desk) -> None:
    first, second = desk.offer("a", 60_00), desk.offer("b", 60_00)
    desk.do(authorize("60", upstream_id=first))
    desk.do(authorize("40", upstream_id=second))

    desk.do(deduct("60", "source-1", upstream_id=first))
    assert holds(desk) == {second: 40_00}
    desk.do(deduct("40", "source-2", upstream_id=second))

    assert (desk.line().balance, desk.line().held, desk.line().flags) == (0, 0, frozenset())


def test_an_order_of_an_expired_offer_is_booked(desk: Desk) -> None:
    offer = desk.offer("a", ttl=HOUR)
    desk.clock.advance(2 * DAY)

    outcome = desk.do(deduct("10", upstream_id=offer))

    assert (outcome.accepted, outcome.reason) == (True, Reason.DEDUCTED)
    assert desk.line().balance == 90_00


def test_an_order_above_the_cap_is_booked(desk: Desk) -> None:
    offer = desk.offer("a", 10_00)

    desk.do(deduct("30", upstream_id=offer))

    assert (desk.line().balance, desk.line().flags) == (70_00, frozenset())


def test_an_order_under_an_offer_may_overdraw_its_line(desk: Desk) -> None:
    offer = desk.offer("a")

    desk.do(deduct("130", upstream_id=offer))

    assert (desk.line().balance, desk.line().flags) == (-30_00, {Flag.OVERDRAWN})


def test_a_source_that_comes_again_under_its_offer_is_deducted_once(desk: Desk) -> None:
    offer = desk.offer("a")
    desk.do(authorize("10", upstream_id=offer))
    desk.do(deduct("10", session_id=None, upstream_id=offer))
    assert holds(desk) == {offer: 10_00}

    outcome = desk.do(deduct("10", upstream_id=offer))

    assert outcome.reason == Reason.ALREADY_DEDUCTED
    assert (holds(desk), desk.line().balance) == ({}, 90_00)


def test_a_line_can_not_take_the_name_of_an_offer(desk: Desk) -> None:
    with pytest.raises(AlreadyExists):
        desk.do(issue(1_00, desk.offer("a")))
