"""Minor units and decimal numbers, and the table of currencies against the published one."""

from __future__ import annotations

from decimal import Decimal

import iso4217
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store_credit import money

WITHOUT_MINOR_UNIT = {
    "XAG",
    "XAU",
    "XBA",
    "XBB",
    "XBC",
    "XBD",
    "XDR",
    "XPD",
    "XPT",
    "XSU",
    "XTS",
    "XUA",
    "XXX",
}

currencies = st.sampled_from(sorted(money.EXPONENTS))
minors = st.integers(min_value=1, max_value=money.AMOUNT_MINOR_LIMIT - 1)


def test_the_currencies_are_those_of_iso_4217() -> None:
    published = {
        currency.code: currency.exponent
        for currency in iso4217.Currency
        if currency.code not in WITHOUT_MINOR_UNIT
    }

    assert published == money.EXPONENTS


def test_what_has_no_minor_unit_is_no_currency() -> None:
    assert not WITHOUT_MINOR_UNIT & money.EXPONENTS.keys()


@pytest.mark.parametrize(
    ("number", "currency", "minor"),
    [
        (11.4, "USD", 11_40),
        (500, "USD", 500_00),
        (53.769999999999996, "USD", 53_77),
        (0.1 + 0.2, "USD", 30),
        (1e2, "USD", 100_00),
        (1200, "JPY", 1200),
        (1200.0, "JPY", 1200),
        (1.234, "KWD", 1_234),
        (-5.5, "USD", -5_50),
        (9_999_999_999_999.99, "USD", 999_999_999_999_999),
    ],
)
def test_a_json_number_is_read_as_minor_units(number: float, currency: str, minor: int) -> None:
    assert money.to_minor(money.decimal_of(number), currency) == minor


@pytest.mark.parametrize(
    ("amount", "currency", "why"),
    [
        ("0", "USD", "zero"),
        ("0.0000001", "USD", "zero"),
        ("-0", "USD", "zero"),
        ("10.129", "USD", "decimals"),
        ("0.001", "USD", "decimals"),
        ("10.5", "JPY", "decimals"),
        ("1.00001", "USD", "decimals"),
        ("1E+13", "USD", "large"),
        ("1E+15", "JPY", "large"),
        ("1E+400000", "USD", "large"),
        ("99999999999999999999", "USD", "large"),
        ("-1E+15", "JPY", "large"),
        ("NaN", "USD", "large"),
        ("Infinity", "USD", "large"),
    ],
)
def test_a_number_that_is_no_amount_says_why(amount: str, currency: str, why: str) -> None:
    with pytest.raises(money.InvalidAmount, match=why):
        money.to_minor(Decimal(amount), currency)


def test_noise_up_to_a_millionth_is_rounded_away_and_no_more() -> None:
    assert money.to_minor(Decimal("1.000001"), "USD") == 1_00
    with pytest.raises(money.InvalidAmount):
        money.to_minor(Decimal("1.0000011"), "USD")


def test_a_negative_amount_is_not_positive() -> None:
    with pytest.raises(money.InvalidAmount, match="negative"):
        money.positive_minor(Decimal("-1"), "USD")


@given(minor=minors, currency=currencies)
def test_minor_units_survive_the_way_through_json(minor: int, currency: str) -> None:
    number = float(money.to_number(minor, currency))

    assert money.to_minor(money.decimal_of(number), currency) == minor


@given(minor=minors, currency=currencies)
def test_minor_units_survive_the_way_through_decimals(minor: int, currency: str) -> None:
    amount = money.to_decimal(minor, currency)

    assert money.to_minor(amount, currency) == minor
    assert -amount.as_tuple().exponent == money.EXPONENTS[currency]


def test_json_numbers_are_whole_where_they_can_be() -> None:
    assert money.to_number(11_40, "USD") == 11.4
    whole = money.to_number(5_00, "USD")
    assert (whole, type(whole)) == (5, int)


def test_people_read_all_decimals_and_the_currency() -> None:
    assert money.to_text(1_234_50, "USD") == "1,234.50 USD"
    assert money.to_text(1_234, "JPY") == "1,234 JPY"


def test_a_number_of_many_digits_is_kept_short() -> None:
    assert money.asked_text(Decimal("11.40")) == "11.40"
    assert len(money.asked_text(Decimal("1." + "3" * 5_000))) <= 40
