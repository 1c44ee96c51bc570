"""Opening balances from files, into the ledger."""

from __future__ import annotations

import asyncio
import io
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from store_credit.exchange import importing
from store_credit.exchange.importing import Checked, Issued
from store_credit.exchange.opening import Problem
from store_credit.ledger.ledger import Ledger
from store_credit.ledger.refusals import Unavailable
from tests.making import DAY, NOON, Clock, issue

HEADER = "customerId,currency,amount,upstreamId\n"
FULL_HEADER = "customerId,currency,amount,upstreamId,name,expiresTime,reason\n"


async def imported(
    ledger: Ledger, content: str, keep_going: bool = False
) -> tuple[Checked, Issued | None, list[str]]:
    """Check, and issue unless something is wrong; with the problems as `row: message`."""
    problems: list[str] = []

    def report(problem: Problem) -> None:
        problems.append(f"{problem.row}: {problem.message}")

    file = io.BytesIO(content.encode())
    checked = await importing.check(ledger, file, report, lambda _: None)
    if checked.bad and not keep_going:
        return checked, None, problems
    issued = await importing.issue(ledger, file, checked, "cli:test", report, lambda _: None)
    return checked, issued, problems


async def stored(ledger: Ledger) -> list[Any]:
    def read(connection: Connection) -> list[Any]:
        statement = (
            "SELECT upstream_id, customer_id, currency, balance, name, seq FROM credit_line"
            " ORDER BY upstream_id"
        )
        return [tuple(row) for row in connection.execute(text(statement))]

    return await ledger.database.read(read)


def many(count: int, first: int = 0) -> str:
    rows = (f"customer-{n},USD,{n + 1}.25,line-{n:06}\n" for n in range(first, first + count))
    return HEADER + "".join(rows)


async def test_lines_are_issued_with_all_that_their_rows_say(ledger: Ledger) -> None:
    content = FULL_HEADER + "c-1,USD,10.50,u-1,Gift card,2027-01-01T00:00:00Z,migration\nc-2,JPY,7,u-2,,,\n"
    checked, issued, problems = await imported(ledger, content)
    assert (checked.new, issued, problems) == (2, Issued(issued=2), [])
    assert await stored(ledger) == [
        ("u-1", "c-1", "USD", 1050, "Gift card", 1),
        ("u-2", "c-2", "JPY", 7, None, 1),
    ]

    def reasons(connection: Connection) -> list[Any]:
        statement = text("SELECT reason, actor FROM ledger_entry ORDER BY amount DESC")
        return [tuple(row) for row in connection.execute(statement)]

    assert await ledger.database.read(reasons) == [
        ("migration", "cli:test"),
        ("opening balance", "cli:test"),
    ]


async def test_nothing_is_imported_when_one_row_is_wrong(ledger: Ledger) -> None:
    content = many(1_500) + "c,USD,x,bad-1\n" + "c,USD,1,line-000003\n"
    checked, issued, problems = await imported(ledger, content)
    assert issued is None
    assert checked.bad == 2
    assert problems[0].startswith("1502: amount")
    assert problems[1] == "1503: upstreamId: is that of row 5, too"
    assert await stored(ledger) == []


async def test_the_tolerant_mode_leaves_only_bad_rows_out(ledger: Ledger) -> None:
    content = HEADER + "c,USD,1,a\nc,USD,x,b\nc,USD,2,a\nc,USD,3,c\n"
    _, issued, problems = await imported(ledger, content, keep_going=True)
    assert issued == Issued(issued=2)
    assert [problem.split(":")[0] for problem in problems] == ["3", "4"]
    assert [row[3] for row in await stored(ledger)] == [1_00, 3_00]


async def test_the_same_file_twice_changes_nothing(ledger: Ledger) -> None:
    await imported(ledger, many(700))
    before = await stored(ledger)
    checked, issued, problems = await imported(ledger, many(700))
    assert (checked.new, checked.present, checked.bad, issued, problems) == (0, 700, 0, Issued(), [])
    assert await stored(ledger) == before


async def test_an_import_goes_on_where_another_ended(ledger: Ledger) -> None:
    await imported(ledger, many(300))
    checked, issued, _ = await imported(ledger, many(1_200))
    assert (checked.present, issued) == (300, Issued(issued=900))
    assert len(await stored(ledger)) == 1_200


async def test_an_imported_line_lives_on_and_the_file_stays_known(ledger: Ledger, clock: Clock) -> None:
    content = FULL_HEADER + f"c,USD,10,u,,{(NOON + DAY).isoformat()},\n"
    await imported(ledger, content)
    clock.advance(timedelta(days=2))
    checked, issued, problems = await imported(ledger, content)
    assert (checked.present, issued, problems) == (1, Issued(), [])


async def test_other_content_under_a_known_name_is_refused(ledger: Ledger) -> None:
    await ledger.execute(issue(upstream_id="theirs"))
    await imported(ledger, HEADER + "c,USD,1,ours\n")
    content = HEADER + "c,USD,2,ours\nc,USD,100,theirs\nc,USD,1,new\n"
    _, issued, problems = await imported(ledger, content)
    assert issued is None
    assert problems == [
        "2: upstreamId: was imported before, with another content",
        "3: upstreamId: a credit line with it exists, and no import issued it",
    ]
    assert len(await stored(ledger)) == 2


async def test_an_expiry_in_the_past_is_refused(ledger: Ledger) -> None:
    _, issued, problems = await imported(ledger, FULL_HEADER + f"c,USD,1,u,,{NOON.isoformat()},\n")
    assert (issued, problems) == (None, ["2: expiresTime: must be in the future"])


async def test_a_name_taken_between_check_and_issue_is_told(ledger: Ledger) -> None:
    problems: list[Problem] = []
    file = io.BytesIO(many(3).encode())
    checked = await importing.check(ledger, file, problems.append, lambda _: None)
    await ledger.execute(issue(upstream_id="line-000001"))
    done = await importing.issue(ledger, file, checked, "cli", problems.append, lambda _: None)
    assert (done.issued, done.refused) == (2, 1)
    assert [problem.row for problem in problems] == [3]


async def test_two_imports_of_one_file_at_once_issue_each_line_once(ledger: Ledger) -> None:
    files = [io.BytesIO(many(500).encode()) for _ in range(2)]
    checks = [await importing.check(ledger, file, pytest.fail, lambda _: None) for file in files]
    first, second = await asyncio.gather(
        *(
            importing.issue(ledger, file, checked, "cli", pytest.fail, lambda _: None)
            for file, checked in zip(files, checks, strict=True)
        )
    )
    assert (first.issued + second.issued, first.present + second.present) == (500, 500)


async def test_a_database_that_goes_away_stops_the_import_and_it_can_go_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "WORKS_MAX", 50)
    execute, calls = ledger.execute, 0

    async def failing(*commands: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 400:
            raise Unavailable("The database does not answer.")
        return await execute(*commands, **more)

    file = io.BytesIO(many(1_000).encode())
    checked = await importing.check(ledger, file, pytest.fail, lambda _: None)
    monkeypatch.setattr(ledger, "execute", failing)
    with pytest.raises(Unavailable):
        await importing.issue(ledger, file, checked, "cli", pytest.fail, lambda _: None)
    monkeypatch.setattr(ledger, "execute", execute)
    assert calls < 500
    assert len(await stored(ledger)) == 400
    checked, issued, _ = await imported(ledger, many(1_000))
    assert (checked.present, issued) == (400, Issued(issued=600))


async def test_progress_is_told(ledger: Ledger) -> None:
    content = many(2_500).encode()
    file, read, done = io.BytesIO(content), [0], [0]
    checked = await importing.check(ledger, file, pytest.fail, read.append)
    await importing.issue(ledger, file, checked, "cli", pytest.fail, done.append)
    assert read == sorted(read)
    assert len(read) > 2
    assert read[-1] == len(content)
    assert done[-1] == 2_500
