"""The file of opening balances: what its rows may say, and how they are told when they are wrong."""

from __future__ import annotations

import csv
import io

import pytest

from store_credit.exchange import opening
from store_credit.exchange.opening import OpeningBalance, Problem, UnreadableFile

HEADER = "customerId,currency,amount,upstreamId\n"
FULL_HEADER = "customerId,currency,amount,upstreamId,name,expiresTime,reason\n"


def rows_of(content: str | bytes) -> list[OpeningBalance | Problem]:
    return list(opening.rows(io.BytesIO(content if isinstance(content, bytes) else content.encode())))


def problem_of(cells: str, header: str = HEADER) -> str:
    """What is wrong with the only row."""
    (problem,) = rows_of(header + cells + "\n")
    assert isinstance(problem, Problem), problem
    assert problem.row == 2
    return problem.message


def amount_of(amount: str, currency: str = "USD") -> int:
    (row,) = rows_of(f"{HEADER}customer-1,{currency},{amount},line-1\n")
    assert isinstance(row, OpeningBalance), row
    return row.amount_minor


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [
        ("100", "USD", 100_00),
        ("0.1", "USD", 10),
        ("10.5000", "USD", 10_50),
        ("+7", "JPY", 7),
        (" 1.234 ", "KWD", 1_234),
        # As a double this would be 9007199254740.990234375.
        ("9007199254740.99", "USD", 9_007_199_254_740_99),
        ("9999999999999.99", "USD", 999_999_999_999_999),
    ],
)
def test_amounts_are_read_exactly(amount: str, currency: str, minor: int) -> None:
    assert amount_of(amount, currency) == minor


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("c,USD,0,u", "amount: must not be zero"),
        ("c,USD,-1,u", "amount: must not be negative"),
        ("c,USD,1.001,u", "amount: has more decimals than USD allows (2)"),
        # A JSON double's noise would be rounded away; text has none.
        ("c,USD,1.0000001,u", "amount: has more decimals than USD allows (2)"),
        ("c,USD,0.0000001,u", "amount: must not be zero"),
        ("c,USD,10000000000000,u", "amount: is too large"),
        ("c,USD,1e3,u", "amount: Must be a decimal number such as 1234.50."),
        ('c,USD,"1,000",u', "amount: Must be a decimal number such as 1234.50."),
        ("c,USD,١٢,u", "amount: Must be a decimal number such as 1234.50."),
        ("c,USD,NaN,u", "amount: Must be a decimal number such as 1234.50."),
        ("c,usd,1,u", "currency: Must be an ISO 4217 currency code in capitals."),
        (",USD,1,u", "customerId: Field required."),
        ("c,USD,1", "3 cells, but there are 4 columns"),
        ("c,USD,1,u,more", "5 cells, but there are 4 columns"),
        (f"c,USD,1,{'u' * 1025}", "upstreamId: String should have at most 1024 characters."),
        ("c\0,USD,1,u", "customerId: Must not contain NUL."),
    ],
)
def test_a_bad_row_is_told_by_its_number(cells: str, message: str) -> None:
    assert problem_of(cells) == message


def test_all_problems_of_a_row_are_told() -> None:
    assert problem_of(",usd,x,u").count(";") == 2


def test_rows_that_are_no_utf8_are_told() -> None:
    (problem,) = rows_of(HEADER.encode() + b"caf\xe9,USD,1,line-1\n")
    assert isinstance(problem, Problem)
    assert "unicode" in problem.message


def test_a_time_must_say_its_zone() -> None:
    assert "time zone" in problem_of("c,USD,1,u,,2027-01-01T00:00:00,", FULL_HEADER)


def test_rows_are_counted_as_spreadsheets_count_them() -> None:
    found = rows_of('customerId,currency,amount,upstreamId\n\n"two\nlines",USD,1,a\n,,,\nc,USD,1,b\n')
    assert [row.row for row in found] == [3, 5]


def test_columns_come_in_any_order_and_after_a_byte_order_mark() -> None:
    content = "\ufeffamount,upstreamId,currency,customerId,name\r\n5,u,USD,c,Gift\r\n"
    (row,) = rows_of(content)
    assert isinstance(row, OpeningBalance)
    assert (row.amount_minor, row.upstream_id, row.customer_id, row.name) == (5_00, "u", "c", "Gift")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "missing: customerId, currency, amount, upstreamId"),
        ("customerId;currency;amount;upstreamId\n", "separated by commas"),
        ("customerId\tcurrency\tamount\tupstreamId\n", "separated by commas"),
        (HEADER.encode("utf-16"), "save it as CSV in UTF-8"),
        ("customerId\n", "missing: currency, amount, upstreamId"),
        (HEADER.strip() + ",colour\n", "The columns may be"),
        (HEADER.strip() + ",amount\n", "The columns may be"),
        (HEADER + 'c,USD,1,"u\n', "after row 1"),
        (HEADER + 'c,USD,1,"u"x\n', "no CSV after row 1"),
    ],
)
def test_a_file_of_another_kind_is_refused_as_a_whole(content: str, said: str) -> None:
    with pytest.raises(UnreadableFile, match=said):
        rows_of(content)


def test_a_file_has_a_greatest_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "ROWS_MAX", 2)
    assert len(rows_of(HEADER + 2 * "c,USD,1,u\n")) == 2
    with pytest.raises(UnreadableFile, match="2 rows at most"):
        rows_of(HEADER + 3 * "c,USD,1,u\n")


def test_only_what_a_row_says_makes_its_fingerprint() -> None:
    same = rows_of(HEADER + "c,USD,1.5,u\n") + rows_of(
        "upstreamId,amount,currency,customerId\nu,1.50,USD,c\n"
    )
    other = rows_of(HEADER + "c,USD,1.51,u\n")
    prints = [row.fingerprint for row in same + other if isinstance(row, OpeningBalance)]
    assert prints[0] == prints[1] != prints[2]


def test_what_an_export_quotes_an_import_reads() -> None:
    written = io.StringIO(newline="")
    csv.writer(written).writerows([HEADER.strip().split(","), ['c "1", x', "USD", "1", "a\r\nb"]])
    (row,) = rows_of(written.getvalue())
    assert isinstance(row, OpeningBalance)
    assert (row.customer_id, row.upstream_id) == ('c "1", x', "a\r\nb")
