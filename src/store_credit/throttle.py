"""Wrong passwords, counted per user name and per client address, and forgotten again with time.

Each count fades at a steady rate. A success takes back what its own name and address failed together, and
no more: neither a busy caller behind the same proxy nor the owner of a name makes room for others' guesses.
Only passwords that were really checked are counted, so that the counts of a flood can not be pushed out of
the bounded table by the part of it that is turned away.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

FAILURES_MAX = 20
"""Wrong passwords that a name, or an address, has at once."""
SECONDS_PER_FAILURE = 3.0
"""After this time one more."""
KEYS_MAX = 20_000
"""More than one thread of argon2 checks until the first of them have faded."""

Key = Literal["name", "address"]


class Throttle:
    """Failures by name and by address. IPv6 addresses count by their /64, which one host has to itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By the hash of a key: what was sent is not kept. Equal hashes would only share a count.
        self._counts: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def waiting(self, name: str | None, address: str) -> tuple[Key, int] | None:
        """What has failed too often, and the seconds until it may try again."""
        of_name, of_address = self._count(_of_name(name)), self._count(_of_address(address))
        over = max(of_name, of_address) - (FAILURES_MAX - 1)
        if over <= 0:
            return None
        return "name" if of_name >= of_address else "address", math.ceil(over * SECONDS_PER_FAILURE)

    def failed(self, name: str | None, address: str) -> None:
        """A password was checked, and was wrong. Without a name only the address is to blame."""
        keys = (_of_address(address),) if name is None else _keys(name, address)
        for key in keys:
            self._set(key, min(self._count(key) + 1, FAILURES_MAX))

    def succeeded(self, name: str, address: str) -> None:
        """This name may call from this address."""
        if not self._counts:
            return
        forgiven = self._count(_of_both(name, address))
        if forgiven:
            for key in _keys(name, address):
                self._set(key, self._count(key) - forgiven)

    def _count(self, key: int) -> float:
        count, at = self._counts.get(key, (0.0, 0.0))
        return max(0.0, count - (self._clock() - at) / SECONDS_PER_FAILURE) if count else 0.0

    def _set(self, key: int, count: float) -> None:
        self._counts.pop(key, None)
        if count > 0:
            self._counts[key] = (count, self._clock())
            if len(self._counts) > KEYS_MAX:
                self._counts.popitem(last=False)


def _keys(name: str, address: str) -> tuple[int, int, int]:
    return _of_name(name), _of_address(address), _of_both(name, address)


def _of_name(name: str | None) -> int:
    return hash(("name", name))


def _of_address(address: str) -> int:
    return hash(("address", _network(address)))


def _of_both(name: str, address: str) -> int:
    return hash(("both", name, _network(address)))


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(parsed.ipv4_mapped) if parsed.ipv4_mapped is not None else f"{int(parsed) >> 64:x}"
