"""No path of the service reads a whole table: every statement that it runs is asked for its plan.

On tables with some years of data, every endpoint and every task in the background is exercised. Each
statement is explained right before it runs, with its own values, as the database plans it at that moment.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import Connection, Engine, event, make_url, text
from starlette.routing import Match

from store_credit import direct
from store_credit.cli import statement
from store_credit.database import PostgresqlDatabase, connect
from store_credit.direct import Fetch
from store_credit.exchange import queries as exchange
from store_credit.ledger import reports, sweeper
from store_credit.ledger.ledger import Ledger
from store_credit.webhooks import catch_up, upkeep
from tests.http_fixtures import MERCHANT, Shop, order_event, running, source
from tests.making import DAY, NOON, POLICY, Clock, authorize, deduct, issue, release
from tests.webhooks.payloads import refund_event

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import growth_fill

LINES = 6_000
PAST_HOLDS = 3_000
ROWS_MAX = 2_000
"""That one statement may look at; each of the tables has more."""

INSTRUCTIONS_MAX = 40
"""Of SQLite's machine for one statement, in thousands. They too tell of rows that are looked at."""

GROWING = frozenset(
    {
        *("claim", "credit_line", "decision", "deduction", "hold", "ledger_batch", "ledger_entry"),
        *("offer", "source", "webhook_event"),
    }
)
"""All tables but that of the credentials, of which there are few."""

FEW = "ix_credit_line_flagged"
"""An index of nothing but the lines that wait for an operator."""

OF_ALL_LINES = ("ix_hold_open_expires_at", "ix_hold_open_created_at")
"""The indexes of what is open on all lines: too much to look for something else in it. But to a planner
that knows years of past holds, next to nothing lies in the future."""

OF_OPEN_HOLDS = (*OF_ALL_LINES, "ix_hold_open_line_id", "uq_hold_open")

ALL_THAT_IS_OPEN = "all that is open"

READING_ALL = {
    "GET /reports/liability": "the sums of the whole journal, at any past instant",
    "GET /exports/entries": "the whole journal, a page at a time, with the currencies of its lines",
    "GET /exports/deductions": "all deductions, a page at a time, with the currencies of their lines",
    "the busiest line at a past instant": "the whole journal of one line, at most",
}
"""What must read a whole table, and why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement that reads too much."""

    step: str
    problem: str
    statement: str


@dataclass(slots=True)
class Watch:
    """What was run, and what of it reads too much."""

    step: str = ""
    findings: list[Finding] = field(default_factory=list)
    statements: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """What was run, each with the last step that ran it and its values then."""
    called: list[tuple[str, str]] = field(default_factory=list)
    """The method and path of each request."""

    running: tuple[str, str] = ("", "")
    """The last statement, and its step."""
    instructions: int = 0
    """That SQLite has run for it, in thousands."""

    def explain(self, connection: Connection, cursor: Any, sql: str, values: Any) -> None:
        if connection.dialect.name == "sqlite":
            self.count(connection, sql)
        if not re.match(r"(SELECT|INSERT|UPDATE|DELETE|WITH)\b", sql):
            return
        self.statements[sql] = (self.step, values)
        problems = _sqlite_problems if connection.dialect.name == "sqlite" else _postgresql_problems
        for problem in problems(cursor, sql, values):
            self.findings.append(Finding(self.step, problem, sql))

    async def explain_at_once(self, fetch: Fetch, sql: str, values: Sequence[Any]) -> None:
        """What commits by itself keeps one plan for all values: that one, and what these values take."""
        self.statements[sql] = (self.step, values)
        await fetch(f"PREPARE explained AS {sql}")
        nothing = ", ".join(["NULL"] * len(values))
        (general,) = await fetch(f"EXPLAIN (FORMAT JSON) EXECUTE explained({nothing})")
        await fetch("DEALLOCATE explained")
        await fetch("BEGIN")
        (run,) = await fetch(f"EXPLAIN (FORMAT JSON, ANALYZE, TIMING OFF) {sql}", *values)
        await fetch("ROLLBACK")
        for problem in (*_problems_of(general, sql), *_problems_of(run, sql)):
            self.findings.append(Finding(self.step, problem, sql))

    def count(self, connection: Connection, sql: str) -> None:
        """Tell what the statement before this one took, and count for this one."""
        if self.instructions > INSTRUCTIONS_MAX:
            step, before = self.running
            self.findings.append(Finding(step, f"{self.instructions},000 instructions", before))
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(self.counted, 1_000)
        self.running, self.instructions = (self.step, sql), 0

    def counted(self) -> int:
        self.instructions += 1
        return 0


def _sqlite_problems(cursor: sqlite3.Cursor, sql: str, values: Any) -> Iterator[str]:
    for *_, detail in cursor.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall():
        scanned = re.match(r"SCAN (\w+)", detail)
        # A page may be read in the order of an index; all of it, as little as all of the table.
        paged = " USING " in detail and "LIMIT" in sql
        if scanned and scanned[1] in GROWING and not paged and FEW not in detail:
            yield detail


def _postgresql_problems(cursor: Any, sql: str, values: Any) -> Iterator[str]:
    # What writes is run for its plan too, and undone.
    cursor.execute("SAVEPOINT explained")
    cursor.execute(f"EXPLAIN (FORMAT JSON, ANALYZE, TIMING OFF) {sql}", values)
    ((found,),) = cursor.fetchall()
    cursor.execute("ROLLBACK TO SAVEPOINT explained")
    yield from _problems_of(found, sql)


def _problems_of(found: Any, sql: str) -> Iterator[str]:
    """What is wrong with a plan of PostgreSQL; how many rows it looks at is known of one that was run."""
    (whole,) = json.loads(found) if isinstance(found, str) else found
    for node in _nodes(whole["Plan"]):
        table = node.get("Relation Name")
        if table not in GROWING:
            continue
        if node["Node Type"] == "Seq Scan":
            yield f"Seq Scan on {table}"
        # The list of all open holds goes through all of them, and the sweeper through those that are due.
        by_line = "hold.created_at" not in sql and "hold.id >" not in sql
        if node.get("Index Name") in OF_ALL_LINES and "Filter" in node and by_line:
            yield f"{ALL_THAT_IS_OPEN}, by {node['Index Name']}: {node['Filter']}"
        if node.get("Index Name") in OF_OPEN_HOLDS and "Index Cond" not in node and by_line:
            yield f"{ALL_THAT_IS_OPEN}, by {node['Index Name']}"
        looked_at = node.get("Actual Rows", 0) + node.get("Rows Removed by Filter", 0)
        if (rows := looked_at * node.get("Actual Loops", 1)) > ROWS_MAX:
            yield f"{node['Node Type']} of {rows:.0f} rows of {table}"


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    """The application on filled tables."""
    database = connect(database_url, command_timeout_seconds=None)
    await database.write(growth_fill.fill, LINES, PAST_HOLDS, NOON)
    await database.close()
    async with running(database_url, Clock(), event_retention="1d", parked_retention="1d") as shop:
        yield shop


@contextlib.contextmanager
def watching_statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watching = Watch()

    def before(
        connection: Connection, cursor: Any, sql: str, values: Any, _context: Any, many: bool
    ) -> None:
        watching.explain(connection, cursor, sql, values[0] if many else values)

    def directly(run: Callable[..., Any], *, many: bool) -> Callable[..., Any]:
        def watched(connection: Connection, sql: str, values: Any) -> Any:
            driver: Any = connection.connection.driver_connection
            before(connection, driver.cursor(), sql, values, None, many)
            return run(connection, sql, values)

        return watched

    at_once = PostgresqlDatabase.at_once

    async def watched_at_once(database: Any, function: Any) -> Any:
        async def watched(fetch: Fetch) -> Any:
            async def explained(sql: str, *values: Any) -> Any:
                await watching.explain_at_once(fetch, sql, values)
                return await fetch(sql, *values)

            return await function(explained)

        return await at_once(database, watched)

    monkeypatch.setattr(direct, "rows", directly(direct.rows, many=False))
    monkeypatch.setattr(direct, "repeat", directly(direct.repeat, many=True))
    monkeypatch.setattr(PostgresqlDatabase, "at_once", watched_at_once)
    event.listen(Engine, "before_cursor_execute", before)
    try:
        yield watching
    finally:
        event.remove(Engine, "before_cursor_execute", before)


@pytest.fixture
def watch(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    with watching_statements(monkeypatch) as watching:

        async def called(request: Any) -> None:
            watching.step = f"{request.method} {request.url.raw_path.decode()}"
            watching.called.append((request.method, request.url.path))

        shop.client.event_hooks["request"].append(called)
        yield watching


def number(prefix: str, value: int) -> str:
    """A name as the filled tables have it."""
    return f"{prefix}-{value:020}"


LINE = growth_fill.upstream_id(1_001)
OTHER = growth_fill.upstream_id(1_002)
BUSY = growth_fill.upstream_id(growth_fill.BUSY_NUMBER)

LISTS: list[tuple[str, dict[str, Any]]] = [
    ("/credit-lines", {}),
    ("/credit-lines", {"upstreamId": LINE}),
    ("/credit-lines", {"customerId": number("customer", 500)}),
    ("/credit-lines", {"customerId": number("customer", 500), "currency": "USD", "status": "active"}),
    ("/credit-lines", {"orderId": number("order", 10_011)}),
    ("/credit-lines", {"sessionId": number("session", 10_011)}),
    *(("/credit-lines", {"status": status}) for status in ("active", "suspended", "closed", "expired")),
    *(("/credit-lines", {"currency": currency}) for currency in ("USD", "JPY")),
    *(("/credit-lines", {"flagged": flagged}) for flagged in ("true", "false")),
    ("/credit-lines", {"startingAfter": f"cl_00{5_000:024}"}),
    ("/credit-lines", {"endingBefore": f"cl_00{5_000:024}"}),
    ("/holds", {}),
    *(("/holds", {"state": state}) for state in ("open", "consumed", "released", "expired")),
    *(("/holds", {"state": state, "olderThan": "400d"}) for state in ("open", "consumed", "released")),
    ("/holds", {"state": "expired", "olderThan": "400d"}),
    ("/holds", {"olderThan": "400d"}),
    ("/holds", {"olderThan": "1h"}),
    ("/decisions", {}),
    ("/decisions", {"upstreamId": LINE}),
    ("/decisions", {"upstreamId": BUSY}),
    ("/decisions", {"sessionId": number("session", 10_011)}),
    ("/decisions", {"since": "2026-11-19T00:00:00Z"}),
    ("/decisions", {"until": "2025-03-01T00:00:00Z"}),
    ("/decisions", {"since": "2025-03-01T00:00:00Z", "until": "2025-03-01T01:00:00Z"}),
    ("/webhook-events", {}),
    ("/webhook-events", {"orderId": number("order", 10_011)}),
    *(("/webhook-events", {"state": state}) for state in ("applied", "ignored", "parked", "unmatched")),
    *(("/webhook-events", {"state": state}) for state in ("failed", "conflict", "dismissed")),
    *(("/webhook-events", {"type": kind}) for kind in ("order.refunded", "order.blocked")),
    ("/webhook-events", {"startingAfter": number("event", 10_011)}),
    (f"/customers/{number('customer', 500)}/store-credits", {"currency": "USD"}),
    ("/reports/liability", {}),
    *((f"/exports/{noun}", {}) for noun in ("lines", "entries", "deductions")),
    *((path, {}) for path in ("/healthz", "/readyz", "/metrics", "/openapi.json")),
]


async def look(shop: Shop) -> None:
    for path, query in LISTS:
        response = await shop.client.get(path, params=query, auth=MERCHANT)
        assert response.status_code == 200, (path, query, response.text)
    await shop.get(f"/credit-lines/cl_00{1_001:024}", asOf="2026-11-01T00:00:00Z")
    for line in (await shop.line(LINE), await shop.line(BUSY)):
        for noun in ("entries", "holds", "deductions", "decisions"):
            await shop.get(f"/credit-lines/{line['id']}/{noun}")
        await shop.get(f"/credit-lines/{line['id']}")


async def check_out(shop: Shop) -> None:
    for name in (LINE, BUSY):
        for _ in range(2):
            assert (await shop.authorize(1, f"first-{name}", name))["approval"]
        assert (await shop.remove(name)).status_code == 204
        assert (await shop.authorize(1, f"second-{name}", name))["approval"]
        paid, told = source(f"source-{name}", 1, name), f"event-{name}"
        for _ in range(2):
            event = order_event(paid, event_id=told, order_id=f"order-{name}", session_id=f"second-{name}")
            assert await shop.deliver(event) == "applied"
        assert await shop.deliver(refund_event(f"refund-{name}", [0.5], f"source-{name}")) == "applied"
        assert (await shop.authorize(1, f"third-{name}", name))["approval"]


async def receive(shop: Shop) -> None:
    assert await shop.deliver(refund_event("of a card", [5], "card-1")) == "parked"
    assert await shop.deliver(refund_event("wrong", [-5], f"source-{LINE}")) == "failed"
    for name in ("lost", "hopeless"):
        unmatched = order_event(source(name, 1, None), event_id=name, order_id=name)
        assert await shop.deliver(unmatched) == "unmatched"
    again = order_event(source("lost", 2, None), event_id="lost", order_id="lost")
    assert (await shop.post_event(again)).status_code == 409
    line = await shop.line(LINE)
    await post(shop, "/webhook-events/lost/apply", {"creditLineId": line["id"]})
    await post(shop, "/webhook-events/hopeless/apply", {})
    await post(shop, "/webhook-events/hopeless/dismiss", {"reason": "a test"})
    await shop.get("/webhook-events/wrong")


async def keep(shop: Shop) -> None:
    """What a merchant does."""
    line = await shop.line(OTHER)
    of_line = f"/credit-lines/{line['id']}"
    for _ in range(2):
        asked = {"customerId": "customer-1", "currency": "USD", "amount": 5}
        await post(shop, "/credit-lines", asked, 201, **{"Idempotency-Key": "issued"})
    await post(shop, f"{of_line}/adjustments", {"amount": 1, "reason": "a test"})
    await post(shop, f"{of_line}/flags", {"flag": "overdrawn", "raised": True, "reason": "a test"})
    for action in ("suspend", "resume", "close", "reopen"):
        await post(shop, f"{of_line}/{action}", {"reason": "a test"})
    changed = {"name": "Card", "expiresTime": "2027-01-01T00:00:00Z"}
    assert (await shop.client.patch(of_line, json=changed, auth=MERCHANT)).status_code == 200
    for supersede in (False, True):
        asked = {"currency": "USD", "amount": 1, "supersede": supersede}
        made = await post(shop, f"/customers/{number('customer', 500)}/offers", asked, 201)
        offered = made["storeCredits"][0]["upstreamId"]
        assert (await shop.authorize(1, f"offered-{supersede}", offered))["approval"]
    await shop.authorize(1, "released", BUSY)
    held = (await shop.history("holds", BUSY))[0]
    await post(shop, f"/holds/{held['id']}/release", {})
    await post(shop, "/sessions/offered-True/release", {})


async def post(shop: Shop, path: str, body: dict[str, Any], status: int = 200, **headers: str) -> Any:
    response = await shop.client.post(path, json=body, auth=MERCHANT, headers=headers)
    assert response.status_code == status, (path, response.text)
    return response.json()


async def tend(shop: Shop, watch: Watch) -> None:
    """What goes on in the background, and on the command line."""
    ledger, database = shop.service.ledger, shop.service.database
    shop.clock.advance(3 * DAY)
    watch.step = "sweep"
    for _ in range(3):
        await sweeper.sweep(ledger)
    watch.step = "tend"
    for _ in range(2):
        await upkeep.tend(ledger, shop.service.settings)
    watch.step = "catch up"
    told = order_event(source("caught", 1, LINE), event_id="caught", order_id="caught")
    page = httpx.MockTransport(lambda _: httpx.Response(200, json={"hasMore": False, "data": [told]}))
    async with httpx.AsyncClient(transport=page, base_url="http://river.test") as river:
        assert (await catch_up.catch_up(ledger, river, NOON)).applied == 1
    busy = await shop.line(BUSY)
    watch.step = "the busiest line at a past instant"
    await database.read(reports.line_as_of, busy["id"], NOON)
    watch.step = "statement"
    assert await database.read(statement.tell, LINE, shop.clock(), 20) is not None
    line = await shop.line(LINE)
    watch.step = "movements"
    await database.read(reports.statement, line["id"], NOON - 30 * DAY, NOON)
    watch.step = "import"
    await database.read(exchange.known, ["line:1"], [LINE])


async def test_nothing_reads_a_whole_table(
    shop: Shop, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "STEPS_PER_ROUND", 5)
    monkeypatch.setattr(sweeper, "MARKERS_PER_ROUND", 50)

    await check_out(shop)
    await receive(shop)
    await keep(shop)
    await look(shop)
    await tend(shop, watch)

    if shop.service.database.dialect == "sqlite":
        await explain_analysed(shop, watch)
    assert not_called(shop, watch) == []
    assert touched(watch) == GROWING
    assert any("INSERT INTO ledger_entry" in sql for sql in watch.statements)
    at_once = any("locked AS MATERIALIZED" in sql for sql in watch.statements)
    assert at_once == (shop.service.database.dialect == "postgresql")
    found = [finding for finding in watch.findings if finding.step not in READING_ALL]
    assert found == []
    assert "GET /reports/liability" in {finding.step for finding in watch.findings}


async def explain_analysed(shop: Shop, watch: Watch) -> None:
    """All of it again with statistics: SQLite gathers none by itself, but an operator may."""
    path = make_url(shop.service.settings.database_url).database
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        connection.execute("ANALYZE")
        for sql, (step, values) in watch.statements.items():
            for problem in _sqlite_problems(connection.cursor(), sql, values):
                watch.findings.append(Finding(step, f"analysed: {problem}", sql))


def not_called(shop: Shop, watch: Watch) -> list[str]:
    """The endpoints of which no plan was seen."""
    scopes = [{"type": "http", "method": method, "path": path} for method, path in watch.called]
    return [
        f"{route.methods} {route.path}"
        for route in shop.app.routes
        if isinstance(route, APIRoute) and not any(route.matches(s)[0] == Match.FULL for s in scopes)
    ]


def touched(watch: Watch) -> set[str]:
    """The growing tables that the statements name."""
    return {table for table in GROWING for sql in watch.statements if re.search(rf"\b{table}\b", sql)}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("believed", ["nothing", "no hold is open"])
async def test_open_holds_are_found_by_their_lines_and_sessions_whatever_is_believed(
    database_url: str, believed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What PostgreSQL knows of its tables may be as old as the last quiet hour, or nothing at all."""
    database = connect(database_url, command_timeout_seconds=None)
    if believed == "no hold is open":
        await database.write(growth_fill.fill, 100, PAST_HOLDS, NOON)
        await database.write(
            lambda connection: connection.execute(text("DELETE FROM hold WHERE state = 'open'"))
        )
        await database.write(lambda connection: connection.execute(text("ANALYZE")))
    ledger = Ledger(database, POLICY, clock=Clock())
    with watching_statements(monkeypatch) as watch:
        for batches_under_locks in (0, 100):
            ledger._under_locks = batches_under_locks
            watch.step = f"line-{batches_under_locks}"
            await ledger.execute(issue(100_00, watch.step))
            for session_id in ("a", "b"):
                await ledger.execute(authorize("10", session_id, watch.step))
            await ledger.execute(release(watch.step))
            await ledger.execute(deduct("5", watch.step, "a", watch.step))
    await ledger.close()
    await database.close()
    assert [one for one in watch.findings if one.problem.startswith(ALL_THAT_IS_OPEN)] == []
    assert {step for step, _ in watch.statements.values()} == {"line-0", "line-100"}
