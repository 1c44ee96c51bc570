"""What is fuzzed, and what must hold of it: each target raises AssertionError for a finding.

Oracles are written anew, without the code under test: only documented refusals are raised, money is what
`fractions` says it is, and what is signed is what `hmac` says.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ValidationError

from store_credit import money
from store_credit.body import loads
from store_credit.callouts.schemas import AuthorizationRequest
from store_credit.errors import ApiError, BadRequest, NotFound
from store_credit.fields import instant
from store_credit.ids import is_minted
from store_credit.merchant.keeping_schemas import AdjustmentRequest
from store_credit.merchant.paging import page_of, stored_id
from store_credit.merchant.routes import _seq
from store_credit.merchant.schemas import ApplyRequest, CreditLineRequest, EventQuery, LineQuery, PageQuery
from store_credit.merchant.storefront_schemas import OfferRequest
from store_credit.metadata import ID_LENGTH_MAX
from store_credit.responses import validation_problems
from store_credit.security import HEADER_LENGTH_MAX, _parse_basic
from store_credit.webhooks import signature
from tests.fuzz.choices import ODD_NUMBERS, Choices
from tests.fuzz.event_target import events

Target = Callable[[bytes], None]

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
TOLERANCE = timedelta(seconds=300)
CURRENCIES = sorted(money.EXPONENTS)
REQUESTS: tuple[type[BaseModel], ...] = (
    AuthorizationRequest,
    CreditLineRequest,
    AdjustmentRequest,
    OfferRequest,
    ApplyRequest,
)
QUERIES: tuple[type[PageQuery], ...] = (PageQuery, LineQuery, EventQuery)


def signatures(given: bytes) -> None:
    """What was signed with a secret of ours, in time, verifies; nothing else does."""
    choices = Choices(given)
    secrets = [
        choices.text().encode("utf-8", "replace").decode() or "s" for _ in range(choices.between(1, 3))
    ]
    seconds = int(NOW.timestamp()) + choices.between(-400, 400)
    moment = datetime.fromtimestamp(seconds, UTC)
    timestamp = choices.one_of((str(seconds), str(seconds * 1_000), moment.isoformat()))
    in_time = abs(NOW - moment) <= TOLERANCE
    used = choices.one_of([*secrets, "of another"])
    mutation, position = choices.below(8), choices.below(400)
    body = choices.rest()
    right = _signed(timestamp, body, used)
    header = f"{timestamp}, {right}"
    assert _verifies(header, body, secrets) == (in_time and used in secrets)
    if mutation == 0:
        changed = body + b"\0" if not body else _flipped(body, position)
        assert not _verifies(header, changed, secrets)
    elif mutation == 1:
        assert not _verifies(f"{timestamp}0, {right}", body, secrets)
    elif mutation == 2:
        wrong = _flipped(right.encode(), position).decode("latin-1")
        assert not _verifies(f"{timestamp}, {wrong}", body, secrets)
    elif mutation == 3:
        assert _verifies(f"{timestamp},x,{right}", body, secrets) == (in_time and used in secrets)
    elif mutation == 4:
        assert not _verifies(right, body, secrets)
    else:
        # Without a secret nobody can sign, whatever the header is.
        assert not _verifies(body.decode("latin-1"), body, secrets)
        found = signature.time_of(body[:40].decode("latin-1"))
        assert found is None or found.utcoffset() == timedelta(0)


def _signed(timestamp: str, body: bytes, secret: str) -> str:
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def _flipped(text: bytes, position: int) -> bytes:
    """The same with one letter changed to another, and never to a blank or a comma."""
    at = position % len(text)
    return text[:at] + (b"A" if text[at : at + 1] != b"A" else b"B") + text[at + 1 :]


def _verifies(header: str, body: bytes, secrets: list[str]) -> bool:
    try:
        signature.verify(header, body, secrets, NOW, TOLERANCE)
    except signature.SignatureRefused:
        return False
    return True


def amounts(given: bytes) -> None:
    """Money goes out and comes in exactly, and any number means what its nearest minor unit is."""
    choices = Choices(given)
    currency = choices.one_of(CURRENCIES)
    minor = choices.minor() * choices.one_of((1, -1))
    number = money.to_number(minor, currency)
    told, finite = loads(json.dumps({"amount": number}).encode())
    assert finite
    assert money.to_minor(money.decimal_of(told["amount"]), currency) == minor
    assert money.to_minor(money.to_decimal(minor, currency), currency) == minor
    text, _, code = money.to_text(minor, currency).rpartition(" ")
    assert (money.to_minor(Decimal(text.replace(",", "")), currency), code) == (minor, currency)
    assert Fraction(money.to_decimal(minor, currency)) == Fraction(minor, 10 ** money.EXPONENTS[currency])
    double = choices.double()
    for other in (choices.one_of(ODD_NUMBERS), number * (1 + choices.between(-9, 9) * 2**-52), double):
        if math.isfinite(other):
            _check_any(money.decimal_of(other), currency)
    with contextlib.suppress(ArithmeticError, ValueError):
        _check_any(Decimal(choices.rest()[:60].decode("latin-1")), currency)


def _check_any(amount: Decimal, currency: str) -> None:
    if amount.is_finite() and abs(amount.adjusted()) < 400:
        unit = Fraction(1, 10 ** money.EXPONENTS[currency])
        nearest = round(Fraction(amount) / unit)
        expected = nearest if abs(nearest * unit - Fraction(amount)) <= Fraction(1, 10**6) else None
        if not 0 < abs(nearest) < 10**15 or abs(amount) >= 10**15:
            expected = None
        assert _minor_of(amount, currency) == expected
    else:
        assert not amount.is_finite() or amount.adjusted() > 0 or _minor_of(amount, currency) is None
    assert len(money.asked_text(amount)) <= 64


def _minor_of(amount: Decimal, currency: str) -> int | None:
    try:
        minor = money.to_minor(amount, currency)
    except money.InvalidAmount:
        return None
    assert type(minor) is int
    return minor


def bodies(given: bytes) -> None:
    """A body is an object of strict JSON or a bad request; a model of it is valid or a bad request."""
    choices = Choices(given)
    model = choices.one_of(REQUESTS)
    document = _document(choices, model) if choices.chance() else None
    raw = json.dumps(document).encode() if document is not None else choices.rest()
    try:
        parsed, finite = loads(raw)
    except BadRequest as error:
        _check_told(error)
        assert document is None or document != json.loads(raw)
        return
    expected = json.loads(raw)
    assert isinstance(expected, dict)
    assert finite == _all_finite(expected)
    if finite:
        assert parsed == expected
    try:
        valid = model.model_validate(parsed)
    except ValidationError as error:
        _check_told(validation_problems(error.errors(include_url=False, include_input=False)))
        return
    for name, value in valid.model_dump().items():
        if isinstance(value, str):
            assert "\0" not in value, name
            value.encode()
        elif isinstance(value, datetime):
            assert value.utcoffset() == timedelta(0), name
        assert not (name == "amount" and isinstance(value, (bool, str))), value


def _document(choices: Choices, model: type[BaseModel]) -> dict[str, Any]:
    """A body with the model's fields, most of them plausible."""
    names = [field.alias or name for name, field in model.model_fields.items()]
    return {name: _value(choices, name) for name in [*names, *choices.several(names, 1)]}


def _value(choices: Choices, name: str) -> Any:
    if choices.chance(5):
        return choices.one_of((choices.text(), None, True, [], {}, *ODD_NUMBERS))
    plausible: dict[str, Any] = {
        "amount": choices.minor() / 100,
        "currency": choices.one_of(CURRENCIES),
        "metadata": {choices.text(): choices.text()},
        "expiresTime": "2027-01-01T00:00:00Z",
        "allowPartial": None,
        "ttl": 60,
        "supersede": False,
    }
    return plausible.get(name, choices.text())


def _all_finite(value: Any) -> bool:
    """No NaN, no infinity, and no integer of more digits than a double can have."""
    if isinstance(value, dict):
        return all(map(_all_finite, value.values()))
    if isinstance(value, list):
        return all(map(_all_finite, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or len(str(value)) <= 308


def _check_told(error: ApiError) -> None:
    """The answer can be written down whatever was asked, and stays short."""
    shown = json.dumps(error.as_json(), ensure_ascii=True)
    assert len(shown) < 8_000
    assert error.problems


def names(given: bytes) -> None:
    """Credentials, identifiers, times and cursors: read as they were written, or refused as documented."""
    choices = Choices(given)
    username, password = choices.text().replace(":", ""), choices.text()
    with contextlib.suppress(UnicodeEncodeError):
        encoded = base64.b64encode(f"{username}:{password}".encode()).decode()
        header = f"{choices.one_of(('Basic', 'basic', 'BASIC'))} {encoded}"
        expected = (username, password.replace("\0", "\ufffd"))
        assert _parse_basic(header) == (expected if len(header) <= HEADER_LENGTH_MAX else (None, ""))
    for prefix in ("", "Basic "):
        name, secret = _parse_basic(prefix + choices.text())
        assert name is not None or secret == ""
    text = choices.text()
    try:
        stored = stored_id(text, "thing")
        assert (stored, len(text) <= ID_LENGTH_MAX, "\0" in text) == (text, True, False)
    except NotFound as error:
        _check_told(error)
    with contextlib.suppress(ValueError):
        assert instant(text).utcoffset() == timedelta(0)
    _check_query(choices, text)


class _Row:
    row = {"id": "cl_1"}  # noqa: RUF012


def _check_query(choices: Choices, cursor: str) -> None:
    query = choices.one_of(QUERIES)
    asked = {"limit": choices.one_of(("1", "100", "0", "101", cursor)), "startingAfter": cursor}
    try:
        page = page_of(query.model_validate(asked), "cl")
    except ValidationError as error:
        _check_told(validation_problems(error.errors(include_url=False, include_input=False)))
    except BadRequest as error:
        _check_told(error)
    else:
        assert is_minted(cursor, "cl")
        assert 1 <= page.limit <= 100
        assert page.starting_after == cursor
    try:
        seq = _seq("startingAfter", choices.one_of((cursor, f"cl_1.{cursor}")), _Row())  # type: ignore[arg-type]
        assert seq is not None
        assert 0 <= seq < 10**18
    except BadRequest as error:
        _check_told(error)


TARGETS: dict[str, Target] = {
    target.__name__: target for target in (signatures, events, amounts, bodies, names)
}
