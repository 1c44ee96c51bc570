"""The life of a credit line over HTTP: who may change what, once per key, and what the journal tells."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from store_credit.credentials import Role
from tests.http_fixtures import (
    CALLOUT,
    MERCHANT,
    Auth,
    Json,
    Shop,
    decoded,
    order_event,
    problem_of,
    source,
)
from tests.making import DAY, HOUR

pytest_plugins = ["tests.http_fixtures"]

SOON = "2026-11-20T13:00:00Z"
WHY = {"reason": "a good reason"}


async def send(
    shop: Shop, method: str, path: str, body: Json, key: str | None = None, auth: Auth = MERCHANT
) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await shop.client.request(method, path, json=body, headers=headers, auth=auth)


async def change(shop: Shop, action: str = "", **body: Any) -> httpx.Response:
    """A change of `line-1`: a PATCH, or a POST to an action of the line."""
    path = f"/credit-lines/{(await shop.line())['id']}"
    if not action:
        return await send(shop, "PATCH", path, body)
    return await send(shop, "POST", f"{path}/{action}", {**WHY, **body})


def credits_of(line: Json) -> tuple[str, float, float, float]:
    return line["status"], line["balance"], line["held"], line["available"]


# PATCH


async def test_a_line_is_described_anew(shop: Shop) -> None:
    await shop.issue(100, name="Gift", lastFour="1234", metadata={"a": 1})
    changed = {
        "name": "Gift card",
        "iconUrl": "https://example.com/i.png",
        "lastFour": None,
        "allowPartial": True,
        "expiresTime": SOON,
        "metadata": {"b": 2},
    }

    shown = decoded(await change(shop, **changed))

    assert shown == await shop.line()
    assert {name: shown[name] for name in changed} == changed
    assert credits_of(shown) == ("active", 100, 0, 100)


async def test_what_is_not_named_stays(shop: Shop) -> None:
    before = await shop.issue(100, name="Gift", expiresTime=SOON, metadata={"a": 1}, allowPartial=True)

    shown = decoded(await change(shop, lastFour="1234"))

    assert shown == {**before, "lastFour": "1234"}


async def test_a_change_of_nothing_is_no_change(shop: Shop) -> None:
    before = await shop.issue(100)

    assert decoded(await change(shop)) == before
    assert decoded(await change(shop, reason="none")) == before
    assert len(await shop.history("entries")) == 1


async def test_a_patch_tells_what_changed_and_why(shop: Shop) -> None:
    await shop.issue(100)
    decoded(await change(shop, name="Gift card", lastFour="1", expiresTime=SOON, reason="asked by Ann"))

    _, described, expiry = await shop.history("entries")

    assert (described["kind"], described["actor"]) == ("described", "merchant")
    assert described["reason"] == "asked by Ann; last_four, name"
    assert (expiry["kind"], expiry["actor"]) == ("expiry_set", "merchant")
    assert expiry["reason"] == "asked by Ann; expires 2026-11-20 13:00:00 UTC"


async def test_a_patch_is_taken_as_a_whole_or_not_at_all(shop: Shop) -> None:
    before = await shop.issue(100)

    problem = problem_of(
        await change(shop, name="Gift card", expiresTime="2026-11-20T12:00:00Z"), 400, "bad_request"
    )

    assert problem["parameter"] == "expiresTime"
    assert await shop.line() == before
    assert len(await shop.history("entries")) == 1


async def test_an_expiry_is_taken_away(shop: Shop) -> None:
    await shop.issue(100, expiresTime=SOON)

    assert decoded(await change(shop, expiresTime=None))["expiresTime"] is None

    shop.clock.advance(DAY)
    assert credits_of(await shop.line()) == ("active", 100, 0, 100)


async def test_a_changed_expiry_is_the_one_that_counts(shop: Shop) -> None:
    await shop.issue(100)
    decoded(await change(shop, expiresTime=SOON))
    shop.clock.advance(HOUR)

    assert credits_of(await shop.line()) == ("expired", 0, 0, 0)
    assert (await shop.authorize(1))["approval"] is False


@pytest.mark.parametrize(
    "body",
    [
        {"status": "closed"},
        {"balance": 5},
        {"customerId": "customer-2"},
        {"name": 5},
        {"allowPartial": "yes"},
        {"metadata": None},
        {"expiresTime": "tomorrow"},
        {"reason": ""},
    ],
    ids=str,
)
async def test_a_patch_that_is_none(shop: Shop, body: Json) -> None:
    before = await shop.issue(100)
    problem_of(await change(shop, **body), 400, "bad_request")
    assert await shop.line() == before


# Adjustments


async def test_an_adjustment_is_in_the_journal(shop: Shop) -> None:
    await shop.issue(100)

    shown = decoded(await change(shop, "adjustments", amount=-12.34))

    assert shown == await shop.line()
    assert credits_of(shown) == ("active", 87.66, 0, 87.66)
    entry = (await shop.history("entries"))[-1]
    assert (entry["kind"], entry["amount"], entry["balanceAfter"]) == ("adjusted", -12.34, 87.66)
    assert (entry["actor"], entry["reason"]) == ("merchant", "a good reason")


async def test_a_decrease_below_what_is_held_is_refused(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(60)
    before = await shop.stored()

    problem = problem_of(await change(shop, "adjustments", amount=-40.01), 409, "conflict")

    assert problem["parameter"] == "amount"
    assert await shop.stored() == before
    assert credits_of(decoded(await change(shop, "adjustments", amount=-40))) == ("active", 60, 60, 0)


@pytest.mark.parametrize("amount", [0, 10.129, 1e13, -1e13, "1", None, True])
async def test_a_number_that_is_no_amount(shop: Shop, amount: Any) -> None:
    await shop.issue(100)
    problem = problem_of(await change(shop, "adjustments", amount=amount), 400, "bad_request")
    assert problem["parameter"] == "amount"


@pytest.mark.parametrize("reason", [None, "", 5])
@pytest.mark.parametrize("action", ["adjustments", "suspend", "resume", "close", "reopen", "flags"])
async def test_a_change_needs_a_reason(shop: Shop, action: str, reason: Any) -> None:
    await shop.issue(100)
    body: Json = {"adjustments": {"amount": 1}, "flags": {"flag": "overdrawn", "raised": True}}.get(
        action, {}
    )
    problem = problem_of(await change(shop, action, **body, reason=reason), 400, "bad_request")
    assert problem["parameter"] == "reason"


async def test_adjustments_at_once_add_up(shop: Shop) -> None:
    await shop.issue(100)
    answers = await asyncio.gather(*(change(shop, "adjustments", amount=-15) for _ in range(10)))

    assert sorted(answer.status_code for answer in answers) == [200] * 6 + [409] * 4
    assert (await shop.line())["balance"] == 10


# Status


async def test_a_line_is_suspended_resumed_closed_and_reopened(shop: Shop) -> None:
    await shop.issue(100)
    expected = {
        "suspend": ("suspended", 100, 0, 0),
        "resume": ("active", 100, 0, 100),
        "close": ("closed", 0, 0, 0),
        "reopen": ("active", 0, 0, 0),
    }
    for action, figures in expected.items():
        shown = decoded(await change(shop, action))
        assert shown == await shop.line()
        assert credits_of(shown) == figures

    kinds = [(entry["kind"], entry["reason"]) for entry in (await shop.history("entries"))[1:]]
    assert [kind for kind, _ in kinds] == ["suspended", "resumed", "voided", "closed", "reopened"]
    assert {reason for _, reason in kinds} == {"a good reason"}


async def test_a_change_that_the_status_does_not_allow_stores_nothing(shop: Shop) -> None:
    await shop.issue(100)
    before = await shop.stored()
    for action in ("resume", "reopen"):
        problem_of(await change(shop, action), 409, "conflict")
    assert await shop.stored() == before


async def test_a_line_with_held_credit_is_not_closed(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(1)
    problem_of(await change(shop, "close"), 409, "conflict")
    assert credits_of(await shop.line()) == ("active", 100, 1, 99)


async def test_a_suspended_line_serves_the_order_of_an_open_hold(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(60)
    decoded(await change(shop, "suspend"))

    assert (await shop.authorize(1, "session-2"))["approval"] is False
    assert await shop.deliver(order_event(source(amount=60))) == "applied"
    assert credits_of(await shop.line()) == ("suspended", 40, 0, 0)


# Flags


async def test_a_flag_is_raised_listed_and_taken_off(shop: Shop) -> None:
    await shop.issue(100)
    await shop.issue(100, "line-2")
    shown = decoded(await change(shop, "flags", flag="overdrawn", raised=True))
    assert shown["flags"] == ["overdrawn"]
    flagged = (await shop.get("/credit-lines", flagged="true"))["data"]
    assert [line["upstreamId"] for line in flagged] == ["line-1"]

    assert decoded(await change(shop, "flags", flag="overdrawn", raised=False))["flags"] == []
    reasons = [entry["reason"] for entry in await shop.history("entries")][1:]
    assert reasons == ["overdrawn; a good reason"] * 2


async def test_a_flag_that_nobody_knows(shop: Shop) -> None:
    await shop.issue(100)
    problem = problem_of(await change(shop, "flags", flag="zebra", raised=True), 400, "bad_request")
    assert problem["parameter"] == "flag"


# Releases


async def test_one_hold_is_released(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(30)
    await shop.authorize(40, "session-2")
    newest, oldest = await shop.history("holds")

    answer = decoded(await send(shop, "POST", f"/holds/{oldest['id']}/release", WHY))

    assert answer == {"released": [oldest["id"]]}
    states = {hold["id"]: hold["state"] for hold in await shop.history("holds")}
    assert states == {oldest["id"]: "released", newest["id"]: "open"}
    entry = (await shop.history("entries"))[-1]
    assert (entry["kind"], entry["actor"], entry["reason"]) == ("released", "merchant", "a good reason")
    assert entry["holdId"] == oldest["id"]


async def test_a_hold_that_has_ended_is_not_released_again(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(30)
    (hold,) = await shop.history("holds")
    path = f"/holds/{hold['id']}/release"
    decoded(await send(shop, "POST", path, {}))

    assert decoded(await send(shop, "POST", path, {})) == {"released": []}


async def test_a_release_without_a_reason_is_explained_all_the_same(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(30)
    (hold,) = await shop.history("holds")
    decoded(await send(shop, "POST", f"/holds/{hold['id']}/release", {}))
    await shop.authorize(30)
    decoded(await send(shop, "POST", "/sessions/session-1/release", {}))

    *_, first, _, second = await shop.history("entries")
    assert (first["reason"], second["reason"]) == ("hold released", "session released")


@pytest.mark.parametrize("session_id", ["session-1", "a/b", "a/release", "ü ?#%2F\n"])
async def test_all_holds_of_a_session_are_released_over_all_lines(shop: Shop, session_id: str) -> None:
    await shop.issue(100)
    await shop.issue(100, "line-2")
    await shop.authorize(30, session_id)
    await shop.authorize(40, session_id, "line-2")
    await shop.authorize(10, "another", "line-2")

    path = f"/sessions/{quote(session_id, safe='')}/release"
    answer = decoded(await send(shop, "POST", path, WHY))

    assert len(answer["released"]) == 2
    assert await shop.figures() == (100, 0, 100)
    assert await shop.figures("line-2") == (100, 10, 90)


async def test_a_session_without_holds_is_no_mistake(shop: Shop) -> None:
    assert decoded(await send(shop, "POST", "/sessions/unknown/release", {})) == {"released": []}


async def test_a_session_may_hold_again_after_its_release(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(30)
    decoded(await send(shop, "POST", "/sessions/session-1/release", WHY))
    assert (await shop.authorize(100))["amount"] == 100


# What is not there


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/credit-lines/{}", {"name": "x"}),
        ("PATCH", "/credit-lines/{}", {}),
        ("POST", "/credit-lines/{}/adjustments", {"amount": 1, **WHY}),
        ("POST", "/credit-lines/{}/suspend", WHY),
        ("POST", "/credit-lines/{}/flags", {"flag": "overdrawn", "raised": True, **WHY}),
        ("POST", "/holds/{}/release", WHY),
    ],
)
@pytest.mark.parametrize("id_", ["unknown", "x" * 300, "nul%00"])
async def test_what_is_not_there_is_not_changed(
    shop: Shop, method: str, path: str, body: Json, id_: str
) -> None:
    before = await shop.stored()
    problem_of(await send(shop, method, path.format(id_), body, "key-1"), 404, "not_found")
    assert await shop.stored() == before


# Roles

WRITES: list[tuple[str, str, Json]] = [
    ("PATCH", "/credit-lines/{line}", {"name": "Gift card"}),
    ("POST", "/credit-lines/{line}/adjustments", {"amount": 1, **WHY}),
    ("POST", "/credit-lines/{line}/suspend", WHY),
    ("POST", "/credit-lines/{line}/resume", WHY),
    ("POST", "/credit-lines/{line}/close", WHY),
    ("POST", "/credit-lines/{line}/reopen", WHY),
    ("POST", "/credit-lines/{line}/flags", {"flag": "overdrawn", "raised": True, **WHY}),
    ("POST", "/holds/{hold}/release", WHY),
]


@pytest.mark.parametrize("role", [Role.STOREFRONT, Role.READER, Role.CALLOUT])
async def test_only_merchants_change_lines(shop: Shop, role: Role) -> None:
    line = await shop.issue(100)
    await shop.authorize(10)
    (hold,) = await shop.history("holds")
    auth = ("someone", await shop.add_credential("someone", role))
    before = await shop.stored()

    for method, path, body in WRITES:
        named = path.format(line=line["id"], hold=hold["id"])
        problem_of(await send(shop, method, named, body, auth=auth), 403, "forbidden")
        problem_of(await send(shop, method, named, body, auth=("x", "y")), 401, "unauthorized")
    assert await shop.stored() == before


async def test_sessions_are_released_by_shops_too(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(10)
    reader = ("reader", await shop.add_credential("reader", Role.READER))
    shop_page = ("shop-page", await shop.add_credential("shop-page", Role.STOREFRONT))
    path = "/sessions/session-1/release"

    for auth in (reader, CALLOUT):
        problem_of(await send(shop, "POST", path, WHY, auth=auth), 403, "forbidden")
    assert len(decoded(await send(shop, "POST", path, WHY, auth=shop_page))["released"]) == 1
    assert (await shop.history("entries"))[-1]["actor"] == "shop-page"


async def test_a_storefront_reads_no_lines(shop: Shop) -> None:
    line = await shop.issue(100)
    auth = ("shop-page", await shop.add_credential("shop-page", Role.STOREFRONT))
    for path in (
        "/credit-lines",
        f"/credit-lines/{line['id']}",
        f"/credit-lines/{line['id']}/entries",
        f"/credit-lines/{line['id']}/holds",
        "/holds",
        "/decisions",
        "/webhook-events",
        "/reports/liability",
    ):
        problem_of(await shop.client.get(path, auth=auth), 403, "forbidden")


# Idempotency-Key

ONCE: list[tuple[str, str, Json, Json]] = [
    ("PATCH", "/credit-lines/{line}", {"name": "Gift card"}, {"lastFour": None}),
    ("PATCH", "/credit-lines/{line}", {"name": None}, {"lastFour": None}),
    ("PATCH", "/credit-lines/{line}", {"expiresTime": SOON}, {"expiresTime": "2026-11-20T14:00:00Z"}),
    ("PATCH", "/credit-lines/{line}", {}, {"name": "Gift card"}),
    ("POST", "/credit-lines/{line}/adjustments", {"amount": 5, **WHY}, {"amount": 6, **WHY}),
    ("POST", "/credit-lines/{line}/suspend", WHY, {"reason": "another"}),
    (
        "POST",
        "/credit-lines/{line}/flags",
        {"flag": "overdrawn", "raised": True, **WHY},
        {"flag": "overdrawn", "raised": False, **WHY},
    ),
    ("POST", "/holds/{hold}/release", WHY, {"reason": "another"}),
    ("POST", "/sessions/session-1/release", WHY, {}),
]


@pytest.mark.parametrize(("method", "path", "body", "other"), ONCE)
async def test_a_key_makes_a_change_happen_once(
    shop: Shop, method: str, path: str, body: Json, other: Json
) -> None:
    line = await shop.issue(100)
    await shop.authorize(10)
    (hold,) = await shop.history("holds")
    path = path.format(line=line["id"], hold=hold["id"])

    first = await send(shop, method, path, body, "key-1")
    stored = await shop.stored()
    again = await send(shop, method, path, body, "key-1")

    assert decoded(again) == decoded(first)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    problem = problem_of(await send(shop, method, path, other, "key-1"), 409, "conflict")
    assert problem["code"] == "idempotency_key_reused"
    assert await shop.stored() == stored


async def test_a_key_is_of_one_line_and_one_action(shop: Shop) -> None:
    line, other = await shop.issue(100), await shop.issue(100, "line-2")
    decoded(await send(shop, "POST", f"/credit-lines/{line['id']}/suspend", WHY, "key-1"))

    for path in (f"{other['id']}/suspend", f"{line['id']}/close"):
        problem_of(await send(shop, "POST", f"/credit-lines/{path}", WHY, "key-1"), 409, "conflict")


async def test_a_refused_change_leaves_its_key_free(shop: Shop) -> None:
    line = await shop.issue(100)
    path = f"/credit-lines/{line['id']}/adjustments"
    before = await shop.stored()
    problem_of(await send(shop, "POST", path, {"amount": -101, **WHY}, "key-1"), 409, "conflict")
    assert await shop.stored() == before

    decoded(await send(shop, "POST", path, {"amount": -100, **WHY}, "key-1"))


@pytest.mark.parametrize("amount", ["-5.0", "-5e0", "-4.999999999999999"])
async def test_an_amount_that_is_rendered_anew_is_the_same_request(shop: Shop, amount: str) -> None:
    line = await shop.issue(100)
    path = f"/credit-lines/{line['id']}/adjustments"
    first = decoded(await send(shop, "POST", path, {"amount": -5, **WHY}, "key-1"))

    content = f'{{"reason": "a good reason", "amount": {amount}}}'
    headers = {"Idempotency-Key": "key-1", "Content-Type": "application/json"}
    again = await shop.client.post(path, content=content, headers=headers, auth=MERCHANT)

    assert decoded(again) == first


async def test_twenty_at_once_are_one_adjustment(shop: Shop) -> None:
    line = await shop.issue(100)
    path, body = f"/credit-lines/{line['id']}/adjustments", {"amount": -5, **WHY}
    answers = await asyncio.gather(*(send(shop, "POST", path, body, "key-1") for _ in range(20)))

    assert {decoded(answer)["balance"] for answer in answers} == {95}
    assert (await shop.line())["balance"] == 95


async def test_entries_name_the_key(shop: Shop) -> None:
    line = await shop.issue(100)
    await shop.authorize(10)
    for n, (method, path, body) in enumerate(WRITES[:3]):
        decoded(await send(shop, method, path.format(line=line["id"]), body, f"key-{n}"))
    decoded(await send(shop, "POST", "/sessions/session-1/release", {}, "key-3"))

    entries = (await shop.history("entries"))[2:]
    assert [entry["idempotencyKey"] for entry in entries] == ["key-0", "key-1", "key-2", "key-3"]
    assert all(entry["reason"] for entry in entries)
    assert {entry["actor"] for entry in entries} == {"merchant"}
