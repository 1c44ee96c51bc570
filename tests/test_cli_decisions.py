"""The answers given to Digital River, listed on the command line."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from store_credit.cli import decisions
from store_credit.database import Database
from tests import making
from tests.test_cli import Past, cli, long_story, printed, sentence, with_database


async def _mistyped(database: Database) -> None:
    """Ten days after the long story began, a session asks for an id that no line has."""
    past = Past(database)
    past.wait(days=10)
    await past.do(making.authorize("5", "session-lost", "lime-1"))
    await past.close()


@pytest.fixture
def url(database_url: str) -> str:
    with_database(database_url, long_story)
    with_database(database_url, _mistyped)
    return database_url


def found(url: str, *given: str) -> list[dict[str, Any]]:
    listed = json.loads(printed("decisions", *given, "--json", url=url))
    assert not listed["hasMore"]
    data: list[dict[str, Any]] = listed["data"]
    return data


def test_the_newest_comes_first_with_its_reason(url: str) -> None:
    rows = [re.sub(r"\s+", " ", row).strip() for row in printed("decisions", url=url).splitlines()]
    told = [re.sub(r"^[-\d]+ [:\d]+ ", "", row) for row in rows]
    assert told == [
        "When (UTC) Question Asked for Granted Answer Upstream id Session",
        "authorize 5 declined: unknown line lime-1 session-lost",
        "authorize 500 declined: insufficient credit line-1 session-declined",
        "authorize 60 60.00 USD approved line-1 session-open",
        "authorize 30 30.00 USD approved line-1 session-ordered",
        "authorize 40 40.00 USD approved line-1 session-expired",
        "release released line-1 session-changed",
        "authorize 25.5 25.50 USD approved: hold replaced line-1 session-changed",
        "authorize 20 20.00 USD approved line-1 session-changed",
    ]


def test_it_filters(url: str) -> None:
    (lost,) = found(url, "--upstream-id", "lime-1")
    assert (lost["reason"], lost["creditLineId"], lost["sessionId"]) == (
        "unknown_line",
        None,
        "session-lost",
    )
    assert [one["kind"] for one in found(url, "--session", "session-changed")] == [
        "release",
        "authorize",
        "authorize",
    ]
    of_line = found(url, "--line", "line-1")
    assert len(of_line) == 7
    assert found(url, "--line", "cl_1") == of_line
    assert found(url, "--since", of_line[1]["createdTime"]) == [lost, *of_line[:2]]
    assert found(url, "--until", of_line[1]["createdTime"]) == of_line[2:]
    assert found(url, "--line", "cl_1", "--session", "session-lost") == []


def test_it_says_when_there_are_more(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "There are more" in printed("decisions", "--limit", "7", url=url)
    assert "There are more" not in printed("decisions", "--limit", "8", url=url)
    monkeypatch.setattr(decisions, "LIST_LIMIT_MAX", 7)
    assert "GET /decisions" in printed("decisions", "--limit", "7", url=url)


def test_a_line_that_is_not_there_is_named(url: str) -> None:
    said = sentence(cli("decisions", "--line", "lime-1", url=url))
    assert said == "There is no credit line with the id or upstreamId 'lime-1'."


def test_a_period_must_not_end_before_it_begins(url: str) -> None:
    given = ("--since", "2026-11-02T00:00:00Z", "--until", "2026-11-01T00:00:00Z")
    assert sentence(cli("decisions", *given, url=url)) == "The period ends before it begins."


def test_a_time_that_is_none_is_named(url: str) -> None:
    assert "--since" in sentence(cli("decisions", "--since", "yesterday", url=url))
