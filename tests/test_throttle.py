"""Guessing passwords: what it costs, whom it slows down, and who always passes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from store_credit import credentials, security, settings
from store_credit.app import _note_uses, create_app
from store_credit.credentials import Credential, Role
from store_credit.errors import TooManyRequests
from store_credit.security import HASHES_WAITING_MAX, Authenticator, Principal
from store_credit.throttle import FAILURES_MAX, KEYS_MAX, SECONDS_PER_FAILURE, Throttle
from tests import server
from tests.http_fixtures import AUTHORIZE, Shop, problem_of, running
from tests.making import Clock
from tests.test_cli import add_credential

pytest_plugins = ["tests.http_fixtures"]

ROUNDS = int(os.environ.get("TIMING_ROUNDS", "60"))
"""How often each kind of call is timed; with a thousand, smaller differences are looked for."""

CHEAP = credentials.hasher.using(memory_cost=8, rounds=1)


class Seconds:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def throttle(seconds: Seconds) -> Throttle:
    return Throttle(seconds)


def fail(throttle: Throttle, times: int, name: str = "dr", address: str = "10.0.0.1") -> None:
    for _ in range(times):
        throttle.failed(name, address)


# The counts


def test_so_many_wrong_passwords_and_no_more(throttle: Throttle) -> None:
    fail(throttle, FAILURES_MAX - 1)
    assert throttle.waiting("dr", "10.0.0.1") is None
    fail(throttle, 1)
    assert throttle.waiting("dr", "10.0.0.1") == ("name", SECONDS_PER_FAILURE)


def test_a_name_is_slowed_down_for_all_addresses(throttle: Throttle) -> None:
    for n in range(FAILURES_MAX):
        throttle.failed("dr", f"10.0.0.{n}")
    assert throttle.waiting("dr", "10.9.9.9") == ("name", SECONDS_PER_FAILURE)
    assert throttle.waiting("shop", "10.0.0.1") is None


def test_an_address_is_slowed_down_for_all_names(throttle: Throttle) -> None:
    for n in range(FAILURES_MAX):
        throttle.failed(f"name-{n}", "10.0.0.1")
    assert throttle.waiting("dr", "10.0.0.1") == ("address", SECONDS_PER_FAILURE)
    assert throttle.waiting("name-1", "10.0.0.2") is None


def test_a_header_without_a_name_is_the_address_s(throttle: Throttle) -> None:
    for _ in range(FAILURES_MAX):
        assert throttle.waiting(None, "10.0.0.1") is None
        throttle.failed(None, "10.0.0.1")
    assert throttle.waiting(None, "10.0.0.1") == ("address", SECONDS_PER_FAILURE)
    assert throttle.waiting(None, "10.0.0.2") is None


def test_time_forgives_one_failure_after_the_other(throttle: Throttle, seconds: Seconds) -> None:
    fail(throttle, FAILURES_MAX)
    seconds.now += SECONDS_PER_FAILURE - 0.5
    assert throttle.waiting("dr", "10.0.0.1") == ("name", 1)
    seconds.now += 0.5
    assert throttle.waiting("dr", "10.0.0.1") is None
    fail(throttle, 1)
    assert throttle.waiting("dr", "10.0.0.1") is not None
    seconds.now += SECONDS_PER_FAILURE * FAILURES_MAX
    fail(throttle, FAILURES_MAX - 1)
    assert throttle.waiting("dr", "10.0.0.1") is None


def test_a_long_attack_is_not_remembered_for_longer(throttle: Throttle) -> None:
    fail(throttle, FAILURES_MAX * 100)
    assert throttle.waiting("dr", "10.0.0.1") == ("name", SECONDS_PER_FAILURE)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:DB8:1:2::2", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("unknown:", "unknown:", True),
        ("", "10.0.0.1", False),
    ],
)
def test_what_counts_as_one_address(throttle: Throttle, one: str, other: str, same: bool) -> None:
    for n in range(FAILURES_MAX):
        throttle.failed(f"name-{n}", one)
    assert (throttle.waiting("dr", other) is not None) == same


def test_a_success_takes_back_its_own_failures(throttle: Throttle) -> None:
    for _ in range(5):
        fail(throttle, FAILURES_MAX - 1)
        assert throttle.waiting("dr", "10.0.0.1") is None
        throttle.succeeded("dr", "10.0.0.1")
    assert len(throttle) == 0


def test_a_success_takes_back_nobody_else_s_failures(throttle: Throttle) -> None:
    fail(throttle, FAILURES_MAX, "dr", "10.6.6.6")
    fail(throttle, FAILURES_MAX, "nobody", "10.0.0.1")
    throttle.succeeded("dr", "10.0.0.1")
    assert throttle.waiting("dr", "10.6.6.6") is not None
    assert throttle.waiting("dr", "10.7.7.7") is not None
    assert throttle.waiting("other", "10.0.0.1") is not None


def test_names_that_look_like_keys_are_only_names(throttle: Throttle) -> None:
    fail(throttle, FAILURES_MAX, "name", "dr")
    fail(throttle, FAILURES_MAX, "address", "shop")
    assert throttle.waiting("dr", "10.0.0.1") is None
    assert throttle.waiting("nobody", "name") is None


def test_the_table_is_bounded(throttle: Throttle) -> None:
    for n in range(100_000):
        throttle.failed(f"name-{n}", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    assert len(throttle) == KEYS_MAX


def test_what_is_attacked_now_stays_in_the_table(throttle: Throttle) -> None:
    fail(throttle, FAILURES_MAX - 1)
    for n in range(KEYS_MAX):
        throttle.failed(f"name-{n}", f"10.1.{n >> 8}.{n & 255}")
        if n == KEYS_MAX // 6:
            fail(throttle, 1)
    assert throttle.waiting("dr", "10.0.0.1") is None, "what was long ago made room"
    fail(throttle, FAILURES_MAX)
    assert throttle.waiting("dr", "10.0.0.1") is not None


# The tag that tells the right password from guesses


def test_the_right_password_fits_and_guesses_do_not() -> None:
    made = credentials.hashed("right", CHEAP)
    assert credentials.may_match("right", made)
    assert CHEAP.verify("right", made)
    assert not any(credentials.may_match(f"guess-{n}", made) for n in range(10_000))


def test_a_tag_tells_nothing_about_another_hash_of_the_password() -> None:
    first, second = (credentials.hashed("right", CHEAP).split("$")[4] for _ in range(2))
    assert first[-5:] != second[-5:]


def test_a_hash_of_an_earlier_version_fits_nothing() -> None:
    made = CHEAP.hash("right")
    assert not credentials.is_tagged(made)
    assert not credentials.may_match("right", made)


# Who is checked, and who is turned away


class CountingHasher:
    """Counts what it verifies, cheaply."""

    def __init__(self) -> None:
        self.verified = 0

    def verify(self, password: str, hashed: str) -> bool:
        self.verified += 1
        matched: bool = CHEAP.verify(password, hashed)
        return matched


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CountingHasher:
    counting = CountingHasher()
    monkeypatch.setattr(security, "hasher", counting)
    return counting


@pytest.fixture
def refused() -> list[str]:
    """Why passwords were not checked."""
    return []


@pytest.fixture
def authenticator(
    counted: CountingHasher, throttle: Throttle, refused: list[str]
) -> Iterator[Authenticator]:
    made = Authenticator(throttle=throttle, on_throttled=refused.append)
    made.replace(
        [
            Credential("cred_1", "dr", Role.CALLOUT, credentials.hashed("right", CHEAP)),
            Credential("cred_2", "shop", Role.MERCHANT, credentials.hashed("proper", CHEAP)),
            Credential("cred_3", "old", Role.READER, CHEAP.hash("aged")),
        ]
    )
    yield made
    made.close()


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


async def guess(
    authenticator: Authenticator, times: int, name: str = "dr", address: str = "10.0.0.1"
) -> None:
    for n in range(times):
        assert await authenticator.authenticate(basic(f"{name}:guess-{n}"), address) is None


@pytest.mark.parametrize("name", ["dr", "nobody"])
async def test_a_throttled_guess_costs_no_hash(
    authenticator: Authenticator, counted: CountingHasher, refused: list[str], name: str
) -> None:
    await guess(authenticator, FAILURES_MAX, name)
    assert counted.verified == FAILURES_MAX
    with pytest.raises(TooManyRequests) as raised:
        await authenticator.authenticate(basic(f"{name}:another"), "10.6.6.6")
    assert raised.value.headers == {"Retry-After": str(int(SECONDS_PER_FAILURE))}
    assert (counted.verified, refused) == (FAILURES_MAX, ["name"])


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.2"])
async def test_right_credentials_pass_though_never_seen(authenticator: Authenticator, address: str) -> None:
    await guess(authenticator, FAILURES_MAX, "dr")
    await guess(authenticator, FAILURES_MAX, "nobody", "10.0.0.2")
    assert await authenticator.authenticate(basic("dr:right"), address) == Principal("dr", Role.CALLOUT)


async def test_right_credentials_pass_a_full_queue(
    authenticator: Authenticator, refused: list[str]
) -> None:
    waiting = [
        asyncio.ensure_future(authenticator.authenticate(basic(f"dr:{n}"), f"10.0.1.{n}"))
        for n in range(HASHES_WAITING_MAX + 1)
    ]
    await asyncio.sleep(0)
    assert refused == ["busy"]
    assert await authenticator.authenticate(basic("dr:right"), "10.0.0.1") == Principal("dr", Role.CALLOUT)
    assert await authenticator.authenticate("", "10.0.0.1") is None
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert Counter(map(type, results)) == {type(None): HASHES_WAITING_MAX, TooManyRequests: 1}


async def test_all_right_credentials_may_come_at_once(authenticator: Authenticator) -> None:
    many = [
        Credential(f"cred_{n}", f"till-{n}", Role.READER, credentials.hashed(f"right-{n}", CHEAP))
        for n in range(HASHES_WAITING_MAX * 3)
    ]
    authenticator.replace(many)
    calls = [authenticator.authenticate(basic(f"till-{n}:right-{n}"), "10.0.0.1") for n in range(len(many))]
    assert None not in await asyncio.gather(*calls)


async def test_who_asks_without_a_header_is_always_told_how(
    authenticator: Authenticator, counted: CountingHasher
) -> None:
    for _ in range(FAILURES_MAX + 1):
        assert await authenticator.authenticate("", "10.0.0.1") is None
    assert counted.verified == FAILURES_MAX + 1, "it takes as long as a wrong password"
    await guess(authenticator, 1)
    await guess(authenticator, FAILURES_MAX - 1, "nobody")
    assert await authenticator.authenticate("", "10.0.0.1") is None


async def test_a_header_that_can_not_be_read_is_a_guess(authenticator: Authenticator) -> None:
    for n in range(FAILURES_MAX):
        assert await authenticator.authenticate(f"Bearer {n}", "10.0.0.1") is None
    with pytest.raises(TooManyRequests):
        await authenticator.authenticate("Bearer x", "10.0.0.1")
    assert await authenticator.authenticate("Bearer x", "10.0.0.2") is None


async def test_a_success_resets(authenticator: Authenticator) -> None:
    for _ in range(3):
        await guess(authenticator, FAILURES_MAX - 1)
        assert await authenticator.authenticate(basic("dr:right"), "10.0.0.1") is not None


async def test_an_old_hash_is_renewed_when_it_is_used(authenticator: Authenticator) -> None:
    assert await authenticator.authenticate(basic("old:aged"), "10.0.0.1") == Principal("old", Role.READER)
    ((old, new),) = authenticator.renewed_hashes().values()
    assert CHEAP.verify("aged", old)
    assert credentials.may_match("aged", new)
    authenticator.replace([Credential("cred_3", "old", Role.READER, new)])
    assert authenticator.renewed_hashes() == {}
    await guess(authenticator, FAILURES_MAX, "old")
    assert await authenticator.authenticate(basic("old:aged"), "10.0.0.1") == Principal("old", Role.READER)


# Over HTTP


async def test_renewed_hashes_are_kept(shop: Shop) -> None:
    old = credentials.hasher.hash("aged")

    def add(connection: credentials.Connection) -> str:
        added, _ = credentials.add(connection, "old", Role.READER, shop.clock())
        credentials.renew(connection, {added.id: (added.password_hash, old)})
        return added.id

    await shop.service.database.write(add)
    await shop.reload_credentials()
    assert (await shop.client.get("/credit-lines", auth=("old", "aged"))).status_code == 200
    await _note_uses(shop.service)
    (kept,) = await shop.service.database.read(credentials.active)
    assert credentials.may_match("aged", kept.password_hash)
    assert kept.password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    await shop.reload_credentials()
    assert (await shop.client.get("/credit-lines", auth=("old", "aged"))).status_code == 200


async def test_a_hash_that_was_changed_meanwhile_stays(shop: Shop) -> None:
    await shop.add_credential("till", Role.READER)
    (kept,) = await shop.service.database.read(credentials.active)
    await shop.service.database.write(credentials.renew, {kept.id: ("another", "new")})
    assert await shop.service.database.read(credentials.active) == [kept]


@contextlib.asynccontextmanager
async def from_address(shop: Shop, address: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(shop.app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_a_throttled_caller_is_told_when_to_come_again(shop: Shop, throttle: Throttle) -> None:
    shop.service.authenticator._throttle = throttle
    for name in ("digital-river", "nobody"):
        async with from_address(shop, f"address of {name}") as client:
            answers = [await client.get("/credit-lines", auth=(name, "x")) for _ in range(FAILURES_MAX + 1)]
        assert {answer.status_code for answer in answers[:-1]} == {401}
        problem = problem_of(answers[-1], 429, "too_many_requests")
        assert problem == {"code": "too_many_requests", "message": "Too many wrong passwords."}
        assert answers[-1].headers["retry-after"] == "3"
        assert "www-authenticate" not in answers[-1].headers
    metrics = (await shop.client.get("/metrics")).text
    assert 'store_credit_passwords_throttled_total{why="name"} 2.0' in metrics


def test_every_operation_with_credentials_documents_it() -> None:
    app = create_app(settings.load(database_url="sqlite:///never-opened.db"))
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            if operation.get("security"):
                assert "Retry-After" in operation["responses"]["429"]["headers"], (method, path)


async def test_all_who_are_not_known_take_the_same_time(
    sqlite_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown user, wrong password, and right password without the cache, in turns and in random order.

    Compared are the medians of the ratios within a turn: whatever else the machine does meets all alike.
    """
    monkeypatch.setattr(security, "REMEMBERED_SECONDS", 0)
    most = 0.03 if ROUNDS >= 1_000 else 0.2
    dice = random.Random(4)
    async with running(sqlite_url, clock) as shop:
        password = await shop.add_credential("auditor", Role.READER)
        shop.service.authenticator._throttle = Throttle(itertools.count(0.0, 3_600.0).__next__)
        # The right password has a role that may not call, so that nothing is done after the check.
        kinds = {
            "unknown": ("nobody", password, 401),
            "wrong": ("auditor", password[::-1], 401),
            "right": ("auditor", password, 403),
        }
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind in dice.sample(list(kinds), len(kinds)):
                name, secret, status = kinds[kind]
                begun = time.perf_counter()
                response = await shop.client.post(AUTHORIZE, auth=(name, secret))
                taken[kind].append(time.perf_counter() - begun)
                assert response.status_code == status
    for kind in ("unknown", "right"):
        ratio = statistics.median(a / b for a, b in zip(taken[kind], taken["wrong"], strict=True))
        assert abs(ratio - 1) < most, (kind, ratio)


# A flood, against a real server behind a proxy


ATTACKERS = 3


class Flood:
    """Guesses without a pause, until it is told to stop."""

    def __init__(self, url: str, name: str | None, address: str | None) -> None:
        self._url, self._name, self._address = url, name, address
        self.statuses: Counter[int] = Counter()

    async def __aenter__(self) -> Flood:
        self._client = httpx.AsyncClient(base_url=self._url, timeout=60, trust_env=False)
        self._tasks = [asyncio.ensure_future(self._guess(n)) for n in range(ATTACKERS)]
        await server.until(self._is_throttled)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def _is_throttled(self) -> bool:
        for task in self._tasks:
            if task.done():
                task.result()
        return self.statuses[429] > ATTACKERS

    async def _guess(self, attacker: int) -> None:
        for n in itertools.count():
            name = self._name or f"name-{attacker}-{n}"
            address = self._address or f"10.{attacker}.{n >> 8}.{n & 255}"
            headers = {"X-Forwarded-For": address}
            auth = (name, f"guess-{attacker}-{n}")
            response = await self._client.get("/credit-lines", auth=auth, headers=headers)
            self.statuses[response.status_code] += 1


@pytest.mark.parametrize(("trusted", "statuses"), [("127.0.0.1", {401}), ("192.0.2.9", {401, 429})])
def test_only_a_trusted_proxy_says_who_calls(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: str, statuses: set[int]
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with (
        server.running(sqlite_url, tmp_path) as [running_server],
        server.http_client(running_server.url) as client,
    ):
        found = set()
        for n in range(FAILURES_MAX * 4):
            headers = {"X-Forwarded-For": f"198.51.100.{n}"}
            found.add(client.get("/credit-lines", auth=(f"name-{n}", "x"), headers=headers).status_code)
            if found == {401, 429}:
                break
        assert found == statuses


async def test_right_credentials_pass_in_a_flood(sqlite_url: str, tmp_path: Path) -> None:
    fresh = [(f"till-{n}", add_credential(sqlite_url, f"till-{n}", "reader")[1]) for n in range(3)]
    with server.running(sqlite_url, tmp_path) as [running_server]:
        url, own = running_server.url, "192.0.2.1"
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:

            async def call(auth: tuple[str, str], address: str) -> int:
                headers = {"X-Forwarded-For": address}
                return (await client.get("/credit-lines", auth=auth, headers=headers)).status_code

            for (name, password), attacked_name, attacked_address in zip(
                fresh, (fresh[0][0], None, fresh[2][0]), (None, own, own), strict=True
            ):
                async with Flood(url, attacked_name, attacked_address) as flood:
                    # Never seen before by this process, and then again.
                    assert [await call((name, password), own) for _ in range(3)] == [200] * 3
                assert flood.statuses.keys() <= {401, 429}, flood.statuses

            async with Flood(url, server.CALLOUT[0], None) as flood:
                asked = {"sessionId": "s", "amount": 1, "upstreamId": "nobody's"}
                for n in range(200):
                    answer = await client.post(
                        AUTHORIZE,
                        json=asked,
                        auth=server.CALLOUT,
                        headers={"X-Forwarded-For": f"198.51.100.{n}"},
                    )
                    assert answer.status_code == 200, (n, answer.text)
