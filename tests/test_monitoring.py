"""Prometheus' alerts and Grafana's dashboard: well formed, and about metrics that the service has.

Each selector must find something in the metrics of a service with which everything was done once: a name,
a label or a value that does not exist makes an alert that never comes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from store_credit.cli.main import app
from store_credit.throttle import FAILURES_MAX
from tests.http_fixtures import CALLOUT, Shop, Start, order_event, source

pytest_plugins = ["tests.http_fixtures"]

PROJECT = Path(__file__).parents[1]
ALERTS = PROJECT / "monitoring" / "alerts.yml"
DASHBOARD = PROJECT / "monitoring" / "dashboard.json"
PAGE = PROJECT / "docs" / "operations.md"
OF_PROMETHEUS = {"up"}
TARGET_LABELS = {"job": "store-credit", "instance": "one:8000"}
"""What Prometheus adds to every sample."""
COLUMNS = 24
"""Of Grafana's grid."""

DURATION = {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string", "minLength": 1}}
ALERT_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["groups"],
    "properties": {
        "groups": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "rules"],
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "interval": DURATION,
                    "rules": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/alert"}},
                },
            },
        }
    },
    "$defs": {
        "alert": {
            "type": "object",
            "additionalProperties": False,
            "required": ["alert", "expr", "labels", "annotations"],
            "properties": {
                "alert": {"type": "string", "pattern": "^StoreCredit[A-Za-z]+$"},
                "expr": {"type": "string", "minLength": 1},
                "for": DURATION,
                "keep_firing_for": DURATION,
                "labels": TEXTS
                | {"required": ["severity"], "properties": {"severity": {"enum": ["page", "ticket"]}}},
                "annotations": TEXTS | {"required": ["summary", "description", "runbook"]},
            },
        }
    },
}

DATA_SOURCE = {"const": {"type": "prometheus", "uid": "${datasource}"}}
DASHBOARD_SCHEMA = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "templating", "time", "refresh"],
    "properties": {
        "uid": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,40}$"},
        "title": {"type": "string", "minLength": 1},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "time": {"type": "object", "required": ["from", "to"]},
        "panels": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/panel"}},
        "templating": {
            "type": "object",
            "required": ["list"],
            "properties": {
                "list": {
                    "type": "array",
                    "items": {"type": "object", "required": ["name", "type", "query"]},
                    "contains": {
                        "properties": {
                            "name": {"const": "datasource"},
                            "type": {"const": "datasource"},
                            "query": {"const": "prometheus"},
                        }
                    },
                }
            },
        },
    },
    "$defs": {
        "panel": {
            "type": "object",
            "required": ["id", "type", "title", "gridPos"],
            "properties": {
                "id": {"type": "integer", "minimum": 1},
                "type": {"enum": ["row", "stat", "timeseries"]},
                "title": {"type": "string", "minLength": 1},
                "gridPos": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["h", "w", "x", "y"],
                    "properties": {side: {"type": "integer", "minimum": 0} for side in "hwxy"},
                },
            },
            "if": {"properties": {"type": {"const": "row"}}},
            "else": {
                "required": ["description", "datasource", "fieldConfig", "targets"],
                "properties": {
                    "datasource": DATA_SOURCE,
                    "targets": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["refId", "expr", "datasource"],
                            "properties": {"datasource": DATA_SOURCE},
                        },
                    },
                },
            },
        }
    },
}


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load(ALERTS.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard()["panels"]
    return found


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in alerts())
    for panel in panels():
        yield from (target["expr"] for target in panel.get("targets", ()))


# Form


def test_the_alerts_have_the_form_of_a_rule_file() -> None:
    Draft202012Validator(ALERT_SCHEMA).validate(yaml.safe_load(ALERTS.read_text()))


def test_each_alert_has_a_name_of_its_own() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert sorted(set(names)) == sorted(names)


def test_each_alert_leads_to_what_to_do() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", PAGE.read_text(), re.M)
    }
    for rule in alerts():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == str(PAGE.relative_to(PROJECT))
        assert anchor in anchors, rule["alert"]


def test_each_alert_is_told_of_with_its_severity() -> None:
    told = dict(re.findall(r"^\| `(StoreCredit\w+)` \| (\w+) \|", PAGE.read_text(), re.M))
    assert told == {rule["alert"]: rule["labels"]["severity"] for rule in alerts()}


def test_the_dashboard_has_grafanas_form() -> None:
    Draft202012Validator(DASHBOARD_SCHEMA).validate(dashboard())


def test_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in panels()]
    assert sorted(set(ids)) == sorted(ids)
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS, panel["title"]
        references = [target["refId"] for target in panel.get("targets", ())]
        assert sorted(set(references)) == sorted(references), panel["title"]
    for one, other in combinations(panels(), 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[length] and other[start] < one[start] + one[length]
        for start, length in (("x", "w"), ("y", "h"))
    )


def test_the_dashboard_knows_the_variables_that_it_uses() -> None:
    known = {variable["name"] for variable in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", DASHBOARD.read_text()))
    assert used - {"__rate_interval", "__all"} == known


# Content


@dataclass(frozen=True, slots=True)
class Selector:
    """What an expression selects: `name{label="value", ...}`."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]

    def finds(self, samples: list[tuple[str, dict[str, str]]]) -> bool:
        return any(
            name == self.name
            and all(matches(labels.get(of), sign, value) for of, sign, value in self.matchers)
            for name, labels in samples
        )


def matches(found: str | None, sign: str, wanted: str) -> bool:
    """Whether a label's value fits. A label that is not there fits nothing: it is a mistake."""
    if found is None:
        return False
    if wanted == "$job":
        return True
    same = bool(re.fullmatch(wanted, found)) if "~" in sign else found == wanted
    return same != sign.startswith("!")


def selectors(expression: str) -> list[Selector]:
    return [
        Selector(name, tuple(re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', braces)))
        for name, braces in re.findall(r"\b(up|store_credit_\w+)\b(?:\{([^}]*)\})?", expression)
    ]


def grouping(expression: str) -> set[str]:
    """The labels by which an expression groups or joins."""
    lists = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression)
    return {label.strip() for found in lists for label in found.split(",")}


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ('up{job=~"a.*"} == 0', [Selector("up", (("job", "=~", "a.*"),))]),
        ("max by (job) (store_credit_a) > 0", [Selector("store_credit_a", ())]),
        (
            'rate(store_credit_a{b!="c", d="e"}[5m]) / store_credit_f',
            [
                Selector("store_credit_a", (("b", "!=", "c"), ("d", "=", "e"))),
                Selector("store_credit_f", ()),
            ],
        ),
    ],
)
def test_selectors_are_found(expression: str, found: list[Selector]) -> None:
    assert selectors(expression) == found


async def everything(shop: Shop) -> None:
    """All that can happen, so that each series is there."""
    await shop.issue(100)
    await shop.authorize(5)
    await shop.authorize(500, "session-2")
    await shop.remove()
    await shop.post_authorization({}, auth=(CALLOUT[0], "wrong"))
    await shop.post_event(order_event(source(amount=150)))
    await shop.post_event(order_event(source(amount=20)), secret="wrong")
    for _ in range(FAILURES_MAX):
        answer = await shop.post_authorization({}, auth=(CALLOUT[0], "wrong"))
    assert answer.status_code == 429
    await fail(shop, ConnectionRefusedError(), 503)
    await fail(shop, ValueError(), 500)


async def fail(shop: Shop, error: Exception, status: int) -> None:
    """Whatever makes the service answer so."""

    async def failing() -> None:
        raise error

    shop.app.router.add_api_route(f"/{status}", failing)
    assert (await shop.client.get(f"/{status}")).status_code == status


async def exposed(shop: Shop, folder: Path) -> str:
    """What Prometheus reads: from the service, and what the audit wrote for node_exporter."""
    path = folder / "audit.prom"
    runner = CliRunner(env={"STORE_CREDIT_DATABASE_URL": shop.service.settings.database_url})
    with ThreadPoolExecutor(1) as thread:
        audit = thread.submit(runner.invoke, app, ["audit", "--metrics", str(path)]).result()
    assert audit.exit_code == 0, audit.output
    return (await shop.client.get("/metrics")).text + path.read_text()


@pytest.fixture
async def exposition(start: Start, tmp_path: Path) -> str:
    shop = await start()
    await everything(shop)
    return await exposed(shop, tmp_path)


async def test_the_alerts_and_the_dashboard_find_what_they_look_for(exposition: str) -> None:
    samples = [
        (sample.name, sample.labels | TARGET_LABELS)
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    ]
    labels = {label for _, found in samples for label in found}
    samples += [(name, TARGET_LABELS) for name in OF_PROMETHEUS]
    for expression in expressions():
        found = selectors(expression)
        assert found, expression
        assert grouping(expression) <= labels, expression
        for selector in found:
            assert selector.finds(samples), (expression, selector)


async def test_each_metric_is_told_of_and_no_other(exposition: str) -> None:
    families = {family.name for family in text_string_to_metric_families(exposition)}
    told = re.findall(r"^\| `(store_credit_\w+)` \|", PAGE.read_text(), re.M)
    assert sorted(told) == sorted(set(told))
    assert {name.removesuffix("_total") for name in told} == families


async def test_the_labels_that_are_told_of_are_those_of_the_metric(exposition: str) -> None:
    rows = re.findall(r"^\| `(store_credit_\w+)` \| ([^|]*) \|", PAGE.read_text(), re.M)
    told = {name.removesuffix("_total"): set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    for family in text_string_to_metric_families(exposition):
        found = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert told[family.name] == found, family.name
