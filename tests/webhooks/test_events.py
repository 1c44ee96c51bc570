"""Events as the ledger understands them: read from parsed bodies, without SQL and HTTP."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from store_credit.body import loads
from store_credit.webhooks.events import Event, MalformedEvent, Spent, read
from tests.http_fixtures import order_event, source

CREATED = "checkout_session.order.created"


def spent(**changed: Any) -> Spent:
    """How the source with these changes is understood."""
    (only,) = read(order_event(source() | changed)).spent
    return only


def with_order(**order: Any) -> Event:
    return read({"id": "event-1", "type": CREATED, "data": {"object": order}})


def test_an_order_event() -> None:
    body = order_event(source("source-1", 11.4), source("source-2", 5), createdTime="ignored")
    body["createdTime"] = "2026-11-20T11:59:59.952982Z[UTC]"
    assert read(body) == Event(
        id="event-1",
        type=CREATED,
        created_at=datetime(2026, 11, 20, 11, 59, 59, 952982, tzinfo=UTC),
        live_mode=False,
        order_id="order-1",
        session_id="session-1",
        spent=(
            Spent("source-1", Decimal("11.4"), "USD", "line-1"),
            Spent("source-2", Decimal(5), "USD", "line-1"),
        ),
    )


def test_the_other_spelling_of_the_type() -> None:
    assert len(read(order_event(source(), event_type="checkout_session.order.create")).spent) == 1


def test_an_accepted_order_spends_without_a_session() -> None:
    event = read(order_event(source(), event_type="order.accepted", session_id=None))
    assert [spent.source_id for spent in event.spent] == ["source-1"]
    assert event.session_id is None


@pytest.mark.parametrize("event_type", ["order.complete", "sales.tax", "CHECKOUT_SESSION"])
def test_another_type_spends_nothing(event_type: str) -> None:
    event = read(order_event(source(), event_type=event_type))
    assert (event.type, event.spent) == (event_type, ())


def test_only_sources_of_customer_credit_count() -> None:
    card = source("card", type="creditCard")
    assert [s.source_id for s in read(order_event(card, source())).spent] == ["source-1"]


def test_sources_at_the_top_of_an_order() -> None:
    event = with_order(id="order-1", sources=[source()])
    assert [s.source_id for s in event.spent] == ["source-1"]


def test_sources_under_payment_go_first() -> None:
    event = with_order(sources=[source("older")], payment={"sources": [source("newer")]})
    assert [s.source_id for s in event.spent] == ["newer"]


def test_a_payment_without_sources_leaves_those_at_the_top() -> None:
    event = with_order(sources=[source("older")], payment={"charges": []})
    assert [s.source_id for s in event.spent] == ["older"]


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"payment": None},
        {"payment": []},
        {"payment": "x"},
        {"payment": {}},
        {"payment": {"sources": None}},
        {"payment": {"sources": {}}},
        {"payment": {"sources": "customerCredit"}},
        {"payment": {"sources": []}},
        {"payment": {"sources": [None, 5, "customerCredit", [], {}, {"type": None}, {"type": []}]}},
        {"sources": None},
        {"sources": {"type": "customerCredit"}},
    ],
    ids=json.dumps,
)
def test_an_order_without_usable_sources(order: dict[str, Any]) -> None:
    assert with_order(**order).spent == ()


@pytest.mark.parametrize("value", [None, 5, "", [], "x" * 256, "a\0b", "\ud800"], ids=repr)
def test_an_unusable_id_of_an_order_is_left_out(value: Any) -> None:
    event = with_order(id=value, checkoutSessionId="session-1")
    assert (event.order_id, event.session_id) == (None, "session-1")


@pytest.mark.parametrize("event_type", [CREATED, "order.accepted", "order.cancelled"])
@pytest.mark.parametrize("state", [None, 5, True, [], {}, ["blocked"], {"blocked": 1}], ids=repr)
def test_an_unusable_state_of_an_order_says_nothing(state: Any, event_type: str) -> None:
    named, unnamed = (
        read({"id": "event-1", "type": event_type, "data": {"object": order}})
        for order in ({"state": state, "sources": [source()]}, {"sources": [source()]})
    )
    assert named == unnamed


@pytest.mark.parametrize("value", [None, 5, "", [], "x" * 256, "a\0b", "\ud800"], ids=repr)
def test_an_unusable_id_of_a_session_is_left_out(value: Any) -> None:
    event = with_order(id="order-1", checkoutSessionId=value)
    assert (event.order_id, event.session_id) == ("order-1", None)


def test_the_order_of_a_charge_is_named_by_it() -> None:
    body = {
        "id": "e",
        "type": "order.charge.complete",
        "data": {"object": {"id": "c", "orderId": "order-9"}},
    }
    assert read(body).order_id == "order-9"


# The envelope


@pytest.mark.parametrize("name", ["id", "type"])
@pytest.mark.parametrize("value", [None, 5, True, "", [], {}, "x" * 256, "a\0b", "\ud800"], ids=repr)
def test_an_envelope_without_a_usable_name(name: str, value: Any) -> None:
    with pytest.raises(MalformedEvent) as malformed:
        read(order_event(source()) | {name: value})
    assert malformed.value.parameter == name


@pytest.mark.parametrize("name", ["id", "type"])
def test_an_envelope_that_lacks_a_name(name: str) -> None:
    body = order_event(source())
    del body[name]
    with pytest.raises(MalformedEvent) as malformed:
        read(body)
    assert malformed.value.parameter == name


@pytest.mark.parametrize(
    "content", [None, 5, [], "x", {}, {"object": None}, {"object": []}, {"object": "x"}]
)
def test_an_envelope_without_an_object(content: Any) -> None:
    with pytest.raises(MalformedEvent) as malformed:
        read(order_event(source()) | {"data": content})
    assert malformed.value.parameter == "data.object"


@pytest.mark.parametrize(
    "value",
    [None, 5, "", "soon", [], "2026-13-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-01:00"],
    ids=repr,
)
def test_an_unusable_time_is_left_out(value: Any) -> None:
    assert read(order_event(source()) | {"createdTime": value}).created_at is None


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), (None, None), ("true", None)]
)
def test_the_mode_is_a_boolean_or_unknown(value: Any, expected: bool | None) -> None:
    assert read(order_event(source()) | {"liveMode": value}).live_mode is expected


# Sources


def test_float_noise_stays_until_the_line_is_known() -> None:
    assert spent(amount=53.769999999999996).amount == Decimal("53.769999999999996")


@pytest.mark.parametrize("amount", [None, "11.4", "", True, [], {}], ids=repr)
def test_a_source_with_an_unusable_amount(amount: Any) -> None:
    found = spent(amount=amount)
    assert found.amount is None
    assert found.problem is not None
    assert "amount" in found.problem


@pytest.mark.parametrize("source_id", [None, 5, "", [], "x" * 256, "a\0b", "\ud800"], ids=repr)
def test_a_source_with_an_unusable_id(source_id: Any) -> None:
    found = spent(id=source_id)
    assert found.source_id is None
    assert found.problem is not None
    assert "id" in found.problem


@pytest.mark.parametrize("upstream_id", [None, 5, "", [], "x" * 1025, "a\0b", "\ud800"], ids=repr)
def test_a_source_with_an_unusable_upstream_id_has_none(upstream_id: Any) -> None:
    found = spent(upstreamId=upstream_id)
    assert (found.upstream_id, found.problem) == (None, None)


def test_an_upstream_id_of_1024_characters() -> None:
    assert spent(upstreamId="券" * 1024).upstream_id == "券" * 1024


@pytest.mark.parametrize("currency", [5, 0, True, False, [], {"code": "USD"}, "x" * 256], ids=repr)
def test_a_source_with_an_unusable_currency(currency: Any) -> None:
    (found,) = read(order_event(source(currency=currency), currency="USD")).spent
    assert found.problem is not None
    assert "currency" in found.problem


@pytest.mark.parametrize("currency", [None, ""])
def test_the_currency_is_else_the_order_s(currency: str | None) -> None:
    (found,) = read(order_event(source(currency=currency), currency="EUR")).spent
    assert found.currency == "EUR"


def test_the_source_s_currency_goes_first() -> None:
    (found,) = read(order_event(source(currency="USD"), currency="EUR")).spent
    assert found.currency == "USD"


@pytest.mark.parametrize("currency", [None, ""])
def test_there_may_be_no_currency_at_all(currency: str | None) -> None:
    (found,) = read(order_event(source(currency=currency), currency=currency)).spent
    assert (found.currency, found.problem) == (None, None)


# The fingerprint

BASE = order_event(source("source-1", 11.4), source("source-2", 5))


def fingerprint(body: bytes | dict[str, Any]) -> str:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read(loads(raw)[0]).fingerprint


RENDERED_ANEW: dict[str, bytes | dict[str, Any]] = {
    "indented": json.dumps(BASE, indent=3).encode(),
    "names in another order": json.dumps(BASE, sort_keys=True).encode(),
    "sources in another order": order_event(source("source-2", 5), source("source-1", 11.4)),
    "trailing zeros": json.dumps(BASE).replace("11.4", "11.400").replace(": 5,", ": 5.00,").encode(),
    "an exponent": json.dumps(BASE).replace("11.4", "1.14e1").encode(),
    "float noise": order_event(
        source("source-1", 11.399999999999999), source("source-2", 5.000000000000001)
    ),
    "escapes": json.dumps(BASE).replace("source-1", "\\u0073ource-1").encode(),
    "a field more": BASE | {"webhookIds": ["w"], "createdTime": "2026-11-20T12:00:00Z"},
    "another primary source": order_event(
        source("card", type="creditCard"), source("source-1", 11.4), source("source-2", 5)
    ),
    "the other spelling": BASE | {"type": "checkout_session.order.create"},
    "currency of the order": order_event(
        source("source-1", 11.4, currency=None), source("source-2", 5), currency="USD"
    ),
}


@pytest.mark.parametrize("body", RENDERED_ANEW.values(), ids=RENDERED_ANEW.keys())
def test_a_body_that_is_rendered_anew_is_the_same_event(body: bytes | dict[str, Any]) -> None:
    assert fingerprint(body) == fingerprint(BASE)


OTHER_EFFECTS: dict[str, dict[str, Any]] = {
    "another amount": order_event(source("source-1", 11.41), source("source-2", 5)),
    "amounts exchanged": order_event(source("source-1", 5), source("source-2", 11.4)),
    "another source": order_event(source("source-1", 11.4), source("source-3", 5)),
    "a source less": order_event(source("source-1", 11.4)),
    "a source more": order_event(source("source-1", 11.4), source("source-2", 5), source("source-3", 1)),
    "another line": order_event(source("source-1", 11.4, "line-2"), source("source-2", 5)),
    "no line": order_event(source("source-1", 11.4, None), source("source-2", 5)),
    "another currency": order_event(source("source-1", 11.4, currency="EUR"), source("source-2", 5)),
    "another session": order_event(source("source-1", 11.4), source("source-2", 5), session_id="session-2"),
    "another order": order_event(source("source-1", 11.4), source("source-2", 5), order_id="order-2"),
    "a negative amount": order_event(source("source-1", -11.4), source("source-2", 5)),
}


@pytest.mark.parametrize("body", OTHER_EFFECTS.values(), ids=OTHER_EFFECTS.keys())
def test_other_effects_are_another_event(body: dict[str, Any]) -> None:
    assert fingerprint(body) != fingerprint(BASE)


@pytest.mark.parametrize(
    ("one", "other"), [("1e15", "1000000000000000"), ("-0.0", "0"), ("1e300", "1e+300"), ("0.1e17", "1e16")]
)
def test_a_number_that_is_no_amount_has_one_text_too(one: str, other: str) -> None:
    rendered = json.dumps(order_event(source(amount=12345)))
    fingerprints = {fingerprint(rendered.replace("12345", amount).encode()) for amount in (one, other)}
    assert len(fingerprints) == 1
