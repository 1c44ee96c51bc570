"""`/healthz` and `/readyz`: what the container platform goes by."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from tests.http_fixtures import Shop, decoded, problem_of

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
