"""Everything that the service answers as an error, in Digital River's shape.

    ApiError
      BadRequest             400  a parameter is missing, malformed or out of range
      Unauthorized           401  no valid credentials
      Forbidden              403  valid credentials of another role
      NotFound               404
      Conflict               409  the name is taken, or a key was used for something else
      RequestTimeout         408  the request did not arrive in time
      PayloadTooLarge        413
      UriTooLong             414
      UnsupportedMediaType   415
      TooManyRequests        429
      HeadTooLarge           431
      InternalServerError    500  a fault of our own
      ServiceUnavailable     503  nothing was approved; try again after `Retry-After`

An error never repeats what was sent. The ledger's own refusals are translated in `responses`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One element of `errors`."""

    code: str
    message: str
    parameter: str | None = None

    def as_json(self) -> dict[str, str]:
        shown = {"code": self.code, "message": self.message}
        return shown | {"parameter": self.parameter} if self.parameter else shown


class ApiError(Exception):
    """An error with its HTTP status, Digital River's `type` and at least one problem."""

    status: ClassVar[int]
    type: ClassVar[str]

    def __init__(self, *problems: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems: Sequence[Problem] = problems
        self.headers = dict(headers or {})

    def as_json(self) -> dict[str, object]:
        return {"type": self.type, "errors": [problem.as_json() for problem in self.problems]}


class BadRequest(ApiError):
    status = 400
    type = "bad_request"

    @classmethod
    def parameter(cls, parameter: str, message: str, code: str = "invalid_parameter") -> BadRequest:
        return cls(Problem(code, message, parameter))


class Unauthorized(ApiError):
    status = 401
    type = "unauthorized"


class Forbidden(ApiError):
    status = 403
    type = "forbidden"


class NotFound(ApiError):
    status = 404
    type = "not_found"

    @classmethod
    def of(cls, noun: str, parameter: str = "id") -> NotFound:
        return cls(Problem("not_found", f"There is no such {noun}.", parameter))


class Conflict(ApiError):
    status = 409
    type = "conflict"


class PayloadTooLarge(ApiError):
    status = 413
    type = "bad_request"

    @classmethod
    def over(cls, limit: int) -> PayloadTooLarge:
        # What is left of the body is not read, so the connection can not be used again.
        problem = Problem("payload_too_large", f"The body is larger than {limit} bytes.")
        return cls(problem, headers={"Connection": "close"})


class RequestTimeout(ApiError):
    status = 408
    type = "request_timeout"


class UriTooLong(ApiError):
    status = 414
    type = "bad_request"


class UnsupportedMediaType(ApiError):
    status = 415
    type = "bad_request"


class TooManyRequests(ApiError):
    status = 429
    type = "too_many_requests"


class HeadTooLarge(ApiError):
    status = 431
    type = "bad_request"


class ServiceUnavailable(ApiError):
    status = 503
    type = "service_unavailable"

    @classmethod
    def retry_after(cls, seconds: int, message: str) -> ServiceUnavailable:
        return cls(Problem("service_unavailable", message), headers={"Retry-After": str(seconds)})


class InternalServerError(ApiError):
    status = 500
    type = "internal_server_error"
