"""The rules, case by case: section by section what may happen to credit, and what may not.

A `Desk` holds a whole ledger in memory; amounts in commands are decimals, figures are minor units.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from store_credit.ledger.commands import Policy
from store_credit.ledger.journal import entry_hash
from store_credit.ledger.refusals import AlreadyExists
from store_credit.ledger.state import Entry, EntryKind, Flag, HoldState, Line, LineStatus, Reason
from tests.making import DAY, HOUR, NOON, Desk, authorize, deduct, issue, release, settle


@pytest.fixture
def desk() -> Desk:
    """One active line with 100.00 USD."""
    opened = Desk()
    opened.do(issue(100_00))
    return opened


def figures(line: Line) -> tuple[int, int]:
    return line.balance, line.held


def with_status(desk: Desk, status: LineStatus) -> None:
    desk.book.add_line(desk.line()._replace(status=status))


# Issue


def test_a_new_line_is_worth_what_was_issued(desk: Desk) -> None:
    assert figures(desk.line()) == (100_00, 0)
    assert desk.kinds() == ["issued"]


def test_an_upstream_id_is_unique_for_ever(desk: Desk) -> None:
    with pytest.raises(AlreadyExists):
        desk.do(issue(1_00))

    assert desk.line().balance == 100_00


# Authorize


def test_an_amount_up_to_what_is_available_is_approved_in_full(desk: Desk) -> None:
    outcome = desk.do(authorize("100.00"))

    assert (outcome.accepted, outcome.reason) == (True, Reason.APPROVED)
    assert outcome.hold is not None
    assert (outcome.hold.amount, outcome.hold.expires_at) == (100_00, NOON + DAY)
    assert figures(desk.line()) == (100_00, 100_00)
    assert desk.available() == 0


def test_an_unknown_line_is_declined(desk: Desk) -> None:
    outcome = desk.do(authorize("1", upstream_id="unknown"))

    assert (outcome.accepted, outcome.reason) == (False, Reason.UNKNOWN_LINE)
    assert outcome.line is None


@pytest.mark.parametrize(
    ("status", "reason"),
    [(LineStatus.SUSPENDED, Reason.LINE_SUSPENDED), (LineStatus.CLOSED, Reason.LINE_CLOSED)],
)
def test_a_line_that_is_not_active_is_declined(desk: Desk, status: LineStatus, reason: Reason) -> None:
    with_status(desk, status)

    outcome = desk.do(authorize("1"))

    assert (outcome.accepted, outcome.reason) == (False, reason)


def test_a_line_is_expired_from_its_expiry_on() -> None:
    desk = Desk()
    desk.do(issue(expires_at=NOON + HOUR))

    desk.clock.now = NOON + HOUR - timedelta(microseconds=1)
    assert desk.do(authorize("1", "early")).accepted
    desk.clock.now = NOON + HOUR
    late = desk.do(authorize("1", "late"))

    assert (late.accepted, late.reason) == (False, Reason.LINE_EXPIRED)


@pytest.mark.parametrize("amount", ["0", "-1", "10.129", "1E+13", "1E+30"])
def test_a_number_that_is_no_amount_is_declined(desk: Desk, amount: str) -> None:
    outcome = desk.do(authorize(amount))

    assert (outcome.accepted, outcome.reason) == (False, Reason.INVALID_AMOUNT)
    assert outcome.detail
    assert figures(desk.line()) == (100_00, 0)


def test_a_line_that_takes_no_holds_says_so_before_it_looks_at_the_amount(desk: Desk) -> None:
    with_status(desk, LineStatus.SUSPENDED)

    assert desk.do(authorize("0")).reason == Reason.LINE_SUSPENDED


def test_float_noise_is_the_minor_unit_next_to_it(desk: Desk) -> None:
    outcome = desk.do(authorize("53.769999999999996"))

    assert outcome.hold is not None
    assert outcome.hold.amount == 53_77


def test_a_session_whose_order_was_deducted_is_declined(desk: Desk) -> None:
    desk.do(authorize("10"))
    desk.do(deduct("10"))

    outcome = desk.do(authorize("10"))

    assert (outcome.accepted, outcome.reason) == (False, Reason.SESSION_COMPLETED)
    assert desk.do(authorize("10", "another session")).accepted


def test_a_session_is_completed_on_the_line_that_it_spent_alone(desk: Desk) -> None:
    desk.do(issue(50_00, "line-2"))
    desk.do(deduct("10"))

    assert desk.do(authorize("10", upstream_id="line-2")).accepted


def test_the_session_s_open_hold_is_replaced(desk: Desk) -> None:
    first = desk.do(authorize("80"))
    desk.clock.advance(HOUR)

    outcome = desk.do(authorize("100"))

    assert (outcome.accepted, outcome.reason) == (True, Reason.HOLD_REPLACED)
    assert outcome.hold is not None
    assert first.hold is not None
    assert outcome.hold.id == first.hold.id
    assert (outcome.hold.amount, outcome.hold.expires_at) == (100_00, NOON + HOUR + DAY)
    assert figures(desk.line()) == (100_00, 100_00)
    assert desk.kinds() == ["issued", "held", "hold_changed"]


def test_a_hold_can_be_replaced_by_a_smaller_one(desk: Desk) -> None:
    desk.do(authorize("80"))
    desk.do(authorize("30"))

    assert (desk.line().held, desk.available()) == (30_00, 70_00)


def test_more_than_is_available_is_declined(desk: Desk) -> None:
    desk.do(authorize("60", "another session"))

    outcome = desk.do(authorize("40.01"))

    assert (outcome.accepted, outcome.reason) == (False, Reason.INSUFFICIENT_CREDIT)
    assert desk.line().held == 60_00


def test_a_declined_replacement_leaves_the_earlier_hold_as_it_was(desk: Desk) -> None:
    desk.do(authorize("60"))
    desk.clock.advance(HOUR)

    outcome = desk.do(authorize("100.01"))

    assert outcome.reason == Reason.INSUFFICIENT_CREDIT
    (hold,) = desk.book.holds_of(desk.line().id).values()
    assert (hold.amount, hold.expires_at) == (60_00, NOON + DAY)


def test_an_expired_hold_is_not_replaced_but_opened_anew(desk: Desk) -> None:
    first = desk.do(authorize("60"))
    desk.clock.advance(DAY)

    outcome = desk.do(authorize("100"))

    assert outcome.reason == Reason.APPROVED
    assert first.hold is not None
    assert outcome.hold is not None
    assert outcome.hold.id != first.hold.id
    assert desk.kinds() == ["issued", "held", "hold_expired", "held"]


# Partial approval


@pytest.mark.parametrize(
    ("line_setting", "service_setting", "approved"),
    [
        (None, False, None),
        (None, True, 100_00),
        (True, False, 100_00),
        (False, True, None),
    ],
)
def test_the_line_s_setting_goes_before_the_service_s(
    line_setting: bool | None, service_setting: bool, approved: int | None
) -> None:
    desk = Desk(Policy(hold_ttl=DAY, partial_approval=service_setting))
    desk.do(issue(100_00, allow_partial=line_setting))

    outcome = desk.do(authorize("120"))

    assert (outcome.hold.amount if outcome.hold else None) == approved
    expected = Reason.APPROVED_PARTIALLY if approved else Reason.INSUFFICIENT_CREDIT
    assert outcome.reason == expected


def test_nothing_is_never_approved_partially() -> None:
    desk = Desk()
    desk.do(issue(100_00, allow_partial=True))
    desk.do(authorize("100", "another session"))

    assert desk.do(authorize("1")).reason == Reason.INSUFFICIENT_CREDIT


def test_a_replaced_hold_counts_as_available_for_a_partial_approval() -> None:
    desk = Desk()
    desk.do(issue(100_00, allow_partial=True))
    desk.do(authorize("40"))

    outcome = desk.do(authorize("500"))

    assert (outcome.reason, desk.line().held) == (Reason.APPROVED_PARTIALLY, 100_00)


# Release


def test_the_one_open_hold_is_released(desk: Desk) -> None:
    desk.do(authorize("60"))

    outcome = desk.do(release())

    assert (outcome.accepted, outcome.reason) == (True, Reason.RELEASED)
    assert outcome.hold is not None
    assert outcome.hold.state == HoldState.RELEASED
    assert (figures(desk.line()), desk.available()) == ((100_00, 0), 100_00)


def test_of_several_open_holds_none_is_released(desk: Desk) -> None:
    desk.do(authorize("10", "a"))
    desk.do(authorize("20", "b"))

    outcome = desk.do(release())

    assert (outcome.accepted, outcome.reason) == (False, Reason.SEVERAL_HOLDS)
    assert desk.line().held == 30_00


def test_an_expired_hold_does_not_make_a_release_ambiguous(desk: Desk) -> None:
    desk.do(authorize("10", "a"))
    desk.clock.advance(DAY)
    desk.do(authorize("20", "b"))

    assert desk.do(release()).reason == Reason.RELEASED
    assert desk.line().held == 0


@pytest.mark.parametrize(
    ("upstream_id", "reason"), [("line-1", Reason.NOTHING_HELD), ("unknown", Reason.UNKNOWN_LINE)]
)
def test_nothing_happens_where_nothing_is_held(desk: Desk, upstream_id: str, reason: Reason) -> None:
    outcome = desk.do(release(upstream_id))

    assert (outcome.accepted, outcome.reason) == (False, reason)
    assert desk.kinds() == ["issued"]


def test_a_second_removal_notice_does_nothing(desk: Desk) -> None:
    desk.do(authorize("10"))
    desk.do(release())

    assert desk.do(release()).reason == Reason.NOTHING_HELD
    assert desk.kinds() == ["issued", "held", "released"]


# Deduct


def test_a_deduction_consumes_the_session_s_hold(desk: Desk) -> None:
    desk.do(authorize("60"))

    outcome = desk.do(deduct("60"))

    assert (outcome.accepted, outcome.reason) == (True, Reason.DEDUCTED)
    assert figures(desk.line()) == (40_00, 0)
    assert desk.kinds() == ["issued", "held", "deducted"]
    assert not desk.line().flags


def test_what_the_hold_held_beyond_the_order_is_available_again(desk: Desk) -> None:
    desk.do(authorize("60"))
    desk.do(deduct("25"))

    assert (figures(desk.line()), desk.available()) == ((75_00, 0), 75_00)


def test_a_deduction_touches_no_other_session_s_hold(desk: Desk) -> None:
    desk.do(authorize("60", "another session"))
    desk.do(deduct("25"))

    assert figures(desk.line()) == (75_00, 60_00)


def test_a_deduction_without_a_session_touches_no_hold(desk: Desk) -> None:
    desk.do(authorize("60"))
    desk.do(deduct("40", session_id=None))

    assert figures(desk.line()) == (60_00, 60_00)


def test_a_source_is_deducted_once_for_ever(desk: Desk) -> None:
    desk.do(deduct("25"))

    again = desk.do(deduct("25"))

    assert (again.accepted, again.reason) == (True, Reason.ALREADY_DEDUCTED)
    assert desk.line().balance == 75_00


def test_a_source_that_comes_again_with_a_session_ends_its_hold(desk: Desk) -> None:
    desk.do(authorize("60"))
    desk.do(deduct("40", session_id=None))

    again = desk.do(deduct("40"))

    assert again.reason == Reason.ALREADY_DEDUCTED
    assert figures(desk.line()) == (60_00, 0)
    assert desk.do(authorize("10")).reason == Reason.SESSION_COMPLETED


def test_a_source_that_comes_again_may_leave_out_the_line(desk: Desk) -> None:
    desk.do(authorize("60"))
    desk.do(deduct("40", session_id=None))

    again = desk.do(deduct("40", upstream_id=None))

    assert again.reason == Reason.ALREADY_DEDUCTED
    assert figures(desk.line()) == (60_00, 0)


@pytest.mark.parametrize(
    ("amount", "upstream_id", "currency"),
    [("26", "line-1", None), ("25", "line-2", None), ("25", "unknown", None), ("25", "line-1", "EUR")],
)
def test_a_source_that_contradicts_its_deduction_is_flagged(
    desk: Desk, amount: str, upstream_id: str, currency: str | None
) -> None:
    desk.do(issue(100_00, "line-2"))
    desk.do(deduct("25"))

    outcome = desk.do(deduct(amount, upstream_id=upstream_id, currency=currency))

    assert (outcome.accepted, outcome.reason) == (False, Reason.SOURCE_CONFLICT)
    assert outcome.detail
    assert Flag.SOURCE_CONFLICT in desk.line().flags
    assert (desk.line().balance, desk.line("line-2").balance) == (75_00, 100_00)


def test_a_deduction_after_its_hold_expired_is_booked(desk: Desk) -> None:
    desk.do(authorize("60"))
    desk.clock.advance(DAY)

    outcome = desk.do(deduct("60"))

    assert outcome.reason == Reason.DEDUCTED
    assert figures(desk.line()) == (40_00, 0)
    assert desk.kinds() == ["issued", "held", "hold_expired", "deducted"]


def test_a_deduction_beyond_its_hold_is_booked(desk: Desk) -> None:
    desk.do(authorize("10"))
    desk.do(deduct("70"))

    assert figures(desk.line()) == (30_00, 0)
    assert not desk.line().flags


@pytest.mark.parametrize("status", [LineStatus.SUSPENDED, LineStatus.CLOSED])
def test_a_line_that_is_not_active_is_deducted_all_the_same(desk: Desk, status: LineStatus) -> None:
    with_status(desk, status)

    assert desk.do(deduct("25")).reason == Reason.DEDUCTED
    assert desk.line().balance == 75_00


def test_a_deduction_below_zero_is_booked_and_flagged(desk: Desk) -> None:
    outcome = desk.do(deduct("130"))

    assert outcome.reason == Reason.DEDUCTED
    assert figures(desk.line()) == (-30_00, 0)
    assert desk.line().flags == {Flag.OVERDRAWN}
    assert desk.available() == 0


def test_a_deduction_below_what_is_held_is_booked_and_flagged(desk: Desk) -> None:
    desk.do(authorize("80", "another session"))
    desk.do(deduct("30"))

    assert figures(desk.line()) == (70_00, 80_00)
    assert desk.line().flags == {Flag.OVERDRAWN}
    assert desk.available() == 0


@pytest.mark.parametrize(
    ("upstream_id", "currency", "amount", "reason"),
    [
        (None, None, "10", Reason.NO_UPSTREAM_ID),
        ("unknown", None, "10", Reason.UNKNOWN_LINE),
        ("line-1", "EUR", "10", Reason.OTHER_CURRENCY),
        ("line-1", "USD", "0", Reason.INVALID_AMOUNT),
        ("line-1", "USD", "-10", Reason.INVALID_AMOUNT),
        ("line-1", "USD", "1.005", Reason.INVALID_AMOUNT),
    ],
)
def test_what_matches_no_line_is_not_deducted(
    desk: Desk, upstream_id: str | None, currency: str | None, amount: str, reason: Reason
) -> None:
    outcome = desk.do(deduct(amount, upstream_id=upstream_id, currency=currency))

    assert (outcome.accepted, outcome.reason) == (False, reason)
    assert desk.kinds() == ["issued"]
    assert desk.do(deduct("10")).reason == Reason.DEDUCTED


# Expiry and write-off


@pytest.fixture
def expiring() -> Desk:
    """One line with 100.00 USD that expires in two hours; holds live for a day."""
    desk = Desk()
    desk.do(issue(100_00, expires_at=NOON + 2 * HOUR))
    return desk


def test_an_expired_line_is_written_off(expiring: Desk) -> None:
    expiring.clock.advance(2 * HOUR)
    expiring.do(settle(expiring.line().id))

    assert figures(expiring.line()) == (0, 0)
    assert expiring.line().written_off == 100_00
    assert expiring.kinds() == ["issued", "expired"]


def test_a_hold_protects_its_credit_from_expiry(expiring: Desk) -> None:
    expiring.do(authorize("60"))
    expiring.clock.advance(2 * HOUR)
    expiring.do(settle(expiring.line().id))

    assert figures(expiring.line()) == (60_00, 60_00)
    assert expiring.do(deduct("60")).reason == Reason.DEDUCTED
    assert (figures(expiring.line()), expiring.line().written_off) == ((0, 0), 40_00)


def test_credit_that_a_hold_protected_is_written_off_when_it_ends(expiring: Desk) -> None:
    expiring.do(authorize("60"))
    expiring.clock.advance(2 * HOUR)
    expiring.do(release())

    assert figures(expiring.line()) == (0, 0)
    assert expiring.line().written_off == 100_00


def test_what_a_deduction_leaves_of_a_protected_hold_is_written_off(expiring: Desk) -> None:
    expiring.do(authorize("60"))
    expiring.clock.advance(2 * HOUR)
    expiring.do(deduct("45"))

    assert (figures(expiring.line()), expiring.line().written_off) == ((0, 0), 55_00)


def test_a_deduction_from_an_expired_line_brings_back_what_it_needs(expiring: Desk) -> None:
    expiring.clock.advance(2 * HOUR)
    expiring.do(deduct("30"))

    assert (figures(expiring.line()), expiring.line().written_off) == ((0, 0), 70_00)
    assert expiring.kinds() == ["issued", "expired", "write_off_reversed", "deducted"]
    assert not expiring.line().flags


def test_no_more_comes_back_than_was_written_off(expiring: Desk) -> None:
    expiring.clock.advance(2 * HOUR)
    expiring.do(deduct("130"))

    assert (figures(expiring.line()), expiring.line().written_off) == ((-30_00, 0), 0)
    assert expiring.line().flags == {Flag.OVERDRAWN}


def test_settling_releases_the_holds_past_their_time_and_no_others(desk: Desk) -> None:
    desk.do(authorize("10", "a"))
    desk.clock.advance(HOUR)
    desk.do(authorize("20", "b"))
    desk.clock.advance(DAY - HOUR)

    outcome = desk.do(settle(desk.line().id))

    assert outcome.reason == Reason.SETTLED
    assert desk.line().held == 20_00
    assert desk.kinds()[-1] == "hold_expired"


def test_settling_a_settled_line_changes_nothing(expiring: Desk) -> None:
    expiring.clock.advance(2 * HOUR)
    expiring.do(settle(expiring.line().id))
    settled = expiring.line()

    expiring.do(settle(settled.id))

    assert expiring.line() == settled


def test_settling_an_unknown_line_does_nothing(desk: Desk) -> None:
    assert desk.do(settle("cl_unknown")).reason == Reason.UNKNOWN_LINE


def test_a_clock_that_jumps_back_revives_no_hold(desk: Desk) -> None:
    desk.do(authorize("60"))
    desk.clock.advance(DAY)
    desk.do(settle(desk.line().id))
    desk.clock.now = NOON

    assert desk.do(release()).reason == Reason.NOTHING_HELD
    assert desk.entries[-1].created_at == NOON + DAY


def test_a_clock_that_jumps_back_revives_no_line(expiring: Desk) -> None:
    expiring.clock.advance(2 * HOUR)
    expiring.do(settle(expiring.line().id))
    expiring.clock.now = NOON

    assert expiring.do(authorize("1")).reason == Reason.LINE_EXPIRED


# The journal


def test_what_expires_is_caused_by_time_and_not_by_who_noticed(desk: Desk) -> None:
    desk.do(authorize("60"))
    desk.clock.advance(DAY)
    desk.do(deduct("10"))

    assert [entry.actor for entry in desk.entries] == ["test", "test", "system", "test"]


def test_entries_are_numbered_from_one_and_chained(desk: Desk) -> None:
    desk.do(authorize(Decimal("60")))
    desk.do(deduct("60"))

    assert [entry.seq for entry in desk.entries] == [1, 2, 3]
    hashes = ["0" * 64, *(entry.hash for entry in desk.entries)]
    assert [entry.previous_hash for entry in desk.entries] == hashes[:-1]
    assert desk.line().head_hash == hashes[-1]


@pytest.mark.parametrize("field", [name for name in Entry._fields if name != "hash"])
def test_an_entry_s_hash_covers_what_it_says(desk: Desk, field: str) -> None:
    (entry,) = desk.entries
    other = NOON + timedelta(days=1) if field == "created_at" else "other"
    changed = entry._replace(**{field: other})

    assert entry_hash(entry) == entry.hash
    assert entry_hash(changed) != entry.hash


def test_an_entry_s_hash_is_what_it_was_in_earlier_versions() -> None:
    """Journals outlive versions: any other order or form of the fields would make all of them wrong."""
    entry = Entry(
        line_id="cl_1",
        seq=2,
        kind=EntryKind.DEDUCTED,
        amount=-300,
        held=-400,
        balance_after=700,
        held_after=50,
        created_at=datetime(2026, 11, 27, 12, tzinfo=UTC),
        actor="digital-river",
        hold_id="hold_1",
        deduction_id="ded_1",
        event_id="evt_1",
        reason="caf\u00e9",
        idempotency_key="key_1",
        previous_hash="0" * 64,
        hash="",
    )

    assert entry_hash(entry) == "a1d6bf57befe17c837b2a1ca98af0c40260f30b2b36bacbdc7ae0e7230311696"


@given(reason=st.text(), amount=st.integers(-(2**63), 2**63 - 1))
@example(reason="\x7f", amount=0)
@example(reason='\x00\x1f\b\t\n\f\r"\\/', amount=0)
@example(reason="caf\u00e9 \U0001f600", amount=0)
def test_an_entry_s_hash_is_of_its_fields_as_python_s_own_json_in_ascii(reason: str, amount: int) -> None:
    """Journals outlive encoders: whichever writes that text, it must be the same."""
    entry = Entry(
        line_id="cl_1",
        seq=2,
        kind=EntryKind.HELD,
        amount=0,
        held=amount,
        balance_after=700,
        held_after=50,
        created_at=datetime(2026, 11, 27, 12, tzinfo=UTC),
        actor="digital-river",
        hold_id="hold_1",
        deduction_id=None,
        event_id=None,
        reason=reason,
        idempotency_key=None,
        previous_hash="0" * 64,
        hash="",
    )
    told = [*entry[:-1]]
    told[Entry._fields.index("created_at")] = "2026-11-27T12:00:00.000000+00:00"
    text = json.dumps(told, ensure_ascii=True, separators=(",", ":"))

    assert entry_hash(entry) == hashlib.sha256(text.encode("ascii")).hexdigest()
