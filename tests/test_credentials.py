"""Credentials over time: rotation with an overlap, expiry to the second, and when each was last used."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from store_credit import credentials
from store_credit.app import _note_uses
from store_credit.credentials import Credential, Role
from store_credit.security import Authenticator
from tests.http_fixtures import Shop
from tests.making import NOON, Clock
from tests.server import http_client, poll
from tests.server import running as served
from tests.test_cli import add_credential, cli, printed, sentence, status_of

pytest_plugins = ["tests.http_fixtures"]

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


async def rotated(shop: Shop, overlap: timedelta, role: Role | None = None) -> str:
    """The new password of `till`."""
    write = shop.service.database.write
    _, password = await write(credentials.rotate, "till", role, shop.clock(), overlap)
    await shop.reload_credentials()
    return password


async def status(shop: Shop, password: str) -> int:
    return (await shop.client.get("/credit-lines", auth=("till", password))).status_code


async def kept(shop: Shop) -> list[Credential]:
    return await shop.service.database.read(credentials.listed)


async def test_the_old_password_ends_with_the_overlap_and_on_time(shop: Shop) -> None:
    old = await shop.add_credential("till", Role.READER)
    new = await rotated(shop, timedelta(hours=24))

    assert [await status(shop, password) for password in (old, new)] == [200, 200]
    shop.clock.advance(timedelta(hours=24) - SECOND)
    assert [await status(shop, password) for password in (old, new)] == [200, 200]
    shop.clock.advance(SECOND)  # Nothing is read anew from the database in between.
    assert [await status(shop, password) for password in (old, new)] == [401, 200]


async def test_without_an_overlap_the_old_password_ends_at_once(shop: Shop) -> None:
    old = await shop.add_credential("till", Role.READER)
    new = await rotated(shop, timedelta())

    assert [await status(shop, password) for password in (old, new)] == [401, 200]


async def test_a_second_rotation_prolongs_nothing(shop: Shop) -> None:
    await shop.add_credential("till", Role.READER)
    await rotated(shop, timedelta(hours=1))
    await rotated(shop, timedelta(hours=24))

    ends = [found.expires_at for found in await kept(shop)]
    assert ends == [NOON + timedelta(hours=1), NOON + timedelta(hours=24), None]


async def test_an_expired_password_is_not_rotated(shop: Shop) -> None:
    await shop.add_credential("till", Role.READER)
    write = shop.service.database.write
    await rotated(shop, timedelta())
    assert await write(credentials.disable, "till", shop.clock()) == 1, "the expired one does not count"

    with pytest.raises(credentials.NothingToRotate):
        await rotated(shop, timedelta())


async def test_only_the_named_role_is_rotated(shop: Shop) -> None:
    reader = await shop.add_credential("till", Role.READER)
    seller = await shop.add_credential("till", Role.MERCHANT)

    with pytest.raises(credentials.SeveralRoles):
        await rotated(shop, timedelta())
    new = await rotated(shop, timedelta(), Role.MERCHANT)

    assert [await status(shop, password) for password in (reader, seller, new)] == [200, 401, 200]


def test_a_password_that_expired_does_not_open_a_role() -> None:
    clock = Clock()
    authenticator = Authenticator(clock)
    authenticator.replace([Credential("cred_1", "till", Role.CALLOUT, "", expires_at=NOON + SECOND)])

    assert authenticator.has_role(Role.CALLOUT)
    clock.advance(SECOND)
    assert not authenticator.has_role(Role.CALLOUT)
    authenticator.close()


async def test_the_last_use_is_noted_at_most_once_a_minute(shop: Shop) -> None:
    password = await shop.add_credential("till", Role.READER)
    noted = []
    for _ in range(4):
        await status(shop, password)
        await _note_uses(shop.service)
        noted.append((await kept(shop))[0].last_used_at)
        shop.clock.advance(MINUTE / 2)

    assert noted == [NOON, NOON, NOON + MINUTE, NOON + MINUTE]


async def test_a_refused_call_is_no_use(shop: Shop) -> None:
    await shop.add_credential("till", Role.READER)

    assert await status(shop, "wrong") == 401
    await _note_uses(shop.service)

    assert [found.last_used_at for found in await kept(shop)] == [None]


async def test_a_later_use_that_another_process_noted_stays(shop: Shop) -> None:
    await shop.add_credential("till", Role.READER)
    (found,) = await kept(shop)
    for moment in (NOON + MINUTE, NOON):
        await shop.service.database.write(credentials.note_uses, {found.id: moment})

    assert [found.last_used_at for found in await kept(shop)] == [NOON + MINUTE]


async def test_uses_of_credentials_that_are_gone_are_forgotten(shop: Shop) -> None:
    password = await shop.add_credential("till", Role.READER)
    await status(shop, password)
    await shop.service.database.write(credentials.disable, "till", shop.clock())
    await shop.reload_credentials()

    assert shop.service.authenticator.unnoted_uses() == {}


# The command line, and a running service


def rotate(url: str, *arguments: str) -> str:
    result = cli("credentials", "rotate", *arguments, url=url)
    assert result.exit_code == 0, result.output
    password = result.stdout.strip()
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", password), "standard output is the password and nothing else"
    return password


def test_rotate_and_last_use_with_a_running_service(database_url: str, tmp_path: Path) -> None:
    old_id, old = add_credential(database_url, "till", "reader")
    with served(database_url, tmp_path) as [server], http_client(server.url) as client:
        new = rotate(database_url, "till", "--overlap", "1h")
        poll(lambda: status_of(client, ("till", new)) == 200, 5)
        assert status_of(client, ("till", old)) == 200
        newest = rotate(database_url, "till", "--overlap", "0")
        poll(lambda: status_of(client, ("till", new)) == 401, 5)
        assert status_of(client, ("till", old)) == 401
        poll(lambda: status_of(client, ("till", newest)) == 200, 5)
        today = f"{datetime.now(UTC):%Y-%m-}"
        poll(lambda: row_of(database_url, old_id).count(today) == 3, 5)


def row_of(url: str, credential_id: str) -> str:
    """The credential as it is listed."""
    (row,) = [row for row in printed("credentials", "list", url=url).splitlines() if credential_id in row]
    return row


def test_a_storefront_credential_opens_its_part(sqlite_url: str, tmp_path: Path) -> None:
    _, password = add_credential(sqlite_url, "shop", "storefront")
    with served(sqlite_url, tmp_path) as [server], http_client(server.url, ("shop", password)) as client:
        found = client.get("/customers/nobody/store-credits", params={"currency": "USD"})
        assert (found.status_code, json.loads(found.text)) == (200, {"storeCredits": []})
        assert client.get("/credit-lines").status_code == 403


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("nobody",), "No active credential has the name 'nobody'."),
        (("till", "--role", "callout"), "No active credential has the name 'till' and the role callout."),
        (("both",), "The credentials of 'both' have several roles: say which with --role."),
        (("till", "--overlap", "soon"), "--overlap must be a duration such as 90s, 15m, 24h or 30d."),
        (("till", "--overlap", "366d"), "--overlap must be at most 365d."),
    ],
)
def test_rotate_refuses_what_can_not_be(sqlite_url: str, given: tuple[str, ...], said: str) -> None:
    for name, role in (("till", "reader"), ("both", "reader"), ("both", "merchant")):
        add_credential(sqlite_url, name, role)
    assert sentence(cli("credentials", "rotate", *given, url=sqlite_url)) == said
