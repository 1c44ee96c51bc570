"""Settings: what is missing or wrong stops the start with one clear sentence that holds no secret."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest

from store_credit.app import create_app
from store_credit.settings import InvalidSettings, Settings, load, unknown
from tests.http_fixtures import running
from tests.making import Clock

SECRET = "zebra"
"""Stands in every secret: no message may hold it."""

ENOUGH = {
    "STORE_CREDIT_CALLOUT_USERNAME": "digital-river",
    "STORE_CREDIT_CALLOUT_PASSWORD": f"{SECRET}-callout",
    "STORE_CREDIT_MERCHANT_USERNAME": "merchant",
    "STORE_CREDIT_MERCHANT_PASSWORD": f"{SECRET}-merchant",
    "STORE_CREDIT_WEBHOOK_SECRETS": f"{SECRET}-1,{SECRET}-2",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test sets."""
    for name in os.environ:
        if name.upper().startswith("STORE_CREDIT_"):
            monkeypatch.delenv(name)


def from_environment(monkeypatch: pytest.MonkeyPatch, **given: str) -> Settings:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return load()


def test_nothing_secret_has_a_default() -> None:
    chosen = load()
    secret = (chosen.callout_username, chosen.callout_password, chosen.merchant_password)
    assert secret == (None, None, None)
    assert chosen.webhook_secrets == []


def test_the_defaults() -> None:
    chosen = load()
    assert chosen.database_url == "sqlite:///store-credit.db"
    assert chosen.hold_ttl == timedelta(hours=24)
    assert chosen.webhook_tolerance == timedelta(seconds=300)
    assert (chosen.partial_approval, chosen.unsigned_webhooks) == (False, "refuse")


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = from_environment(
        monkeypatch,
        **ENOUGH,
        STORE_CREDIT_HOLD_TTL="90m",
        STORE_CREDIT_PARTIAL_APPROVAL="true",
        STORE_CREDIT_CALLOUT_PATHS="/checkout/store-credit, /dr ,,/dr",
    )
    assert chosen.callout_username == "digital-river"
    assert [secret.get_secret_value() for secret in chosen.webhook_secrets] == ["zebra-1", "zebra-2"]
    assert (chosen.hold_ttl, chosen.partial_approval) == (timedelta(minutes=90), True)
    assert chosen.callout_paths == ["/checkout/store-credit", "/dr"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("24h", 86_400), ("30d", 2_592_000)]
)
def test_a_duration(monkeypatch: pytest.MonkeyPatch, text: str, seconds: int) -> None:
    chosen = from_environment(monkeypatch, STORE_CREDIT_HOLD_TTL=text)
    assert chosen.hold_ttl == timedelta(seconds=seconds)


def test_a_name_that_is_no_setting_is_found() -> None:
    names = ["STORE_CREDIT_HOLD_TTL", "store_credit_deadline", "STORE_CREDIT_HOLD_TLL", "PATH"]
    assert unknown(names) == ["STORE_CREDIT_HOLD_TLL"]


def test_a_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SECRET not in repr(from_environment(monkeypatch, **ENOUGH))


WRONG: list[tuple[dict[str, str], str, str]] = [
    ({"WEBHOOK_SECRETS": f"{SECRET}\udcff"}, "WEBHOOK_SECRETS", "UTF-8"),
    ({"CALLOUT_USERNAME": "a", "CALLOUT_PASSWORD": f"{SECRET}\udcff"}, "CALLOUT_PASSWORD", "UTF-8"),
    ({"HOLD_TTL": "soon"}, "STORE_CREDIT_HOLD_TTL", "duration"),
    ({"HOLD_TTL": "0s"}, "STORE_CREDIT_HOLD_TTL", "zero"),
    ({"HOLD_TTL": "-1h"}, "STORE_CREDIT_HOLD_TTL", "duration"),
    ({"HOLD_TTL": "4000d"}, "STORE_CREDIT_HOLD_TTL", "ten years"),
    ({"HOLD_TTL": "999999999d"}, "STORE_CREDIT_HOLD_TTL", "ten years"),
    ({"HOLD_TTL": ""}, "STORE_CREDIT_HOLD_TTL", "duration"),
    ({"HOLD_TTL": "1.5h"}, "STORE_CREDIT_HOLD_TTL", "duration"),
    ({"WEBHOOK_TOLERANCE": "x"}, "STORE_CREDIT_WEBHOOK_TOLERANCE", "duration"),
    ({"DEADLINE": "0"}, "STORE_CREDIT_DEADLINE", "zero"),
    ({"SWEEP_INTERVAL": "0"}, "STORE_CREDIT_SWEEP_INTERVAL", "zero"),
    ({"PARTIAL_APPROVAL": "perhaps"}, "STORE_CREDIT_PARTIAL_APPROVAL", "boolean"),
    ({"DATABASE_CONNECTIONS": "x"}, "STORE_CREDIT_DATABASE_CONNECTIONS", "integer"),
    ({"DATABASE_CONNECTIONS": "2"}, "STORE_CREDIT_DATABASE_CONNECTIONS", "3"),
    ({"UNSIGNED_WEBHOOKS": "yes"}, "STORE_CREDIT_UNSIGNED_WEBHOOKS", "accept"),
    ({"METRICS_ROLE": "admin"}, "STORE_CREDIT_METRICS_ROLE", "reader"),
    ({"LOG_LEVEL": "loud"}, "STORE_CREDIT_LOG_LEVEL", "info"),
    ({"CALLOUT_PATHS": "checkout"}, "STORE_CREDIT_CALLOUT_PATHS", "plain path"),
    ({"CALLOUT_PATHS": "/a/"}, "STORE_CREDIT_CALLOUT_PATHS", "plain path"),
    ({"CALLOUT_PATHS": "/a/{b}"}, "STORE_CREDIT_CALLOUT_PATHS", "plain path"),
    ({"CALLOUT_PATHS": "/"}, "STORE_CREDIT_CALLOUT_PATHS", "plain path"),
    ({"WEBHOOK_SECRETS": ",".join([SECRET] * 6)}, "STORE_CREDIT_WEBHOOK_SECRETS", "5"),
    ({"CALLOUT_USERNAME": "dr"}, "STORE_CREDIT_CALLOUT_PASSWORD", "together"),
    ({"CALLOUT_PASSWORD": SECRET}, "STORE_CREDIT_CALLOUT_USERNAME", "together"),
    ({"MERCHANT_USERNAME": "m"}, "STORE_CREDIT_MERCHANT_PASSWORD", "together"),
    ({"CALLOUT_USERNAME": "", "CALLOUT_PASSWORD": SECRET}, "STORE_CREDIT_CALLOUT_USERNAME", "empty"),
    ({"CALLOUT_USERNAME": "a:b", "CALLOUT_PASSWORD": SECRET}, "STORE_CREDIT_CALLOUT_USERNAME", "colon"),
    ({"CALLOUT_USERNAME": "dr", "CALLOUT_PASSWORD": ""}, "STORE_CREDIT_CALLOUT_PASSWORD", "empty"),
]


def assert_one_sentence(message: str, name: str, word: str) -> None:
    assert name in message
    assert word in message
    assert message.endswith(".")
    assert "\n" not in message
    assert SECRET not in message


@pytest.mark.parametrize(("given", "name", "word"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], name: str, word: str
) -> None:
    with pytest.raises(InvalidSettings) as invalid:
        from_environment(monkeypatch, **{f"STORE_CREDIT_{key}": value for key, value in given.items()})
    assert_one_sentence(str(invalid.value), name, word)


WRONG_URLS = [
    ("", "database URL"),
    (f"not a url {SECRET}", "database URL"),
    (f"mysql://user:{SECRET}@host/name", "mysql"),
    (f"://user:{SECRET}@host", "database URL"),
    ("sqlite://", "file"),
    ("sqlite:///:memory:", "file"),
    (f"postgresql://user:{SECRET}@host:port/name", "database URL"),
]


@pytest.mark.parametrize(("url", "word"), WRONG_URLS)
def test_a_wrong_database_url(url: str, word: str) -> None:
    with pytest.raises(InvalidSettings) as invalid:
        create_app(load(database_url=url))
    assert_one_sentence(str(invalid.value), "STORE_CREDIT_DATABASE_URL", word)


@pytest.mark.parametrize(
    "path",
    ["/credit-lines", "/credit-lines/x", "/webhooks/digital-river", "/metrics", "/healthz", "/decisions"],
)
def test_a_callout_path_that_is_taken(path: str) -> None:
    with pytest.raises(InvalidSettings) as invalid:
        create_app(load(callout_paths=path))
    assert_one_sentence(str(invalid.value), "STORE_CREDIT_CALLOUT_PATHS", path)


async def test_without_credentials_for_the_callout_there_is_no_start(database_url: str) -> None:
    nobody: dict[str, Any] = {"callout_username": None, "callout_password": None}
    with pytest.raises(InvalidSettings) as invalid:
        async with running(database_url, Clock(), **nobody):
            pytest.fail("it started")
    assert_one_sentence(str(invalid.value), "STORE_CREDIT_CALLOUT_USERNAME", "credentials add")
