"""Who may know whom: the ledger knows neither HTTP nor Digital River, and its rules know no SQL."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import store_credit

PACKAGE = Path(store_credit.__file__).parent
LEDGER = sorted((PACKAGE / "ledger").glob("**/*.py"))
PURE = (
    "book",
    "commands",
    "draft",
    "journal",
    "keeping",
    "needs",
    "offers",
    "orders",
    "refusals",
    "rules",
    "sources",
    "state",
)

ABOVE_THE_LEDGER = (
    "fastapi",
    "httpx",
    "pydantic",
    "starlette",
    "uvicorn",
    "store_credit.app",
    "store_credit.callouts",
    "store_credit.cli",
    "store_credit.credentials",
    "store_credit.errors",
    "store_credit.merchant",
    "store_credit.security",
    "store_credit.settings",
    "store_credit.telemetry",
    "store_credit.webhooks",
)
NOT_PURE = (
    "aiosqlite",
    "alembic",
    "asyncio",
    "asyncpg",
    "random",
    "secrets",
    "sqlalchemy",
    "sqlite3",
    "store_credit.bulk",
    "store_credit.database",
    "store_credit.ids",
    "store_credit.ledger.ledger",
    "store_credit.ledger.statements",
    "store_credit.ledger.store",
    "store_credit.ledger.tables",
    "store_credit.metadata",
    "store_credit.schema",
    "time",
)


def imported(source: str, package: str) -> Iterator[str]:
    """Every module that a source text imports, wherever in it; `from a import b` may mean a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def forbidden(source: str, package: str, names: tuple[str, ...]) -> set[str]:
    return {
        module
        for module in imported(source, package)
        if any(module == name or module.startswith(f"{name}.") for name in names)
    }


@pytest.mark.parametrize("path", LEDGER, ids=lambda path: path.stem)
def test_the_ledger_knows_neither_http_nor_digital_river(path: Path) -> None:
    assert forbidden(path.read_text(), "store_credit.ledger", ABOVE_THE_LEDGER) == set()


@pytest.mark.parametrize("name", PURE)
def test_the_rules_know_neither_sql_nor_clock(name: str) -> None:
    path = PACKAGE / "ledger" / f"{name}.py"

    assert forbidden(path.read_text(), "store_credit.ledger", NOT_PURE) == set()


def test_money_does_no_io() -> None:
    assert forbidden((PACKAGE / "money.py").read_text(), "store_credit", NOT_PURE) == set()


def test_the_migrations_import_nothing_of_the_application_but_its_database() -> None:
    folder = PACKAGE / "migrations"
    folder = folder if folder.is_dir() else PACKAGE.parents[1] / "migrations"
    versions = sorted(folder.glob("versions/*.py"))

    assert versions
    for path in versions:
        assert forbidden(path.read_text(), "migrations.versions", ("store_credit",)) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import sqlalchemy",
        "import sqlalchemy.ext.asyncio as a",
        "from sqlalchemy import text",
        "from store_credit.ledger import store",
        "from store_credit import database",
        "from . import store",
        "from .store import load",
        "from .. import database",
        "def f():\n    import time",
    ],
)
def test_the_contract_sees_every_way_to_import(source: str) -> None:
    assert forbidden(source, "store_credit.ledger", NOT_PURE)


def test_the_contract_does_not_mind_a_similar_name() -> None:
    assert not forbidden("import timeit\nfrom datetime import time as t", "store_credit.ledger", NOT_PURE)
