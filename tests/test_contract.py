"""Contracts: the callout as Digital River publishes it, and our own OpenAPI document, which is true."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator, Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from store_credit.app import create_app
from store_credit.credentials import Role
from store_credit.settings import load as settings_of
from tests.http_fixtures import (
    CALLOUT,
    MERCHANT,
    WEBHOOK,
    Auth,
    Json,
    Shop,
    order_event,
    signature_of,
    source,
)

pytest_plugins = ["tests.http_fixtures"]

PUBLISHED = Path(__file__).parents[2] / "shared" / "digital-river" / "openapi-subset-2021-12-13.json"

# The callout, as Digital River documents it, written down anew.

REQUEST: Json = {
    "type": "object",
    "required": ["sessionId", "amount", "upstreamId"],
    "additionalProperties": False,
    "properties": {
        "sessionId": {"type": "string"},
        "sessionUpstreamId": {"type": "string"},
        "amount": {"type": "number"},
        "upstreamId": {"type": "string"},
        "name": {"type": "string"},
        "iconUrl": {"type": "string"},
        "lastFour": {"type": "string"},
    },
}
ANSWER: Json = {
    "type": "object",
    "required": ["approval", "upstreamId"],
    "additionalProperties": False,
    "properties": {
        "approval": {"type": "boolean"},
        "upstreamId": {"type": "string"},
        "amount": {"type": "number", "exclusiveMinimum": 0},
    },
    "if": {"properties": {"approval": {"const": True}}},
    "then": {"required": ["amount"]},
    "else": {"not": {"required": ["amount"]}},
}
ERRORS: Json = {
    "type": "object",
    "required": ["type", "errors"],
    "additionalProperties": False,
    "properties": {
        "type": {
            "enum": [
                "bad_gateway",
                "bad_request",
                "conflict",
                "forbidden",
                "gateway_timeout",
                "internal_server_error",
                "method_not_allowed",
                "not_acceptable",
                "not_found",
                "request_timeout",
                "service_unavailable",
                "too_many_requests",
                "unauthorized",
            ]
        },
        "errors": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["code", "message"],
                "additionalProperties": False,
                "properties": {name: {"type": "string"} for name in ("code", "parameter", "message")},
            },
        },
    },
}

FULL_REQUEST: Json = {
    "sessionId": "session-1",
    "sessionUpstreamId": "cart-9",
    "amount": 11.4,
    "upstreamId": "line-1",
    "name": "Birthday",
    "iconUrl": "https://shop.test/i.png",
    "lastFour": "0042",
}
LEAST_REQUEST: Json = {"sessionId": "session-2", "amount": 5, "upstreamId": "line-1"}
EXCHANGES: dict[str, tuple[Json, int]] = {
    "approved": (FULL_REQUEST, 200),
    "approved with the least": (LEAST_REQUEST, 200),
    "declined": (LEAST_REQUEST | {"amount": 500}, 200),
    "unknown": (LEAST_REQUEST | {"upstreamId": "nobody's"}, 200),
    "refused": (LEAST_REQUEST | {"amount": "5"}, 400),
}
each_exchange = pytest.mark.parametrize(
    ("request_body", "status"), EXCHANGES.values(), ids=EXCHANGES.keys()
)


@each_exchange
async def test_the_callout_as_it_is_documented(shop: Shop, request_body: Json, status: int) -> None:
    await shop.issue(100)
    response = await shop.post_authorization(request_body)
    assert response.status_code == status
    assert Draft202012Validator(REQUEST).is_valid(request_body) == (status == 200)
    Draft202012Validator(ANSWER if status == 200 else ERRORS).validate(response.json())


@each_exchange
async def test_the_callout_as_it_is_published(shop: Shop, request_body: Json, status: int) -> None:
    if not PUBLISHED.exists():
        pytest.skip("the published document is not at hand")
    await shop.issue(100)
    response = await shop.post_authorization(request_body)
    operation = published()["paths"]["/checkouts/store-credits"]["post"]
    asked = operation["requestBody"]["content"]["application/json"]["schema"]
    assert published_validator(asked).is_valid(request_body) == (status == 200)
    content = operation["responses"][str(response.status_code)]["content"]
    published_validator(content[response.headers["content-type"]]["schema"]).validate(response.json())


async def test_the_removal_as_it_is_published(shop: Shop) -> None:
    if not PUBLISHED.exists():
        pytest.skip("the published document is not at hand")
    response = await shop.remove("nobody's")
    operation = published()["paths"]["/checkouts/store-credits/{upstreamId}"]["delete"]
    assert "content" not in operation["responses"][str(response.status_code)]
    assert response.content == b""


def published() -> Json:
    document: Json = json.loads(PUBLISHED.read_text())
    return document


def published_validator(schema: Json) -> Any:
    return Draft4Validator(schema | {"components": published()["components"]})


# Our own document: what is asked at random gets documented answers

OPERATIONS = [
    "POST /checkouts/store-credits",
    "DELETE /checkouts/store-credits/{upstream_id}",
    "POST /webhooks/digital-river",
    "POST /credit-lines",
    "GET /credit-lines",
    "GET /credit-lines/{id}",
    "PATCH /credit-lines/{id}",
    "GET /credit-lines/{id}/entries",
    "GET /credit-lines/{id}/holds",
    "GET /credit-lines/{id}/deductions",
    "GET /credit-lines/{id}/decisions",
    "GET /decisions",
    "POST /credit-lines/{id}/adjustments",
    "POST /credit-lines/{id}/flags",
    "POST /credit-lines/{id}/suspend",
    "POST /credit-lines/{id}/resume",
    "POST /credit-lines/{id}/close",
    "POST /credit-lines/{id}/reopen",
    "GET /holds",
    "POST /holds/{id}/release",
    "POST /sessions/{id}/release",
    "GET /webhook-events",
    "GET /webhook-events/{id}",
    "POST /webhook-events/{id}/apply",
    "POST /webhook-events/{id}/dismiss",
    "GET /reports/liability",
    "GET /exports/lines",
    "GET /exports/entries",
    "GET /exports/deductions",
    "GET /customers/{id}/store-credits",
    "POST /customers/{id}/offers",
    "GET /healthz",
    "HEAD /healthz",
    "GET /readyz",
    "HEAD /readyz",
    "GET /metrics",
]
WITHOUT_PARAMETERS = {"GET /healthz", "HEAD /healthz", "GET /readyz", "HEAD /readyz", "GET /metrics"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def callers(lasting_shop: Shop) -> list[Auth]:
    """Credentials of each role, and of none."""
    password = await lasting_shop.add_credential("auditor", Role.READER)
    return [CALLOUT, MERCHANT, ("auditor", password), ("nobody", "wrong")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def line(lasting_shop: Shop) -> Json:
    """A line with a history, for paths to name."""
    issued = await lasting_shop.issue(100, "known", expiresTime="2027-01-01T00:00:00Z")
    await lasting_shop.authorize(10, "session-1", "known")
    await lasting_shop.authorize(20, "session-2", "known")
    await lasting_shop.deliver(order_event(source(amount=10, upstream_id="known")))
    return issued


MOSTLY = st.sampled_from([True, True, True, True, False])


def requested(case: schemathesis.Case[Any], shop: Shop, auth: Auth) -> httpx.Request:
    """The generated case as a request, with credentials and a signature of ours."""
    arguments = case.as_transport_kwargs(base_url="http://test")
    raw = json.dumps(arguments["json"]) if "json" in arguments else arguments.get("data")
    content = raw.encode("utf-8", "replace") if isinstance(raw, str) else raw
    headers = {name: value for name, value in arguments["headers"].items() if name != "Authorization"}
    request = shop.client.build_request(
        arguments["method"], arguments["url"], params=arguments["params"], headers=headers, content=content
    )
    request.headers["Authorization"] = f"Basic {base64.b64encode(':'.join(auth).encode()).decode()}"
    if request.url.path == WEBHOOK:
        timestamp = str(int(shop.clock().timestamp()))
        request.headers["DigitalRiver-Signature"] = signature_of(request.content, timestamp)
    return request


async def answered(
    shop: Shop, callers: list[Auth], line_id: str, label: str, draw: Callable[[st.SearchStrategy[Any]], Any]
) -> None:
    """Ask something that the document speaks of, or nearly so; the answer must be documented."""
    method, path = label.split()
    operation = schemathesis.openapi.from_dict(shop.app.openapi())[path][method]
    modes = [GenerationMode.POSITIVE] if label in WITHOUT_PARAMETERS else list(GenerationMode)
    case = draw(operation.as_strategy(generation_mode=draw(st.sampled_from(modes))))
    if "id" in case.path_parameters and draw(MOSTLY):
        case.path_parameters["id"] = "event-1" if "webhook" in path else line_id
    rightful = CALLOUT if "checkouts" in path else MERCHANT
    auth = rightful if draw(MOSTLY) else draw(st.sampled_from(callers))
    response = await shop.client.send(requested(case, shop, auth))
    case.validate_response(response, checks=CHECKS)


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("lasting_shop", ["sqlite"], indirect=True)
@pytest.mark.parametrize("label", OPERATIONS)
@bounded(30)
@given(data=st.data())
async def test_every_answer_is_documented(
    lasting_shop: Shop, callers: list[Auth], line: Json, label: str, data: st.DataObject
) -> None:
    await answered(lasting_shop, callers, line["id"], label, data.draw)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("lasting_shop", ["postgresql"], indirect=True)
@pytest.mark.parametrize("label", OPERATIONS)
@bounded(8)
@given(data=st.data())
async def test_every_answer_is_documented_on_postgresql_too(
    lasting_shop: Shop, callers: list[Auth], line: Json, label: str, data: st.DataObject
) -> None:
    await answered(lasting_shop, callers, line["id"], label, data.draw)


# Our own document: what it says


@pytest.fixture(scope="module")
def document() -> Json:
    """The document, which needs no database."""
    app = create_app(settings_of(database_url="sqlite:///never-opened.db"))
    described: Json = app.openapi()
    return described


def operations_of(document: Json) -> Iterator[tuple[str, Json]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"{method.upper()} {path}", operation


def schemas_within(node: Any) -> Iterator[tuple[str, Json]]:
    """Each property of each schema, by name, wherever it is."""
    if isinstance(node, dict):
        yield from (found for found in node.get("properties", {}).items() if isinstance(found[1], dict))
        for child in node.values():
            yield from schemas_within(child)
    elif isinstance(node, list):
        for child in node:
            yield from schemas_within(child)


def types_of(schema: Json) -> set[str]:
    options = schema.get("anyOf", [schema])
    return {option["type"] for option in options} - {"null"}


def test_all_operations_are_documented(document: Json) -> None:
    assert [label for label, _ in operations_of(document)] == OPERATIONS


def test_every_operation_says_what_it_does(document: Json) -> None:
    undescribed = [
        label for label, operation in operations_of(document) if not operation.get("description")
    ]
    assert undescribed == []


def test_every_body_has_an_example(document: Json) -> None:
    for label, operation in operations_of(document):
        if "requestBody" not in operation:
            continue
        content = operation["requestBody"]["content"]["application/json"]
        properties = content["schema"]["properties"].values()
        assert "example" in content or any("examples" in schema for schema in properties), label


def test_every_body_takes_its_examples(document: Json) -> None:
    for label, operation in operations_of(document):
        if "requestBody" not in operation:
            continue
        content = operation["requestBody"]["content"]["application/json"]
        properties = content["schema"]["properties"].items()
        joined = {name: schema["examples"][0] for name, schema in properties if "examples" in schema}
        errors = list(Draft202012Validator(content["schema"]).iter_errors(content.get("example", joined)))
        assert errors == [], label


def test_every_error_has_the_one_shape(document: Json) -> None:
    expected = {"application/json": {"schema": {"$ref": "#/components/schemas/Errors"}}}
    for label, operation in operations_of(document):
        for status, response in operation["responses"].items():
            assert response["description"], (label, status)
            assert (response.get("content") == expected) == (status >= "400"), (label, status)


def test_the_documented_error_shape_is_digital_river_s(document: Json) -> None:
    errors = document["components"]["schemas"]["Errors"]
    assert set(errors["properties"]["type"]["enum"]) == set(ERRORS["properties"]["type"]["enum"])
    item = document["components"]["schemas"]["ErrorItem"]
    assert {name: types_of(schema) for name, schema in item["properties"].items()} == {
        "code": {"string"},
        "parameter": {"string"},
        "message": {"string"},
    }


def test_amounts_are_numbers(document: Json) -> None:
    names = {
        "amount",
        "balance",
        "held",
        "available",
        "returned",
        "balanceAfter",
        "heldAfter",
        "amountAsked",
    }
    found = [(name, types_of(schema)) for name, schema in schemas_within(document) if name in names]
    assert {name for name, _ in found} == names
    assert [name for name, types in found if types != {"number"}] == []


def test_operations_with_credentials_answer_401_and_403(document: Json) -> None:
    for label, operation in operations_of(document):
        if operation.get("security"):
            assert {"401", "403"} <= operation["responses"].keys(), label
            assert "WWW-Authenticate" in operation["responses"]["401"]["headers"], label


def test_only_these_operations_need_no_credentials(document: Json) -> None:
    open_to_all = {label for label, operation in operations_of(document) if not operation.get("security")}
    assert open_to_all == {"POST /webhooks/digital-river", *WITHOUT_PARAMETERS}


def test_the_scheme_is_http_basic(document: Json) -> None:
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "basic")


async def test_the_document_is_served(shop: Shop, document: Json) -> None:
    assert (await shop.client.get("/openapi.json")).json() == document
