"""Reports, statements, digests and past balances as people and machines see them."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from store_credit.database import Database
from store_credit.ledger.commands import Adjust, Cause, SetStatus
from store_credit.ledger.ledger import Ledger
from tests import making
from tests.http_fixtures import Shop
from tests.making import DAY, HOUR, POLICY, Clock
from tests.server import environment
from tests.test_cli import change, cli, printed, sentence, with_database

pytest_plugins = ["tests.http_fixtures"]

OCTOBER = datetime(2025, 10, 1, tzinfo=UTC)
BOTH_MONTHS = ("--as-of", "2025-12-01T00:00:00Z")


async def autumn(database: Database) -> None:
    """A line each in dollars and yen: spent and suspended in October, closed and expired in November."""
    clock = Clock(OCTOBER)
    ledger = Ledger(database, POLICY, clock=clock, deadline_seconds=30)
    await ledger.execute(making.issue(100_00, "usd", line_id="cl_1"))
    yen = {"line_id": "cl_2", "currency": "JPY", "expires_at": OCTOBER + 40 * DAY}
    await ledger.execute(making.issue(1_234_567, "jpy", **yen))
    clock.advance(DAY)
    await ledger.execute(making.deduct("30.5", "source-1", None, "usd"))
    await ledger.execute(SetStatus("cl_1", "suspend", Cause("test", "Lost card")))
    clock.advance(39 * DAY)
    await ledger.execute(making.settle("cl_2"))
    await ledger.execute(Adjust("cl_1", Decimal("0.55"), Cause("test", "Goodwill")))
    clock.advance(HOUR)
    await ledger.execute(SetStatus("cl_1", "close", Cause("test", "Customer left")))
    await ledger.close()


@pytest.fixture
def url(database_url: str) -> str:
    with_database(database_url, autumn)
    return database_url


def report(url: str, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed("report", *arguments, "--json", url=url))
    return found


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_liability_as_of_a_past_instant(url: str) -> None:
    found = report(url, "liability", "--as-of", "2025-10-02T00:00:00Z")
    assert found["asOf"] == "2025-10-02T00:00:00Z"
    yen, dollars = found["data"]
    assert (yen["currency"], yen["issued"], yen["outstanding"]) == ("JPY", 1_234_567, 1_234_567)
    assert (dollars["deducted"], dollars["available"], dollars["outstanding"]) == (30.5, 69.5, 69.5)
    before = report(url, "liability", "--as-of", "2025-10-01T23:59:59.999999Z")
    assert before["data"][1]["outstanding"] == 100
    assert report(url, "liability", "--as-of", "2025-09-30T00:00:00Z")["data"] == []


def test_liability_for_people_and_spreadsheets(url: str) -> None:
    shown = rows(printed("report", "liability", *BOTH_MONTHS, url=url))
    assert shown[0][:3] == ["Currency", "Issued", "Adjusted"]
    assert " ".join(shown[1]) == "JPY 1,234,567 0 0 0 1,234,567 0 0 0 0 0"
    assert shown[2] == [
        "USD",
        "100.00",
        "0.55",
        "30.50",
        "0.00",
        "0.00",
        "70.05",
        "0.00",
        "0.00",
        "0.00",
        "0.00",
    ]
    asked = ("report", "liability", "--currency", "usd", "--csv", *BOTH_MONTHS)
    (row,) = csv.DictReader(io.StringIO(printed(*asked, url=url)))
    assert (row["currency"], row["issued"], row["voided"]) == ("USD", "100.00", "70.05")


def test_breakage_by_currency_and_month(url: str) -> None:
    found = report(url, "breakage", *BOTH_MONTHS)["data"]
    zero = {"expired": 0, "voided": 0, "writeOffsReversed": 0}
    assert found == [
        {"currency": "JPY", "month": "2025-11", **zero, "expired": 1_234_567, "breakage": 1_234_567},
        {"currency": "USD", "month": "2025-11", **zero, "voided": 70.05, "breakage": 70.05},
    ]
    assert report(url, "breakage", "--as-of", "2025-11-01T00:00:00Z")["data"] == []


def test_activity_of_a_period(url: str) -> None:
    october = ("--from", "2025-10-01T00:00:00Z", "--to", "2025-11-01T00:00:00Z")
    found = report(url, "activity", *october, "--currency", "USD")
    assert (found["from"], found["to"]) == (october[1], october[3])
    assert [(row["kind"], row["count"], row["amount"]) for row in found["data"]] == [
        ("deducted", 1, -30.5),
        ("issued", 1, 100),
        ("suspended", 1, 0),
    ]
    first_day = report(url, "activity", "--to", "2025-10-02T00:00:00Z")["data"]
    assert {row["kind"] for row in first_day} == {"issued"}, "the end does not belong to it"
    with_it = report(url, "activity", "--as-of", "2025-10-02T00:00:00Z")["data"]
    assert {row["kind"] for row in with_it} == {"deducted", "issued", "suspended"}
    shown = rows(printed("report", "activity", *october, "--currency", "USD", url=url))
    assert shown[1] == ["USD", "deducted", "1", "-30.50", "0.00"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("liability", "--as-of", "yesterday"), "--as-of must be an ISO 8601 time."),
        (("liability", "--as-of", "2025-10-01T00:00:00"), "--as-of must say its time zone, .*"),
        (("liability", "--as-of", "9999-12-31T00:00:00Z"), "--as-of is in the future: .*"),
        (("activity", "--as-of", "9999-12-31T00:00:00Z"), "--as-of is in the future: .*"),
        (("breakage", "--currency", "zzz"), "'zzz' is not an ISO 4217 currency code."),
        (("liability", "--json", "--csv"), "Give --json or --csv, not both."),
        (("activity", "--to", "2025-10-01T00:00Z", "--as-of", "2025-10-01T00:00Z"), "Give --to or .*"),
    ],
)
def test_reports_refuse_what_can_not_be(sqlite_url: str, given: tuple[str, ...], said: str) -> None:
    assert re.fullmatch(said, sentence(cli("report", *given, url=sqlite_url)))


# Statements


def test_a_statement_for_machines(url: str) -> None:
    asked = ("lines", "statement", "usd", "--from", "2025-10-02T00:00:00Z", "--to", "2025-11-10T00:00:00Z")
    found = json.loads(printed(*asked, "--json", url=url))
    movements = found.pop("movements")
    orders = [row["orderId"] for row in movements]
    moves = [(row["kind"], row["amount"], row["balanceAfter"]) for row in movements]
    assert moves == [("deducted", -30.5, 69.5)]
    assert orders == ["order of source-1"]
    assert found == {
        "creditLineId": "cl_1",
        "upstreamId": "usd",
        "currency": "USD",
        "from": "2025-10-02T00:00:00Z",
        "to": "2025-11-10T00:00:00Z",
        "opening": 100,
        "closing": 69.5,
    }


def test_a_statement_for_people(url: str) -> None:
    shown = printed("lines", "statement", "cl_1", "--from", "2025-11-01T00:00:00Z", url=url)
    told = [re.sub(r"^[-\d]+ [:\d]+ +", "", re.sub(" +", " ", line)).strip() for line in shown.splitlines()]
    assert told[1:] == [
        "Opening balance 69.50",
        "Adjusted +0.55 70.05 Goodwill",
        "Voided -70.05 0.00 Customer left",
        "Closing balance 0.00",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("nobody",), "There is no credit line with the id or upstreamId 'nobody'."),
        (("usd", "--from", "now"), "--from must be an ISO 8601 time."),
        (("usd", "--from", "2999-01-01T00:00Z"), "--from is in the future: .*"),
        (("usd", "--from", "2025-11-01T00:00Z", "--to", "2025-10-01T00:00Z"), "The period ends before .*"),
    ],
)
def test_statements_refuse_what_can_not_be(sqlite_url: str, given: tuple[str, ...], said: str) -> None:
    with_database(sqlite_url, autumn)
    assert re.fullmatch(said, sentence(cli("lines", "statement", *given, url=sqlite_url)))


# Balances at a time, over HTTP


async def test_a_line_at_a_time(shop: Shop) -> None:
    await autumn(shop.service.database)

    async def at(moment: str) -> tuple[Any, ...]:
        line = await shop.get("/credit-lines/cl_1", asOf=moment)
        assert (line["id"], line["upstreamId"], line["currency"]) == ("cl_1", "usd", "USD")
        return tuple(line[name] for name in ("status", "balance", "available", "updatedTime"))

    assert await at("2025-10-01T12:00:00Z") == ("active", 100, 100, "2025-10-01T00:00:00Z")
    assert await at("2025-10-02T00:00:00Z") == ("suspended", 69.5, 0, "2025-10-02T00:00:00Z")
    assert await at("2025-11-10T00:30:00Z") == ("suspended", 70.05, 0, "2025-11-10T00:00:00Z")
    assert await at("2099-01-01T00:00:00Z") == ("closed", 0, 0, "2025-11-10T01:00:00Z")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/credit-lines/cl_1?asOf=2025-09-30T23:59:59Z", 404),
        ("/credit-lines/nobody?asOf=2025-10-02T00:00:00Z", 404),
        ("/credit-lines/cl_1?asOf=2025-10-02", 400),
        ("/credit-lines/cl_1?asof=2025-10-02T00:00:00Z", 400),
    ],
)
async def test_a_line_at_no_time(shop: Shop, path: str, status: int) -> None:
    await autumn(shop.service.database)
    answer = await shop.client.get(path, auth=("merchant", "merchant-password"))
    assert answer.status_code == status


# The audit's digest and progress


DIGEST = re.compile(r"Digest of (\d+) lines as of (\S+): ([0-9a-f]{64})")


def test_a_digest_is_kept_and_compared(url: str) -> None:
    verdict, told = printed("audit", "--digest", url=url).splitlines()
    kept = DIGEST.fullmatch(told)
    assert kept is not None, told
    assert (verdict, kept[1], kept[2]) == ("The books are right.", "2", "2025-11-10T01:00:00Z")
    assert cli("lines", "reopen", "usd", "--reason", "Customer is back", url=url).exit_code == 0
    assert printed("audit", "--digest", url=url).splitlines()[1] != told
    again = printed("audit", "--digest", "--as-of", kept[2], url=url).splitlines()[1]
    assert again == told


def test_a_digest_of_wrong_books_is_no_success(url: str) -> None:
    change(url, "UPDATE credit_line SET balance = balance + 1")
    result = cli("audit", "--digest", url=url)
    assert result.exit_code == 1
    assert DIGEST.search(result.stdout)


def test_a_digest_of_no_lines(sqlite_url: str) -> None:
    told = printed("audit", "--digest", url=sqlite_url)
    assert re.fullmatch(r"The books are right\.\nDigest of 0 lines: [0-9a-f]{64}\n", told)


def test_as_of_is_of_the_digest(sqlite_url: str) -> None:
    said = sentence(cli("audit", "--as-of", "2025-10-01T00:00Z", url=sqlite_url))
    assert said == "--as-of is of the digest: give --digest as well."


def test_progress_is_shown_on_a_terminal_and_on_standard_error_only(sqlite_url: str) -> None:
    with_database(sqlite_url, autumn)
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "store_credit", "audit"],
            env=environment(sqlite_url) | {"TERM": "xterm", "COLUMNS": "80"},
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            timeout=60,
            check=True,
        )
        shown = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stdout == "The books are right.\n"
    assert "Lines" in shown
    assert "2/2" in shown


def test_a_period_without_an_end_reaches_to_now(sqlite_url: str) -> None:
    with_database(sqlite_url, autumn)
    found = json.loads(printed("lines", "statement", "usd", "--json", url=sqlite_url))
    assert (found["from"], found["opening"], found["closing"]) == (None, 0, 0)
    assert datetime.now(UTC) - datetime.fromisoformat(found["to"]) < timedelta(hours=1)
