"""The migrations: the schema that they make, the way back, and the check before the start."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, delete, inspect, select, text, update

import store_credit
from store_credit import schema
from store_credit.database import Database, connect
from store_credit.metadata import metadata


def _import_all_tables() -> None:
    """Every module named `tables` or that keeps a table of its own, so that the metadata is whole."""
    for module in pkgutil.walk_packages(store_credit.__path__, "store_credit."):
        if module.name.endswith((".tables", ".credentials")):
            importlib.import_module(module.name)


_import_all_tables()


@pytest.fixture
async def empty(empty_database_url: str) -> AsyncIterator[Database]:
    database = connect(empty_database_url)
    yield database
    await database.close()


def go_ahead(connection: Connection) -> None:
    connection.execute(text("UPDATE alembic_version SET version_num = '2999_01_01_later'"))


def raise_floor(connection: Connection, revision: str) -> None:
    connection.execute(update(schema.schema_floor).values(revision=revision))


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


async def test_the_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    def differences(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        return compare_metadata(context, metadata)

    assert await database.read(differences) == []


async def test_the_migrations_make_the_checks_that_the_code_knows(database: Database) -> None:
    """The comparison above is blind to CHECK constraints: here they are compared by name."""

    def found(connection: Connection) -> set[tuple[str, str]]:
        return {
            (table, str(check["name"]))
            for table in metadata.tables
            for check in inspect(connection).get_check_constraints(table)
        }

    known = {
        (table.name, str(constraint.name))
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }

    assert await database.read(found) == known


async def test_the_way_back_leaves_nothing_and_the_way_up_works_again(empty: Database) -> None:
    await empty.write(schema.upgrade)
    there = await empty.read(tables)

    await empty.write(schema.downgrade, "base")
    assert await empty.read(tables) == {"alembic_version"}

    await empty.write(schema.upgrade)
    assert await empty.read(tables) == there


async def test_each_migration_can_be_taken_back_by_itself(empty: Database) -> None:
    await empty.write(schema.upgrade)
    await empty.write(schema.downgrade, "-1")
    assert await empty.read(schema.current) != schema.head()

    await empty.write(schema.upgrade, "+1")
    assert await empty.read(schema.current) == schema.head()


async def test_migrating_twice_changes_nothing(database: Database) -> None:
    before = await database.read(tables)
    await database.write(schema.upgrade)

    assert await database.read(tables) == before


async def test_a_database_at_head_passes_the_check(database: Database) -> None:
    await database.read(schema.check)


async def test_a_database_without_a_schema_is_behind(empty: Database) -> None:
    with pytest.raises(schema.SchemaMismatch, match="behind: it is at nothing") as mismatch:
        await empty.read(schema.check)

    assert "store-credit migrate" in str(mismatch.value)


async def test_a_database_behind_its_schema_is_told_what_to_do(empty: Database) -> None:
    await empty.write(schema.upgrade, "2026_11_20_ledger")

    with pytest.raises(schema.SchemaMismatch, match="behind: it is at 2026_11_20_ledger") as mismatch:
        await empty.read(schema.check)

    assert schema.head() in str(mismatch.value)
    assert "store-credit migrate" in str(mismatch.value)


async def test_a_later_schema_that_only_adds_passes_the_check(database: Database) -> None:
    await database.write(go_ahead)

    assert await database.read(schema.is_ahead)
    await database.read(schema.check)


async def test_a_later_schema_that_takes_away_is_refused(database: Database) -> None:
    await database.write(go_ahead)
    await database.write(raise_floor, "2999_01_01_later")

    with pytest.raises(schema.SchemaMismatch, match="ahead: it is at 2999_01_01_later") as mismatch:
        await database.read(schema.check)

    assert f"store-credit migrate --back --to {schema.head()}" in str(mismatch.value)


async def test_a_later_schema_without_a_floor_is_refused(database: Database) -> None:
    await database.write(go_ahead)
    await database.write(lambda connection: connection.execute(delete(schema.schema_floor)) and None)

    with pytest.raises(schema.SchemaMismatch, match="ahead"):
        await database.read(schema.check)


async def test_to_bring_a_later_schema_to_head_changes_nothing(database: Database) -> None:
    await database.write(go_ahead)
    await database.write(schema.upgrade_if_behind)

    assert await database.read(schema.current) == "2999_01_01_later"


async def test_the_floor_is_a_schema_that_is_known(database: Database) -> None:
    floor = select(schema.schema_floor.c.revision)
    found = await database.read(lambda connection: connection.execute(floor).scalars().all())

    assert len(found) == 1
    assert set(found) <= schema._known()


async def test_a_failed_migration_leaves_nothing(empty: Database) -> None:
    def fail(connection: Connection) -> None:
        schema.upgrade(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await empty.write(fail)

    assert await empty.read(tables) == set()
