"""`POST` and `DELETE /checkouts/store-credits`: the store-credit callout.

Approved or declined, the status is 200; Digital River shows the shopper one generic message for
everything else. A removal is always 204, also for what is unknown or not held: only then does Digital
River drop the credit from its session.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import Depends, FastAPI, Request, Response

from store_credit import ids, money
from store_credit.body import parse
from store_credit.callouts import decisions
from store_credit.callouts.schemas import AuthorizationAnswer, AuthorizationRequest
from store_credit.errors import BadRequest
from store_credit.fields import storable
from store_credit.ledger.commands import Authorize, Cause, Release
from store_credit.ledger.state import Outcome
from store_credit.metadata import UPSTREAM_ID_LENGTH_MAX
from store_credit.openapi import answers, takes
from store_credit.responses import Json
from store_credit.security import Principal, may_call_out
from store_credit.service import service_of
from store_credit.settings import CALLOUT_PATH

Caller = Annotated[Principal, Depends(may_call_out)]


async def authorize(request: Request, caller: Caller) -> Json:
    """May this session use this much of this credit line?"""
    asked = await parse(request, AuthorizationRequest)
    command = Authorize(
        upstream_id=asked.upstream_id,
        session_id=asked.session_id,
        amount=asked.amount,
        hold_id=ids.mint("hold"),
        cause=Cause(actor=caller.name),
        session_upstream_id=asked.session_upstream_id,
    )
    outcome = await _decide(request, command)
    return Json(_answer(asked.upstream_id, outcome))


async def release(request: Request, upstream_id: str, caller: Caller) -> Response:
    """The shopper took the credit off again. The answer is always the same."""
    command = Release(_upstream_id(request, upstream_id), Cause(actor=caller.name))
    await _decide(request, command)
    return Response(status_code=204)


def add_callout(app: FastAPI, paths: list[str]) -> None:
    """Serve the callout at its documented path and at these.

    The routes are the application's own: to look into a router costs each request some 10 us.
    """
    for path in [CALLOUT_PATH, *paths]:
        documented = path == CALLOUT_PATH
        app.add_api_route(
            path,
            authorize,
            methods=["POST"],
            tags=["Callout"],
            response_model=AuthorizationAnswer,
            responses=answers(400, 401, 403, 408, 413, 415, 429, 503),
            openapi_extra=takes(AuthorizationRequest),
            include_in_schema=documented,
        )
        app.add_api_route(
            f"{path}/{{upstream_id:anything}}",
            release,
            methods=["DELETE"],
            tags=["Callout"],
            status_code=204,
            responses=answers(400, 401, 403, 429, 503),
            include_in_schema=documented,
        )


async def _decide(request: Request, command: Authorize | Release) -> Outcome:
    service = service_of(request)
    request_id = request.state.request_id
    result = await service.ledger.execute(
        command,
        record=lambda outcomes, at: [decisions.record(command, outcomes[0], at, request_id)],
    )
    outcome = result.outcomes[0]
    request.state.reason = outcome.reason.value
    authorizing = isinstance(command, Authorize)
    kind, yes, no = (
        ("authorize", "approved", "declined") if authorizing else ("release", "released", "ignored")
    )
    service.metrics.decision(kind, yes if outcome.accepted else no, outcome.reason.value).inc()
    return outcome


def _answer(upstream_id: str, outcome: Outcome) -> dict[str, object]:
    if not outcome.accepted or outcome.hold is None or outcome.line is None:
        return {"approval": False, "upstreamId": upstream_id}
    amount = money.to_number(outcome.hold.amount, outcome.line.currency)
    return {"approval": True, "upstreamId": upstream_id, "amount": amount}


def _upstream_id(request: Request, decoded: str) -> str:
    """The identifier in the path, whatever it holds. The server decodes broken UTF-8 leniently."""
    try:
        unquote_to_bytes(request.scope["raw_path"]).decode("utf-8")
        storable(decoded)
    except ValueError:
        raise BadRequest.parameter("upstreamId", "The upstreamId is not valid UTF-8 text.") from None
    if not 0 < len(decoded) <= UPSTREAM_ID_LENGTH_MAX:
        message = f"The upstreamId must have 1 to {UPSTREAM_ID_LENGTH_MAX} characters."
        raise BadRequest.parameter("upstreamId", message)
    return decoded
