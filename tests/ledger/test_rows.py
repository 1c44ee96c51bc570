"""The rows that keep what the rules decided: no more than what changed, and nothing less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from store_credit.ledger import rules, store
from store_credit.ledger.commands import Command
from store_credit.ledger.state import Line
from store_credit.ledger.tables import credit_line
from tests.making import NOON, POLICY, Desk, authorize, issue, set_status

ALWAYS_RENEWED = {"due_at", "flags"}
"""By the indexes of the few lines that have an expiry or need a look."""


def line_rows(*asked: Callable[[Line], Command]) -> list[dict[str, Any]]:
    """What is written into the row of a line that was there before these commands."""
    desk = Desk()
    desk.do(issue(100_00))
    before = dict(desk.book.lines)
    changes = []
    for command in asked:
        changes.append(rules.decide(desk.book, command(desk.line()), NOON, POLICY))
        desk.book.apply(changes[-1])
    return [row for table, row, _ in store.changed(changes, before, NOON) if table is credit_line]


def held(amount: str, session_id: str) -> Callable[[Line], Command]:
    return lambda line: authorize(amount, session_id, line.upstream_id)


def status(action: str) -> Callable[[Line], Command]:
    return lambda line: set_status(line, action)


def test_an_authorization_renews_no_index_of_its_line() -> None:
    """SQLite renews an index when its columns are named, also when they stay what they were."""
    (row,) = line_rows(held("10", "a"), held("20", "b"))
    indexed = {column.name for index in credit_line.indexes for column in index.columns}
    assert row["held"] == 30_00
    assert set(row) & indexed - ALWAYS_RENEWED == {"id"}


def test_terms_are_written_when_they_change() -> None:
    figures, terms = line_rows(held("10", "a"), status("suspend"))
    assert (figures["held"], figures["seq"]) == (10_00, 3)
    assert terms == {"id": figures["id"], "status": "suspended", "allow_partial": None, "expires_at": None}


def test_terms_that_are_what_they_were_are_not_written() -> None:
    (figures,) = line_rows(status("suspend"), status("resume"))
    assert "status" not in figures
    assert figures["seq"] == 3
