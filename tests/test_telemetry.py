"""Logs and metrics: one line a request, names and labels that stay few, and nothing secret anywhere."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from fastapi import APIRouter
from sqlalchemy import text

from store_credit.credentials import Role
from store_credit.fields import time_text
from tests.http_fixtures import (
    AUTHORIZE,
    CALLOUT,
    MERCHANT,
    SECRET,
    Shop,
    Start,
    decoded,
    order_event,
    problem_of,
    source,
)
from tests.making import Clock

pytest_plugins = ["tests.http_fixtures"]

Line = dict[str, Any]


@pytest.fixture
def shop_output(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """Standard output, caught before the application is made."""
    return capsys


def lines_of(output: pytest.CaptureFixture[str]) -> list[Line]:
    return [json.loads(line) for line in output.readouterr().out.splitlines()]


def requests_of(output: pytest.CaptureFixture[str]) -> list[Line]:
    return [line for line in lines_of(output) if line["event"] == "request"]


async def samples(shop: Shop) -> dict[str, float]:
    """All samples of the metrics, by name and labels."""
    found = {}
    for line in (await shop.client.get("/metrics")).text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def crash(app_router: APIRouter, error: Exception) -> None:
    """A route that fails, to be added to the application."""

    @app_router.get("/crash")
    async def failing() -> None:
        raise error


# Logs


async def test_one_line_a_request(shop_output: pytest.CaptureFixture[str], start: Start) -> None:
    shop = await start()
    shop_output.readouterr()
    await shop.authorize(5)
    (line,) = requests_of(shop_output)
    assert line.pop("ms") > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line.pop("request_id").startswith("req_")
    assert line == {
        "event": "request",
        "level": "info",
        "method": "POST",
        "path": AUTHORIZE,
        "status": 200,
        "principal": CALLOUT[0],
        "reason": "unknown_line",
    }


async def test_the_line_of_a_refused_request_names_nobody(
    shop_output: pytest.CaptureFixture[str], start: Start
) -> None:
    shop = await start()
    shop_output.readouterr()
    await shop.post_authorization({}, auth=("zebra", "wrong"))
    (line,) = requests_of(shop_output)
    assert (line["status"], "principal" in line) == (401, False)
    assert "zebra" not in json.dumps(line)


async def test_the_request_id_is_answered_and_logged(
    shop_output: pytest.CaptureFixture[str], start: Start
) -> None:
    shop = await start()
    shop_output.readouterr()
    response = await shop.client.get("/healthz", headers={"X-Request-Id": "trace:1.2-3_4"})
    (line,) = requests_of(shop_output)
    assert response.headers["x-request-id"] == line["request_id"] == "trace:1.2-3_4"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "<script>", '"', "a\tb"])
async def test_a_request_id_that_is_not_plain_is_replaced(shop: Shop, given: str) -> None:
    response = await shop.client.get("/healthz", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nothing"), ("PUT", AUTHORIZE), ("GET", "/credit-lines")]
)
async def test_an_error_has_a_request_id_too(shop: Shop, method: str, path: str) -> None:
    response = await shop.client.request(method, path)
    assert response.status_code >= 400
    assert response.headers["x-request-id"].startswith("req_")


async def test_a_fault_is_answered_and_logged_once(
    shop_output: pytest.CaptureFixture[str], start: Start
) -> None:
    shop = await start()
    crash(shop.app.router, RuntimeError("zebra"))
    shop_output.readouterr()
    response = await shop.client.get("/crash", headers={"X-Request-Id": "r-1"})
    problem_of(response, 500, "internal_server_error")
    assert "zebra" not in response.text
    fault, request = [line for line in lines_of(shop_output) if line["event"] in ("fault", "request")]
    assert (fault["level"], fault["request_id"], request["request_id"]) == ("error", "r-1", "r-1")
    assert "RuntimeError: zebra" in fault["exception"]
    assert request["status"] == 500


async def test_a_database_error_that_will_not_pass_is_a_fault(shop: Shop) -> None:
    @shop.app.get("/crash")
    async def failing() -> None:
        await shop.service.database.read(lambda connection: connection.execute(text("SELECT zebra")))

    response = await shop.client.get("/crash")
    problem_of(response, 500, "internal_server_error")
    assert "zebra" not in response.text


async def test_a_database_that_is_away_is_no_fault(shop: Shop) -> None:
    crash(shop.app.router, ConnectionRefusedError("zebra"))
    response = await shop.client.get("/crash")
    problem_of(response, 503, "service_unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert "zebra" not in response.text


async def play(shop: Shop) -> list[str]:
    """Everything that happens in a shop, good and bad; returns the answers."""
    answers = []
    await shop.issue(100)
    for auth in (CALLOUT, MERCHANT, (CALLOUT[0], "zebra-password"), ("nobody", CALLOUT[1])):
        asked = {"sessionId": "session-1", "amount": 11.4, "upstreamId": "line-1"}
        answers.append((await shop.post_authorization(asked, auth=auth)).text)
    answers.append((await shop.post_event(order_event(source()))).text)
    answers.append((await shop.post_event(order_event(source(amount=50)))).text)
    answers.append((await shop.post_event(order_event(source()), secret="zebra-secret")).text)
    answers.append((await shop.post_event(b"zebra")).text)
    crash(shop.app.router, RuntimeError("a fault"))
    answers.append((await shop.client.get("/crash", auth=CALLOUT)).text)
    answers.append((await shop.client.get("/metrics")).text)
    return answers


async def test_nothing_secret_is_told_anywhere(
    shop_output: pytest.CaptureFixture[str], start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    shop = await start()
    password = await shop.add_credential("auditor", Role.READER)
    decoded(await shop.client.get("/credit-lines", auth=("auditor", password)))
    answers = await play(shop)
    captured = shop_output.readouterr()
    told = "\n".join([*answers, captured.out, captured.err, caplog.text])
    assert "request_id" in told
    secrets = [CALLOUT[1], MERCHANT[1], SECRET, password, "zebra", "argon2", "Basic ", "Authorization"]
    assert [secret for secret in secrets if secret in told] == []


# Metrics


async def test_the_names_and_labels(shop: Shop) -> None:
    await play(shop)
    found = await samples(shop)
    expected = {
        'store_credit_decisions_total{kind="authorize",outcome="approved",reason="approved"}': 1,
        'store_credit_webhook_events_total{state="applied",type="checkout_session.order.created"}': 1,
        'store_credit_webhook_events_total{state="conflict",type="checkout_session.order.created"}': 1,
        'store_credit_deductions_total{currency="USD"}': 1,
        "store_credit_overdrawn_deductions_total": 0,
        "store_credit_open_holds": 0,
        "store_credit_unmatched_events": 1,
        "store_credit_flagged_lines": 0,
        f'store_credit_request_seconds_count{{method="POST",path="{AUTHORIZE}",status="401"}}': 2,
        f'store_credit_request_seconds_count{{method="POST",path="{AUTHORIZE}",status="403"}}': 1,
        f'store_credit_request_seconds_count{{method="POST",path="{AUTHORIZE}",status="200"}}': 1,
    }
    assert {name: found.get(name) for name in expected} == expected


async def test_each_transaction_is_measured(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(5)
    found = await samples(shop)
    assert found["store_credit_batch_size_sum"] == found["store_credit_batch_size_count"] == 2
    assert found["store_credit_commit_seconds_count"] == 2
    assert found["store_credit_commit_seconds_sum"] > 0


async def test_decisions_are_counted_by_outcome_and_reason(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(5)
    await shop.authorize(500, "session-2")
    await shop.remove()
    await shop.remove()
    found = {name: value for name, value in (await samples(shop)).items() if "decisions_total" in name}
    assert found == {
        'store_credit_decisions_total{kind="authorize",outcome="approved",reason="approved"}': 1,
        'store_credit_decisions_total{kind="authorize",outcome="declined",reason="insufficient_credit"}': 1,
        'store_credit_decisions_total{kind="release",outcome="released",reason="released"}': 1,
        'store_credit_decisions_total{kind="release",outcome="ignored",reason="nothing_held"}': 1,
    }


async def test_open_holds_are_counted(shop: Shop) -> None:
    await shop.issue(100)
    await shop.authorize(5, "session-1")
    await shop.authorize(5, "session-2")
    assert (await samples(shop))["store_credit_open_holds"] == 2


async def test_what_the_sweeper_puts_off_is_measured(shop: Shop, clock: Clock) -> None:
    """Its sweeper stays away for an hour."""
    await shop.issue(100)
    await shop.authorize(5)
    assert (await samples(shop))["store_credit_settle_lag_seconds"] == 0
    clock.advance(timedelta(hours=24, seconds=90))
    assert (await samples(shop))["store_credit_settle_lag_seconds"] == 90
    await shop.issue(100, "line-2", expiresTime=time_text(clock() + timedelta(seconds=10)))
    await shop.authorize(5, "session-2")
    assert (await samples(shop))["store_credit_settle_lag_seconds"] == 0
    clock.advance(timedelta(seconds=25))
    assert (await samples(shop))["store_credit_settle_lag_seconds"] == 15


async def test_the_inbox_tells_its_age(shop: Shop, clock: Clock) -> None:
    assert (await samples(shop))["store_credit_last_event_timestamp_seconds"] == 0
    await shop.issue(100)
    await shop.deliver(order_event(source(upstream_id="line-9")))
    clock.advance(timedelta(seconds=30))
    await shop.deliver(order_event(source("source-2"), event_id="event-2"))
    received = clock().timestamp()
    clock.advance(timedelta(seconds=10))
    found = await samples(shop)
    assert found["store_credit_unmatched_event_age_seconds"] == 40
    assert found["store_credit_last_event_timestamp_seconds"] == pytest.approx(received)


async def test_a_conflict_waits_until_it_is_dismissed(shop: Shop) -> None:
    await shop.issue(100)
    await shop.deliver(order_event(source()))
    problem_of(await shop.post_event(order_event(source(amount=50))), 409, "conflict")
    assert (await samples(shop))["store_credit_unmatched_events"] == 1
    dismissed = await shop.client.post(
        "/webhook-events/event-1/dismiss", json={"reason": "sent twice"}, auth=MERCHANT
    )
    (kept,) = decoded(dismissed)["conflicts"]
    assert (kept["state"], kept["note"]) == ("dismissed", f"{MERCHANT[0]}: sent twice")
    found = await samples(shop)
    assert found["store_credit_unmatched_events"] == found["store_credit_unmatched_event_age_seconds"] == 0


async def test_a_database_that_is_away_is_told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await samples(shop))["store_credit_database_up"] == 1

    async def away(*_: object) -> None:
        raise ConnectionRefusedError

    with monkeypatch.context() as patch:
        patch.setattr(shop.service.database, "read", away)
        assert (await samples(shop))["store_credit_database_up"] == 0
    assert (await samples(shop))["store_credit_database_up"] == 1


async def test_a_clock_that_is_wrong_is_told(
    shop: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await samples(shop))["store_credit_clock_offset_seconds"] == 0
    late = clock() - timedelta(seconds=7)
    monkeypatch.setattr(shop.service.ledger, "now_within", lambda _connection: late)
    assert (await samples(shop))["store_credit_clock_offset_seconds"] == 7


async def test_what_is_sent_makes_no_new_labels(shop: Shop) -> None:
    for n in range(20):
        await shop.remove(f"zebra/{n}")
        await shop.client.get(f"/zebra/{n}")
        await shop.client.get(f"/credit-lines/zebra-{n}", auth=MERCHANT)
        await shop.client.request(f"ZEBRA{n}", "/healthz")
        await shop.deliver(order_event(event_id=f"event-{n}", event_type=f"zebra.{n}"))
    found = await samples(shop)
    assert "zebra" not in " ".join(found).lower()
    assert found['store_credit_webhook_events_total{state="ignored",type="other"}'] == 20
    paths = {match[1] for name in found if (match := re.search(r'path="([^"]*)"', name))}
    assert paths == {
        "other",
        "/checkouts/store-credits/{upstream_id}",
        "/credit-lines/{id}",
        "/healthz",
        "/webhooks/digital-river",
    }


async def test_the_metrics_need_no_credentials(shop: Shop) -> None:
    response = await shop.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")


async def test_a_setting_asks_for_the_role_reader(start: Start) -> None:
    shop = await start(metrics_role="reader")
    problem_of(await shop.client.get("/metrics"), 401, "unauthorized")
    problem_of(await shop.client.get("/metrics", auth=CALLOUT), 403, "forbidden")
    password = await shop.add_credential("prometheus", Role.READER)
    assert (await shop.client.get("/metrics", auth=("prometheus", password))).status_code == 200
