"""HTTP as it is taken from strangers: uvicorn's protocol with limits, and strict where that is lenient.

`store-credit serve` uses it; another uvicorn does with `--http store_credit.protocol:BoundedProtocol`.
Whatever is refused here is answered in the service's own shape, after the answers to what came before
it on the connection, and the connection is closed. What is refused only for now leaves it: see `crowd`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import MutableMapping
from typing import Any, Literal, cast

import httptools
from starlette.responses import Response
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from store_credit import heads, ids
from store_credit.errors import (
    ApiError,
    BadRequest,
    Problem,
    RequestTimeout,
    ServiceUnavailable,
    TooManyRequests,
)
from store_credit.responses import error_response
from store_credit.room import room_of
from store_credit.service import Service
from store_credit.telemetry import REQUEST_ID_HEADER, log, request_id_of, tell
from store_credit.transport import LingeringTransport

FRAMING_BYTES_MAX = 32 * 1024
"""What of a chunked body is neither body nor the sizes of its chunks: extensions and trailers."""
CHUNK_FRAMING_BYTES = 16
"""A chunk may spend so many bytes on its size."""
PIPELINED_MAX = 100
"""Requests that may wait on one connection for the answers before theirs."""
READ_AT_ONCE = 16 * 1024
"""The parser gets no more than this before the limits are looked at."""
UNREAD_FACTOR = 6
"""How much longer a client may take to make room for an answer than to send a request."""

_CROWDED = error_response(ServiceUnavailable.retry_after(1, "The service has too much to do."))


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    A request is read in two stages, its head and its body; each must arrive in time. Next to none of
    this is done for a request that arrives in one piece.
    """

    transport: LingeringTransport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._service: Service = app_state["service"]
        chosen = self._service.settings
        self._client_seconds = chosen.client_timeout.total_seconds()
        self._room = room_of(server_state, chosen.connections)
        self._stage: Literal["idle", "head", "body"] = "idle"
        self._stage_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._framing_bytes = 0
        self._head_without_upgrade = b""
        self._answering: RequestResponseCycle | None = None
        self._has_place = False
        self._is_refused = False
        self._last_words = b""
        self._turn_since = 0.0
        self._turn: asyncio.TimerHandle | None = None
        """When the request that is being answered is sent away, as there is too much to do."""

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._has_place = self._room.come(self)
        unread_seconds = self._client_seconds * UNREAD_FACTOR
        lingering = LingeringTransport(transport, self.loop, self._is_read, unread_seconds)
        super().connection_made(lingering)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.forget(self)
        self._cancel_stage_timer()
        self._cancel_turn()
        self._unset_keepalive_if_required()
        self.transport.lost()
        if self._answering is not None and not self._answering.response_complete:
            # uvicorn tells only the newest of several requests.
            self._answering.disconnected = True
            self._answering.message_event.set()
        for cycle, _ in self.pipeline:
            cycle.on_response = _nothing
        self.pipeline.clear()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._room.wait_for_reader(self)
        self.transport.expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._room.read_again(self)
        self.transport.read_again()

    def drop(self) -> None:
        self.connections.discard(self)
        if self._turn is not None:
            self._send_away(is_last=True)
        else:
            self.transport.abort()

    def _is_read(self) -> bool:
        return self._stage != "body" and not self._is_refused

    # What the client sends

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), READ_AT_ONCE):
            part = data if len(data) <= READ_AT_ONCE else data[start : start + READ_AT_ONCE]
            if self._is_refused or self.transport.is_closing():
                self.transport.throw_away(len(part))
            else:
                self._parse(part)
        if self._stage != "idle" and self._stage_timer is None and not self._is_refused:
            seconds = self._client_seconds * (1 if self._stage == "head" else 2)
            self._stage_timer = self.loop.call_later(seconds, self._too_slow)

    def _parse(self, data: bytes) -> None:
        try:
            while data:
                data = self._feed(data)
            self._check_what_is_unfinished()
        except ApiError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            self._refuse(_of_ours(error))

    def _feed(self, data: bytes) -> bytes:
        """Parse it, and return what is to be parsed next: all after an `Upgrade`, which is ignored."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            return self._head_without_upgrade + data[upgrade.args[0] :]
        if self._stage == "head":
            self._head_bytes += len(data)
        elif self._stage == "body":
            self._framing_bytes = max(0, self._framing_bytes + len(data))
        return b""

    def _check_what_is_unfinished(self) -> None:
        # What was counted may begin with the end of something else.
        if self._stage == "head" and self._head_bytes > heads.HEAD_BYTES_MAX + READ_AT_ONCE:
            raise heads.too_large(self.url)
        if self._stage == "body" and self._framing_bytes > FRAMING_BYTES_MAX + READ_AT_ONCE:
            raise BadRequest(Problem("invalid_format", "The body's chunks say too much beside the body."))

    def _too_slow(self) -> None:
        self._stage_timer = None
        if self.flow.read_paused:
            # It is us who keep it waiting.
            self._stage_timer = self.loop.call_later(self._client_seconds, self._too_slow)
        elif not self.transport.is_closing():
            self._refuse(RequestTimeout(Problem("request_timeout", "The request did not arrive in time.")))

    def _cancel_stage_timer(self) -> None:
        if self._stage_timer is not None:
            self._stage_timer.cancel()
            self._stage_timer = None

    # What the parser finds

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()
        self._enter("head")
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        if self._head_bytes and heads.size(self.url, self.headers) > heads.HEAD_BYTES_MAX:
            raise heads.too_large(self.url)
        heads.check(version, self.url, self.headers)
        if self.parser.should_upgrade():
            method = self.parser.get_method()
            if method == b"CONNECT":
                raise BadRequest(Problem("invalid_format", "This is no proxy."))
            self._head_without_upgrade = heads.without_upgrade(method, self.url, version, self.headers)
            return
        if len(self.pipeline) >= PIPELINED_MAX:
            problem = Problem("too_many_requests", "Too many requests wait on one connection.")
            raise TooManyRequests(problem, headers={"Retry-After": "1"})
        if not self._has_place:
            self._has_place = self._room.find_place(self)
        if not self._has_place:
            raise ServiceUnavailable.retry_after(1, "There are too many connections.")
        super().on_headers_complete()
        self._enter("body")
        self._framing_bytes = 0
        # Trailers come as headers do: they must not join those that were judged.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_chunk_header(self) -> None:
        self._framing_bytes -= CHUNK_FRAMING_BYTES

    def on_message_complete(self) -> None:
        if self._stage == "body":
            self._enter("idle")
            super().on_message_complete()
            if self._is_answering() and self._turn is None:
                self._room.busy(self)
            if not (self._is_answering() or self._is_refused or self.transport.is_closing()):
                # The answer came before the end of its request, and nothing waits for the next one yet.
                self._wait_for_request()

    def _wait_for_request(self) -> None:
        self._room.wait_for_request(self)
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _enter(self, stage: Literal["idle", "head", "body"]) -> None:
        self._stage = stage
        self._cancel_stage_timer()

    # What is answered

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        crowd = self._service.crowd
        if crowd.refuses(cycle.scope["method"]):
            self._turn = self.loop.call_later(crowd.seconds_to_turn(), self._send_away)
            self._turn_since = time.perf_counter()
            self._room.wait_for_turn(self)
        else:
            if cycle.more_body:
                self._room.wait_for_request(self)
            else:
                self._room.busy(self)
            super()._start_asgi_task(cycle, crowd.starting(app))

    def _send_away(self, *, is_last: bool = False) -> None:
        """Answer the request that waits for its turn to be refused.

        The connection ends with it when the client does not read what it is answered.
        """
        assert self._answering is not None
        cycle, seconds = self._answering, time.perf_counter() - self._turn_since
        self._cancel_turn()
        scope = cast(MutableMapping[str, Any], cycle.scope)
        request_id = request_id_of(scope)
        is_last = is_last or not cycle.keep_alive or self.flow.write_paused
        cycle.response_started = cycle.response_complete = True
        self.transport.write(self._rendered(_CROWDED, request_id, is_last=is_last))
        if is_last:
            self.transport.close()
        self.on_response_complete()
        self._service.metrics.refused.inc()
        tell(self._service.metrics, scope, request_id, _CROWDED.status_code, seconds)

    def _cancel_turn(self) -> None:
        if self._turn is not None and self._answering is not None:
            self._turn.cancel()
            self._turn = None
            self._answering.on_response = _nothing

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_answering():
            return
        if self._is_refused:
            self._say_last_words()
            return
        if self not in self.connections:
            return  # It was dropped.
        self._room.wait_for_request(self)
        if self._stage != "idle":
            # The next request is on its way already, and has a time limit of its own.
            self._unset_keepalive_if_required()

    def _is_answering(self) -> bool:
        cycle = self._answering
        return cycle is not None and not (cycle.response_complete or cycle.disconnected)

    def _refuse(self, error: ApiError) -> None:
        """Answer what is being read with an error, as the last answer of the connection."""
        self._cancel_stage_timer()
        self._is_refused = True
        if self._stage != "body" or self._take_back(self.cycle):
            request_id = ids.mint("req")
            reason = error.problems[0].message
            log.info("refused", request_id=request_id, status=error.status, reason=reason)
            self._last_words = self._rendered(error_response(error), request_id, is_last=True)
        if not self._is_answering():
            self._say_last_words()

    def _take_back(self, cycle: RequestResponseCycle) -> bool:
        """Whether a request whose body fails is still to be answered; the application is told that
        the client is gone."""
        cycle.keep_alive = False
        if cycle.response_started:
            return False
        self.pipeline = deque(waits for waits in self.pipeline if waits[0] is not cycle)
        if cycle is self._answering:
            self._cancel_turn()
        cycle.on_response = _nothing
        cycle.disconnected = True
        cycle.message_event.set()
        return True

    def _say_last_words(self) -> None:
        if not self.transport.is_closing():
            self._room.say_goodbye(self)
            self.transport.write(self._last_words)
            self.transport.close()

    def _rendered(self, answer: Response, request_id: str, *, is_last: bool) -> bytes:
        headers = [
            *self.server_state.default_headers,
            *answer.raw_headers,
            (REQUEST_ID_HEADER, request_id.encode("ascii")),
        ]
        if is_last:
            headers.append((b"connection", b"close"))
        status = STATUS_LINE[answer.status_code]
        lines = [name + b": " + value for name, value in headers]
        return status + b"\r\n".join([*lines, b"", bytes(answer.body)])


def _of_ours(error: httptools.HttpParserError) -> ApiError:
    """An error of ours, raised while it parses, comes as the context of one of the parser's.

    Where it is raised it must not be kept: it knows its frame, and they would be a cycle.
    """
    ours = error.__context__
    problem = Problem("invalid_format", "This is not a valid HTTP request.")
    return ours if isinstance(ours, ApiError) else BadRequest(problem)


def _nothing() -> None:
    """What is left to do after an answer. Else a request would know its connection, and be known by it."""
