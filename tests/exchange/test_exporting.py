"""Exports: the same rows as the API, complete, in bounded pieces, and harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from typing import Any

import pytest

from store_credit import money
from store_credit.credentials import Role
from store_credit.exchange import exporting, queries
from store_credit.exchange.exporting import Format, Noun
from store_credit.ledger.ledger import Ledger
from tests.exchange.histories import NASTY, random_history
from tests.http_fixtures import MERCHANT, Shop, order_event, problem_of, source
from tests.making import Clock, deduct, issue

pytest_plugins = ["tests.http_fixtures"]

NOUNS: list[Noun] = ["lines", "entries", "deductions"]


async def exported(ledger: Ledger, noun: Noun, form: Format) -> bytes:
    return b"".join([piece async for piece in exporting.export(ledger, noun, form)])


async def json_rows(ledger: Ledger, noun: Noun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await exported(ledger, noun, "jsonl")).splitlines()]


async def csv_rows(ledger: Ledger, noun: Noun) -> list[dict[str, str]]:
    text = (await exported(ledger, noun, "csv")).decode()
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


@pytest.mark.parametrize("noun", NOUNS)
async def test_csv_and_json_lines_tell_the_same(ledger: Ledger, clock: Clock, noun: Noun) -> None:
    await random_history(ledger, clock, seed=1)
    as_csv, as_json = await csv_rows(ledger, noun), await json_rows(ledger, noun)
    assert len(as_csv) == len(as_json) > 0
    for cells, row in zip(as_csv, as_json, strict=True):
        assert cells.keys() == row.keys()
        for name in ("amount", "balance", "balanceAfter", "returned"):
            if name in row:
                assert Decimal(cells[name]) == Decimal(str(row[name]))
                exponent = -Decimal(cells[name]).as_tuple().exponent  # type: ignore[operator]
                assert exponent == money.EXPONENTS[row["currency"]]


@pytest.mark.parametrize("noun", NOUNS)
async def test_pages_leave_nothing_out(
    ledger: Ledger, clock: Clock, noun: Noun, monkeypatch: pytest.MonkeyPatch
) -> None:
    await random_history(ledger, clock, seed=2)
    whole = await json_rows(ledger, noun)
    monkeypatch.setattr(queries, "PAGE_ROWS", 3)
    pieces = [piece async for piece in exporting.export(ledger, noun, "jsonl")]
    assert len(pieces) >= len(whole) / 3
    assert [json.loads(line) for line in b"".join(pieces).splitlines()] == whole
    ids = [row["id"] for row in whole]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("noun", NOUNS)
async def test_an_empty_ledger_has_a_header(ledger: Ledger, noun: Noun) -> None:
    assert await exported(ledger, noun, "jsonl") == b""
    header = await exported(ledger, noun, "csv")
    assert header.endswith(b"\r\n")
    assert header.count(b"\n") == 1


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
async def test_formulas_are_defused(ledger: Ledger, start: str) -> None:
    await ledger.execute(issue(customer_id=start, name=start))
    (row,) = await csv_rows(ledger, "lines")
    assert row["customerId"] == row["name"] == f"'{start}"
    (shown,) = await json_rows(ledger, "lines")
    assert shown["customerId"] == start


async def test_negative_numbers_stay_numbers(ledger: Ledger) -> None:
    await ledger.execute(issue(10_00))
    await ledger.execute(deduct("12.5"))
    _, deducted = await csv_rows(ledger, "entries")
    assert (deducted["amount"], deducted["balanceAfter"]) == ("-12.50", "-2.50")
    (line,) = await csv_rows(ledger, "lines")
    assert (line["balance"], line["flags"]) == ("-2.50", "overdrawn")


async def test_large_amounts_keep_their_last_digit(ledger: Ledger) -> None:
    await ledger.execute(issue(999_999_999_999_999))
    (row,) = await csv_rows(ledger, "lines")
    assert row["balance"] == "9999999999999.99"


async def test_names_survive_the_csv(ledger: Ledger) -> None:
    for number, name in enumerate(NASTY):
        await ledger.execute(issue(upstream_id=str(number), name=name))
    names = [row["name"].removeprefix("'") for row in await csv_rows(ledger, "lines")]
    assert names == list(NASTY)


async def story(shop: Shop) -> None:
    await shop.issue(100, name="=x")
    await shop.authorize(11.4)
    await shop.deliver(order_event(source(amount=11.4)))


async def test_the_api_streams_the_same_shapes(shop: Shop) -> None:
    await story(shop)
    line = await shop.line()
    for noun in NOUNS:
        response = await shop.client.get(f"/exports/{noun}?format=jsonl", auth=MERCHANT)
        assert response.headers["content-type"] == "application/x-ndjson"
        rows = [json.loads(text) for text in response.text.splitlines()]
        listed = [line] if noun == "lines" else await shop.history(noun)
        added = {"creditLineId": line["id"], "currency": "USD"}
        assert rows == [row if noun == "lines" else row | added for row in listed]


async def test_the_api_gives_csv_by_itself(shop: Shop) -> None:
    await story(shop)
    response = await shop.client.get("/exports/lines", auth=MERCHANT)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert response.headers["content-disposition"] == 'attachment; filename="lines.csv"'
    assert response.content == await exported(shop.service.ledger, "lines", "csv")


async def test_who_may_export(shop: Shop) -> None:
    statuses = {}
    for role in Role:
        password = await shop.add_credential(role.value, role)
        response = await shop.client.get("/exports/entries", auth=(role.value, password))
        statuses[role] = response.status_code
    allowed = {role for role, status in statuses.items() if status == 200}
    assert allowed == {Role.MERCHANT, Role.READER}
    assert (await shop.client.get("/exports/entries")).status_code == 401


@pytest.mark.parametrize("query", ["format=xlsx", "form=csv", "format=csv&limit=3"])
async def test_other_formats_are_refused(shop: Shop, query: str) -> None:
    problem_of(await shop.client.get(f"/exports/lines?{query}", auth=MERCHANT), 400, "bad_request")


async def test_there_are_no_other_exports(shop: Shop) -> None:
    problem_of(await shop.client.get("/exports/holds", auth=MERCHANT), 404, "not_found")


async def test_a_database_that_is_away_is_a_503(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise ConnectionRefusedError

    monkeypatch.setattr(shop.service.database, "read", away)
    for form in ("csv", "jsonl"):
        response = await shop.client.get(f"/exports/deductions?format={form}", auth=MERCHANT)
        problem_of(response, 503, "service_unavailable")


async def test_a_database_that_goes_away_cuts_the_answer(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        await shop.issue(upstream_id=f"line-{number}")
    monkeypatch.setattr(queries, "PAGE_ROWS", 1)
    read, page = shop.service.database.read, queries.line_page

    async def failing(function: Any, after: Any = None, *rest: Any) -> Any:
        if function is page and after is not None and len(rest) == 1 and next(pages) == 2:
            raise ConnectionResetError
        return await read(function, *([after] if function is page else []), *rest)

    pages = iter(range(10))
    monkeypatch.setattr(shop.service.database, "read", failing)
    # The answer never ends, which the test's transport asserts and a server answers by cutting the
    # connection: nobody takes a part of an export for the whole.
    with pytest.raises(AssertionError):
        await shop.client.get("/exports/lines", auth=MERCHANT)
    assert next(pages) == 3
