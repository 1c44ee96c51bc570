"""Currencies, minor units, and the decimal numbers of JSON, CSV and the command line.

Everything inside the service counts integers in a currency's minor unit (ISO 4217 exponent:
JPY 0, USD 2, KWD 3). Decimal numbers exist only at the edges, and this module is the edge.
It does no I/O.
"""

from __future__ import annotations

from decimal import Decimal

AMOUNT_MINOR_LIMIT = 10**15
"""Amounts stay below this: up to there a JSON double carries every amount exactly."""

NOISE = Decimal("0.000001")
"""Digital River's amounts are JSON doubles: a number this close to a minor unit means that unit."""

_ASKED_LENGTH_MAX = 40

# ISO 4217 by exponent; all others of the list have two decimals. Precious metals, bond units and
# test codes have no minor unit and can hold no store credit.
_NO_DECIMALS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_TWO_DECIMALS = (
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD "
    "CDF CHE CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS "
    "GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD "
    "LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB "
    "PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP "
    "SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW "
    "ZWG"
)
_THREE_DECIMALS = "BHD IQD JOD KWD LYD OMR TND"
_FOUR_DECIMALS = "CLF UYW"

EXPONENTS: dict[str, int] = {
    code: exponent
    for exponent, codes in (
        (0, _NO_DECIMALS),
        (2, _TWO_DECIMALS),
        (3, _THREE_DECIMALS),
        (4, _FOUR_DECIMALS),
    )
    for code in codes.split()
}
"""Decimals of each currency, ISO 4217."""

_UNITS: dict[str, Decimal] = {code: Decimal(1).scaleb(-n) for code, n in EXPONENTS.items()}


class InvalidAmount(ValueError):
    """A number that is no amount of the currency. The message is fit to show."""


def decimal_of(number: int | float) -> Decimal:
    """The decimal that a JSON number was written as.

    The shortest representation of a double gives back what was written, up to 15 digits.
    """
    return Decimal(number) if isinstance(number, int) else Decimal(repr(number))


def to_minor(amount: Decimal, currency: str) -> int:
    """Minor units of a positive or negative decimal amount; float noise is rounded away.

    Raises InvalidAmount for zero, too many decimals and amounts of 10^15 minor units and more.
    """
    exponent = EXPONENTS[currency]
    if not amount.is_finite() or abs(amount) >= AMOUNT_MINOR_LIMIT:
        raise InvalidAmount("is too large")
    whole = amount.quantize(_UNITS[currency])
    if abs(whole - amount) > NOISE:
        raise InvalidAmount(f"has more decimals than {currency} allows ({exponent})")
    minor = int(whole.scaleb(exponent))
    if minor == 0:
        raise InvalidAmount("must not be zero")
    if abs(minor) >= AMOUNT_MINOR_LIMIT:
        raise InvalidAmount("is too large")
    return minor


def positive_minor(amount: Decimal, currency: str) -> int:
    """Minor units of a decimal amount above zero; raises InvalidAmount for every other number."""
    minor = to_minor(amount, currency)
    if minor < 0:
        raise InvalidAmount("must not be negative")
    return minor


def to_decimal(minor: int, currency: str) -> Decimal:
    """The decimal amount, with all decimals of its currency: 1140 USD is 11.40."""
    return Decimal(minor).scaleb(-EXPONENTS[currency])


def to_number(minor: int, currency: str) -> int | float:
    """The JSON number of an amount: 1140 USD is 11.4 and 500 USD is 5."""
    scale: int = 10 ** EXPONENTS[currency]
    return minor // scale if minor % scale == 0 else minor / scale


def to_text(minor: int, currency: str) -> str:
    """The amount as people read it: `1,234.50 USD`."""
    return f"{to_decimal(minor, currency):,} {currency}"


def asked_text(amount: Decimal) -> str:
    """A number as it was asked, short enough to keep: numbers of many digits lose the last ones."""
    text = str(amount)
    return text if len(text) <= _ASKED_LENGTH_MAX else f"{amount:.16e}"
