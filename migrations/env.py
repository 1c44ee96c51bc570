"""Runs the migrations in one transaction, one process at a time.

On the connection that the service hands over; from the alembic command, on the service's database.
"""

from __future__ import annotations

import asyncio
import os

from alembic import context
from sqlalchemy import Connection, text

LOCK_KEY = 7_026_112_001
"""PostgreSQL advisory lock: two processes that start together do not both migrate."""


def run(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(text("SET LOCAL statement_timeout = '15min'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
    context.configure(connection=connection, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


async def run_on_own_connection() -> None:
    from store_credit.database import connect

    url = os.environ.get("STORE_CREDIT_DATABASE_URL", "sqlite:///store-credit.db")
    database = connect(url, command_timeout_seconds=None)
    try:
        await database.write(run)
    finally:
        await database.close()


given = context.config.attributes.get("connection")
if given is None:
    asyncio.run(run_on_own_connection())
else:
    run(given)
