"""The whole service over HTTP against a model of what its README promises.

Checkouts, removals, orders, cancels and refunds in any order and repeated, a merchant who adjusts,
suspends, closes and lets expire, a storefront with offers, retries under idempotency keys, and time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from store_credit import credentials
from store_credit.ledger.audit import audit
from tests.fuzz.long_runs import databases, reach
from tests.fuzz.shop_model import HOLD_TTL, ModelCharge, ModelLine, ModelOffer, ModelSource, ShopModel
from tests.http_fixtures import MERCHANT, Json, Shop, decoded, order_event, problem_of, running, source
from tests.making import DAY, HOUR, Clock
from tests.webhooks.payloads import charge, event, order_told, parts

pytest_plugins = ["tests.http_fixtures"]

T = TypeVar("T")
CUSTOMER = "customer of "
LINES = ("expiring", "partial")
SESSIONS = ("s1", "s2")
SOURCES_MAX = 12
PARTS = ("p1", "p2", "p3")

lines = st.sampled_from(LINES)
sessions = st.sampled_from(SESSIONS)
picks = st.integers(0, SOURCES_MAX - 1)
"""A payment source: one that was told of, or a new one."""
cents = st.integers(1, 30_00)
balances = st.integers(5_00, 60_00)
some = st.integers(1, len(PARTS))

numbers = itertools.count()


class Service(RuleBasedStateMachine):
    """One shop among others on the same service: its names are its own."""

    runner: asyncio.Runner
    shop: Shop

    def __init__(self) -> None:
        super().__init__()
        self.own = f"{next(numbers)}-"
        self.model = ShopModel()
        self.ids: dict[str, str] = {}
        self.told: list[Json] = []
        self.session_of: dict[str, str | None] = {}
        self.upstream_of: dict[str, str] = {}
        self.last_adjustment: tuple[str, str, Json, Json] | None = None

    def ask(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @property
    def now(self) -> datetime:
        return self.shop.clock()

    def post(self, path: str, body: Json, **headers: str) -> Any:
        return self.ask(self.shop.client.post(path, json=body, auth=MERCHANT, headers=headers))

    @initialize(
        opening=st.tuples(balances, balances),
        partial=st.booleans(),
        days=st.sampled_from([None, 1, 1, 2, 40]),
    )
    def open_shop(self, opening: tuple[int, int], partial: bool, days: int | None) -> None:
        for n, (name, amount) in enumerate(zip(LINES, opening, strict=True)):
            expires = self.now + days * DAY if days is not None and n == 0 else None
            more: Json = {"expiresTime": expires.isoformat()} if expires else {}
            body = {"customerId": CUSTOMER + self.own, "allowPartial": partial and n == 1} | more
            issued = self.ask(self.shop.issue(amount / 100, self.own + name, **body))
            self.ids[name] = issued["id"]
            self.model.lines[self.own + name] = ModelLine(amount, partial and n == 1, expires)

    def picked(self, pick: int) -> str:
        """The name of a source that is known, or of a new one."""
        number = pick % (len(self.model.sources) + 1)
        name = f"source-{number}"
        if self.own + name not in self.model.sources:
            amount = 7_00 + 3_33 * (number % 5)
            shares = [amount] if number % 3 == 0 else [amount // 3, amount - amount // 3]
            made = ModelSource(amount, [ModelCharge(share) for share in shares])
            self.model.sources[self.own + name] = made
            self.session_of[name] = f"{self.own}{SESSIONS[number % 2]}"
            self.upstream_of[name] = self.own + LINES[number % 2]
        return name

    # The shopper

    def spendable_id(self, line: str, data: st.DataObject) -> str:
        offers = [name for name, offer in self.model.offers.items() if offer.line == self.own + line]
        return data.draw(st.sampled_from([self.own + line, *offers]))

    @rule(line=lines, session=sessions, amount=cents, data=st.data())
    def authorize(self, line: str, session: str, amount: int, data: st.DataObject) -> None:
        upstream = self.spendable_id(line, data)
        answer = self.ask(self.shop.authorize(amount / 100, self.own + session, upstream))
        approved = self.model.authorize(upstream, self.own + session, amount, self.now)
        expected: Json = {"approval": approved is not None, "upstreamId": upstream}
        assert answer == expected | ({"amount": approved / 100} if approved is not None else {})

    @rule(line=lines, data=st.data())
    def remove(self, line: str, data: st.DataObject) -> None:
        upstream = self.spendable_id(line, data)
        assert self.ask(self.shop.remove(upstream)).status_code == 204
        self.model.remove(upstream, self.now)

    @rule(hours=st.sampled_from([1, 2, 23, 24, 25, 100, 700]))
    def time_passes(self, hours: int) -> None:
        self.shop.clock.advance(hours * HOUR)
        self.model.settle(self.now)

    @rule(line=lines)
    def a_line_expires(self, line: str) -> None:
        expires = self.model.lines[self.own + line].expires
        if expires is not None and expires > self.now:
            self.shop.clock.advance(expires - self.now)
        self.model.settle(self.now)

    # Digital River

    def deliver(self, told: Json) -> str:
        self.told.append(told)
        return self.ask(self.shop.deliver(told))

    def event_id(self) -> str:
        return f"{self.own}event-{len(self.told)}"

    def order_id(self, name: str) -> str:
        return f"{self.own}order of {name}"

    @rule(pick=picks, accepted=st.booleans(), data=st.data())
    def order(self, pick: int, accepted: bool, data: st.DataObject) -> None:
        name = self.picked(pick)
        known = self.model.sources[self.own + name]
        if known.line is None:
            self.upstream_of[name] = self.spendable_id(data.draw(lines), data)
        upstream = self.upstream_of[name]
        session = None if accepted else self.session_of[name]
        told = order_event(
            source(self.own + name, known.amount / 100, upstream),
            event_id=self.event_id(),
            order_id=self.order_id(name),
            session_id=session,
            event_type="order.accepted" if accepted else "checkout_session.order.created",
        )
        assert self.deliver(told) == "applied"
        self.model.order(self.own + name, upstream, session, self.now)

    @rule(pick=picks, line=lines)
    def order_without_a_name(self, pick: int, line: str) -> None:
        """A connector that names no line: an operator does."""
        name = self.picked(pick)
        known = self.model.sources[self.own + name]
        if known.line is not None:
            return
        told = source(self.own + name, known.amount / 100, None)
        nameless = order_event(
            told, event_id=self.event_id(), order_id=self.order_id(name), session_id=self.session_of[name]
        )
        assert self.deliver(nameless) == "unmatched"
        path = f"/webhook-events/{nameless['id']}/apply"
        assert decoded(self.post(path, {"creditLineId": self.ids[line]}))["state"] == "applied"
        self.upstream_of[name] = self.own + line
        self.model.order(self.own + name, self.own + line, self.session_of[name], self.now)

    def tell_of(self, name: str, told: Json) -> None:
        state = self.deliver(told)
        assert state == ("parked" if self.model.sources[self.own + name].line is None else "applied")
        self.model.book_returns(self.own + name, self.now)

    def charge_told(self, name: str, number: int, **lists: Any) -> Json:
        known = self.model.sources[self.own + name].charges[number]
        made = {"id": f"charge {number}", "amount": known.amount / 100, "orderId": self.order_id(name)}
        return charge(self.own + name) | made | {kind: parts(amounts) for kind, amounts in lists.items()}

    @rule(pick=picks, count=some, second=st.booleans(), total=st.booleans())
    def refund(self, pick: int, count: int, second: bool, total: bool) -> None:
        """So many refunds of one of its charges were told: with ids, or without by its order."""
        name = self.picked(pick)
        known = self.model.sources[self.own + name]
        number = len(known.charges) - 1 if second else 0
        amounts = {f"r{number}-{part}": max(1, known.amount * 20 // 100) for part in PARTS[:count]}
        about = {part: amount / 100 for part, amount in amounts.items()}
        if total:
            charges = [self.charge_told(name, number, refunds=list(about.values()))]
            told = order_told("order.refunded", self.event_id(), charges=charges, id=self.order_id(name))
        else:
            made = self.charge_told(name, number, refunds=about)
            told = event("order.charge.refund.complete", made, self.event_id())
        known.refunds |= amounts
        self.tell_of(name, told)

    @rule(pick=picks, count=some, second=st.booleans(), alone=st.booleans())
    def cancel(self, pick: int, count: int, second: bool, alone: bool) -> None:
        """Cancels of one of its charges: all so far, or the newest alone."""
        name = self.picked(pick)
        known = self.model.sources[self.own + name]
        number = len(known.charges) - 1 if second else 0
        share = known.charges[number]
        chosen = PARTS[count - 1 : count] if alone else PARTS[:count]
        amounts = {f"x{number}-{part}": max(1, share.amount // 4) for part in chosen}
        made = self.charge_told(name, number, cancels={part: n / 100 for part, n in amounts.items()})
        share.cancels |= amounts
        self.tell_of(name, event("order.charge.cancel.complete", made, self.event_id()))

    @rule(pick=picks, second=st.booleans())
    def end_charge(self, pick: int, second: bool) -> None:
        name = self.picked(pick)
        known = self.model.sources[self.own + name]
        number = len(known.charges) - 1 if second else 0
        share = known.charges[number]
        share.captured_at_end = share.amount // 5
        captures = {"c": share.captured_at_end / 100} if share.captured_at_end else {}
        made = self.charge_told(name, number, captures=captures)
        self.tell_of(name, event("order.charge.cancelled", made | {"state": "cancelled"}, self.event_id()))

    @rule(pick=picks, kind=st.sampled_from(["order.cancelled", "order.blocked"]))
    def end_order(self, pick: int, kind: str) -> None:
        name = self.picked(pick)
        known = self.model.sources[self.own + name]
        known.ended = True
        listed = [source(self.own + name, known.amount / 100, self.upstream_of[name])]
        self.tell_of(name, order_told(kind, self.event_id(), sources=listed, id=self.order_id(name)))

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def tell_again(self, data: st.DataObject) -> None:
        again = data.draw(st.sampled_from(self.told))
        assert self.ask(self.shop.deliver(again)) in ("applied", "parked")

    # The merchant

    @rule(line=lines, amount=st.integers(-60_00, 60_00).filter(bool), again=st.booleans())
    def adjust(self, line: str, amount: int, again: bool) -> None:
        known = self.model.lines[self.own + line]
        known.settle(self.now)
        key = f"{self.own}key-{next(numbers)}"
        path, body = f"/credit-lines/{self.ids[line]}/adjustments", {"amount": amount / 100, "reason": "r"}
        response = self.post(path, body, **{"Idempotency-Key": key})
        too_low = amount < 0 and known.balance + amount < known.held
        if known.status == "closed" or (known.expired(self.now) and amount > 0) or too_low:
            problem_of(response, 409, "conflict")
            return
        known.balance += amount
        self.last_adjustment = (path, key, body, decoded(response))

    @precondition(lambda self: self.last_adjustment)
    @rule(other=st.booleans())
    def adjust_again(self, other: bool) -> None:
        """A retry under the same key gets the first answer, and another request a conflict."""
        assert self.last_adjustment is not None
        path, key, body, first = self.last_adjustment
        if other:
            response = self.post(path, body | {"reason": "another"}, **{"Idempotency-Key": key})
            problem_of(response, 409, "conflict")
        else:
            assert decoded(self.post(path, body, **{"Idempotency-Key": key})) == first

    @rule(line=lines, action=st.sampled_from(["suspend", "resume", "resume", "close", "reopen", "reopen"]))
    def change_status(self, line: str, action: str) -> None:
        known = self.model.lines[self.own + line]
        known.settle(self.now)
        response = self.post(f"/credit-lines/{self.ids[line]}/{action}", {"reason": "r"})
        if action == "close":
            allowed = known.close()
        else:
            expected, after = {
                "suspend": ("active", "suspended"),
                "resume": ("suspended", "active"),
                "reopen": ("closed", "active"),
            }[action]
            allowed = known.status == expected
            known.status = after if allowed else known.status
        known.settle(self.now)
        assert response.status_code == (200 if allowed else 409)

    @rule(line=lines, hours=st.none() | st.sampled_from([1, 30, 24 * 45]))
    def set_expiry(self, line: str, hours: int | None) -> None:
        known = self.model.lines[self.own + line]
        known.settle(self.now)
        expires = None if hours is None else self.now + timedelta(hours=hours)
        body = {"expiresTime": expires.isoformat() if expires else None}
        work = self.shop.client.patch(f"/credit-lines/{self.ids[line]}", json=body, auth=MERCHANT)
        if known.status == "closed":
            problem_of(self.ask(work), 409, "conflict")
        else:
            decoded(self.ask(work))
            known.expires = expires

    # The storefront

    @rule(session=sessions)
    def release_session(self, session: str) -> None:
        released = decoded(self.post(f"/sessions/{self.own}{session}/release", {}))["released"]
        assert len(released) == self.model.release_session(self.own + session, self.now)

    @rule(wanted=st.none() | cents)
    def offer(self, wanted: int | None) -> None:
        """What can be spent is offered, or as much of it as is wanted, from one line after the other."""
        self.model.settle(self.now)
        path = f"/customers/{CUSTOMER}{self.own}/offers"
        asked: Json = {"currency": "USD"} | ({"amount": wanted / 100} if wanted else {})
        made = decoded(self.post(path, asked), 201)["storeCredits"]
        path = f"/customers/{CUSTOMER}{self.own}/store-credits"
        shown = self.ask(self.shop.get(path, currency="USD"))["storeCredits"]
        expected = {
            name: amount
            for name, line in self.model.lines.items()
            if (amount := line.available(self.now)) > 0
        }
        assert {one["upstreamId"]: round(one["amount"] * 100) for one in shown} == expected
        left = wanted if wanted is not None else sum(expected.values())
        for one, line in zip(made, shown, strict=False):
            amount = min(left, expected[line["upstreamId"]])
            left -= amount
            assert round(one["amount"] * 100) == amount > 0
            ends = self.now + HOLD_TTL
            self.model.offers[one["upstreamId"]] = ModelOffer(line["upstreamId"], amount, ends)
        assert left == 0 or len(made) == len(expected)

    # What must hold

    @invariant()
    def figures_are_as_promised(self) -> None:
        self.model.settle(self.now)
        if self.ids:
            shown = self.ask(self.shop.get("/credit-lines", customerId=CUSTOMER + self.own))["data"]
            found = {one["upstreamId"]: _figures(one) for one in shown}
            assert found == {
                name: (line.balance, line.held, line.available(self.now), line.status)
                for name, line in self.model.lines.items()
            }

    def teardown(self) -> None:
        for name, line_id in self.ids.items():
            deductions = self.ask(self.shop.get(f"/credit-lines/{line_id}/deductions", limit=100))["data"]
            found = {
                one["sourceId"]: (round(one["amount"] * 100), round(one["returned"] * 100))
                for one in deductions
            }
            assert found == {
                source_id: (known.amount, known.returned)
                for source_id, known in self.model.sources.items()
                if known.line == self.own + name
            }


def _figures(line: Json) -> tuple[int, int, int, str]:
    status = "active" if line["status"] == "expired" else line["status"]
    balance, held, available = (round(line[name] * 100) for name in ("balance", "held", "available"))
    return balance, held, available, status


@pytest.fixture(params=databases(["sqlite"]))
def served(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[asyncio.Runner, Shop]]:
    monkeypatch.setattr("store_credit.app.hasher", credentials.hasher.using(memory_cost=8, rounds=1))
    url = request.getfixturevalue(f"{request.param}_url")
    with asyncio.Runner() as runner:
        entered = running(url, Clock())
        yield runner, runner.run(entered.__aenter__())
        runner.run(entered.__aexit__(None, None, None))


def test_the_service_does_what_it_promises(served: tuple[asyncio.Runner, Shop]) -> None:
    Service.runner, Service.shop = served
    run_state_machine_as_test(Service, settings=settings(**reach(40, 60)))
    shop = Service.shop
    assert served[0].run(shop.service.database.read(lambda connection: list(audit(connection)))) == []
