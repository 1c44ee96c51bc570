"""`/healthz` and `/readyz`: what the container platform goes by."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.faults.postgresql import Postgresql
from tests.faults.test_postgresql_away import assert_unavailable, ready, within
from tests.http_fixtures import Shop, decoded, problem_of
from tests.server import Service, calling, command, environment, running, until

pytest_plugins = ["tests.http_fixtures"]


async def test_the_process_is_alive_without_credentials(shop: Shop) -> None:
    assert decoded(await shop.client.get("/healthz")) == {"status": "ok"}


async def test_it_is_ready_without_credentials(shop: Shop) -> None:
    assert decoded(await shop.client.get("/readyz")) == {"status": "ready"}


async def test_a_schema_that_was_left_behind_is_not_ready(shop: Shop) -> None:
    older = text("UPDATE alembic_version SET version_num = '2026_11_20_ledger'")
    await shop.service.database.write(lambda connection: connection.execute(older) and None)
    response = await shop.client.get("/readyz")
    problem = problem_of(response, 503, "service_unavailable")
    assert "behind" in problem["message"]
    assert "store-credit migrate" in problem["message"]
    assert int(response.headers["retry-after"]) > 0


async def go_ahead(shop: Shop) -> None:
    newer = text("UPDATE alembic_version SET version_num = '2099_01_01_newer'")
    await shop.service.database.write(lambda connection: connection.execute(newer) and None)


async def test_a_newer_schema_that_only_adds_is_ready(shop: Shop) -> None:
    """While versions are replaced one after the other, the earlier one stays behind the balancer."""
    await go_ahead(shop)
    assert decoded(await shop.client.get("/readyz")) == {"status": "ready"}


async def test_a_newer_schema_that_takes_away_is_not_ready(shop: Shop) -> None:
    await go_ahead(shop)
    raised = text("UPDATE schema_floor SET revision = '2099_01_01_newer'")
    await shop.service.database.write(lambda connection: connection.execute(raised) and None)
    problem = problem_of(await shop.client.get("/readyz"), 503, "service_unavailable")
    assert "ahead" in problem["message"]
    assert "2099_01_01_newer" in problem["message"]


async def test_a_process_whose_schema_was_left_behind_is_alive(shop: Shop) -> None:
    older = text("UPDATE alembic_version SET version_num = '2026_11_20_ledger'")
    await shop.service.database.write(lambda connection: connection.execute(older) and None)
    assert (await shop.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_only_get_is_answered(shop: Shop, path: str, method: str) -> None:
    problem_of(await shop.client.request(method, path), 405, "method_not_allowed")


PROBES = ("/readyz", "/healthz", "/metrics")
SOON_SECONDS = 2.0


@pytest.fixture
def postgresql() -> Iterator[Postgresql]:
    """A PostgreSQL server of the test's own, which it may stop."""
    folder = Path(tempfile.mkdtemp(prefix="store-credit-silent-"))
    server = Postgresql(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


async def test_a_silent_database_is_told_soon(postgresql: Postgresql, tmp_path: Path) -> None:
    """All its processes are there, and none of them answers."""
    url = postgresql.url_of("postgres")
    migrated = await asyncio.to_thread(command, "migrate", env=environment(url))
    assert migrated.returncode == 0, migrated.stderr
    with running(url, tmp_path) as [server]:
        async with calling(server) as service:
            assert await ready(service)
            with silent(postgresql):
                # Those who keep asking share one connection to the database.
                await asyncio.gather(*(assert_told_soon(service) for _ in range(10)))
            await until(lambda: ready(service))
        assert "Traceback" not in server.log


async def assert_told_soon(service: Service) -> None:
    told = {path: await within(SOON_SECONDS, service.get(path, auth=None)) for path in PROBES}
    assert_unavailable(told["/readyz"])
    assert [told[path].status_code for path in ("/healthz", "/metrics")] == [200, 200]


@contextlib.contextmanager
def silent(postgresql: Postgresql) -> Iterator[None]:
    """Stop all processes of a PostgreSQL server, and let them go on afterwards."""
    assert postgresql._process is not None
    main = postgresql._process.pid
    stopped = [main]
    try:
        os.kill(main, signal.SIGSTOP)
        for child in children_of(main):
            stopped.append(child)
            os.kill(child, signal.SIGSTOP)
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def children_of(process: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(status.parent.name))
    return found
