"""What waits for an operator, and what failed: applied by hand, moved, dismissed, tried again, pruned."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, select

from store_credit.credentials import Role
from store_credit.ledger import orders, returns
from store_credit.ledger.audit import audit
from store_credit.webhooks import inbox, upkeep
from store_credit.webhooks.tables import webhook_event
from tests.http_fixtures import MERCHANT, Json, Shop, Start, decoded, order_event, problem_of, source
from tests.making import DAY, HOUR
from tests.webhooks.payloads import refund_event

pytest_plugins = ["tests.http_fixtures"]

MOMENT = timedelta(milliseconds=1)
MAIL = "shopper@example.test"


async def ask(shop: Shop, verb: str, event_id: str = "event-1", **body: Any) -> httpx.Response:
    path = f"/webhook-events/{event_id}/{verb}"
    return await shop.client.post(path, json=body, auth=MERCHANT)


async def apply(shop: Shop, line: Json | None = None, event_id: str = "event-1", **body: Any) -> str:
    """Apply an event, to a line if one is given; returns its state."""
    named = {"creditLineId": line["id"]} if line else {}
    state: str = decoded(await ask(shop, "apply", event_id, **named, **body))["state"]
    return state


async def balance(shop: Shop, upstream_id: str = "line-1") -> float:
    return (await shop.figures(upstream_id))[0]


async def state_of(shop: Shop, event_id: str = "event-1") -> str:
    state: str = (await shop.get(f"/webhook-events/{event_id}"))["state"]
    return state


def nameless(*sources: Json, **more: Any) -> Json:
    """An order of a connector that sends no upstreamId."""
    told = sources or (source(amount=20, upstream_id=None),)
    return order_event(*told, **{"email": MAIL} | more)


async def tend(shop: Shop) -> None:
    await upkeep.tend(shop.service.ledger, shop.service.settings)


# Applied to a line


async def test_an_unmatched_order_is_shown_with_all_that_helps(shop: Shop) -> None:
    held = await shop.issue(30, "held")
    rich = await shop.issue(50, "rich", customerId=MAIL)
    poor = await shop.issue(5, "poor", customerId=MAIL)
    await shop.issue(100, "euros", customerId=MAIL, currency="EUR")
    await shop.issue(100, "another's")
    await shop.authorize(20, upstream_id="held")
    assert await shop.deliver(nameless()) == "unmatched"
    shown = await shop.get("/webhook-events/event-1")
    assert (shown["email"], shown["orderId"]) == (MAIL, "order-1")
    (effect,) = shown["effects"]
    assert (effect["amount"], effect["currency"], effect["outcome"]) == (20, "USD", "no_upstream_id")
    assert [line["id"] for line in shown["candidates"]] == [held["id"], rich["id"], poor["id"]]


async def test_an_operator_names_the_line(shop: Shop) -> None:
    line = await shop.issue(100)
    await shop.authorize(20)
    await shop.deliver(nameless())
    assert await apply(shop, line, reason="asked the shopper") == "applied"
    assert await shop.figures() == (80, 0, 80)
    entry = (await shop.history("entries"))[-1]
    assert (entry["actor"], entry["reason"]) == ("merchant", "asked the shopper")
    assert entry["eventId"] == "event-1"
    assert (await shop.get("/webhook-events/event-1"))["candidates"] == []
    assert await apply(shop, line) == "applied"
    assert await shop.deliver(nameless()) == "applied"
    assert await balance(shop) == 80


async def test_an_order_that_names_no_line_s_id_ends_the_hold_on_the_operator_s(shop: Shop) -> None:
    line = await shop.issue(100)
    await shop.authorize(20)
    assert await shop.deliver(order_event(source(amount=15, upstream_id="no line's"))) == "unmatched"
    assert await apply(shop, line) == "applied"
    assert await shop.figures() == (85, 0, 85)


async def test_one_source_of_several(shop: Shop) -> None:
    first, second = await shop.issue(100), await shop.issue(100, "line-2")
    sources = [source("s1", 10, None), source("s2", 20, None)]
    await shop.deliver(nameless(*sources))
    assert await apply(shop, first, sourceId="s1") == "unmatched"
    assert (await balance(shop), await balance(shop, "line-2")) == (90, 100)
    assert await apply(shop, second) == "applied"
    assert (await balance(shop), await balance(shop, "line-2")) == (90, 80)


async def test_a_blocked_order_of_two_sources_waits_for_both(shop: Shop) -> None:
    line = await shop.issue(100)
    sources = [source("s1", 10, None), source("s2", 20, None)]
    assert await shop.deliver(nameless(*sources, state="blocked")) == "unmatched"
    assert await apply(shop, line, sourceId="s1") == "unmatched"
    assert await apply(shop, line, sourceId="s2") == "applied"
    assert await balance(shop) == 100
    assert len(await shop.history("deductions")) == 2


async def test_a_wrong_assignment_is_moved(shop: Shop) -> None:
    wrong, right = await shop.issue(100, "wrong"), await shop.issue(100, "right")
    await shop.authorize(20, upstream_id="right")
    await shop.deliver(nameless())
    await apply(shop, wrong)
    await shop.deliver(refund_event("event-2", {"r1": 5}))
    assert await apply(shop, right, reason="mixed up") == "applied"
    assert await shop.figures("wrong") == (100, 0, 100)
    assert await shop.figures("right") == (85, 0, 85)
    for name, other in (("wrong", right), ("right", wrong)):
        entries = (await shop.history("entries", name))[-2:]
        assert [entry["kind"] for entry in entries] == ["deducted", "returned"]
        for entry in entries:
            assert entry["reason"].startswith("mixed up; moved ")
            assert entry["reason"].endswith(other["id"])
    await shop.deliver(refund_event("event-3", {"r1": 5, "r2": 15}))
    assert (await balance(shop, "wrong"), await balance(shop, "right")) == (100, 100)
    assert await shop.service.database.read(lambda connection: list(audit(connection))) == []


async def test_an_event_that_does_not_know_of_the_move_moves_it_too(shop: Shop) -> None:
    wrong, right = await shop.issue(100, "wrong"), await shop.issue(100, "right")
    await shop.deliver(nameless())
    await shop.deliver(nameless(event_id="event-2", event_type="order.accepted", session_id=None))
    assert await apply(shop, wrong) == "applied"
    assert await apply(shop, right, "event-2") == "applied"
    assert (await balance(shop, "wrong"), await balance(shop, "right")) == (100, 80)
    assert await apply(shop, right, "event-1") == "applied"
    assert (await balance(shop, "wrong"), await balance(shop, "right")) == (100, 80)


async def test_what_else_of_the_order_waited_is_resolved(shop: Shop) -> None:
    line = await shop.issue(100)
    await shop.authorize(20)
    await shop.deliver(nameless())
    accepted = nameless(event_id="event-2", event_type="order.accepted", session_id=None)
    assert await shop.deliver(accepted) == "unmatched"
    assert await shop.deliver(refund_event("event-3", {"r1": 5})) == "parked"
    assert await apply(shop, line, "event-2") == "applied"
    assert {event["state"] for event in await shop.events()} == {"applied"}
    assert await shop.figures() == (85, 0, 85)


async def test_a_line_that_is_issued_later_is_found_by_applying_again(shop: Shop) -> None:
    assert await shop.deliver(order_event(source(amount=20))) == "unmatched"
    await shop.issue(100)
    assert await apply(shop) == "applied"
    assert await balance(shop) == 80


# Refused


async def test_a_line_that_does_not_fit_is_refused(shop: Shop) -> None:
    line, euros = await shop.issue(100), await shop.issue(100, "euros", currency="EUR")
    await shop.deliver(nameless())
    for body in (
        {"creditLineId": "cl_nowhere"},
        {"creditLineId": euros["id"]},
        {"creditLineId": line["id"], "sourceId": "unknown"},
        {"sourceId": "source-1"},
        {"creditLineId": line["id"], "note": "unknown field"},
    ):
        problem_of(await ask(shop, "apply", **body), 400, "bad_request")
    assert await state_of(shop) == "unmatched"
    await apply(shop, line)
    problem_of(await ask(shop, "apply", creditLineId=euros["id"]), 400, "bad_request")
    assert (await balance(shop), await balance(shop, "euros")) == (80, 100)


async def test_a_refund_can_not_be_given_a_line(shop: Shop) -> None:
    line = await shop.issue(100)
    await shop.deliver(refund_event("event-1", {"r1": 5}))
    problem_of(await ask(shop, "apply", creditLineId=line["id"]), 400, "bad_request")


async def test_an_unknown_event_is_not_found(shop: Shop) -> None:
    for verb, body in (("apply", {}), ("dismiss", {"reason": "none"})):
        problem_of(await ask(shop, verb, "event-9", **body), 404, "not_found")


async def test_a_dismissed_event_stays_so(shop: Shop) -> None:
    line = await shop.issue(100)
    await shop.deliver(nameless())
    problem_of(await ask(shop, "dismiss"), 400, "bad_request")
    shown = decoded(await ask(shop, "dismiss", reason="another shop's"))
    assert (shown["state"], shown["note"]) == ("dismissed", "merchant: another shop's")
    problem_of(await ask(shop, "apply", creditLineId=line["id"]), 409, "conflict")
    assert await shop.deliver(nameless()) == "dismissed"
    assert await balance(shop) == 100


async def test_what_is_applied_can_not_be_dismissed(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source()))
    problem_of(await ask(shop, "dismiss", reason="changed my mind"), 409, "conflict")


async def test_a_conflict_is_kept_with_what_it_asked_for(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=20)))
    other = await shop.post_event(order_event(source("source-2", 30)))
    problem_of(other, 409, "conflict")
    (kept,) = (await shop.get("/webhook-events/event-1"))["conflicts"]
    assert kept["state"] == "conflict"
    assert [(e["sourceId"], e["amount"]) for e in kept["effects"]] == [("source-2", 30)]
    assert await balance(shop) == 80


async def test_a_conflict_is_dismissed_by_its_receipt(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=20)))
    await shop.post_event(order_event(source("source-2", 30)))
    (kept,) = await shop.events(state="conflict")
    receipt = kept["receiptId"]
    problem_of(await ask(shop, "apply", receipt), 409, "conflict")
    for reason in ("sent by mistake", "sent twice by mistake"):
        shown = decoded(await ask(shop, "dismiss", receipt, reason=reason))
        assert (shown["receiptId"], shown["state"]) == (receipt, "dismissed")
        assert shown["note"] == "merchant: sent by mistake"
    assert await shop.events(state="conflict") == []
    assert [event["receiptId"] for event in await shop.events(state="dismissed")] == [receipt]
    assert "store_credit_unmatched_events 0.0" in (await shop.client.get("/metrics")).text
    (listed,) = (await shop.get("/webhook-events/event-1"))["conflicts"]
    assert (listed["receiptId"], listed["state"]) == (receipt, "dismissed")
    # What came first stays what it is, and what was dismissed does not come back.
    assert await state_of(shop) == "applied"
    assert (await shop.post_event(order_event(source("source-2", 30)))).status_code == 409
    assert await shop.events(state="conflict") == []
    assert await balance(shop) == 80


async def test_an_event_is_named_by_its_receipt_too(shop: Shop) -> None:
    await shop.deliver(nameless())
    shown = await shop.get("/webhook-events/event-1")
    assert await shop.get(f"/webhook-events/{shown['receiptId']}") == shown
    assert decoded(await ask(shop, "dismiss", shown["receiptId"], reason="none"))["state"] == "dismissed"


async def test_the_body_of_a_dismissed_conflict_is_pruned(start: Start) -> None:
    shop = await start(event_retention="1d")
    for amount in (20, 30):
        await shop.post_event(nameless(source(amount=amount, upstream_id=None)))
    (kept,) = await shop.events(state="conflict")
    shop.clock.advance(DAY + HOUR)
    await tend(shop)
    assert (await shop.get(f"/webhook-events/{kept['receiptId']}"))["body"] is not None
    await ask(shop, "dismiss", kept["receiptId"], reason="none")
    await tend(shop)
    assert (await shop.get(f"/webhook-events/{kept['receiptId']}"))["body"] is None


async def test_only_merchants_apply_and_dismiss(shop: Shop) -> None:
    await shop.deliver(nameless())
    password = await shop.add_credential("auditor", Role.READER)
    for verb in ("apply", "dismiss"):
        path, body = f"/webhook-events/event-1/{verb}", {"reason": "why"}
        denied = await shop.client.post(path, json=body, auth=("auditor", password))
        problem_of(denied, 403, "forbidden")
        problem_of(await shop.client.post(path, json=body), 401, "unauthorized")
    assert (await shop.get("/webhook-events/event-1", auth=("auditor", password)))["email"] == MAIL
    assert await state_of(shop) == "unmatched"


# Failures of our own


def break_returns(patch: pytest.MonkeyPatch, source_id: str = "source-1") -> None:
    """A fault in a rule: returns of this source raise."""
    whole = returns.give_back

    def broken(book: Any, command: Any, *more: Any) -> Any:
        if command.source_id == source_id:
            raise ZeroDivisionError("secret value")
        return whole(book, command, *more)

    patch.setattr(returns, "give_back", broken)


async def test_a_failure_is_kept_and_tried_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=20)))
    with monkeypatch.context() as patch:
        break_returns(patch)
        assert await shop.deliver(refund_event("event-2", {"r1": 5})) == "failed"
        assert await shop.deliver(refund_event("event-2", {"r1": 5})) == "failed"
        shown = await shop.get("/webhook-events/event-2")
        assert shown["note"] == "ZeroDivisionError while it was applied"
        problem = problem_of(await ask(shop, "apply", "event-2"), 409, "conflict")
        assert problem["message"].startswith("The event could not be applied")
        assert "secret value" not in problem["message"]
        await tend(shop)
    await tend(shop)
    assert await balance(shop) == 80
    shop.clock.advance(inbox.FIRST_PAUSE)
    await tend(shop)
    assert await balance(shop) == 85
    shown = await shop.get("/webhook-events/event-2")
    assert (shown["state"], shown["note"]) == ("applied", None)


async def test_the_pauses_grow_and_end(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=20)))
    break_returns(monkeypatch)
    tried: list[float] = []
    await shop.deliver(refund_event("event-2", {"r1": 5}))
    apply_again = inbox.apply_again

    async def counted(*given: Any) -> Any:
        tried.append((shop.clock() - start).total_seconds() / 60)
        return await apply_again(*given)

    monkeypatch.setattr(inbox, "apply_again", counted)
    start = shop.clock()
    while (due := await shop.service.database.read(_next_try)) is not None:
        shop.clock.now = due - MOMENT
        await tend(shop)
        shop.clock.now = due
        await tend(shop)
    assert [round(minutes) for minutes in tried] == [1, 5, 21, 85, 341, 1061, 1781, 2501]
    assert await state_of(shop, "event-2") == "failed"


def _next_try(connection: Connection) -> datetime | None:
    return connection.scalar(select(webhook_event.c.retry_at).where(webhook_event.c.retry_at.is_not(None)))


async def test_a_failure_can_be_applied_by_hand(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=20)))
    with monkeypatch.context() as patch:
        break_returns(patch)
        await shop.deliver(refund_event("event-2", {"r1": 5}))
    assert await apply(shop, event_id="event-2") == "applied"
    assert await balance(shop) == 85
    shop.clock.advance(DAY)
    await tend(shop)
    assert await balance(shop) == 85


async def test_what_a_fault_keeps_from_being_applied_stays_as_it_was(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_given: Any) -> Any:
        raise ZeroDivisionError("secret value")

    line = await shop.issue(100)
    await shop.deliver(nameless())
    with monkeypatch.context() as patch:
        patch.setattr(orders, "deduct", broken)
        problem_of(await ask(shop, "apply", creditLineId=line["id"]), 409, "conflict")
        shown = await shop.get("/webhook-events/event-1")
        assert (shown["state"], shown["note"]) == ("unmatched", "ZeroDivisionError while it was applied")
    assert await apply(shop, line) == "applied"
    with monkeypatch.context() as patch:
        patch.setattr(orders, "deduct", broken)
        problem_of(await ask(shop, "apply"), 409, "conflict")
    shown = await shop.get("/webhook-events/event-1")
    assert (shown["state"], shown["note"]) == ("applied", None)
    assert await balance(shop) == 80


async def test_a_failure_never_blocks_others(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.issue(100)
    sources = [source("source-1", 20), source("source-2", 30)]
    await shop.deliver(order_event(*sources))
    with monkeypatch.context() as patch:
        break_returns(patch)
        states = await asyncio.gather(
            *(
                shop.deliver(refund_event(f"event-{n}{i}", {f"r{i}": 1}, f"source-{n}"))
                for n in (1, 2)
                for i in range(5)
            )
        )
        assert states == ["failed"] * 5 + ["applied"] * 5
        assert await balance(shop) == 55
        shop.clock.advance(HOUR)
        await shop.deliver(refund_event("event-9", {"r9": 2}, "source-2"))
        await tend(shop)
        assert await balance(shop) == 57
    shop.clock.advance(HOUR)
    await tend(shop)
    assert await balance(shop) == 62


async def test_a_failure_is_only_taken_in_when_it_is_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_given: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        break_returns(patch)
        patch.setattr(inbox, "_received", broken)
        assert (await shop.post_event(refund_event("event-2", {"r1": 5}))).status_code == 500
    assert await shop.events() == []
    assert await shop.deliver(refund_event("event-2", {"r1": 5})) == "parked"


async def test_two_processes_that_try_again_book_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=20)))
    with monkeypatch.context() as patch:
        break_returns(patch)
        await shop.deliver(refund_event("event-2", {"r1": 5}))
    shop.clock.advance(HOUR)
    await asyncio.gather(tend(shop), tend(shop))
    assert await balance(shop) == 85
    assert await state_of(shop, "event-2") == "applied"


async def test_a_dismissed_failure_is_not_tried_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=20)))
    with monkeypatch.context() as patch:
        break_returns(patch)
        await shop.deliver(refund_event("event-2", {"r1": 5}))
    decoded(await ask(shop, "dismiss", "event-2", reason="not ours"))
    shop.clock.advance(DAY)
    await tend(shop)
    assert await balance(shop) == 80


# Live and test


@pytest.mark.parametrize(("ours", "aside"), [("true", False), ("false", True)])
async def test_events_of_the_other_mode_are_set_aside(start: Start, ours: str, aside: bool) -> None:
    shop = await start(live_mode=ours)
    await shop.issue(100)
    assert await shop.deliver(order_event(source(amount=20)) | {"liveMode": aside}) == "ignored"
    kept = await shop.get("/webhook-events/event-1")
    assert kept["note"] == ("a live event" if aside else "a test event")
    assert await balance(shop) == 100
    own = order_event(source(amount=20), event_id="event-2") | {"liveMode": not aside}
    assert await shop.deliver(own) == "applied"


# Personal data


async def test_bodies_are_pruned_but_not_of_what_waits(start: Start) -> None:
    shop = await start(event_retention="10d")
    await shop.issue(100)
    await shop.deliver(order_event(source(amount=20)))
    await shop.deliver(nameless(source("s2", 5, None), event_id="event-2", order_id="order-2"))
    await shop.deliver(refund_event("event-3", {"r1": 5}, "card"))
    await shop.deliver(refund_event("event-4", {"r1": 0}))
    shop.clock.advance(9 * DAY)
    await tend(shop)
    assert (await shop.get("/webhook-events/event-1"))["body"]
    shop.clock.advance(2 * DAY)
    await tend(shop)
    pruned = await shop.get("/webhook-events/event-1")
    assert pruned["body"] is None
    assert (pruned["type"], pruned["state"]) == ("checkout_session.order.created", "applied")
    assert pruned["effects"][0]["outcome"] == "deducted"
    for event_id in ("event-2", "event-3", "event-4"):
        assert (await shop.get(f"/webhook-events/{event_id}"))["body"], event_id
    assert await shop.deliver(order_event(source(amount=20))) == "applied"
    problem_of(await ask(shop, "apply"), 400, "bad_request")
    shop.clock.advance(30 * DAY)
    await tend(shop)
    await tend(shop)
    assert (await shop.get("/webhook-events/event-3"))["body"] is None


async def test_what_is_erased_can_still_be_applied(shop: Shop) -> None:
    line = await shop.issue(100)
    person = {"billTo": {"name": "A. Shopper", "email": MAIL.upper()}, "state": "accepted"}
    told = [source(amount=53.769999999999996, upstream_id=None, owner={"email": MAIL})]
    await shop.deliver(nameless(*told, **person))
    other = nameless(source("s9", 1, None), event_id="event-2", order_id="order-2", email="b@example.test")
    await shop.deliver(other)
    refund = {"id": "r1", "amount": 5, "state": "complete", "reason": f"asked by {MAIL}"}
    await shop.deliver(refund_event("event-3", {}, refunds=[refund]))
    assert await upkeep.erase(shop.service.ledger, f" {MAIL} ") == 2
    for event_id in ("event-1", "event-3"):
        body = (await shop.get(f"/webhook-events/{event_id}"))["body"]
        assert MAIL not in body.lower()
        assert "Shopper" not in body
    assert json.loads((await shop.get("/webhook-events/event-2"))["body"]) == other
    assert await apply(shop, line) == "applied"
    assert await balance(shop) == 51.23
    assert await apply(shop, event_id="event-3") == "applied"
    assert await upkeep.erase(shop.service.ledger, MAIL) == 0
    (deduction,) = await shop.history("deductions")
    assert deduction["sessionId"] == "session-1"
