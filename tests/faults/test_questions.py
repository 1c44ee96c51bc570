"""The check itself: it must find what is lost, doubled or made up."""

from __future__ import annotations

import pytest

from tests.faults.questions import Attempt, Ledger, Question, check

APPROVED = {"approval": True, "upstreamId": "line", "amount": 2}


def asked(kind: str, *statuses: int | None, answer: dict[str, object] | None = None) -> Question:
    attempts = [
        Attempt(f"{kind}-{n}", 0.1, status, dict(answer or {})) for n, status in enumerate(statuses)
    ]
    return Question(kind, "key", [2.00], "POST", "/", attempts=attempts)


def ledger(*, effects: dict[str, list[int]] | None = None, **more: dict[str, list[str]]) -> Ledger:
    by_key = {(kind, "key"): amounts for kind, amounts in (effects or {}).items()}
    return Ledger(by_key, more.get("decisions", {}), more.get("events", {}), set())


@pytest.mark.parametrize("kept", [{}, {"held-0": ["approved"]}])
def test_what_got_no_answer_may_be_there_or_not(kept: dict[str, list[str]]) -> None:
    check([asked("held", None)], ledger(effects={"held": [200]} if kept else {}, decisions=kept))


def test_what_was_answered_after_a_second_try_is_there_once() -> None:
    question = asked("held", 503, 200, answer=APPROVED)
    check([question], ledger(effects={"held": [200]}, decisions={"held-1": ["approved"]}))


@pytest.mark.parametrize(
    "found",
    [
        ledger(decisions={"held-1": ["approved"]}),
        ledger(effects={"held": [200]}),
        ledger(effects={"held": [200, 200]}, decisions={"held-1": ["approved"]}),
        ledger(effects={"held": [100]}, decisions={"held-1": ["approved"]}),
        ledger(effects={"held": [200]}, decisions={"held-1": ["approved"] * 2}),
        ledger(effects={"held": [200]}, decisions={"held-1": ["approved"], "stranger": ["approved"]}),
        ledger(effects={"held": [200], "released": [200]}, decisions={"held-1": ["approved"]}),
    ],
    ids=["lost", "undecided", "doubled", "another amount", "decided twice", "made up", "ended by nobody"],
)
def test_an_approval_that_is_not_there_once_is_found(found: Ledger) -> None:
    with pytest.raises(AssertionError):
        check([asked("held", None, 200, answer=APPROVED)], found)


@pytest.mark.parametrize(
    "found",
    [
        ledger(events={"key": ["applied"]}),
        ledger(effects={"deducted": [200]}),
        ledger(effects={"deducted": [200, 200]}, events={"key": ["applied"]}),
        ledger(effects={"deducted": [200]}, events={"key": ["applied", "applied"]}),
    ],
    ids=["lost", "not kept", "doubled", "kept twice"],
)
def test_an_event_that_is_not_there_once_is_found(found: Ledger) -> None:
    with pytest.raises(AssertionError):
        check([asked("deducted", 503, 200)], found)


def test_what_was_declined_holds_nothing() -> None:
    question = asked("held", 200, answer={"approval": False, "upstreamId": "line"})
    check([question], ledger(decisions={"held-0": ["insufficient_credit"]}))
    with pytest.raises(AssertionError):
        check([question], ledger(effects={"held": [200]}, decisions={"held-0": ["insufficient_credit"]}))
