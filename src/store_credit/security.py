"""HTTP Basic: who is calling, and may they.

A verified credential is remembered for a short time under a keyed hash, so that a repeated request
costs no argon2; it is forgotten as soon as the credential is gone. A wrong password, an unknown user and
a missing header get the same answer and cost the same time. Hashing runs in one thread of its own,
with a bounded queue.
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

from store_credit.credentials import Credential, Role, hasher
from store_credit.errors import Forbidden, Problem, TooManyRequests, Unauthorized

REMEMBERED_SECONDS = 300
REMEMBERED_MAX = 1_024
HASHES_WAITING_MAX = 64
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
    """

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        self._clock = clock or _system_time
        self._used_at: dict[str, datetime] = {}
        self._noted_at: dict[str, datetime] = {}
        self._credentials: dict[str, Credential] = {}
        self._hashes_per_name = 1
        self._key = secrets.token_bytes(32)
        self._dummy_hash = hasher.hash(secrets.token_urlsafe())
        self._remembered: dict[bytes, tuple[str, float]] = {}
        self._verifying: dict[bytes, asyncio.Future[Credential | None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="argon2")

    def replace(self, credentials: Iterable[Credential]) -> None:
        """Take these credentials for valid from now on, and no others."""
        self._credentials = {credential.id: credential for credential in credentials}
        per_name = Counter(credential.name for credential in self._credentials.values())
        self._hashes_per_name = max(per_name.values(), default=1)

    def has_role(self, role: Role) -> bool:
        now = self._clock()
        return any(c.role == role and c.is_valid(now) for c in self._credentials.values())

    async def authenticate(self, header: str) -> Principal | None:
        """The caller, or None. Raises TooManyRequests when too many passwords wait to be checked."""
        digest = hashlib.blake2b(header.encode("utf-8", "replace"), key=self._key).digest()
        known = self._recall(digest)
        if known is None:
            known = await self._verify_once(digest, header)
        now = self._clock()
        if known is None or not known.is_valid(now):
            return None
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

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

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

    async def _verify_once(self, digest: bytes, header: str) -> Credential | None:
        """Requests with the same header that arrive together share one verification."""
        verifying = self._verifying.get(digest)
        if verifying is None:
            if len(self._verifying) >= HASHES_WAITING_MAX:
                problem = Problem("too_many_requests", "Too many passwords wait to be checked.")
                raise TooManyRequests(problem, headers={"Retry-After": "1"})
            verifying = asyncio.ensure_future(self._verify(digest, header))
            self._verifying[digest] = verifying
            verifying.add_done_callback(lambda _: self._verifying.pop(digest, None))
        return await asyncio.shield(verifying)

    async def _verify(self, digest: bytes, header: str) -> Credential | None:
        username, password = _parse_basic(header)
        now = self._clock()
        named = [c for c in self._credentials.values() if c.name == username and c.is_valid(now)]
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._thread, self._matching, named, password)
        if found is not None and found.id in self._credentials:
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[digest] = (found.id, time.monotonic() + REMEMBERED_SECONDS)
            return found
        return None

    def _matching(self, named: list[Credential], password: str) -> Credential | None:
        """The credential with this password. As many hashes for every name, known or not."""
        padding = [self._dummy_hash] * (self._hashes_per_name - len(named))
        matches = [hasher.verify(password, credential.password_hash) for credential in named]
        for dummy in padding:
            hasher.verify(password, dummy)
        return next((c for c, matched in zip(named, matches, strict=True) if matched), None)


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
        principal = await authenticator.authenticate(request.headers.get("authorization", ""))
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
