"""Texts that would be commands elsewhere: to SQL, HTTP, a log, a terminal or a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from store_credit.cli.lines import ENTRIES_MAX
from tests.http_fixtures import (
    AUTHORIZE,
    CALLOUT,
    JSON,
    MERCHANT,
    Json,
    Shop,
    Start,
    decoded,
    order_event,
    problem_of,
    removal_path,
    running,
    source,
)
from tests.making import Clock
from tests.server import environment
from tests.server import running as served
from tests.test_cli import cli, one_sentence, printed, unfolded

pytest_plugins = ["tests.http_fixtures"]

TEXTS = {
    "SQL": "'; DROP TABLE credit_line; --",
    "SQL in other quotes": '" OR ""="\\\'; SELECT pg_sleep(9); --',
    "SQL wildcards": "%_[a-z]*?",
    "parameters": ":name $1 ? %s %(x)s {0} {{}} ${jndi:ldap://x}",
    "CR LF": "a\r\nSet-Cookie: x=1\r\n\r\n<html>",
    "log line": '"}\n{"event": "request", "level": "info", "status": 200}',
    "bidi override": "invoice\u202etxt.exe\u2066\u2069\u200f",
    "zero width": "a\u200b\u200d\u2060\ufeff\u00ad\u180ez",
    "tags": "a\U000e0041\U000e007f",
    "line separators": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "ANSI": "\x1b[2J\x1b[31mred\x1b]0;title\x07\x08\x7f\x9b31m\x90q\x9c",
    "markup": "[bold red]x[/] [link=https://evil.test]y[/link] :smile: <script>&amp;",
    "shell": "$(reboot) `reboot` ; reboot & | > <",
    "formula": "=cmd|' /C calc'!A0",
    "plus": "+1+1",
    "minus": "-2+3",
    "at": "@SUM(1+1)",
    "tab": "\t=1+1",
    "CR": "\r=1+1",
    "quoted cell": '","=1+1","',
    "combining": "Z" + "\u0300\u0310\u0489" * 80,
    "beyond the plane": "😀\U0010ffff\uffff\ufdd0",
    "blanks": "  \u3000\xa0 ",
    "path": "../../etc/passwd?x=1#y%2f%00;z",
}
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
UNPRINTABLE = re.compile(r"[^\x20-\x7e\n]")


def json_lines(output: str) -> list[Json]:
    """A log: one JSON object a line, in plain ASCII."""
    assert not UNPRINTABLE.search(output), UNPRINTABLE.findall(output)
    return [json.loads(line) for line in output.splitlines()]


# What is stored is given back as it came


async def test_texts_come_back_as_they_were_given(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """Through every field that takes one, on one database for all of them."""
    shop = await start()
    answers: list[httpx.Response] = []

    async def note(response: httpx.Response) -> None:
        answers.append(response)

    shop.client.event_hooks["response"].append(note)
    for text in TEXTS.values():
        line = await issued_with(shop, text)
        await asked_with(shop, text)
        await told_with(shop, text)
        await kept_with(shop, text, line)
        await released_with(shop, text)
        await set_aside_with(shop, text)
    await exported_with(shop)
    assert max(answer.status_code for answer in answers) < 500
    for answer in answers:
        for name, value in answer.headers.raw:
            assert re.fullmatch(rb"[a-z-]+", name), name
            assert re.fullmatch(rb"[\x20-\x7e]+", value), value
    logged = json_lines(capsys.readouterr().out)
    assert len([line for line in logged if line["event"] == "request"]) == len(answers)


async def issued_with(shop: Shop, text: str) -> Json:
    """A line with the text in every field, found again by its ids."""
    own = {"customerId": text, "name": text, "iconUrl": text, "lastFour": text, "metadata": {text: text}}
    line = await shop.issue(100, text, reason=text, **own)
    assert line.items() >= {"upstreamId": text, **own}.items()
    for query in ({"upstreamId": text}, {"customerId": text}):
        (found,) = (await shop.get("/credit-lines", **query))["data"]
        assert found == line
    path = f"/customers/{quote(text, safe='')}"
    (spendable,) = (await shop.get(f"{path}/store-credits", currency="USD"))["storeCredits"]
    assert (spendable["upstreamId"], spendable["name"]) == (text, text)
    offered = {"currency": "USD", "amount": 1, "sessionUpstreamId": text}
    decoded(await shop.client.post(f"{path}/offers", json=offered, auth=MERCHANT), 201)
    return line


async def asked_with(shop: Shop, text: str) -> None:
    more = {"sessionUpstreamId": text, "name": text, "iconUrl": text, "lastFour": text}
    answer = await shop.authorize(10, text, text, **more)
    assert answer == {"approval": True, "upstreamId": text, "amount": 10}
    unknown = f"{text}?"
    assert await shop.authorize(1, text, unknown) == {"approval": False, "upstreamId": unknown}
    for query in ({"upstreamId": text}, {"sessionId": text, "upstreamId": text}):
        (decision,) = await shop.decisions(**query)
        told = [decision[name] for name in ("upstreamId", "sessionId", "sessionUpstreamId")]
        assert told == [text] * 3
    (found,) = (await shop.get("/credit-lines", sessionId=text))["data"]
    assert found["upstreamId"] == text


async def told_with(shop: Shop, text: str) -> None:
    """An order and what came back of it; then one that nobody can book."""
    spent = source(text, 10, upstream_id=text)
    who = {"email": text, "customerId": text}
    event = order_event(spent, event_id=text, order_id=text, session_id=text, **who)
    assert await shop.deliver(event) == "applied"
    refunds = [{"id": text, "amount": 1, "state": "complete"}]
    charge = {"id": text, "orderId": text, "sourceId": text, "currency": "USD", "refunds": refunds}
    returned = {"id": f"{text}2", "type": "order.charge.refund.complete", "data": {"object": charge}}
    assert await shop.deliver(returned) == "applied"
    (deduction,) = await shop.history("deductions", text)
    told = [deduction[name] for name in ("sourceId", "upstreamId", "orderId", "sessionId")]
    assert told == [text] * 4
    assert deduction["returned"] == 1
    entries = await shop.history("entries", text)
    assert {entry["eventId"] for entry in entries} >= {text, f"{text}2"}
    shown = await shop.get(f"/webhook-events/{quote(text, safe='')}")
    assert (shown["id"], shown["orderId"], shown["email"]) == (text, text, text)
    assert json.loads(shown["body"]) == event
    assert [event["id"] for event in await shop.events(orderId=text)] == [f"{text}2", text]
    assert await shop.deliver({"id": f"{text}3", "type": text, "data": {"object": {}}}) == "ignored"
    assert [event["id"] for event in await shop.events(type=text)] == [f"{text}3"]
    conflict = order_event(source(text, 99, upstream_id=text), event_id=text, order_id=text)
    problem_of(await shop.post_event(conflict), 409, "conflict")


async def kept_with(shop: Shop, text: str, line: Json) -> None:
    """Every reason, and the changes of a line."""
    path = f"/credit-lines/{line['id']}"

    async def post(verb: str, **body: Any) -> None:
        decoded(await shop.client.post(f"{path}/{verb}", json=body | {"reason": text}, auth=MERCHANT))

    await post("adjustments", amount=-1)
    await post("flags", flag="overdrawn", raised=True)
    await post("suspend")
    await post("resume")
    change = {"name": f"{text}!", "metadata": {}, "reason": text}
    changed = decoded(await shop.client.patch(path, json=change, auth=MERCHANT))
    assert changed["name"] == f"{text}!"
    reasons = [entry["reason"] for entry in await shop.history("entries", text)]
    assert len([reason for reason in reasons if reason and text in reason]) == 7


async def released_with(shop: Shop, text: str) -> None:
    session = f"{text}session"
    for path, body in (
        (f"/sessions/{quote(session, safe='')}/release", {"reason": text}),
        ("/holds/{}/release", {"reason": text}),
    ):
        await shop.authorize(1, session, text)
        (hold,) = [hold for hold in await shop.history("holds", text) if hold["state"] == "open"]
        response = await shop.client.post(path.format(hold["id"]), json=body, auth=MERCHANT)
        assert decoded(response) == {"released": [hold["id"]]}
    assert (await shop.remove(text)).status_code == 204
    for path in ("/credit-lines/{}", "/credit-lines/{}/entries", "/holds/{}/release"):
        name = path.format(quote(text, safe=""))
        method = "POST" if "holds" in path else "GET"
        response = await shop.client.request(method, name, json={}, auth=MERCHANT)
        # A slash or a dot in a name leads to another path.
        assert response.status_code in (404, 405), (path, response.text)


async def set_aside_with(shop: Shop, text: str) -> None:
    event_id = f"{text}unmatched"
    unmatched = order_event(source(event_id, upstream_id=f"{text}?"), event_id=event_id, order_id=event_id)
    assert await shop.deliver(unmatched) == "unmatched"
    path = f"/webhook-events/{quote(event_id, safe='')}"
    wrong = {"creditLineId": text, "sourceId": text, "reason": text}
    refused = problem_of(
        await shop.client.post(f"{path}/apply", json=wrong, auth=MERCHANT), 400, "bad_request"
    )
    assert refused["parameter"] == "creditLineId"
    dismissed = await shop.client.post(f"{path}/dismiss", json={"reason": text}, auth=MERCHANT)
    assert decoded(dismissed)["note"] == f"{MERCHANT[0]}: {text}"


async def exported_with(shop: Shop) -> None:
    """All rows, whole, and none of their cells a formula."""
    for noun, names in (
        ("lines", ("upstreamId", "customerId")),
        ("entries", ("reason", "eventId")),
        ("deductions", ("sourceId", "orderId", "sessionId")),
    ):
        as_json = await shop.client.get(f"/exports/{noun}?format=jsonl", auth=MERCHANT)
        rows = [json.loads(line) for line in as_json.content.decode("ascii").split("\n")[:-1]]
        as_csv = await shop.client.get(f"/exports/{noun}?format=csv", auth=MERCHANT)
        cells = list(csv.DictReader(io.StringIO(as_csv.content.decode(), newline=""), strict=True))
        for name in names:
            given = [row[name] or "" for row in rows]
            assert set(given) >= set(TEXTS.values())
            shown = [cell[name] for cell in cells]
            assert shown == [f"'{text}" if text.startswith(FORMULAS) else text for text in given]


# What can not be stored is refused by name

NUL = "zebra\0"
BODIES: list[tuple[str, str, Json, str]] = [
    *(
        ("POST", "/credit-lines", {name: NUL}, name)
        for name in ("customerId", "upstreamId", "name", "iconUrl", "lastFour", "reason")
    ),
    ("POST", "/credit-lines", {"metadata": {"a": NUL}}, "metadata"),
    ("POST", "/credit-lines", {"metadata": {NUL: "a"}}, "metadata"),
    *(
        ("PATCH", "/credit-lines/x", {name: NUL}, name)
        for name in ("name", "iconUrl", "lastFour", "reason")
    ),
    ("POST", "/credit-lines/x/adjustments", {"reason": NUL}, "reason"),
    ("POST", "/credit-lines/x/flags", {"reason": NUL}, "reason"),
    *(
        ("POST", f"/credit-lines/x/{verb}", {"reason": NUL}, "reason")
        for verb in ("suspend", "resume", "close", "reopen")
    ),
    ("POST", "/holds/x/release", {"reason": NUL}, "reason"),
    ("POST", "/sessions/x/release", {"reason": NUL}, "reason"),
    ("POST", "/customers/x/offers", {"currency": "USD", "sessionUpstreamId": NUL}, "sessionUpstreamId"),
    *(
        ("POST", "/webhook-events/x/apply", {name: NUL}, name)
        for name in ("creditLineId", "sourceId", "reason")
    ),
    ("POST", "/webhook-events/x/dismiss", {"reason": NUL}, "reason"),
    *(
        ("POST", AUTHORIZE, {name: NUL}, name)
        for name in ("sessionId", "sessionUpstreamId", "upstreamId", "name", "iconUrl", "lastFour")
    ),
]
QUERIES = [
    *(("/credit-lines", name) for name in ("upstreamId", "customerId", "orderId", "sessionId")),
    *(("/decisions", name) for name in ("upstreamId", "sessionId")),
    *(("/webhook-events", name) for name in ("type", "orderId")),
    *((path, "startingAfter") for path in ("/credit-lines", "/holds", "/decisions", "/webhook-events")),
]
PATHS = [
    *(
        ("GET", f"/credit-lines/{{}}{noun}")
        for noun in ("", "/entries", "/holds", "/deductions", "/decisions")
    ),
    *(("POST", path) for path in ("/holds/{}/release", "/sessions/{}/release", "/webhook-events/{}/apply")),
    ("GET", "/customers/{}/store-credits?currency=USD"),
    ("GET", "/webhook-events/{}"),
]


@pytest.mark.parametrize("bad", [NUL, "zebra\ud800"], ids=["NUL", "surrogate"])
async def test_what_no_database_can_hold_is_refused_by_name(shop: Shop, bad: str) -> None:
    for method, path, body, parameter in BODIES:
        content = json.dumps(body).replace(json.dumps(NUL)[1:-1], json.dumps(bad)[1:-1])
        auth = CALLOUT if path == AUTHORIZE else MERCHANT
        response = await shop.client.request(method, path, content=content, headers=JSON, auth=auth)
        body_ = response.json()
        assert (response.status_code, body_["type"]) == (400, "bad_request"), (path, parameter, body_)
        assert parameter in {error.get("parameter") for error in body_["errors"]}, (path, body_)
        assert "zebra" not in response.text
    assert (await shop.stored())["credit_line"] == 0


async def test_nul_in_queries_and_paths(shop: Shop) -> None:
    for path, parameter in QUERIES:
        response = await shop.client.get(path, params={parameter: NUL}, auth=MERCHANT)
        assert problem_of(response, 400, "bad_request")["parameter"] == parameter
    for method, path in PATHS:
        response = await shop.client.request(method, path.format("zebra%00"), json={}, auth=MERCHANT)
        problem_of(response, 404, "not_found")
    response = await shop.client.delete(removal_path(NUL), auth=CALLOUT)
    assert problem_of(response, 400, "bad_request")["parameter"] == "upstreamId"


@pytest.mark.parametrize("bad", ["a\0", "a\ud800"], ids=["NUL", "surrogate"])
async def test_events_with_texts_that_can_not_be_stored(shop: Shop, bad: str) -> None:
    """The envelope's are refused. What the order says is a fact: it is kept, and waits for an operator."""
    line = await shop.issue(100)
    for name in ("id", "type"):
        response = await shop.post_event(order_event(source()) | {name: bad})
        assert problem_of(response, 400, "bad_request")["parameter"] == name
    events = {
        "order": order_event(source("s-1"), event_id="e-1", order_id=bad),
        "session": order_event(source("s-2"), event_id="e-2", session_id=bad),
        "mail": order_event(source("s-3"), event_id="e-3", email=bad, customerId=bad),
        "source": order_event(source(bad), event_id="e-4"),
        "line": order_event(source("s-5", upstream_id=bad), event_id="e-5"),
        "currency": order_event(source("s-6", currency=bad), event_id="e-6"),
    }
    states = {name: await shop.deliver(event) for name, event in events.items()}
    assert states == {
        **dict.fromkeys(("order", "session", "mail"), "applied"),
        **dict.fromkeys(("source", "currency"), "failed"),
        "line": "unmatched",
    }
    assert len(await shop.history("deductions", line["upstreamId"])) == 3
    for n, event in enumerate(events.values(), start=1):
        assert json.loads((await shop.get(f"/webhook-events/e-{n}"))["body"]) == event


# Headers


BAD_HEADERS = [
    b"a\r\nSet-Cookie: x=1",
    b"a\nb",
    b"a\0b",
    b"\xe2\x80\xae",
    b"a b",
    b"x" * 65,
    b"",
    b"\x1b[2J",
]


async def test_a_request_id_can_not_split_an_answer(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below HTTP's own parser, which would refuse most of them."""
    shop = await start()
    for value in BAD_HEADERS:
        capsys.readouterr()
        response = await shop.client.get("/healthz", headers=[(b"X-Request-Id", value)])
        assert re.fullmatch(r"req_[0-9a-z]{26}", response.headers["x-request-id"])
        assert "set-cookie" not in response.headers
        (line,) = json_lines(capsys.readouterr().out)
        assert line["request_id"] == response.headers["x-request-id"]


async def test_an_idempotency_key_is_plain(shop: Shop) -> None:
    body = {"customerId": "c", "currency": "USD", "amount": 1}
    for value in (*BAD_HEADERS[:5], b"abc\n", b"x" * 256, b""):
        headers = [(b"Idempotency-Key", value)]
        response = await shop.client.post("/credit-lines", json=body, headers=headers, auth=MERCHANT)
        assert problem_of(response, 400, "bad_request")["parameter"].lower() == "idempotency-key"
    assert (await shop.stored())["credit_line"] == 0


HOSTILE_REQUESTS = [
    b"GET /\x1b[2J HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz\r\n\r\n",
    b"G\xe2\x80\xaeT /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\x0b\x1b[31m\r\nConnection: close\r\n\r\n",
    b"GET /%0d%0aSet-Cookie:%20x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /credit-lines HTTP/1.1\r\nHost: x\r\nAuthorization: \xff\x1b[2J\r\nConnection: close\r\n\r\n",
    b'GET /"}%0a{"event": HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n',
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
]


def test_a_server_s_log_stays_one_json_line_a_record(sqlite_url: str, tmp_path: Path) -> None:
    with served(sqlite_url, tmp_path) as [server]:
        for request in HOSTILE_REQUESTS:
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                connection.sendall(request)
                head = connection.recv(65_536).partition(b"\r\n\r\n")[0]
            assert re.fullmatch(rb"HTTP/1\.1 (200|40[0-9])[\x20-\x7e\r\n]*", head), (request, head)
            assert b"set-cookie" not in head.lower()
        server.stop()
        assert len(json_lines(server.log)) >= len(HOSTILE_REQUESTS)


# The terminal


def test_no_statement_commands_the_terminal(sqlite_url: str) -> None:
    unprintable = [text for text in TEXTS.values() if not text.isprintable()]
    assert len(unprintable) >= 9
    for text in unprintable:
        options = ("--customer", text, "--name", text, "--reason", text, "--upstream-id", text)
        made = cli("lines", "issue", "--currency", "USD", "--amount", "5", *options, url=sqlite_url)
        assert made.exit_code == 0, made.output
        for arguments in (("lines", "show", "--", text), ("lines", "statement", "--", text)):
            check_printed(printed(*arguments, url=sqlite_url))
        check_printed(made.stdout)
        refused = cli("lines", "show", "--", f"{text}?", url=sqlite_url)
        check_printed(one_sentence(refused.stderr))
    listed = printed("lines", "list", "--limit", "100", url=sqlite_url)
    check_printed(listed)
    assert r"\u202etxt.exe" in unfolded(listed)


async def test_no_event_commands_the_terminal(sqlite_url: str, clock: Clock) -> None:
    unprintable = [text for text in TEXTS.values() if not text.isprintable()]
    async with running(sqlite_url, clock) as shop:
        for text in unprintable:
            await shop.issue(5, f"{text}!", customerId=text)
            spent = source(text, upstream_id=text)
            named = {"event_id": text, "order_id": text, "session_id": text, "email": text}
            assert await shop.deliver(order_event(spent, **named)) == "unmatched"
    check_printed(printed("events", "list", "--limit", "100", url=sqlite_url))
    for text in unprintable:
        shown = printed("events", "show", "--", text, url=sqlite_url)
        check_printed(shown)
        assert "Lines that it may mean" in shown


def check_printed(output: str) -> None:
    assert [c for c in output if not c.isprintable() and c != "\n"] == []


@pytest.mark.parametrize("event_id", ["$(reboot); `reboot` 'x'", "--line=cl_1", "plain-1"])
async def test_a_command_to_paste_names_the_event_and_nothing_else(
    sqlite_url: str, clock: Clock, event_id: str
) -> None:
    async with running(sqlite_url, clock) as shop:
        await shop.issue(100, customerId="shopper@example.test")
        event = order_event(source(upstream_id=None), event_id=event_id, email="shopper@example.test")
        assert await shop.deliver(event) == "unmatched"
        line = await shop.line()
    *_, command = printed("events", "show", "--", event_id, url=sqlite_url).splitlines()
    end_of_options = ["--"] if event_id.startswith("-") else []
    assert shlex.split(command)[2:] == ["apply", "--line", line["id"], *end_of_options, event_id]


# The command line's own arguments


def run(url: str, *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "store_credit", *arguments]
    return subprocess.run(command, env=environment(url), capture_output=True, timeout=60, check=False)


def test_arguments_that_are_not_utf_8(sqlite_url: str) -> None:
    done = run(sqlite_url, "lines", "show", b"caf\xe9\x1b[2J")
    assert (done.returncode, done.stdout) == (2, b"")
    assert one_sentence(done.stderr.decode()) == r"The argument 'caf\udce9\x1b[2J' is not valid UTF-8."


@pytest.mark.parametrize(
    "number", ["99999999999999999999", "9" * 5_000, str(ENTRIES_MAX + 1), "0", "-1", "1e3", "٣x"]
)
@pytest.mark.parametrize(
    "arguments",
    [("lines", "show", "x", "--entries"), ("lines", "list", "--limit"), ("events", "list", "--limit")],
)
def test_numbers_beyond_all_bounds(sqlite_url: str, arguments: tuple[str, ...], number: str) -> None:
    refused = cli(*arguments, number, url=sqlite_url)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"Invalid value for '{arguments[-1]}'" in unfolded_box(refused.stderr)
    assert refused.exception is None or isinstance(refused.exception, SystemExit)


def unfolded_box(error: str) -> str:
    """A message of the argument parser without the box around it."""
    return re.sub(r"[│\s]+", " ", error)
