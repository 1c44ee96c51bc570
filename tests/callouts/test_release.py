"""`DELETE /checkouts/store-credits/{upstreamId}`: always 204, and never the wrong session's hold."""

from __future__ import annotations

import pytest

from tests.http_fixtures import AUTHORIZE, CALLOUT, Shop, order_event, problem_of, source
from tests.making import DAY

pytest_plugins = ["tests.http_fixtures"]


async def last_decision(shop: Shop) -> tuple[str, bool]:
    decision = (await shop.decisions())[0]
    assert decision["kind"] == "release"
    return decision["reason"], decision["accepted"]


async def assert_removed(shop: Shop, upstream_id: str = "line-1") -> None:
    """The answer is the same, whatever happened."""
    response = await shop.remove(upstream_id)
    assert response.status_code == 204
    assert response.content == b""


async def test_the_one_open_hold_is_released(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(11.4)
    await assert_removed(shop)
    assert await shop.figures() == (100, 0, 100)
    (hold,) = await shop.history("holds")
    assert (hold["state"], hold["endedTime"]) == ("released", "2026-11-20T12:00:00Z")


async def test_a_release_is_kept_with_its_session(shop: Shop) -> None:
    line = await shop.issue(100)
    await shop.authorize(11.4)
    await assert_removed(shop)
    (hold,) = await shop.history("holds")
    decision = (await shop.history("decisions"))[0]
    assert (decision["kind"], decision["reason"], decision["accepted"]) == ("release", "released", True)
    assert (decision["creditLineId"], decision["holdId"]) == (line["id"], hold["id"])
    assert (decision["sessionId"], decision["amount"]) == ("session-1", 11.4)
    assert decision["amountAsked"] is None


async def test_an_unknown_line_is_removed_all_the_same(shop: Shop) -> None:
    await assert_removed(shop, "nobody's")
    assert await last_decision(shop) == ("unknown_line", False)


async def test_a_line_without_a_hold(shop: Shop) -> None:
    await shop.issue(100)
    await assert_removed(shop)
    assert await last_decision(shop) == ("nothing_held", False)


async def test_a_second_removal_releases_nothing(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(11.4)
    await assert_removed(shop)
    await assert_removed(shop)
    assert await last_decision(shop) == ("nothing_held", False)
    assert [entry["kind"] for entry in await shop.history("entries")] == ["issued", "held", "released"]


async def test_of_several_holds_none_is_released(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(10, "session-1")
    await shop.authorize(20, "session-2")
    await assert_removed(shop)
    assert await last_decision(shop) == ("several_holds", False)
    assert await shop.figures() == (100, 30, 70)


async def test_an_expired_hold_does_not_count_as_another(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(10, "session-1")
    shop.clock.advance(DAY)
    await shop.authorize(20, "session-2")
    await assert_removed(shop)
    assert await last_decision(shop) == ("released", True)
    assert [hold["state"] for hold in await shop.history("holds")] == ["released", "expired"]


async def test_an_expired_hold_is_not_released(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(10)
    shop.clock.advance(DAY)
    await assert_removed(shop)
    assert await last_decision(shop) == ("nothing_held", False)
    (hold,) = await shop.history("holds")
    assert (hold["state"], hold["endedTime"]) == ("expired", "2026-11-21T12:00:00Z")


async def test_a_spent_hold_is_not_released(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(11.4)
    await shop.deliver(order_event(source()))
    await assert_removed(shop)
    assert await last_decision(shop) == ("nothing_held", False)
    assert await shop.figures() == (88.6, 0, 88.6)


async def test_another_line_keeps_its_hold(shop: Shop) -> None:
    await shop.issue(100, "line-1")
    await shop.issue(100, "line-2")
    await shop.authorize(10, upstream_id="line-1")
    await shop.authorize(20, upstream_id="line-2")
    await assert_removed(shop, "line-1")
    assert await shop.figures("line-2") == (100, 20, 80)


@pytest.mark.parametrize(
    "encoded",
    ["", "%00", "a%00b", "%FF", "%C3", "%ED%A0%80", "x" * 1025],
    ids=["empty", "NUL", "inner NUL", "no UTF-8", "cut UTF-8", "lone surrogate", "1,025 characters"],
)
async def test_a_path_that_is_no_upstream_id(shop: Shop, encoded: str) -> None:
    before = await shop.stored()
    response = await shop.client.delete(f"{AUTHORIZE}/{encoded}", auth=CALLOUT)
    problem = problem_of(response, 400, "bad_request")
    assert (problem["code"], problem["parameter"]) == ("invalid_parameter", "upstreamId")
    assert await shop.stored() == before


async def test_a_removal_needs_an_upstream_id(shop: Shop) -> None:
    response = await shop.client.delete(AUTHORIZE, auth=CALLOUT)
    assert problem_of(response, 405, "method_not_allowed")["code"] == "method_not_allowed"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH"])
async def test_only_delete_removes(shop: Shop, method: str) -> None:
    await shop.issue(100)
    await shop.authorize(10)
    response = await shop.client.request(method, f"{AUTHORIZE}/line-1", auth=CALLOUT)
    problem_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "DELETE"
    assert await shop.figures() == (100, 10, 90)
