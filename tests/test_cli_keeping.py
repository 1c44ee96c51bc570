"""The life of a line from the command line: what each step changes, tells, and refuses."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from store_credit.database import Database
from tests import making
from tests.test_cli import Past, cli, issue, printed, sentence, with_database

WHY = ("--reason", "Ticket 7")


@pytest.fixture
def url(database_url: str) -> str:
    """A database with the line `gift`, worth 100.00 USD."""
    assert issue(database_url, "--upstream-id", "gift").exit_code == 0
    return database_url


def changed(url: str, *arguments: str) -> dict[str, Any]:
    """The line as a step left it."""
    line: dict[str, Any] = json.loads(printed("lines", *arguments, *WHY, "--json", url=url))
    return line


def last_entry(url: str) -> dict[str, Any]:
    story = json.loads(printed("lines", "show", "gift", "--json", url=url))
    entry: dict[str, Any] = story["entries"][-1]
    return entry


def held(url: str) -> None:
    """A session holds 60.00 of the line."""

    async def story(database: Database) -> None:
        past = Past(database)
        past.wait(days=10)
        await past.do(making.authorize("60", "session-1", "gift"))
        await past.close()

    with_database(url, story)


def test_an_adjustment_is_explained(url: str) -> None:
    assert changed(url, "adjust", "gift", "--amount", "-5.50")["balance"] == 94.5
    entry = last_entry(url)
    assert (entry["kind"], entry["amount"], entry["reason"]) == ("adjusted", -5.5, "Ticket 7")
    assert entry["actor"].startswith("cli")


def test_a_line_is_named_by_its_id_as_well(url: str) -> None:
    line_id = changed(url, "adjust", "gift", "--amount", "1")["id"]
    assert changed(url, "adjust", line_id, "--amount", "+1")["balance"] == 102


def test_people_are_told_what_the_line_is_now(url: str) -> None:
    told = printed("lines", "suspend", "gift", *WHY, url=url)
    assert told.endswith(" is suspended, worth 100.00 USD, of which 0.00 USD held.\n")
    told = printed("lines", "flag", "gift", "overdrawn", *WHY, url=url)
    assert told.endswith(" held. Flags: overdrawn.\n")


def test_a_line_is_suspended_resumed_closed_and_reopened(url: str) -> None:
    steps = {}
    for step in ("suspend", "resume", "close", "reopen"):
        line = changed(url, step, "gift")
        entry = last_entry(url)
        assert entry["reason"] == "Ticket 7"
        steps[step] = (line["status"], line["balance"], line["available"], entry["kind"])
    assert steps == {
        "suspend": ("suspended", 100, 0, "suspended"),
        "resume": ("active", 100, 100, "resumed"),
        "close": ("closed", 0, 0, "closed"),
        "reopen": ("active", 0, 0, "reopened"),
    }


def test_an_expiry_is_set_and_taken_off(url: str) -> None:
    at = "2099-12-31T00:00:00Z"
    assert changed(url, "expire", "gift", "--at", at)["expiresTime"] == at
    assert last_entry(url)["kind"] == "expiry_set"
    assert changed(url, "expire", "gift", "--never")["expiresTime"] is None


def test_a_flag_is_raised_and_cleared(url: str) -> None:
    assert changed(url, "flag", "gift", "source_conflict")["flags"] == ["source_conflict"]
    assert last_entry(url)["kind"] == "flagged"
    assert changed(url, "unflag", "gift", "source_conflict")["flags"] == []
    assert last_entry(url)["kind"] == "flag_cleared"


def test_what_is_held_is_never_taken_away(url: str) -> None:
    held(url)
    said = sentence(cli("lines", "adjust", "gift", "--amount", "-40.01", *WHY, url=url))
    limit = "A decrease can not take the balance below what is held"
    assert said == f"{limit}: at most 40.00 USD can be taken."
    said = sentence(cli("lines", "close", "gift", *WHY, url=url))
    assert said == "Credit of this line is held; it can not be closed before that ends."
    assert changed(url, "adjust", "gift", "--amount", "-40")["available"] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("adjust", "gift", "--amount", "five"), "'five' is not a decimal number."),
        (("adjust", "gift", "--amount", "sNaN"), "'sNaN' is not a decimal number."),
        (("adjust", "gift", "--amount", "0"), "The amount must not be zero."),
        (("adjust", "gift", "--amount", "1e-400"), "The amount must not be zero."),
        (("adjust", "gift", "--amount", "1e400"), "The amount is too large."),
        (("adjust", "gift", "--amount", "0.001"), "The amount has more decimals than USD allows (2)."),
        (("resume", "gift"), "The line is active; it can not be made to resume."),
        (("expire", "gift"), "Say when with --at, or --never."),
        (("expire", "gift", "--never", "--at", "2099-01-01T00:00Z"), "Say when with --at, or --never."),
        (("expire", "gift", "--at", "2020-01-01T00:00:00Z"), "The expiry must be in the future."),
        (("expire", "gift", "--at", "tomorrow"), "--at must be an ISO 8601 time."),
        (("close", "nobody"), "There is no credit line with the id or upstreamId 'nobody'."),
        (("close", "gift", "--reason", " "), "The reason must not be empty."),
        (("close", "gift", "--reason", "x" * 1_025), "The reason must have at most 1024 characters."),
    ],
)
def test_what_can_not_be_is_refused(sqlite_url: str, given: tuple[str, ...], said: str) -> None:
    issue(sqlite_url, "--upstream-id", "gift")
    why = () if "--reason" in given else WHY
    assert sentence(cli("lines", *given, *why, url=sqlite_url)) == said
    assert last_entry(sqlite_url)["kind"] == "issued"


@pytest.mark.parametrize("step", ["suspend", "resume", "close", "reopen"])
def test_a_reason_is_needed(sqlite_url: str, step: str) -> None:
    result = cli("lines", step, "gift", url=sqlite_url)
    assert result.exit_code == 2
    assert "--reason" in result.stderr


def test_an_unknown_flag_is_refused(sqlite_url: str) -> None:
    result = cli("lines", "flag", "gift", "shiny", *WHY, url=sqlite_url)
    assert result.exit_code == 2
    assert "'shiny'" in result.stderr


# Holds


def test_a_session_s_holds_are_released(url: str) -> None:
    held(url)
    told = printed("lines", "release", "session-1", *WHY, url=url)
    assert re.fullmatch(r"hold_\w+ of cl_\w+ is released\.\n", told)
    entry = last_entry(url)
    assert (entry["kind"], entry["held"], entry["reason"]) == ("released", -60, "Ticket 7")
    again = printed("lines", "release", "session-1", *WHY, url=url)
    assert again == "Nothing is open of this session.\n"
    assert json.loads(printed("lines", "release", "session-1", *WHY, "--json", url=url)) == {"released": []}
    said = sentence(cli("lines", "release", "session-9", *WHY, url=url))
    assert said == "There was never a hold of a session 'session-9', and no hold has this id."
    said = sentence(cli("lines", "release", "gift", *WHY, url=url))
    assert said == "That is a credit line: `lines show gift` names its holds and their sessions."


def test_a_hold_is_released_once(url: str) -> None:
    held(url)
    (hold,) = json.loads(printed("lines", "show", "gift", "--json", url=url))["openHolds"]
    released = [json.loads(printed("lines", "release", hold["id"], *WHY, "--json", url=url)) for _ in "12"]
    assert released == [{"released": [hold["id"]]}, {"released": []}]
    assert printed("lines", "release", hold["id"], *WHY, url=url) == "Nothing is open.\n"
