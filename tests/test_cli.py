"""The command line: every command, what it prints, and how it says no."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, make_url, text
from typer.testing import CliRunner, Result

from store_credit import __version__, bulk, ids, schema
from store_credit.callouts import decisions
from store_credit.cli.demo import Play, PlayFailed
from store_credit.cli.main import app
from store_credit.database import Database, connect
from store_credit.ledger.commands import Authorize, Command, Policy, Release
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.tables import offer
from tests import making
from tests.server import (
    CALLOUT,
    CALLOUT_PATH,
    MERCHANT,
    START_SECONDS_MAX,
    WEBHOOK_SECRET,
    Server,
    calling,
    command,
    environment,
    free_port,
    http_client,
    order_event,
    poll,
    running,
    source,
)

DISABLED_SECONDS_MAX = 5
"""The service promises about one second; the rest is for a busy machine."""
FIRST_SCHEMA = "2026_11_20_ledger"


def cli(*arguments: str, url: str, **settings: str) -> Result:
    """Run a command in this process, in a thread so that no test's event loop is touched."""
    inherited = {name: None for name in os.environ if name.startswith("STORE_CREDIT_")}
    given = {f"STORE_CREDIT_{name}": value for name, value in settings.items()}
    runner = CliRunner(env={**inherited, "STORE_CREDIT_DATABASE_URL": url, **given})
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(runner.invoke, app, arguments).result()


def printed(*arguments: str, url: str) -> str:
    """What a command that succeeds prints."""
    result = cli(*arguments, url=url)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def sentence(result: Result) -> str:
    """The one sentence with which a command says no."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return one_sentence(result.stderr)


def one_sentence(error: str) -> str:
    assert re.fullmatch(r"store-credit: [^\n]+\.\n", error), error
    return error.removeprefix("store-credit: ").strip()


def refused_start(url: str, *arguments: str, **settings: str) -> str:
    """The one sentence with which `serve` does not start."""
    started = command("serve", "--port", str(free_port()), *arguments, env=environment(url, **settings))
    assert started.returncode not in (0, None), started.stdout
    assert started.stdout == ""
    return one_sentence(started.stderr)


def change(url: str, *statements: str) -> None:
    """Change a database behind the service's back."""

    def work(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement))

    with_database(url, lambda database: database.write(work))


def with_database(url: str, work: Any) -> Any:
    async def run() -> Any:
        database = connect(url)
        try:
            return await work(database)
        finally:
            await database.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()


def unfolded(text_: str) -> str:
    """What a table shows, however it was folded."""
    return re.sub(r"\s", "", text_)


# serve


def test_serve_refuses_several_workers_on_sqlite(sqlite_url: str) -> None:
    said = refused_start(sqlite_url, "--workers", "2")
    assert said == "SQLite has one writer: several workers need PostgreSQL."


def test_serve_refuses_a_postgresql_database_that_is_behind(postgresql_url: str) -> None:
    with_database(postgresql_url, lambda database: database.write(schema.downgrade, FIRST_SCHEMA))
    said = refused_start(postgresql_url)
    assert "behind" in said
    assert FIRST_SCHEMA in said
    assert "`store-credit migrate`" in said


GO_AHEAD = "UPDATE alembic_version SET version_num = 'from_the_future'"
RAISE_THE_FLOOR = "UPDATE schema_floor SET revision = 'from_the_future'"


def test_serve_refuses_a_postgresql_database_that_is_too_far_ahead(postgresql_url: str) -> None:
    change(postgresql_url, GO_AHEAD, RAISE_THE_FLOOR)
    said = refused_start(postgresql_url)
    assert "ahead" in said
    assert "from_the_future" in said
    assert "`store-credit migrate --back --to" in said, "it names the command to run"


@pytest.mark.parametrize("empty_database_url", ["postgresql"], indirect=True)
def test_serve_refuses_an_empty_postgresql_database(empty_database_url: str) -> None:
    said = refused_start(empty_database_url)
    assert "behind" in said
    assert "`store-credit migrate`" in said


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
def test_serve_brings_a_sqlite_database_to_the_newest_schema(
    empty_database_url: str, tmp_path: Path
) -> None:
    with running(empty_database_url, tmp_path):
        found = with_database(empty_database_url, lambda database: database.read(schema.current))
    assert found == schema.head()


def test_serve_refuses_to_start_without_credentials_for_the_callout(sqlite_url: str) -> None:
    said = refused_start(sqlite_url, CALLOUT_USERNAME="", CALLOUT_PASSWORD="")
    assert "STORE_CREDIT_CALLOUT_USERNAME" in said
    assert "STORE_CREDIT_CALLOUT_PASSWORD" in said
    assert "`store-credit credentials add" in said


def test_serve_refuses_a_database_that_does_not_answer() -> None:
    said = refused_start(f"postgresql://someone:hush@127.0.0.1:{free_port()}/somewhere")
    assert said == "The database does not answer; see STORE_CREDIT_DATABASE_URL."


def test_serve_refuses_a_callout_path_of_its_own(sqlite_url: str) -> None:
    said = refused_start(sqlite_url, CALLOUT_PATHS="/credit-lines")
    assert said == "STORE_CREDIT_CALLOUT_PATHS: /credit-lines is a path of the service itself."


def test_serve_ends_when_its_port_is_taken(sqlite_url: str, tmp_path: Path) -> None:
    with running(sqlite_url, tmp_path) as [server]:
        second = command("serve", "--port", str(server.port), env=environment(sqlite_url))
    assert second.returncode not in (0, None)
    assert "Address already in use" in second.stdout
    assert "Traceback" not in second.stdout + second.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"HOLD_TTL": "soon"}, "STORE_CREDIT_HOLD_TTL: must be a duration such as 90s, 15m, 24h or 30d."),
        ({"HOLD_TTL": "0"}, "STORE_CREDIT_HOLD_TTL: must be more than zero and at most ten years."),
        ({"DATABASE_CONNECTIONS": "many"}, "STORE_CREDIT_DATABASE_CONNECTIONS: .*integer.*"),
        ({"DATABASE_CONNECTIONS": "2"}, "STORE_CREDIT_DATABASE_CONNECTIONS: .*3.*"),
        ({"PARTIAL_APPROVAL": "perhaps"}, "STORE_CREDIT_PARTIAL_APPROVAL: .*boolean.*"),
        ({"LOG_LEVEL": "loud"}, "STORE_CREDIT_LOG_LEVEL: .*'debug', 'info', 'warning' or 'error'.*"),
        ({"UNSIGNED_WEBHOOKS": "yes"}, "STORE_CREDIT_UNSIGNED_WEBHOOKS: .*'refuse' or 'accept'.*"),
        ({"METRICS_ROLE": "merchant"}, "STORE_CREDIT_METRICS_ROLE: .*'none' or 'reader'.*"),
        ({"WEBHOOK_SECRETS": "hush1,hush2,hush3,hush4,hush5,hush6"}, "STORE_CREDIT_WEBHOOK_SECRETS: .*5.*"),
        ({"CALLOUT_PATHS": "store-credit"}, "STORE_CREDIT_CALLOUT_PATHS: .*'store-credit'.*plain path.*"),
        ({"CALLOUT_PATHS": "/a/{id}"}, "STORE_CREDIT_CALLOUT_PATHS: .*plain path.*"),
        ({"CALLOUT_PASSWORD": "hush"}, "STORE_CREDIT_CALLOUT_USERNAME and .*_PASSWORD .*together."),
        ({"MERCHANT_USERNAME": "m"}, "STORE_CREDIT_MERCHANT_USERNAME and .*_PASSWORD .*together."),
        ({"CALLOUT_USERNAME": "a:b", "CALLOUT_PASSWORD": "hush"}, "STORE_CREDIT_CALLOUT_USERNAME .*colon."),
        ({"CALLOUT_USERNAME": "a", "CALLOUT_PASSWORD": ""}, "STORE_CREDIT_CALLOUT_PASSWORD .*empty."),
        ({"DATABASE_URL": "mysql://a:hush@b/c"}, "STORE_CREDIT_DATABASE_URL: 'mysql' is neither .*"),
        ({"DATABASE_URL": "sqlite://"}, "STORE_CREDIT_DATABASE_URL: SQLite needs a file.*"),
        ({"DATABASE_URL": "hush"}, "STORE_CREDIT_DATABASE_URL: it can not be read as a database URL."),
    ],
    ids=lambda value: None if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()),
)
def test_a_wrong_setting_is_named_in_one_sentence(
    sqlite_url: str, settings: dict[str, str], said: str
) -> None:
    given = dict(settings)
    found = sentence(cli("lines", "list", url=given.pop("DATABASE_URL", sqlite_url), **given))
    assert re.fullmatch(said, found)
    assert "hush" not in found, "no secret is repeated"


async def test_two_workers_on_postgresql_share_the_work_and_their_metrics(
    postgresql_url: str, tmp_path: Path
) -> None:
    with running(postgresql_url, tmp_path, "--workers", "2") as [server]:
        async with calling(server) as service:
            line = await service.issued(100.00)
        counted: list[str] = []
        for n in range(20):
            with http_client(server.url, CALLOUT) as client:  # A connection each, for either worker.
                body = {"sessionId": f"session-{n}", "amount": 1.00, "upstreamId": line["upstreamId"]}
                assert client.post(CALLOUT_PATH, json=body).json()["approval"]
                metrics = client.get("/metrics").text
                counted += re.findall(r"^store_credit_decisions_total\{.*\} (.*)$", metrics, re.M)
        assert [float(count) for count in counted] == list(range(1, 21)), "whichever worker is asked"
        assert server.stop() == 0


async def test_uvicorn_serves_the_same_application(sqlite_url: str, tmp_path: Path) -> None:
    class Uvicorn(Server):
        def _command_line(self, arguments: Sequence[str]) -> list[str]:
            factory = ["--factory", "store_credit.app:create_app"]
            return [sys.executable, "-m", "uvicorn", *factory, *arguments]

    by_uvicorn, by_serve = Uvicorn(sqlite_url, tmp_path), Server(sqlite_url, tmp_path)
    try:
        by_uvicorn.start()
        by_serve.start()
        async with calling(by_uvicorn) as uvicorn, calling(by_serve) as serve:
            line = await uvicorn.issued(100.00)
            assert (await uvicorn.authorize(line["upstreamId"], "session-1", 11.4)).json()["approval"]
            event = order_event("session-1", source(line["upstreamId"], 11.4))
            assert (await uvicorn.deliver(event)).json()["state"] == "applied"
            assert (await serve.books(line["id"])).line["balance"] == 88.6
            documents = [(await one.get("/openapi.json", auth=None)).json() for one in (uvicorn, serve)]
        assert documents[0] == documents[1]
    finally:
        for server in (by_uvicorn, by_serve):
            if server.is_running:
                server.kill()


# migrate


def test_migrate_brings_an_empty_database_to_the_newest_schema(empty_database_url: str) -> None:
    head = schema.head()
    assert printed("migrate", url=empty_database_url) == f"The schema was at nothing and is at {head}.\n"
    assert printed("migrate", url=empty_database_url) == f"The schema was at {head} and is at {head}.\n"
    assert with_database(empty_database_url, lambda database: database.read(schema.current)) == head


def test_migrate_goes_back_and_forth(database_url: str) -> None:
    head = schema.head()
    back = printed("migrate", "--back", "--to", FIRST_SCHEMA, url=database_url)
    assert back == f"The schema was at {head} and is at {FIRST_SCHEMA}.\n"
    assert printed("migrate", url=database_url) == f"The schema was at {FIRST_SCHEMA} and is at {head}.\n"


def test_migrate_refuses_a_schema_that_it_does_not_know(sqlite_url: str) -> None:
    assert "'nonsense'" in sentence(cli("migrate", "--to", "nonsense", url=sqlite_url))


def test_migrate_leaves_a_newer_schema_that_only_adds(database_url: str) -> None:
    change(database_url, GO_AHEAD)
    told = printed("migrate", url=database_url)
    assert told == "The schema was at from_the_future and is at from_the_future.\n"


def test_migrate_refuses_a_database_that_is_too_far_ahead(database_url: str) -> None:
    change(database_url, GO_AHEAD, RAISE_THE_FLOOR)
    said = sentence(cli("migrate", url=database_url))
    assert "ahead: it is at from_the_future" in said
    assert "`store-credit migrate --back --to" in said


def test_migrate_goes_back_only_to_a_schema_that_is_named(sqlite_url: str) -> None:
    assert "--to" in sentence(cli("migrate", "--back", url=sqlite_url))
    said = sentence(cli("migrate", "--to", FIRST_SCHEMA, url=sqlite_url))
    assert f"{FIRST_SCHEMA} is earlier: to go back, add --back." in said


def test_commands_refuse_a_postgresql_database_that_is_behind(postgresql_url: str) -> None:
    with_database(postgresql_url, lambda database: database.write(schema.downgrade, FIRST_SCHEMA))
    assert "`store-credit migrate`" in sentence(cli("lines", "list", url=postgresql_url))


# credentials


def add_credential(url: str, name: str, role: str) -> tuple[str, str]:
    """The id and the password of a new credential."""
    result = cli("credentials", "add", name, "--role", role, url=url)
    assert result.exit_code == 0, result.output
    password = result.stdout.strip()
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", password), "standard output is the password and nothing else"
    assert password not in result.stderr
    return result.stderr.partition(":")[0], password


def test_a_password_is_printed_once_and_kept_as_argon2id(database_url: str) -> None:
    added, password = add_credential(database_url, "reporting", "reader")
    listed = printed("credentials", "list", url=database_url)
    assert added in listed
    assert "reporting" in listed
    assert password not in listed

    def kept(connection: Connection) -> list[str]:
        return list(connection.execute(text("SELECT password_hash FROM credential")).scalars())

    (hashed,) = with_database(database_url, lambda database: database.read(kept))
    assert hashed.startswith("$argon2id$")


def test_disabled_credentials_are_listed_as_such(database_url: str) -> None:
    added, _ = add_credential(database_url, "reporting", "reader")
    assert printed("credentials", "disable", "reporting", url=database_url) == "1 disabled.\n"
    (row,) = [row for row in printed("credentials", "list", url=database_url).splitlines() if added in row]
    assert len(re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row)) == 2, "added and disabled"


def test_disabling_what_is_unknown_is_refused(sqlite_url: str) -> None:
    said = sentence(cli("credentials", "disable", "nobody", url=sqlite_url))
    assert said == "No active credential has the id or name 'nobody'."


@pytest.mark.parametrize("name", ["", "a:b", "x" * 256, "a\nb", "a\0b"])
def test_a_name_that_http_basic_can_not_carry_is_refused(sqlite_url: str, name: str) -> None:
    result = cli("credentials", "add", name, "--role", "reader", url=sqlite_url)
    assert "1 to 255 printable characters without a colon" in sentence(result)


def test_an_unknown_role_is_refused(sqlite_url: str) -> None:
    result = cli("credentials", "add", "somebody", "--role", "emperor", url=sqlite_url)
    assert result.exit_code == 2
    assert "'emperor'" in result.stderr


def test_markup_in_a_name_is_only_text(sqlite_url: str) -> None:
    add_credential(sqlite_url, "[/];x;[bold]", "reader")
    assert "[/];x;[bold]" in printed("credentials", "list", url=sqlite_url)


def status_of(client: httpx.Client, auth: tuple[str, str]) -> int:
    return client.get("/credit-lines", auth=auth).status_code


def test_a_running_service_takes_and_drops_credentials(database_url: str, tmp_path: Path) -> None:
    with running(database_url, tmp_path) as [server], http_client(server.url) as client:
        _, password = add_credential(database_url, "reporting", "reader")
        given = ("reporting", password)
        poll(lambda: status_of(client, given) == 200, DISABLED_SECONDS_MAX)
        cli("credentials", "disable", "reporting", url=database_url)
        poll(lambda: status_of(client, given) == 401, DISABLED_SECONDS_MAX)
        assert status_of(client, MERCHANT) == 200, "the others are as valid as before"
        told = server.log
    assert not [secret for secret in (password, CALLOUT[1], MERCHANT[1], WEBHOOK_SECRET) if secret in told]


def test_a_password_is_rotated_with_both_valid_for_a_while(database_url: str, tmp_path: Path) -> None:
    first_id, first = add_credential(database_url, "reporting", "reader")
    _, second = add_credential(database_url, "reporting", "reader")
    with running(database_url, tmp_path) as [server], http_client(server.url) as client:
        assert [status_of(client, ("reporting", password)) for password in (first, second)] == [200, 200]
        assert printed("credentials", "disable", first_id, url=database_url) == "1 disabled.\n"
        poll(lambda: status_of(client, ("reporting", first)) == 401, DISABLED_SECONDS_MAX)
        assert status_of(client, ("reporting", second)) == 200


def test_the_callout_can_do_with_credentials_of_the_database_alone(sqlite_url: str, tmp_path: Path) -> None:
    given = ("digital-river", add_credential(sqlite_url, "digital-river", "callout")[1])
    settings = {"CALLOUT_USERNAME": "", "CALLOUT_PASSWORD": ""}
    with running(sqlite_url, tmp_path, **settings) as [server], http_client(server.url, given) as client:
        body = {"sessionId": "session-1", "amount": 1.00, "upstreamId": "unknown"}
        assert client.post(CALLOUT_PATH, json=body).json() == {"approval": False, "upstreamId": "unknown"}


# lines


def issue(url: str, *more: str, amount: str = "100.00", currency: str = "USD") -> Result:
    given = ("--customer", "customer-1", "--amount", amount, "--currency", currency)
    return cli("lines", "issue", *given, *more, url=url)


def test_issue_says_when_it_makes_a_new_database(tmp_path: Path) -> None:
    """Issued into a wrong folder's database, real credit would be unknown to the service."""
    file = tmp_path / "new.db"
    made = issue(f"sqlite:///{file}")
    assert (made.exit_code, made.stderr) == (0, f"store-credit: This is a new database: {file}\n")
    assert issue(f"sqlite:///{file}").stderr == ""


@pytest.mark.parametrize("arguments", ["lines list", "decisions --json", "export lines", "audit"])
def test_output_that_can_not_be_written_is_named(sqlite_url: str, arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = command(*arguments.split(), env=environment(sqlite_url), stdout=full)
    assert done.returncode == 2
    assert one_sentence(done.stderr) == "The output can not be written: No space left on device."


def test_issue_tells_the_new_line(database_url: str) -> None:
    result = issue(database_url, "--upstream-id", "line-1", currency="usd")
    told = r"Issued cl_\w{26} over 100.00 USD; Digital River knows it as line-1.\n"
    assert re.fullmatch(told, result.stdout)


def test_issue_for_machines(database_url: str) -> None:
    given = ("--name", "Gift card", "--expires", "2099-12-31T00:00:00Z", "--reason", "A gift", "--json")
    line = json.loads(issue(database_url, *given, amount="0.07").stdout)
    assert (line["balance"], line["name"], line["expiresTime"]) == (
        0.07,
        "Gift card",
        "2099-12-31T00:00:00Z",
    )
    story = json.loads(printed("lines", "show", line["id"], "--json", url=database_url))
    assert story["creditLine"] == line
    (entry,) = story["entries"]
    assert (entry["kind"], entry["reason"]) == ("issued", "A gift")
    assert entry["actor"].startswith("cli")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"amount": "ten"}, "'ten' is not a decimal number."),
        ({"amount": "nan"}, "'nan' is not a decimal number."),
        ({"amount": "Infinity"}, "'Infinity' is not a decimal number."),
        ({"amount": "1e400"}, "The amount is too large."),
        ({"amount": "10000000000000000000"}, "The amount is too large."),
        ({"amount": "0"}, "The amount must not be zero."),
        ({"amount": "-5"}, "The amount must not be negative."),
        ({"amount": "1.234"}, "The amount has more decimals than USD allows (2)."),
        ({"amount": "1.5", "currency": "JPY"}, "The amount has more decimals than JPY allows (0)."),
        ({"currency": "ZZZ"}, "currency: Must be an ISO 4217 currency code in capitals."),
    ],
)
def test_issue_refuses_what_is_no_amount(sqlite_url: str, given: dict[str, str], said: str) -> None:
    assert sentence(issue(sqlite_url, **given)) == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--expires", "2020-01-01T00:00:00Z"), "The expiry must be in the future."),
        (("--expires", "tomorrow"), "expiresTime: Must be an ISO 8601 time."),
        (("--upstream-id", "taken"), "A credit line with this upstreamId exists."),
        (("--upstream-id", "x" * 1_025), "upstreamId: .*1024.*"),
        (("--customer", ""), "customerId: .*"),
    ],
)
def test_issue_refuses_what_can_not_be(sqlite_url: str, given: tuple[str, ...], said: str) -> None:
    assert issue(sqlite_url, "--upstream-id", "taken").exit_code == 0
    assert re.fullmatch(said, sentence(issue(sqlite_url, *given)))
    listed = json.loads(printed("lines", "list", "--json", url=sqlite_url))
    assert len(listed["data"]) == 1


def test_list_shows_the_newest_lines_with_their_figures(database_url: str) -> None:
    for n in range(3):
        issue(database_url, "--upstream-id", f"line-{n}", amount=f"{n + 1}000.00")
    _, *rows, more = printed("lines", "list", "--limit", "2", url=database_url).splitlines()
    assert [row.split()[1] for row in rows] == ["line-2", "line-1"]
    assert [row.count("3,000.00 USD") for row in rows] == [2, 0], "balance and available"
    assert more == "There are more; --limit shows up to 1000."


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("--customer", "customer-1"), {"yen", "dollars"}),
        (("--customer", "nobody"), set()),
        (("--currency", "jpy"), {"yen"}),
        (("--status", "active"), {"yen", "dollars"}),
        (("--status", "suspended"), set()),
        (("--flagged",), set()),
    ],
)
def test_list_filters(sqlite_url: str, given: tuple[str, ...], found: set[str]) -> None:
    issue(sqlite_url, "--upstream-id", "dollars")
    issue(sqlite_url, "--upstream-id", "yen", amount="100", currency="JPY")
    listed = json.loads(printed("lines", "list", "--json", *given, url=sqlite_url))
    assert {line["upstreamId"] for line in listed["data"]} == found


def test_list_finds_what_an_order_or_a_session_took(database_url: str) -> None:
    with_database(database_url, long_story)
    issue(database_url, "--upstream-id", "another")

    def found(*given: str) -> list[str]:
        listed = json.loads(printed("lines", "list", "--json", *given, url=database_url))
        return [line["upstreamId"] for line in listed["data"]]

    assert sorted(found()) == ["another", "line-1"]
    # Of an open hold, of one that ended, and of what was spent.
    for session in ("session-open", "session-expired", "session-ordered"):
        assert found("--session", session) == ["line-1"]
    assert found("--order", "order of source-1") == ["line-1"]
    assert found("--order", "order-9") == found("--session", "session-declined") == []


def test_list_refuses_an_unknown_status(sqlite_url: str) -> None:
    result = cli("lines", "list", "--status", "nonsense", url=sqlite_url)
    assert result.exit_code == 2
    assert "'nonsense'" in result.stderr


def test_show_refuses_an_unknown_line(database_url: str) -> None:
    said = sentence(cli("lines", "show", "nonsense", url=database_url))
    assert said == "There is no credit line with the id or upstreamId 'nonsense'."


class Past:
    """Writes a line's story into a database, at times of its own, as the service would."""

    def __init__(self, database: Database) -> None:
        self._clock = making.Clock(datetime.now(UTC) - timedelta(days=10))
        policy = Policy(hold_ttl=timedelta(days=9))
        self._ledger = Ledger(database, policy, clock=self._clock, deadline_seconds=30)

    async def do(self, asked: Command) -> None:
        def record(outcomes: Any, at: datetime) -> list[Any]:
            if not isinstance(asked, (Authorize, Release)):
                return []
            return [decisions.record(asked, outcomes[0], at, "request-1")]

        self._clock.advance(timedelta(seconds=1))
        await self._ledger.execute(asked, record=record)

    def wait(self, days: int) -> None:
        self._clock.advance(timedelta(days=days))

    async def close(self) -> None:
        await self._ledger.close()


async def long_story(database: Database) -> None:
    past = Past(database)
    await past.do(making.issue(100_00, line_id="cl_1", name="Gift card"))
    await past.do(making.authorize("20", "session-changed"))
    await past.do(making.authorize("25.5", "session-changed"))
    await past.do(making.release())
    await past.do(making.authorize("40", "session-expired"))
    past.wait(days=9)
    await past.do(making.settle("cl_1"))
    await past.do(making.authorize("30", "session-ordered"))
    await past.do(making.deduct("12.34", "source-1", "session-ordered"))
    await past.do(making.deduct("12.35", "source-1", "session-ordered"))
    await past.do(making.authorize("60", "session-open"))
    await past.do(making.authorize("500", "session-declined"))
    await past.do(making.deduct("80", "source-2", None))
    await past.close()


def test_show_tells_a_long_story(database_url: str) -> None:
    with_database(database_url, long_story)
    shown = printed("lines", "show", "line-1", url=database_url)
    rows = [re.sub(r"\s+", " ", row).strip() for row in shown.splitlines()]
    told = "\n".join(re.sub(r"^\d+ [-\d]+ [:\d]+ ", "", row) for row in rows)
    for said in (
        "Available 0.00 USD",
        "Balance 7.66 USD, of which 60.00 USD held",
        "Status active, never expires",
        "Customer customer-1",
        "Name Gift card",
        "Needs a look overdrawn, source_conflict",
        "Issued +100.00 100.00 0.00 test",
        "Held 20.00 for session session-changed 100.00 20.00 test",
        "Changed the hold of session session-changed by +5.50 100.00 25.50 test",
        "Released 25.50 of session session-changed 100.00 0.00 test",
        "Held 40.00 for session session-expired 100.00 40.00 test",
        "Hold of 40.00 expired, session session-expired 100.00 0.00 ",
        "Held 30.00 for session session-ordered 100.00 30.00 test",
        "Spent on order order of source-1 -12.34 87.66 0.00 test",
        "Held 60.00 for session session-open 87.66 60.00 test",
        "Spent on order order of source-2, which overdrew it -80.00 7.66 60.00 test",
    ):
        assert said in told, shown
    promised = shown.partition("Promised now")[2].partition("What happened")[0]
    assert "session-open" in promised
    assert "60.00 USD" in promised
    answers = shown.partition("Last answers to Digital River")[2]
    assert re.search(r"authorize +500 +declined: insufficient credit +session-declined", answers)
    assert re.search(r"authorize +60 +60\.00 USD +approved +session-open", answers)
    assert re.search(r"release +released +session-changed", answers)


def test_show_by_id_and_by_upstream_id_is_the_same(sqlite_url: str) -> None:
    with_database(sqlite_url, long_story)
    by_id, by_upstream_id = (printed("lines", "show", name, url=sqlite_url) for name in ("cl_1", "line-1"))
    assert by_id == by_upstream_id


def test_show_for_machines_tells_the_same_story(database_url: str) -> None:
    with_database(database_url, long_story)
    story = json.loads(printed("lines", "show", "line-1", "--json", url=database_url))
    assert (story["creditLine"]["balance"], story["creditLine"]["held"]) == (7.66, 60)
    assert [hold["sessionId"] for hold in story["openHolds"]] == ["session-open"]
    assert [entry["seq"] for entry in story["entries"]] == list(range(1, 11))
    assert len(story["decisions"]) == 7


def test_show_leaves_out_the_older_entries_and_says_so(sqlite_url: str) -> None:
    with_database(sqlite_url, long_story)
    shown = printed("lines", "show", "line-1", "--entries", "2", url=sqlite_url)
    assert "What happened (after 8 earlier entries)" in shown
    assert "session-changed" not in shown.partition("What happened")[2].partition("Last answers")[0]


def test_show_leaves_out_the_older_answers_and_says_so(sqlite_url: str) -> None:
    async def later(database: Database) -> None:
        past = Past(database)
        past.wait(days=20)
        for _ in range(2):
            await past.do(making.authorize("500", "session-late"))
        await past.close()

    with_database(sqlite_url, long_story)
    assert "earlier ones" not in printed("lines", "show", "line-1", url=sqlite_url)
    with_database(sqlite_url, later)
    assert "Last answers to Digital River (there are earlier ones)" in printed(
        "lines", "show", "line-1", url=sqlite_url
    )


def test_show_finds_the_line_of_an_offer(database_url: str) -> None:
    with_database(database_url, long_story)

    offered = ids.mint("offer")

    async def make(database: Database) -> None:
        now = datetime.now(UTC)
        row = {"upstream_id": offered, "line_id": "cl_1", "amount": 100, "created_at": now}
        row["expires_at"] = now + timedelta(hours=1)
        await database.write(bulk.write, [(offer, row, "refuse")])

    with_database(database_url, make)
    assert "Id cl_1" in re.sub(" +", " ", printed("lines", "show", offered, url=database_url))


def test_show_tells_of_a_line_that_expired(database_url: str) -> None:
    async def story(database: Database) -> None:
        past = Past(database)
        expires_at = datetime.now(UTC) - timedelta(days=1)
        await past.do(making.issue(1_000_00, line_id="cl_1", expires_at=expires_at))
        past.wait(days=10)
        await past.do(making.settle("cl_1"))
        await past.do(making.deduct("3.21", "source-1", None))
        await past.close()

    with_database(database_url, story)
    told = re.sub(" +", " ", printed("lines", "show", "line-1", url=database_url))
    assert "Status expired, expired " in told
    assert "Expired: written off -1,000.00 0.00 0.00" in told
    assert "Write-off reversed +3.21 3.21 0.00" in told
    assert "Spent on order order of source-1 -3.21 0.00 0.00" in told


def test_show_tells_of_a_currency_without_decimals(sqlite_url: str) -> None:
    issue(sqlite_url, "--upstream-id", "yen", amount="1234567", currency="JPY")
    told = re.sub(" +", " ", printed("lines", "show", "yen", url=sqlite_url))
    assert "Balance 1,234,567 JPY, of which 0 JPY held" in told
    assert "Issued +1,234,567 1,234,567 0 " in told


ODD = "[bold]:x:[/] [/red] \\[link=https://example.com] ümläut 字 %20 \\"


def test_odd_and_long_texts_are_shown_as_they_are(database_url: str) -> None:
    long_id = ODD + "y" * (1_024 - len(ODD))

    async def story(database: Database) -> None:
        past = Past(database)
        await past.do(making.issue(100_00, long_id, line_id="cl_1", customer_id=ODD, name=ODD))
        past.wait(days=5)
        await past.do(making.authorize("1", ODD + "s" * (255 - len(ODD)), long_id))
        await past.close()

    with_database(database_url, story)
    shown = printed("lines", "show", long_id, url=database_url)
    listed = printed("lines", "list", url=database_url)
    assert unfolded(f"Customer {ODD} Name {ODD} Id cl_1") in unfolded(shown)
    assert unfolded(long_id) in unfolded(shown.partition("Upstream id")[2].partition("Opened")[0])
    assert "s" * 20 in unfolded(shown.partition("Promised now")[2])
    for part in ("[bold]:x:[/]", "[/red]", "ümläut"):
        assert part in unfolded(listed)


def test_control_characters_do_not_reach_the_terminal(sqlite_url: str) -> None:
    issue(sqlite_url, "--upstream-id", "line\x1b[2J-1", "--name", "a\nb\rc")
    for arguments in (("lines", "list"), ("lines", "show", "line\x1b[2J-1")):
        shown = printed(*arguments, url=sqlite_url)
        assert "line\\x1b[2J-1" in shown
        assert not set("\x1b\r") & set(shown)


# audit


def test_audit_of_right_books(database_url: str) -> None:
    with_database(database_url, long_story)
    assert printed("audit", url=database_url) == "The books are right.\n"


def test_audit_names_a_line_whose_balance_was_changed(database_url: str) -> None:
    with_database(database_url, long_story)
    change(database_url, "UPDATE credit_line SET balance = balance + 1")
    result = cli("audit", url=database_url)
    assert result.exit_code == 1
    found, count = result.stdout.splitlines()
    assert found.startswith("cl_1: The line's balance is 767,")
    assert count == "1 finding."


def test_audit_names_an_entry_that_was_changed(database_url: str) -> None:
    with_database(database_url, long_story)
    unlock = (
        "DROP TRIGGER ledger_entry_no_update"
        if database_url.startswith("sqlite")
        else "DROP TRIGGER ledger_entry_append_only ON ledger_entry"
    )
    change(database_url, unlock, "UPDATE ledger_entry SET reason = 'forged' WHERE seq = 4")
    result = cli("audit", url=database_url)
    assert result.exit_code == 1
    assert "cl_1, entry 4: It was changed" in result.stdout


def test_audit_ends_with_its_verdict_as_a_process_too(sqlite_url: str) -> None:
    with_database(sqlite_url, long_story)
    change(sqlite_url, "UPDATE credit_line SET held = held + 1")
    assert command("audit", env=environment(sqlite_url)).returncode == 1


def test_audit_does_not_take_the_place_of_what_is_no_file(sqlite_url: str, tmp_path: Path) -> None:
    """Such as /dev/stdout, which is a link."""
    with_database(sqlite_url, long_story)
    link, target = tmp_path / "link", tmp_path / "target"
    target.touch()
    link.symlink_to(target)
    result = cli("audit", "--metrics", str(link), url=sqlite_url)
    assert result.exit_code != 0
    assert "it is no plain file" in result.stderr
    assert link.is_symlink()


def test_audit_tells_prometheus_its_verdict(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.prom"
    with_database(sqlite_url, long_story)
    assert printed("audit", "--metrics", str(path), url=sqlite_url) == "The books are right.\n"
    assert "\nstore_credit_audit_findings 0.0\n" in path.read_text()
    change(sqlite_url, "UPDATE credit_line SET held = held + 1")
    assert cli("audit", "--metrics", str(path), url=sqlite_url).exit_code == 1
    assert "\nstore_credit_audit_findings 1.0\n" in path.read_text()
    (ended,) = re.findall(r"^store_credit_audit_timestamp_seconds (\S+)$", path.read_text(), re.M)
    assert float(ended) == pytest.approx(datetime.now(UTC).timestamp(), abs=60)
    assert [found.name for found in tmp_path.glob("audit*")] == ["audit.prom"]


def test_audit_names_a_file_that_can_not_be_written(sqlite_url: str, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere" / "audit.prom"
    result = cli("audit", "--metrics", str(nowhere), url=sqlite_url)
    assert result.exit_code == 2
    assert "No such file or directory" in one_sentence(result.stderr)


# demo, and the command itself


def test_demo_once_plays_and_ends_well() -> None:
    played = command("demo", "--once", "--port", str(free_port()), env=environment("sqlite:///unused.db"))
    assert played.returncode == 0, played.stdout + played.stderr
    assert re.fullmatch(r"store-credit: This is a new database: \S+/demo\.db\n", played.stderr)
    answers = re.findall(r"^  -> (\d+) (.*)$", played.stdout, re.M)
    approved = '{"approval":true,"upstreamId":"7654-2345-0987-123456","amount":11.4}'
    applied = '{"id":"event-1","state":"applied"}'
    assert answers == [
        ("200", approved),
        ("204", "(no body)"),
        ("200", approved),
        ("200", applied),
        ("200", applied),
    ]
    assert re.search(r"Balance +88.60 USD, of which 0.00 USD held", played.stdout)
    assert "The books are right." in played.stdout


def test_the_play_fails_when_an_answer_is_not_as_it_should_be(sqlite_url: str, tmp_path: Path) -> None:
    issue(sqlite_url, "--upstream-id", "7654-2345-0987-123456", amount="11.39")
    with running(sqlite_url, tmp_path) as [server], pytest.raises(PlayFailed):
        Play(server.url, server.environment).run()


def test_the_play_fails_when_the_figures_are_not_as_they_should_be(sqlite_url: str, tmp_path: Path) -> None:
    issue(sqlite_url, "--upstream-id", "7654-2345-0987-123456", amount="100.01")
    with running(sqlite_url, tmp_path) as [server], pytest.raises(PlayFailed, match=r"88\.60"):
        Play(server.url, server.environment).run()


class Demo:
    """`store-credit demo` that keeps serving, with its output in a file."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "demo.out"
        (folder / "tmp").mkdir()
        self.temporary_folder = folder / "tmp"
        env = environment("sqlite:///unused.db") | {"TMPDIR": str(self.temporary_folder)}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "store_credit", "demo", "--port", str(free_port())],
                env=env,
                stdout=output,
                stderr=output,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_until_it_serves(self) -> str:
        """The lines to paste that it prints."""

        def invitation() -> str:
            assert self.process.poll() is None, self.output
            return self.output.partition("yourself:\n")[2].partition("lines show")[2] and self.output

        return poll(invitation, START_SECONDS_MAX).partition("yourself:\n")[2]

    def url(self) -> str:
        return re.findall(r"serving on (http://127\.0\.0\.1:\d+)", self.output)[0]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(START_SECONDS_MAX)


@pytest.fixture
def demo(tmp_path: Path) -> Any:
    started = Demo(tmp_path)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.end(signal.SIGTERM)


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("openssl")), reason="the lines to paste use curl and openssl"
)
def test_the_lines_that_the_demo_prints_work_when_pasted_anywhere(demo: Demo, tmp_path: Path) -> None:
    pasted = demo.wait_until_it_serves()
    ran = subprocess.run(
        ["sh", "-eu", "-c", pasted.replace("curl ", "curl -sS ")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=START_SECONDS_MAX,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert '{"approval":true,"upstreamId":"7654-2345-0987-123456","amount":25}' in ran.stdout
    assert "HTTP/1.1 204" in ran.stdout
    assert '{"id":"my-event","state":"applied"}' in ran.stdout
    assert '"balance":63.6,"held":0,"available":63.6' in ran.stdout
    assert "Spent on order my-order" in ran.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_ended_leaves_nothing_behind(demo: Demo, number: signal.Signals) -> None:
    demo.wait_until_it_serves()
    url = demo.url()
    assert demo.end(number) == 0, demo.output
    with pytest.raises(httpx.ConnectError), http_client(url) as client:
        client.get("/healthz")
    assert list(demo.temporary_folder.iterdir()) == []
    assert "Traceback" not in demo.output


def test_version(sqlite_url: str) -> None:
    assert printed("--version", url=sqlite_url) == f"{__version__}\n"


@pytest.mark.parametrize("group", [(), ("lines",), ("credentials",)])
def test_help_lists_the_commands(sqlite_url: str, group: tuple[str, ...]) -> None:
    wanted = {
        (): ("serve", "migrate", "demo", "credentials", "lines", "audit", "backup"),
        ("lines",): ("issue", "list", "show"),
        ("credentials",): ("add", "list", "disable"),
    }[group]
    result = cli(*group, "--help", url=sqlite_url)
    assert result.exit_code == 0
    assert all(re.search(rf"^\W*{name}\s", result.stdout, re.M) for name in wanted)


@pytest.mark.parametrize(
    "arguments",
    [("lines", "list"), ("events", "list"), ("report", "liability"), ("credentials", "list"), ("audit",)],
    ids=" ".join,
)
def test_a_command_that_only_reads_makes_no_database(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    file = tmp_path / "mistyped.db"
    said = sentence(cli(*arguments, url=f"sqlite:///{file}"))
    assert said == f"There is no database at '{file}'; see STORE_CREDIT_DATABASE_URL."
    assert not file.exists()


def test_what_is_wrong_with_the_database_is_told(postgresql_url: str, tmp_path: Path) -> None:
    no_such = make_url(postgresql_url).set(database="no_such_database")
    said = sentence(cli("lines", "list", url=no_such.render_as_string(hide_password=False)))
    assert said == "The database does not exist; see STORE_CREDIT_DATABASE_URL."
    asked = ("lines", "issue", "--customer", "c", "--amount", "1", "--currency", "USD")
    said = sentence(cli(*asked, url=f"sqlite:///{tmp_path}/nowhere/a.db"))
    assert said == "The database can not be opened; see STORE_CREDIT_DATABASE_URL."
