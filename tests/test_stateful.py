"""Our OpenAPI document's links are true, and what is called along them gets documented answers."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test
from schemathesis.core.failures import FailureGroup
from schemathesis.core.transport import Response

from store_credit.openapi import LINKS
from tests.fuzz.long_runs import databases, reach
from tests.http_fixtures import (
    AUTHORIZE,
    CALLOUT,
    JSON,
    MERCHANT,
    WEBHOOK,
    Json,
    Shop,
    decoded,
    order_event,
    running,
    source,
)
from tests.making import Clock
from tests.test_contract import CHECKS, requested

pytest_plugins = ["tests.http_fixtures"]

BODIES: dict[str, Json] = {
    "POST /checkouts/store-credits": {"sessionId": "session-1", "amount": 5, "upstreamId": "line-1"},
    "POST /webhooks/digital-river": order_event(source(upstream_id=None)),
    "POST /credit-lines": {"customerId": "c", "currency": "USD", "amount": 7},
    "PATCH /credit-lines/{id}": {"name": "Gift"},
    "POST /credit-lines/{id}/adjustments": {"amount": 1, "reason": "why"},
    "POST /credit-lines/{id}/flags": {"flag": "overdrawn", "raised": True, "reason": "why"},
    "POST /sessions/{id}/release": {},
    "POST /webhook-events/{id}/apply": {},
    "POST /customers/{id}/offers": {"currency": "USD"},
}
REASON = {"reason": "why"}
LIKELY: Json = {"currency": "USD", "amount": 5, "upstreamId": "line-1", "type": "order.accepted"}
"""Values that random ones will hardly ever be."""
OUR_LINKS_ALONE = schemathesis.Config.from_dict({"phases": {"stateful": {"inference": {"algorithms": []}}}})
UNDONE_BY = {
    "POST /credit-lines/{id}/resume": "POST /credit-lines/{id}/suspend",
    "POST /credit-lines/{id}/reopen": "POST /credit-lines/{id}/close",
}


async def call(shop: Shop, label: str, parameters: Json) -> httpx.Response:
    """Call an operation with a body that fits it."""
    method, template = label.split()
    path = re.sub(r"{(\w+)}", lambda found: parameters.pop(found[1]), template)
    auth = CALLOUT if path.startswith(AUTHORIZE) else MERCHANT
    if label.startswith("POST " + WEBHOOK):
        return await shop.post_event(BODIES[label])
    body = {"json": BODIES.get(label, REASON)} if method in ("POST", "PATCH") else {}
    return await shop.client.request(method, path, params=parameters, auth=auth, headers=JSON, **body)


def evaluated(expression: str, asked: Json, answered: Json) -> Any:
    """A runtime expression of OpenAPI, of the kinds that are used here."""
    found = re.fullmatch(r"\$(request|response)\.body#/(\w+)", expression)
    assert found is not None, expression
    return (asked if found[1] == "request" else answered)[found[2]]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("origin", LINKS)
async def test_a_link_leads_to_where_it_says(shop: Shop, origin: str) -> None:
    await shop.issue(100)
    for target in (label for label in LINKS[origin] if label != origin):
        line = decoded(await call(shop, "POST /credit-lines", {}), 201)
        if (undone := UNDONE_BY.get(origin)) is not None:
            decoded(await call(shop, undone, {"id": line["id"]}))
        first = await call(shop, origin, {"id": line["id"]})
        assert first.is_success, first.text
        links = operation(shop, origin)["responses"][str(first.status_code)]["links"]
        wanted = operation(shop, target)["operationId"]
        (link,) = [one for one in links.values() if one["operationId"] == wanted]
        asked = BODIES.get(origin, REASON)
        named = {name: evaluated(one, asked, first.json()) for name, one in link["parameters"].items()}
        second = await call(shop, target, named)
        # What is active can not be resumed; but it must be the line that is meant.
        assert second.is_success or second.json()["errors"][0]["code"] == "not_allowed", (
            target,
            second.text,
        )


def operation(shop: Shop, label: str) -> Json:
    method, path = label.split()
    found: Json = shop.app.openapi()["paths"][path][method.lower()]
    return found


@pytest.fixture(params=databases(["sqlite"]))
def served(request: pytest.FixtureRequest) -> Iterator[tuple[asyncio.Runner, Shop]]:
    """An application, and what runs its event loop: the state machine is not asynchronous."""
    url = request.getfixturevalue(f"{request.param}_url")
    with asyncio.Runner() as runner:
        entered = running(url, Clock())
        yield runner, runner.run(entered.__aenter__())
        runner.run(entered.__aexit__(None, None, None))


@pytest.mark.parametrize(
    ("origin", "paths"),
    [
        ("POST /credit-lines", "^/(credit-lines|customers|checkouts/store-credits/)"),
        ("POST /checkouts/store-credits", "^/(checkouts|sessions|decisions)"),
        ("POST /webhooks/digital-river", "^/webhook"),
    ],
)
def test_what_is_called_along_the_links_gets_documented_answers(
    served: tuple[asyncio.Runner, Shop], origin: str, paths: str
) -> None:
    runner, shop = served
    runner.run(shop.issue(1_000_000))
    schema = schemathesis.openapi.from_dict(shop.app.openapi(), config=OUR_LINKS_ALONE)
    machine = schema.include(path_regex=paths).as_state_machine()
    succeeded: Counter[str] = Counter()
    found: list[str] = []

    class Callers(machine):  # type: ignore[misc, valid-type]
        def before_call(self, case: schemathesis.Case[Any]) -> None:
            if isinstance(case.body, dict) and len(str(case.body)) % 3:
                case.body |= {name: value for name, value in LIKELY.items() if name in case.body}
                if case.operation.label == "POST /credit-lines":
                    case.body.pop("upstreamId", None)

        def call(self, case: schemathesis.Case[Any], **_given: Any) -> Response:
            auth = CALLOUT if case.path.startswith(AUTHORIZE) else MERCHANT
            response = runner.run(shop.client.send(requested(case, shop, auth)))
            succeeded[case.operation.label if response.is_success else "refused"] += 1
            return Response.from_httpx(response, verify=True)

        def validate_response(
            self, response: Response, case: schemathesis.Case[Any], **_given: Any
        ) -> None:
            try:
                case.validate_response(response, checks=CHECKS)
            except FailureGroup as failures:
                found.append(f"{case.operation.label}: {failures.exceptions}")
                raise

    # What is stored stays from one example to the next: they need not be alike, and that is no finding.
    with contextlib.suppress(Flaky, FailureGroup):
        run_state_machine_as_test(Callers, settings=settings(**reach(15, 8)))
    assert found == []
    assert succeeded[origin]
    assert any(succeeded[label] for label in LINKS[origin] if label != origin)
