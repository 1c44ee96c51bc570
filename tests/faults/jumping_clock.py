"""The service on a clock that a test sets while it runs: a file tells how many seconds it is ahead."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fastapi import FastAPI

from store_credit import app
from tests.server import Server

_FILE = "CLOCK_AHEAD"
_PROJECT = Path(__file__).parents[2]


def create_app() -> FastAPI:
    ahead = Path(os.environ[_FILE])

    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=float(ahead.read_text()))

    return app.create_app(clock=clock)


class ServerOnJumpingClock(Server):
    def __init__(self, database_url: str, folder: Path, **settings: str) -> None:
        super().__init__(database_url, folder, **settings)
        self._ahead = folder / "ahead"
        self.environment |= {
            _FILE: str(self._ahead),
            "PYTHONPATH": f"{self.environment['PYTHONPATH']}{os.pathsep}{_PROJECT}",
        }
        self.jump(timedelta())

    def jump(self, ahead: timedelta) -> None:
        """Let the clock be this much ahead of the machine's, from now on."""
        new = self._ahead.with_suffix(".new")
        new.write_text(str(ahead.total_seconds()))
        new.replace(self._ahead)

    def _command_line(self, arguments: Sequence[str]) -> list[str]:
        served = ["--factory", f"{__name__}:create_app", "--no-access-log", "--log-level", "warning"]
        return [sys.executable, "-m", "uvicorn", *served, *arguments]
