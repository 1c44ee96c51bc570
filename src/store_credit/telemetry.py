"""Logs, request ids and metrics: one structured log line a request, and nothing secret in any of them."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from functools import lru_cache
from typing import Any

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from store_credit import ids
from store_credit.responses import internal_error

REQUEST_ID_HEADER = b"x-request-id"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

SERIES_KEPT = 1_024
"""Of one metric, that are at hand."""

# When each series began tells nobody anything, and would be a third of them.
disable_created_metrics()  # type: ignore[no-untyped-call]

log: structlog.stdlib.BoundLogger = structlog.get_logger("store_credit")


def configure_logging(level: str) -> None:
    """JSON lines on standard output, for our own events and for those of the libraries alike."""
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        # Not cached: a later application of the same process writes where and what it is told to.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # httpx would log URLs; the engine would log statements with their values.
    for noisy in ("httpx", "httpcore", "sqlalchemy", "asyncio", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Metrics:
    """The Prometheus metrics of one application. Labels take few values, whatever is sent."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decisions = self._counter(
            "decisions", "Answers to Digital River's callouts.", "kind", "outcome", "reason"
        )
        self.webhook_events = self._counter(
            "webhook_events", "Webhook events by type and what became of them.", "type", "state"
        )
        self.deductions = self._counter("deductions", "Deductions booked.", "currency")
        self.overdrawn = self._counter(
            "overdrawn_deductions", "Deductions that took a line below what is held or zero."
        )
        self.passwords_throttled = self._counter(
            "passwords_throttled",
            "Passwords that were not checked: too many of the name or address were wrong, or wait.",
            "why",
        )
        self.batch_size = Histogram(
            "store_credit_batch_size",
            "Works that one transaction of the ledger carried.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "store_credit_commit_seconds",
            "Seconds that a transaction of the ledger took.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "store_credit_request_seconds",
            "Seconds that a request took.",
            ("method", "path", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        # To look a series up by its labels costs more than to count.
        self.decision = lru_cache(SERIES_KEPT)(self.decisions.labels)
        self.webhook_event = lru_cache(SERIES_KEPT)(self.webhook_events.labels)
        self.request = lru_cache(SERIES_KEPT)(self.request_seconds.labels)
        self.refused = self._counter("refused", "Requests that were refused, as there was too much to do.")
        # Read from the database when Prometheus asks: the same from every process.
        self.database_up = self._gauge("database_up", "Whether the database answered; 1 or 0.")
        self.clock_offset = self._gauge(
            "clock_offset_seconds", "How far this machine's clock is ahead of the database's."
        )
        self.open_holds = self._gauge("open_holds", "Open holds.")
        self.settle_lag = self._gauge(
            "settle_lag_seconds", "How long the sweeper has put off the hold or line that is due longest."
        )
        self.unmatched_events = self._gauge("unmatched_events", "Events that wait for an operator.")
        self.unmatched_age = self._gauge(
            "unmatched_event_age_seconds", "How long the oldest of them has waited; 0 without any."
        )
        self.last_event = self._gauge(
            "last_event_timestamp_seconds", "When the newest event was received; 0 when none ever was."
        )
        self.flagged_lines = self._gauge("flagged_lines", "Credit lines that wait for an operator.")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"store_credit_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"store_credit_{name}", text, registry=self.registry, multiprocess_mode="mostrecent")

    def committed(self, works: int, seconds: float) -> None:
        self.batch_size.observe(works)
        self.commit_seconds.observe(seconds)

    def password_throttled(self, why: str) -> None:
        self.passwords_throttled.labels(why).inc()

    def exposition(self) -> tuple[bytes, str]:
        """The metrics of all worker processes, and their content type."""
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


class Telemetry:
    """ASGI middleware: gives each request an id, times it, logs it, and answers for our own faults."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (REQUEST_ID_HEADER, request_id.encode("ascii")),
                ]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            log.exception("fault", request_id=request_id, path=_path(scope))
            if status == 0:
                await internal_error()(scope, receive, observed)
        finally:
            tell(self._metrics, scope, request_id, status, time.perf_counter() - started)


def tell(metrics: Metrics, scope: Scope, request_id: str, status: int, seconds: float) -> None:
    """Count and log a request that is answered."""
    method = scope["method"] if scope["method"] in _METHODS else "other"
    path = _path(scope)
    metrics.request(method, path, status).observe(seconds)
    log.info(
        "request",
        request_id=request_id,
        method=method,
        path=path,
        status=status,
        ms=round(seconds * 1_000, 2),
        **{key: scope["state"][key] for key in ("principal", "reason") if key in scope["state"]},
    )


def request_id_of(scope: Scope) -> str:
    """The caller's request id when it is a plain short one, else one of ours."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID_HEADER and _REQUEST_ID.fullmatch(value):
            return str(value.decode("ascii"))
    return ids.mint("req")


def _path(scope: Scope) -> str:
    """The route's template, never the path itself: bounded in number, and free of identifiers."""
    return str(getattr(scope.get("route"), "path_format", "other"))
