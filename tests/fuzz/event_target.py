"""The fuzz target of Digital River's events: read, rendered anew, and applied to a ledger in memory."""

from __future__ import annotations

import json
from typing import Any

from store_credit.body import loads
from store_credit.errors import BadRequest
from store_credit.ledger.commands import Cause, Deduct
from store_credit.ledger.refusals import OutOfRange
from store_credit.webhooks.effects import state_of, steps, told
from store_credit.webhooks.event_types import DEDUCTING, ENDING, RETURNING
from store_credit.webhooks.events import Event, MalformedEvent, read
from tests.fuzz.choices import ODD_NUMBERS, ODD_VALUES, Choices
from tests.making import Desk, issue

TYPES = [*sorted(DEDUCTING | ENDING | RETURNING), "order.complete"]
STATES = ("complete", "complete", "pending", "cancelled", "blocked", None)
SOURCE_IDS = ("s1", "s2", "s3")
ISSUED = 500_00

Json = dict[str, Any]


def events(given: bytes) -> None:
    """Events are read or refused; a body that is rendered anew has the same effects; money stays whole."""
    choices = Choices(given)
    if choices.chance(8):
        _read(choices.rest())
        return
    # The last decisions first: how it is rendered anew.
    rendering = Choices(choices.taken(8))
    desk = Desk()
    for name, currency in (("line-1", "USD"), ("line-2", "EUR")):
        desk.do(issue(ISSUED, name, currency=currency))
    for number in range(choices.between(1, 4)):
        document = _event(choices, number)
        event = _read(json.dumps(document).encode())
        again = _read(_render(document, rendering).encode())
        assert event == again
        if event is not None and again is not None:
            assert event.fingerprint == again.fingerprint
            assert _effects(event) == _effects(again)
            _apply(desk, event)


def _read(body: bytes) -> Event | None:
    try:
        document, finite = loads(body)
        return read(document) if finite else None
    except (BadRequest, MalformedEvent):
        return None


def _effects(event: Event) -> list[Json]:
    effects = [step.effect for step in steps(event, "evt_1", Cause("fuzz"))]
    json.dumps(effects, allow_nan=False).encode("ascii")
    for spent in event.spent:
        assert type(spent.amount).__name__ in ("Decimal", "NoneType")
        assert spent.problem or (spent.source_id and spent.amount is not None)
    return effects


def _apply(desk: Desk, event: Event) -> None:
    """Nothing is booked but what was spent, and no more comes back than that."""
    planned = steps(event, f"receipt of {event.id}", Cause("fuzz", event_id=event.id))
    outcomes = []
    for step in planned:
        if step.command is None:
            continue
        before = {name: desk.line(name).balance for name in ("line-1", "line-2")}
        try:
            outcomes.append(desk.do(step.command))
        except OutOfRange as error:
            raise AssertionError("an event is never refused") from error
        if isinstance(step.command, Deduct) and outcomes[-1].reason == "deducted":
            assert step.command.amount > 0
            assert sum(desk.line(name).balance - was for name, was in before.items()) <= 0
    for deduction in desk.book.deductions.values():
        assert 0 <= deduction.returned <= deduction.amount
        assert type(deduction.amount) is int
    for name in ("line-1", "line-2"):
        line = desk.line(name)
        booked = [d for d in desk.book.deductions.values() if d.line_id == line.id]
        assert line.balance == ISSUED - sum(d.amount - d.returned for d in booked)
    effects = told(planned, outcomes)
    assert len(effects) == len(planned)
    assert state_of(effects)


def _event(choices: Choices, number: int) -> Json:
    about: Json = {"id": "order-1", "currency": _currency(choices), "state": choices.one_of(STATES)}
    if choices.chance():
        about |= {"checkoutSessionId": choices.one_of(("session-1", "session-2"))}
    payment = {
        "sources": [_source(choices) for _ in range(choices.below(3))],
        "charges": [_charge(choices) for _ in range(choices.below(3))],
    }
    shape = choices.below(4)
    if shape == 0:
        about |= {"payment": payment}
    elif shape == 1:
        about |= payment
    else:
        about |= {"orderId": "order-1"} | _charge(choices)
    _spoil(choices, about)
    envelope = {"id": f"event-{number}", "type": choices.one_of(TYPES), "liveMode": choices.chance()}
    document = envelope | {"createdTime": "2026-11-20T12:00:00.123456Z[UTC]", "data": {"object": about}}
    if choices.chance(16):
        _spoil(choices, document)
    return document


def _spoil(choices: Choices, holder: Json) -> None:
    """Now and then, a field holds something that it should not."""
    if choices.chance(6):
        holder[choices.one_of(sorted(holder))] = choices.one_of((*ODD_VALUES, choices.text()))


def _currency(choices: Choices) -> Any:
    return choices.one_of(("USD", "USD", "USD", "USD", "EUR", "JPY", None, "", "XXX"))


def _amount(choices: Choices) -> Any:
    if choices.chance(6):
        return choices.one_of((*ODD_NUMBERS, *ODD_VALUES))
    return choices.between(1, 60_00) / 100


def _source(choices: Choices) -> Json:
    found = {
        "id": choices.one_of(SOURCE_IDS),
        "type": choices.one_of(("customerCredit", "customerCredit", "customerCredit", "creditCard")),
        "amount": _amount(choices),
        "currency": _currency(choices),
        "upstreamId": choices.one_of(("line-1", "line-1", "line-2", "unknown", None)),
    }
    _spoil(choices, found)
    return found


def _charge(choices: Choices) -> Json:
    found: Json = {
        "id": choices.one_of(("c1", "c2", None)),
        "sourceId": choices.one_of(SOURCE_IDS),
        "amount": _amount(choices),
        "currency": _currency(choices),
        "state": choices.one_of(STATES),
    }
    for kind in choices.several(("cancels", "refunds", "captures"), 2):
        parts = [
            {"id": choices.one_of(("p1", "p2", None)), "amount": _amount(choices), "state": "complete"}
            for _ in range(choices.between(1, 3))
        ]
        found[kind] = parts
    _spoil(choices, found)
    return found


def _render(value: Any, choices: Choices) -> str:
    """The same JSON with other whitespace, order of names, escapes and spellings of numbers."""
    blank = choices.one_of(("", " ", "\n\t", "\r\n"))
    if isinstance(value, dict):
        items = list(value.items())
        if choices.chance():
            items.reverse()
        inner = ("," + blank).join(
            f"{json.dumps(name)}{blank}:{_render(one, choices)}" for name, one in items
        )
        return f"{blank}{{{inner}}}"
    if isinstance(value, list):
        return f"[{blank}{(',' + blank).join(_render(one, choices) for one in value)}]{blank}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=not _encodable(value) or choices.chance())
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return _number(value, choices)


def _encodable(text: str) -> bool:
    return text.isascii() or text.encode("utf-8", "ignore").decode() == text


def _number(value: float, choices: Choices) -> str:
    plain = json.dumps(value)
    if "e" in plain.lower():
        return plain.upper() if choices.chance() else plain
    if isinstance(value, int):
        return plain if abs(value) > 2**53 else choices.one_of((plain, f"{plain}.0", f"{plain}e0"))
    return choices.one_of((plain, f"{plain}0", f"{plain}000", f"{plain}e0", f"{plain}E+00"))
