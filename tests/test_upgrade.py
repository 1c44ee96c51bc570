"""A new version takes the place of the running one: no request goes without an answer meanwhile.

The next version is this one with one more migration, which is what the schema knows of it.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import Connection, event, select

from store_credit import schema
from store_credit.database import connect
from tests.server import (
    Server,
    Service,
    calling,
    check_books,
    command,
    environment,
    free_port,
    http_client,
    order_event,
    source,
    until,
)

PROJECT = Path(__file__).parents[1]
NEXT = "2999_01_01_next"
ADD = 'op.add_column("credit_line", sa.Column("tier", sa.Text))'
TAKE_AWAY = f'op.execute("UPDATE schema_floor SET revision = {NEXT!r}")'
ANSWERS_A_STEP = 20
PATIENT = {"DEADLINE": "30s", "LOG_LEVEL": "warning"}

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {down_revision!r}
branch_labels = None
depends_on = None


def upgrade():
    op.create_table("tier", sa.Column("name", sa.Text, primary_key=True))
    {change}


def downgrade():
    op.drop_table("tier")
"""


def next_version(folder: Path, change: str) -> Path:
    """The source folder of a version whose migrations go one further, and do this."""
    checkout = folder / "next"
    checkout.mkdir()
    (checkout / "src").symlink_to(PROJECT / "src")
    shutil.copytree(PROJECT / "migrations", checkout / "migrations")
    text = MIGRATION.format(revision=NEXT, down_revision=schema.head(), change=change)
    (checkout / "migrations" / "versions" / f"{NEXT}.py").write_text(text)
    return checkout / "src"


def migrated(database_url: str, sources: Path) -> str:
    done = command("migrate", env=environment(database_url) | {"PYTHONPATH": str(sources)})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def server_of(database_url: str, folder: Path, sources: Path) -> Server:
    server = Server(database_url, folder, **PATIENT)
    server.environment["PYTHONPATH"] = str(sources)
    return server


@dataclass
class Shoppers:
    """They buy without a pause, and note whatever is not a plain yes."""

    service: Service
    upstream_id: str
    bought: int = 0
    trouble: list[str] = field(default_factory=list)
    stopped: bool = False

    async def buy(self) -> None:
        while not self.stopped:
            session, spent = f"session-{uuid4().hex}", source(self.upstream_id, 1.00)
            for request in (
                self.service.authorize(self.upstream_id, session, 1.00),
                self.service.deliver(order_event(session, spent)),
            ):
                response = await request
                if response.status_code != 200 or "false" in response.text:
                    self.trouble.append(f"{response.status_code} {response.text}")
            self.bought += 1

    async def go_on(self) -> None:
        """Some more purchases, from now on."""
        wanted = self.bought + ANSWERS_A_STEP

        async def enough() -> bool:
            return self.bought >= wanted or bool(self.trouble)

        await until(enough)
        assert self.trouble == []


@asynccontextmanager
async def buying(server: Server, upstream_id: str) -> AsyncIterator[Shoppers]:
    async with calling(server) as service:
        shoppers = Shoppers(service, upstream_id)
        tasks = [asyncio.create_task(shoppers.buy()) for _ in range(2)]
        try:
            yield shoppers
        finally:
            shoppers.stopped = True
            await asyncio.gather(*tasks)


def readiness(server: Server) -> httpx.Response:
    with http_client(server.url) as client:
        return client.get("/readyz")


async def test_a_running_service_goes_on_while_a_newer_version_takes_over(
    postgresql_url: str, tmp_path: Path
) -> None:
    sources = next_version(tmp_path, ADD)
    old, new = (server_of(postgresql_url, tmp_path, one) for one in (PROJECT / "src", sources))
    try:
        await asyncio.to_thread(old.start)
        async with calling(old) as service:
            line = await service.issued(10_000.00)
        async with buying(old, line["upstreamId"]) as by_old:
            await by_old.go_on()
            told = await asyncio.to_thread(migrated, postgresql_url, sources)
            assert told == f"The schema was at {schema.head()} and is at {NEXT}.\n"
            await by_old.go_on()
            assert readiness(old).status_code == 200
            await asyncio.to_thread(new.start)
            async with buying(new, line["upstreamId"]) as by_new:
                await by_new.go_on()
                await by_old.go_on()
            # One that must start again meanwhile, or to roll back, can.
        assert old.stop() == 0
        await asyncio.to_thread(old.start)
        async with buying(old, line["upstreamId"]) as by_old_again:
            await by_old_again.go_on()
        shoppers = (by_old, by_new, by_old_again)
        async with calling(old) as service:
            books = await service.books(line["id"])
    finally:
        for server in (old, new):
            if server.is_running:
                server.kill()
    assert [one.trouble for one in shoppers] == [[], [], []]
    books.check()
    assert len(books.deductions) == sum(one.bought for one in shoppers)
    check_books(postgresql_url)


def test_a_version_whose_schema_was_taken_away_says_so(postgresql_url: str, tmp_path: Path) -> None:
    sources = next_version(tmp_path, TAKE_AWAY)
    old = Server(postgresql_url, tmp_path)
    try:
        old.start()
        migrated(postgresql_url, sources)
        answer = readiness(old)
    finally:
        if old.is_running:
            old.kill()
    assert answer.status_code == 503
    refused = command("serve", "--port", str(free_port()), env=environment(postgresql_url))
    assert refused.returncode == 2
    for said in (answer.json()["errors"][0]["message"], refused.stderr):
        assert f"ahead: it is at {NEXT}" in said
        assert f"`store-credit migrate --back --to {schema.head()}`" in said


# What earlier versions can bear


BEARABLE = (
    r"CREATE TABLE ",
    r"CREATE INDEX ",
    r"ALTER TABLE \S+ ADD COLUMN (?!.*NOT NULL)",
    r"ALTER TABLE \S+ ADD COLUMN .* DEFAULT .* NOT NULL",
    r"(SELECT|SET LOCAL|INSERT INTO|UPDATE) ",
)


def is_bearable(statement: str) -> bool:
    """Whether a version that does not know of this change goes on working."""
    plain = " ".join(statement.split())
    return any(re.match(form, plain, re.I) for form in BEARABLE)


@pytest.mark.parametrize(
    ("statement", "bearable"),
    [
        ("\nCREATE TABLE tier (name TEXT NOT NULL)", True),
        ("ALTER TABLE credit_line ADD COLUMN tier TEXT", True),
        ("ALTER TABLE credit_line ADD COLUMN tier TEXT DEFAULT '' NOT NULL", True),
        ("ALTER TABLE credit_line ADD COLUMN tier TEXT NOT NULL", False),
        ("ALTER TABLE credit_line DROP COLUMN tier", False),
        ("ALTER TABLE credit_line RENAME tier TO level", False),
        ("ALTER TABLE credit_line ALTER COLUMN name SET NOT NULL", False),
        ("ALTER TABLE credit_line ADD CONSTRAINT ck_name CHECK (name <> '')", False),
        ("CREATE UNIQUE INDEX uq_name ON credit_line (name)", False),
        ("DROP TABLE offer", False),
        ("DROP INDEX ix_hold_open_upstream_key", False),
    ],
)
def test_what_is_bearable(statement: str, bearable: bool) -> None:
    assert is_bearable(statement) == bearable


async def test_migrations_above_the_floor_only_add(postgresql_url: str) -> None:
    """Else raise the floor in the migration: `UPDATE schema_floor SET revision = ...`."""
    told: list[str] = []

    def climb(connection: Connection) -> None:
        floor = connection.scalar(select(schema.schema_floor.c.revision))
        assert floor is not None
        schema.downgrade(connection, floor)
        event.listen(connection, "before_cursor_execute", lambda _c, _u, sql, *_: told.append(sql))
        schema.upgrade(connection)

    database = connect(postgresql_url)
    await database.write(climb)
    await database.close()
    assert told, "at least the lock is taken"
    assert [statement for statement in told if not is_bearable(statement)] == []
