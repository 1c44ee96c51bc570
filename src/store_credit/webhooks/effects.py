"""What an event asks of the ledger, and what became of it: one effect for each source. Pure.

Effects are kept with the event as JSON, and its state follows from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from store_credit import ids, money
from store_credit.ledger.commands import Cause, Command, Deduct, Return
from store_credit.ledger.state import Outcome, Reason
from store_credit.webhooks.came_back import CameBack
from store_credit.webhooks.events import Event, Spent

Effect = dict[str, Any]

MALFORMED = "malformed"
BOOKED_WITH_DEDUCTION = "booked with its deduction"
TOO_MANY_SOURCES = "too_many_sources"

SOURCES_MAX = 500
"""Of one event. A checkout has a few; to book thousands at once would keep all others waiting."""


class EventState(StrEnum):
    APPLIED = "applied"
    IGNORED = "ignored"
    """Kept, and means nothing for store credit."""
    PARKED = "parked"
    """Returns of sources that were not deducted yet; most belong to credit cards and never will be."""
    UNMATCHED = "unmatched"
    """Something in it waits for an operator to say which credit line is meant."""
    FAILED = "failed"
    """Something in it could not be booked. It is tried again."""
    CONFLICT = "conflict"
    """It has the id of another event, and other effects."""
    DISMISSED = "dismissed"
    """An operator decided that there is nothing to book."""


_UNMATCHED = frozenset(
    {Reason.UNKNOWN_LINE, Reason.NO_UPSTREAM_ID, Reason.OTHER_CURRENCY, Reason.SOURCE_CONFLICT}
)


@dataclass(frozen=True, slots=True)
class Assignment:
    """An operator's word on which line is meant: for one source, or for all that are unmatched."""

    line_id: str
    source_id: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One effect before it happened, and the command that makes it happen, if one can."""

    effect: Effect
    command: Command | None


def has_too_many_sources(event: Event) -> bool:
    return len(event.spent) + len(event.came_back) > SOURCES_MAX


def steps(event: Event, receipt_id: str, cause: Cause) -> list[Step]:
    """What the event asks of the ledger, deductions before returns; of too many sources, nothing."""
    if has_too_many_sources(event):
        return [Step(_too_many(event), None)]
    return [
        *(Step(_spent_effect(spent), _deduct(event, spent, cause)) for spent in event.spent),
        *(Step(_back_effect(back), _return(event, back, receipt_id, cause)) for back in event.came_back),
    ]


def assigned(planned: Sequence[Step], before: Sequence[Effect], to: Assignment) -> list[Step]:
    """The same steps with the chosen deductions on the operator's line; the others stay as they were."""
    chosen = [step for step in planned if _is_chosen(step, before, to)]
    return [_on_line(step, to) if step in chosen else replace(step, command=None) for step in planned]


def told(
    planned: Sequence[Step], outcomes: Sequence[Outcome], before: Sequence[Effect] = ()
) -> list[Effect]:
    """The effects with what became of them; a step without a command keeps what was known before."""
    remaining = iter(outcomes)
    known = {_key(effect): effect for effect in before}
    deducted = {outcome.deduction.source_id: outcome for outcome in outcomes if outcome.deduction}
    effects: list[Effect] = []
    for step in planned:
        earlier = known.get(_key(step.effect))
        if step.command is not None:
            effects.append({**step.effect, **_result(next(remaining), earlier)})
        elif earlier is not None and _waited(earlier) and earlier["sourceId"] in deducted:
            # What waited for the operator's line was booked there with the deduction.
            effects.append({**earlier, **_with_deduction(deducted[earlier["sourceId"]])})
        else:
            effects.append(earlier or step.effect)
    return effects


def state_of(effects: Sequence[Effect]) -> EventState:
    if not effects:
        return EventState.IGNORED
    states = {_state(effect) for effect in effects}
    for state in (EventState.FAILED, EventState.UNMATCHED, EventState.APPLIED):
        if state in states:
            return state
    return EventState.PARKED


def _state(effect: Effect) -> EventState:
    outcome = effect["outcome"]
    if outcome == TOO_MANY_SOURCES:
        return EventState.UNMATCHED
    if outcome is None or outcome in (MALFORMED, Reason.INVALID_AMOUNT):
        return EventState.FAILED
    if outcome in _UNMATCHED:
        return EventState.UNMATCHED if effect["kind"] == "deduct" else EventState.FAILED
    return EventState.PARKED if outcome == Reason.PARKED else EventState.APPLIED


def _key(effect: Effect) -> tuple[str, str | None]:
    return effect["kind"], effect["sourceId"]


def _is_chosen(step: Step, before: Sequence[Effect], to: Assignment) -> bool:
    if not isinstance(step.command, Deduct):
        return False
    if to.source_id is not None:
        return step.command.source_id == to.source_id
    known = {_key(effect): effect for effect in before}.get(_key(step.effect))
    deductions = [effect for effect in before if effect["kind"] == "deduct"]
    return known is None or _state(known) == EventState.UNMATCHED or len(deductions) == 1


def _on_line(step: Step, to: Assignment) -> Step:
    assert isinstance(step.command, Deduct)
    return replace(step, command=step.command._replace(line_id=to.line_id))


def _too_many(event: Event) -> Effect:
    found = len(event.spent) + len(event.came_back)
    detail = f"{found} sources, and at most {SOURCES_MAX} are booked: an operator must see to them"
    effect = _effect("deduct" if event.spent else "return", None, None, None)
    return effect | {"outcome": TOO_MANY_SOURCES, "detail": detail}


def _spent_effect(spent: Spent) -> Effect:
    return _effect("deduct", spent.source_id, spent.currency, spent.problem) | {
        "upstreamId": spent.upstream_id,
        "amount": float(spent.amount) if spent.amount is not None else None,
    }


def _back_effect(back: CameBack) -> Effect:
    return _effect("return", back.source_id, back.currency, back.problem)


def _effect(kind: str, source_id: str | None, currency: str | None, problem: str | None) -> Effect:
    return {
        "kind": kind,
        "sourceId": source_id,
        "upstreamId": None,
        "amount": None,
        "currency": currency,
        "outcome": MALFORMED if problem else None,
        "detail": problem,
        "creditLineId": None,
        "deductionId": None,
    }


def _result(outcome: Outcome, before: Effect | None) -> Effect:
    result: Effect = {
        "outcome": outcome.reason.value,
        "detail": outcome.detail,
        "creditLineId": outcome.line.id if outcome.line else None,
        "deductionId": outcome.deduction.id if outcome.deduction else None,
    }
    if outcome.line is not None and outcome.reason in (Reason.RETURNED, Reason.NOTHING_NEW):
        result["amount"] = money.to_number(outcome.returned, outcome.line.currency)
        result["currency"] = outcome.line.currency
    if outcome.reason == Reason.NOTHING_NEW and before is not None and _waited(before):
        return _with_deduction(outcome)
    return result


def _with_deduction(outcome: Outcome) -> Effect:
    """What became of a return that waited for its deduction.

    All that waited was booked as one amount: how much of it this event told is not known.
    """
    assert outcome.line is not None
    assert outcome.deduction is not None
    return {
        "outcome": Reason.RETURNED.value,
        "detail": BOOKED_WITH_DEDUCTION,
        "creditLineId": outcome.line.id,
        "deductionId": outcome.deduction.id,
        "amount": None,
        "currency": outcome.line.currency,
    }


def _waited(effect: Effect) -> bool:
    return bool(effect["kind"] == "return" and effect["outcome"] == Reason.PARKED)


def _deduct(event: Event, spent: Spent, cause: Cause) -> Deduct | None:
    if spent.problem is not None or spent.source_id is None or spent.amount is None:
        return None
    return Deduct(
        source_id=spent.source_id,
        upstream_id=spent.upstream_id,
        order_id=event.order_id,
        session_id=event.session_id,
        amount=spent.amount,
        currency=spent.currency,
        deduction_id=ids.mint("ded"),
        cause=cause,
    )


def _return(event: Event, back: CameBack, receipt_id: str, cause: Cause) -> Return | None:
    if back.problem is not None or back.source_id is None:
        return None
    return Return(
        source_id=back.source_id,
        order_id=event.order_id,
        currency=back.currency,
        what=back.what,
        cause=cause,
        cancels=back.cancels,
        refunds=back.refunds,
        captured=None if back.charges else back.captured,
        charges=back.charges,
        everything=back.everything,
        # An event that also deducts is more than a return that waits: its state is not settled by that.
        reference=receipt_id if not event.spent else None,
    )
