"""HTTP Basic: who is calling, and may they.

A wrong password, an unknown user and a missing header get the same answer and cost the same time: that of
argon2, whatever is known of them before. A verified credential is remembered for a short time under a keyed
hash, so that a repeated request costs no argon2; it is forgotten as soon as the credential is gone.

Right credentials always pass, whoever else guesses at their name or from their address. For them a
thread is kept: to it come only passwords that fit the tag in their hash (`credentials.may_match`), which
guesses do not; a hash of an earlier version gets its tag at its first use. All others are throttled by name
and by address, and wait for a thread of their own, in a bounded queue; so a flood costs that one thread at
most. Since the right password passes, throttling can not bound how many are tried: long passwords make
guessing hopeless, and the proxy bounds the rate. A missing header guesses nothing, and waits with the
others: clients ask for the challenge so, and always get it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fastapi import Request
from fastapi.openapi.models import HTTPBase
from fastapi.security.base import SecurityBase

from store_credit.credentials import Credential, Role, hashed, hasher, is_tagged, may_match
from store_credit.errors import Forbidden, Problem, TooManyRequests, Unauthorized
from store_credit.throttle import Throttle

REMEMBERED_SECONDS = 300
REMEMBERED_MAX = 1_024
HASHES_WAITING_MAX = 64
"""Guesses that wait to be checked."""
FITTING_WAITING_MAX = 1_024
"""Right passwords that wait: as many as are remembered, for all may come at once after a start."""
HEADER_LENGTH_MAX = 4_096
USE_NOTED_EVERY = timedelta(minutes=1)
"""How often at most the last use of a credential is written down."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling: the name of a credential and its role."""

    name: str
    role: Role


class Authenticator:
    """Checks `Authorization` headers against the credentials that are valid now.

    Their expiry is looked at for each request, by this process's clock unless another is given.
    `on_throttled` is told why a password was not checked: `name`, `address`, or `busy` for a full queue.
    """

    def __init__(
        self,
        clock: Callable[[], datetime] | None = None,
        *,
        throttle: Throttle | None = None,
        on_throttled: Callable[[str], None] | None = None,
    ) -> None:
        self._clock = clock or _system_time
        self._throttle = throttle if throttle is not None else Throttle()
        self._on_throttled = on_throttled or (lambda _: None)
        self._used_at: dict[str, datetime] = {}
        self._noted_at: dict[str, datetime] = {}
        self._renewed: dict[str, tuple[str, str]] = {}
        self._credentials: dict[str, Credential] = {}
        self._hashes_per_name = 1
        self._key = secrets.token_bytes(32)
        self._dummy_hash = hashed(secrets.token_urlsafe())
        self._remembered: dict[bytes, tuple[str, float]] = {}
        self._fitting = _Checks("argon2", FITTING_WAITING_MAX)
        self._guesses = _Checks("argon2-guesses", HASHES_WAITING_MAX)

    def replace(self, credentials: Iterable[Credential]) -> None:
        """Take these credentials for valid from now on, and no others."""
        self._credentials = {credential.id: credential for credential in credentials}
        per_name = Counter(credential.name for credential in self._credentials.values())
        self._hashes_per_name = max(per_name.values(), default=1)

    def has_role(self, role: Role) -> bool:
        now = self._clock()
        return any(c.role == role and c.is_valid(now) for c in self._credentials.values())

    async def authenticate(self, header: str, address: str = "") -> Principal | None:
        """The caller, or None. Raises TooManyRequests for a password that is not worth the check now."""
        digest = hashlib.blake2b(header.encode("utf-8", "replace"), key=self._key).digest()
        known = self._recall(digest)
        if known is None:
            known = await self._verify(digest, header, address)
        now = self._clock()
        if known is None or not known.is_valid(now):
            return None
        self._throttle.succeeded(known.name, address)
        self._used_at[known.id] = now
        return Principal(known.name, known.role)

    def unnoted_uses(self) -> dict[str, datetime]:
        """When credentials were last used, by id: those of which no use was noted for a minute."""
        known = self._credentials.keys()
        self._used_at = {id_: used for id_, used in self._used_at.items() if id_ in known}
        self._noted_at = {id_: noted for id_, noted in self._noted_at.items() if id_ in known}
        return {
            id_: used
            for id_, used in self._used_at.items()
            if id_ not in self._noted_at or used - self._noted_at[id_] >= USE_NOTED_EVERY
        }

    def noted(self, uses: Mapping[str, datetime]) -> None:
        """These uses are kept now."""
        self._noted_at.update(uses)

    def renewed_hashes(self) -> dict[str, tuple[str, str]]:
        """For credentials with a hash of an earlier version: it, and a new one, by id."""
        for id_, (old, _) in list(self._renewed.items()):
            known = self._credentials.get(id_)
            if known is None or known.password_hash != old:
                del self._renewed[id_]
        return dict(self._renewed)

    def close(self) -> None:
        self._fitting.close()
        self._guesses.close()

    def _recall(self, digest: bytes) -> Credential | None:
        found = self._remembered.get(digest)
        if found is None:
            return None
        credential = self._credentials.get(found[0])
        if credential is None or time.monotonic() >= found[1]:
            del self._remembered[digest]
            return None
        # Who keeps calling stays known, and never queues behind strangers' passwords.
        self._remembered[digest] = (credential.id, time.monotonic() + REMEMBERED_SECONDS)
        return credential

    async def _verify(self, digest: bytes, header: str, address: str) -> Credential | None:
        username, password = _parse_basic(header)
        now = self._clock()
        named = [c for c in self._credentials.values() if c.name == username and c.is_valid(now)]
        fits = self._fits(named, password)
        if header and not fits and (waiting := self._throttle.waiting(username, address)) is not None:
            raise self._refusal(*waiting, "Too many wrong passwords.")
        checks = self._fitting if fits else self._guesses
        check = checks.started(digest, lambda: self._matching(named, password))
        if check is None and not header:
            return None  # Some clients ask for the challenge first: they guess nothing.
        if check is None:
            raise self._refusal("busy", 1, "Too many passwords wait to be checked.")
        # Others may wait for the same check: it goes on when this caller goes away.
        found = await asyncio.shield(check)
        if found is not None and found.id in self._credentials:
            self._remember(digest, found)
            return found
        if header:
            self._throttle.failed(username, address)
        return None

    def _remember(self, digest: bytes, found: Credential) -> None:
        if digest not in self._remembered and len(self._remembered) >= REMEMBERED_MAX:
            self._remembered.pop(next(iter(self._remembered)))
        self._remembered[digest] = (found.id, time.monotonic() + REMEMBERED_SECONDS)

    def _refusal(self, why: str, seconds: int, message: str) -> TooManyRequests:
        self._on_throttled(why)
        problem = Problem("too_many_requests", message)
        return TooManyRequests(problem, headers={"Retry-After": str(seconds)})

    def _fits(self, named: list[Credential], password: str) -> bool:
        fitting = [may_match(password, known) for known in self._padded(named)]
        return any(fitting)

    def _matching(self, named: list[Credential], password: str) -> Credential | None:
        """The credential with this password."""
        matches = [hasher.verify(password, known) for known in self._padded(named)]
        found = next((c for c, matched in zip(named, matches, strict=False) if matched), None)
        if found is not None and not is_tagged(found.password_hash):
            self._renewed[found.id] = (found.password_hash, hashed(password))
        return found

    def _padded(self, named: list[Credential]) -> list[str]:
        """The hashes of a name; as many for every name, known or not."""
        padding = [self._dummy_hash] * (self._hashes_per_name - len(named))
        return [*(credential.password_hash for credential in named), *padding]


class _Checks:
    """Passwords that wait for argon2, in one thread. Equal headers that arrive together share one check."""

    def __init__(self, name: str, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: dict[bytes, asyncio.Future[Credential | None]] = {}

    def started(
        self, digest: bytes, check: Callable[[], Credential | None]
    ) -> asyncio.Future[Credential | None] | None:
        """The check of the header with this digest; None when too many wait."""
        waiting = self._waiting.get(digest)
        if waiting is None and len(self._waiting) < self._waiting_max:
            waiting = asyncio.get_running_loop().run_in_executor(self._thread, check)
            self._waiting[digest] = waiting
            waiting.add_done_callback(lambda _: self._waiting.pop(digest, None))
        return waiting

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _system_time() -> datetime:
    return datetime.now(UTC)


def _parse_basic(header: str) -> tuple[str | None, str]:
    """User name and password; None as the name when the header is no HTTP Basic header."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic" or len(header) > HEADER_LENGTH_MAX:
        return None, ""
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None, ""
    username, colon, password = decoded.partition(":")
    return (username, password.replace("\0", "\ufffd")) if colon else (None, "")


class RequireRole(SecurityBase):
    """A dependency: the caller, who must have one of these roles."""

    def __init__(self, *roles: Role) -> None:
        self.model = HTTPBase(scheme="basic", description="HTTP Basic")
        self.scheme_name = "basic"
        self._roles = frozenset(roles)

    async def __call__(self, request: Request) -> Principal:
        authenticator: Authenticator = request.app.state.service.authenticator
        header, client = request.headers.get("authorization", ""), request.client
        principal = await authenticator.authenticate(header, client.host if client else "")
        if principal is None:
            problem = Problem("unauthorized", "Valid credentials are required.")
            raise Unauthorized(problem, headers={"WWW-Authenticate": 'Basic realm="store-credit"'})
        request.state.principal = principal.name
        if principal.role not in self._roles:
            raise Forbidden(Problem("forbidden", "These credentials may not do this."))
        return principal


may_call_out = RequireRole(Role.CALLOUT)
may_read = RequireRole(Role.READER, Role.MERCHANT)
may_write = RequireRole(Role.MERCHANT)
may_sell = RequireRole(Role.STOREFRONT, Role.MERCHANT)
