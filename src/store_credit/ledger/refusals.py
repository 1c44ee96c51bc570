"""What the ledger will not do. The message is fit to show; the adapters give it their own shape.

Refusal             a rule says no
  OutOfRange        a value that no credit line can have
  UnknownLine       there is no such credit line
  NotAllowed        not in the state that the line is in
  AlreadyExists     the name is taken
  KeyReused         the same claim was made before, by another request
Unavailable         the ledger could not answer in time: nothing was approved, try again
"""

from __future__ import annotations


class Refusal(Exception):
    """A rule says no, and nothing was changed."""

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter


class OutOfRange(Refusal):
    """A value that no credit line can have."""


class UnknownLine(Refusal):
    """There is no such credit line."""


class NotAllowed(Refusal):
    """Not in the state that the line is in."""


class AlreadyExists(Refusal):
    """The name is taken."""


class KeyReused(Refusal):
    """The same claim was made before, by a request with another content."""


class Unavailable(Exception):
    """The ledger could not answer in time. Nothing was approved; the same call may be made again.

    A change that was under way when the deadline passed may still take effect.
    """

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds
