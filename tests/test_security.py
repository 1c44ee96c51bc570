"""HTTP Basic: who may call, what the others are told, and what checking a password costs."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection

from store_credit import credentials, security
from store_credit.credentials import Credential, Role, hasher
from store_credit.errors import TooManyRequests
from store_credit.security import HASHES_WAITING_MAX, REMEMBERED_MAX, Authenticator, Principal
from tests.http_fixtures import AUTHORIZE, CALLOUT, MERCHANT, Auth, Shop, Start, decoded, problem_of

pytest_plugins = ["tests.http_fixtures"]

ASKED = {"sessionId": "session-1", "amount": 5, "upstreamId": "line-1"}


def basic(text: str | bytes) -> str:
    raw = text.encode() if isinstance(text, str) else text
    return f"Basic {base64.b64encode(raw).decode()}"


def header_of(auth: Auth) -> str:
    return basic(":".join(auth))


async def call(shop: Shop, authorization: str | bytes | None) -> httpx.Response:
    """Digital River's question, with this header."""
    headers: Any = {} if authorization is None else {"Authorization": authorization}
    return await shop.client.post(AUTHORIZE, json=ASKED, headers=headers)


GARBAGE: dict[str, str | bytes | None] = {
    "no header": None,
    "an empty header": "",
    "a wrong password": basic("digital-river:wrong"),
    "an empty password": basic("digital-river:"),
    "an unknown user": basic("nobody:callout-password"),
    "no user": basic(":callout-password"),
    "another case": basic("Digital-River:callout-password"),
    "a blank more": basic("digital-river:callout-password "),
    "no colon": basic("digital-river"),
    "a role for a name": basic("callout:callout-password"),
    "nothing encoded": "Basic",
    "no Base64": "Basic digital-river:callout-password",
    "broken Base64": "Basic ZGlna",
    "broken UTF-8": basic(b"digital-river:\xff"),
    "NUL": basic("digital-river:callout-password\0"),
    "bytes beyond ASCII": b"Basic \xfc\xff",
    "another scheme": "Bearer callout-password",
    "another scheme with the password": "Bearer" + basic(":".join(CALLOUT))[5:],
    "too long": basic("digital-river:" + "x" * 5_000),
}


@pytest.mark.parametrize("authorization", GARBAGE.values(), ids=GARBAGE.keys())
async def test_who_is_not_known_is_told_nothing(shop: Shop, authorization: str | bytes | None) -> None:
    response = await call(shop, authorization)
    assert problem_of(response, 401, "unauthorized") == {
        "code": "unauthorized",
        "message": "Valid credentials are required.",
    }
    assert response.headers["www-authenticate"] == 'Basic realm="store-credit"'
    assert (await shop.stored())["decision"] == 0


async def test_all_who_are_not_known_get_one_answer(shop: Shop) -> None:
    bodies = {(await call(shop, authorization)).content for authorization in GARBAGE.values()}
    assert len(bodies) == 1


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
async def test_the_scheme_may_be_spelled_in_any_case(shop: Shop, scheme: str) -> None:
    decoded(await call(shop, header_of(CALLOUT).replace("Basic", scheme)))


async def test_a_password_may_hold_any_character(start: Start) -> None:
    shop = await start(callout_username="dr ü", callout_password="pä:ss wörd 🔑")
    decoded(await call(shop, basic("dr ü:pä:ss wörd 🔑")))


# Roles


async def test_a_merchant_may_not_call_out(shop: Shop) -> None:
    problem = problem_of(await call(shop, header_of(MERCHANT)), 403, "forbidden")
    assert problem["code"] == "forbidden"
    assert (await shop.stored())["decision"] == 0


async def test_a_merchant_may_not_remove(shop: Shop) -> None:
    problem_of(await shop.client.delete(f"{AUTHORIZE}/line-1", auth=MERCHANT), 403, "forbidden")


async def test_a_reader_may_not_call_out(shop: Shop) -> None:
    password = await shop.add_credential("auditor", Role.READER)
    problem_of(await call(shop, basic(f"auditor:{password}")), 403, "forbidden")


async def test_the_credentials_are_checked_before_the_body(shop: Shop) -> None:
    response = await shop.client.post(AUTHORIZE, content=b"no JSON", auth=("nobody", "wrong"))
    problem_of(response, 401, "unauthorized")


async def test_the_credentials_are_checked_before_the_query(shop: Shop) -> None:
    response = await shop.client.get("/credit-lines", params={"limit": "x"}, auth=CALLOUT)
    problem_of(response, 403, "forbidden")


async def test_the_credentials_are_checked_before_the_line(shop: Shop) -> None:
    response = await shop.client.get("/credit-lines/nobody's", auth=("nobody", "wrong"))
    problem_of(response, 401, "unauthorized")


# Credentials of the table


async def test_a_credential_of_the_table_opens_its_role(shop: Shop) -> None:
    password = await shop.add_credential("dr-2", Role.CALLOUT)
    decoded(await call(shop, basic(f"dr-2:{password}")))


async def test_a_credential_of_the_table_is_enough_to_start(start: Start) -> None:
    before = await start()
    password = await before.add_credential("dr-2", Role.CALLOUT)
    shop = await start(callout_username=None, callout_password=None)
    decoded(await call(shop, basic(f"dr-2:{password}")))
    problem_of(await call(shop, header_of(CALLOUT)), 401, "unauthorized")


async def test_the_settings_stay_valid_beside_the_table(shop: Shop) -> None:
    await shop.add_credential("dr-2", Role.CALLOUT)
    decoded(await call(shop, header_of(CALLOUT)))


async def test_two_passwords_of_one_name_are_both_valid(shop: Shop) -> None:
    first = await shop.add_credential(CALLOUT[0], Role.CALLOUT)
    second = await shop.add_credential(CALLOUT[0], Role.CALLOUT)
    for password in (first, second, CALLOUT[1]):
        decoded(await call(shop, basic(f"{CALLOUT[0]}:{password}")))


async def test_two_credentials_of_one_name_have_their_own_roles(shop: Shop) -> None:
    caller = await shop.add_credential("both", Role.CALLOUT)
    reader = await shop.add_credential("both", Role.READER)
    decoded(await call(shop, basic(f"both:{caller}")))
    problem_of(await call(shop, basic(f"both:{reader}")), 403, "forbidden")


async def test_a_disabled_credential_is_refused_though_it_was_remembered(shop: Shop) -> None:
    header = basic(f"dr-2:{await shop.add_credential('dr-2', Role.CALLOUT)}")
    decoded(await call(shop, header))
    await shop.service.database.write(credentials.disable, "dr-2", shop.clock())
    await shop.reload_credentials()
    problem_of(await call(shop, header), 401, "unauthorized")


async def test_passwords_are_stored_as_argon2id(shop: Shop) -> None:
    password = await shop.add_credential("dr-2", Role.CALLOUT)
    (kept,) = await shop.service.database.read(credentials.active)
    assert kept.password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert password not in kept.password_hash


async def test_a_generated_password_is_long(shop: Shop) -> None:
    def run(connection: Connection) -> set[str]:
        return {credentials.add(connection, "dr", Role.CALLOUT, shop.clock())[1] for _ in range(3)}

    passwords = await shop.service.database.write(run)
    assert len(passwords) == 3
    assert min(len(password) for password in passwords) >= 32


# What it costs: counted in passwords that are hashed, which take all the time there is to see


class CountingHasher:
    """The real hasher, which counts what it verifies."""

    def __init__(self) -> None:
        self.verified = 0

    def hash(self, password: str) -> str:
        hashed: str = hasher.hash(password)
        return hashed

    def verify(self, password: str, hashed: str) -> bool:
        self.verified += 1
        matched: bool = hasher.verify(password, hashed)
        return matched


def credential(name: str, password: str, role: Role = Role.CALLOUT) -> Credential:
    return Credential(f"id of {name} {password}", name, role, hasher.hash(password))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CountingHasher:
    counting = CountingHasher()
    monkeypatch.setattr(security, "hasher", counting)
    return counting


@pytest.fixture
def authenticator(counted: CountingHasher) -> Iterator[Authenticator]:
    """Two passwords of one name, one of another."""
    made = Authenticator()
    made.replace([credential("dr", "one"), credential("dr", "two"), credential("shop", "x", Role.MERCHANT)])
    yield made
    made.close()


async def cost(counted: CountingHasher, authenticator: Authenticator, header: str) -> int:
    before = counted.verified
    await authenticator.authenticate(header)
    return counted.verified - before


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer x",
        "Basic ???",
        basic("no colon"),
        basic("nobody:one"),
        basic("shop:wrong"),
        basic("shop:x"),
        basic("dr:wrong"),
        basic("dr:one"),
        basic("dr:two"),
        basic("dr:" + "x" * 9_000),
    ],
)
async def test_every_first_check_costs_the_same(
    counted: CountingHasher, authenticator: Authenticator, header: str
) -> None:
    assert await cost(counted, authenticator, header) == 2


async def test_a_repeated_request_costs_no_hash(
    counted: CountingHasher, authenticator: Authenticator
) -> None:
    await authenticator.authenticate(basic("dr:one"))
    assert await cost(counted, authenticator, basic("dr:one")) == 0


async def test_a_wrong_password_is_never_remembered(
    counted: CountingHasher, authenticator: Authenticator
) -> None:
    costs = [await cost(counted, authenticator, basic("dr:wrong")) for _ in range(2)]
    assert costs == [2, 2]


async def test_requests_that_come_together_share_one_check(
    counted: CountingHasher, authenticator: Authenticator
) -> None:
    found = await asyncio.gather(*(authenticator.authenticate(basic("dr:one")) for _ in range(20)))
    assert found == [Principal("dr", Role.CALLOUT)] * 20
    assert counted.verified == 2


async def test_requests_over_http_cost_one_hash_in_all(counted: CountingHasher, start: Start) -> None:
    shop = await start()
    for _ in range(5):
        decoded(await call(shop, header_of(CALLOUT)))
    assert counted.verified == 1


async def test_it_is_forgotten_after_a_time(
    counted: CountingHasher, authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "REMEMBERED_SECONDS", 0)
    await authenticator.authenticate(basic("dr:one"))
    assert await cost(counted, authenticator, basic("dr:one")) == 2


async def test_a_credential_that_is_gone_is_forgotten_at_once(authenticator: Authenticator) -> None:
    assert await authenticator.authenticate(basic("dr:one")) == Principal("dr", Role.CALLOUT)
    authenticator.replace([credential("dr", "two")])
    assert await authenticator.authenticate(basic("dr:one")) is None


async def test_a_credential_that_goes_while_it_is_checked_is_refused(authenticator: Authenticator) -> None:
    checking = asyncio.ensure_future(authenticator.authenticate(basic("dr:one")))
    await asyncio.sleep(0)
    authenticator.replace([])
    assert await checking is None
    assert await authenticator.authenticate(basic("dr:one")) is None


async def test_only_so_many_are_remembered(authenticator: Authenticator) -> None:
    digests = (n.to_bytes(4, "big") for n in range(REMEMBERED_MAX))
    authenticator._remembered = dict.fromkeys(digests, ("id", float("inf")))
    await authenticator.authenticate(basic("dr:one"))
    assert len(authenticator._remembered) == REMEMBERED_MAX
    assert await authenticator.authenticate(basic("dr:one")) == Principal("dr", Role.CALLOUT)


async def test_what_is_remembered_holds_no_password(authenticator: Authenticator) -> None:
    await authenticator.authenticate(basic("dr:one"))
    assert "dr:one" not in repr(authenticator._remembered)
    assert basic("dr:one") not in repr(authenticator._remembered)


async def test_too_many_passwords_at_once_are_told_to_wait(authenticator: Authenticator) -> None:
    calls = [authenticator.authenticate(basic(f"dr:{n}")) for n in range(HASHES_WAITING_MAX + 3)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, TooManyRequests)]
    assert (len(refused), results.count(None)) == (3, HASHES_WAITING_MAX)
    assert refused[0].headers == {"Retry-After": "1"}


async def test_who_is_remembered_need_not_wait(authenticator: Authenticator) -> None:
    await authenticator.authenticate(basic("dr:one"))
    waiting = [
        asyncio.ensure_future(authenticator.authenticate(basic(f"dr:{n}")))
        for n in range(HASHES_WAITING_MAX)
    ]
    await asyncio.sleep(0)
    assert await authenticator.authenticate(basic("dr:one")) == Principal("dr", Role.CALLOUT)
    assert not any(future.done() for future in waiting)
    await asyncio.gather(*waiting)


@pytest.mark.parametrize(("role", "expected"), [(Role.CALLOUT, True), (Role.READER, False)])
def test_the_roles_that_somebody_has(authenticator: Authenticator, role: Role, expected: bool) -> None:
    assert authenticator.has_role(role) is expected
