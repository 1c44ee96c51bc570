"""The PostgreSQL server that the faults are made on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.postgresql import Postgresql


@pytest.fixture(scope="session")
def own_postgresql() -> Iterator[Postgresql]:
    folder = Path(tempfile.mkdtemp(prefix="store-credit-faults-"))
    server = Postgresql(folder)
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_url(own_postgresql: Postgresql) -> str:
    """A fresh database with the newest schema on the tests' own server, which runs."""
    return own_postgresql.new_database()
