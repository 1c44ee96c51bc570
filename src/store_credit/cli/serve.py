"""`store-credit serve`: uvicorn with the right settings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator

from store_credit import settings
from store_credit.app import create_app
from store_credit.cli.workers import run
from store_credit.settings import InvalidSettings, Settings


def serve(host: str, port: int, workers: int) -> None:
    """Serve until told to stop. Raises InvalidSettings and SchemaMismatch before anything listens."""
    chosen = settings.load()
    if workers > 1 and chosen.database_url.startswith("sqlite"):
        raise InvalidSettings("SQLite has one writer: several workers need PostgreSQL.")
    # uvicorn finishes what is running, and then raises the signal again: to be told to stop is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    asyncio.run(_try_start(chosen))
    with _metrics_of_several_workers() if workers > 1 else contextlib.nullcontext():
        run("store_credit.app:create_app", host, port, workers)


@contextlib.contextmanager
def _metrics_of_several_workers() -> Iterator[None]:
    """The workers' metrics meet in files; the folder is set before they import the client."""
    with tempfile.TemporaryDirectory(prefix="store-credit-metrics-") as folder:
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        yield


async def _try_start(chosen: Settings) -> None:
    """Start and stop once, so that what is wrong is told in one sentence instead of a traceback."""
    app = create_app(chosen)
    async with app.router.lifespan_context(app):
        pass
