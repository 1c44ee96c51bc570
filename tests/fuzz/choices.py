"""Decisions taken from bytes: whoever finds the bytes has found the case, and can give it again."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

ODD_TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "é",
    "\u2028",
    "a,b",
    "x" * 255,
    "x" * 256,
    "null",
    "USD",
    "usd",
    "-1",
)
ODD_VALUES: tuple[Any, ...] = (None, True, False, 0, -1, -0.0, "", "11.4", [], {}, [[]], 1e308, 10**30)
ODD_NUMBERS = (0, -1, -0.0, -5.25, 0.1 + 0.2, 53.769999999999996, 10.129, 1e15, 1e-7, 1e22, 10**15, 1e308)


class Choices:
    """Bytes read from the front as decisions; when they are used up, all that is left is zero."""

    def __init__(self, given: bytes) -> None:
        self._left = memoryview(given)

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1, of one byte where that is enough."""
        return int.from_bytes(self.taken(1 if limit <= 256 else 8)) % limit

    def between(self, least: int, most: int) -> int:
        return least + self.below(most - least + 1)

    def chance(self, of: int = 2) -> bool:
        """True once in so many times."""
        return self.below(of) == of - 1

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def several(self, options: Sequence[T], most: int) -> list[T]:
        return [self.one_of(options) for _ in range(self.below(most + 1))]

    def taken(self, count: int) -> bytes:
        """So many bytes, or what is left of them."""
        found, self._left = bytes(self._left[:count]), self._left[count:]
        return found

    def rest(self) -> bytes:
        return self.taken(len(self._left))

    def text(self) -> str:
        """Any text, lone surrogates included."""
        if self.chance(4):
            return self.one_of(ODD_TEXTS)
        return self.taken(self.below(24)).decode("utf-8", "surrogateescape")

    def double(self) -> float:
        found: float = struct.unpack("<d", self.taken(8).ljust(8, b"\0"))[0]
        return found

    def minor(self) -> int:
        """An amount in minor units, small ones more often."""
        return self.between(1, self.one_of((9, 99, 25_00, 99_999, 10**9, 10**15 - 1)))
