"""What the bench serves: the service itself with a route that needs no database, and a control.

The control does what an authorization does in the usual way: one ORM session and one transaction a
request. It does rather less than the service: no settling, no journal of events, no marker rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, ClassVar
from urllib.request import urlopen

from bench_load import BenchFailed
from fastapi import Depends, FastAPI, Request
from sqlalchemy import (
    BigInteger,
    ForeignKey,
    MetaData,
    UniqueConstraint,
    create_engine,
    event,
    make_url,
    select,
)
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from starlette.concurrency import run_in_threadpool

from store_credit import app as service
from store_credit import ids, money, settings
from store_credit.body import parse
from store_credit.callouts.schemas import AuthorizationAnswer, AuthorizationRequest
from store_credit.cli.workers import run
from store_credit.ledger.journal import FIRST_HASH
from store_credit.metadata import Moment
from store_credit.responses import Json
from store_credit.security import Principal, may_call_out

PLAIN_PATH = "/bench/plain"
CONTROL_PATH = "/bench/control"
CONTROL_CONNECTIONS = 15
"""What SQLAlchemy's pool takes by default, overflow included."""
_PATIENCE_SECONDS = 30
_START_SECONDS = 30
_STOP_SECONDS = 15

Caller = Annotated[Principal, Depends(may_call_out)]
Answer = dict[str, object]
Decide = Callable[[AuthorizationRequest, str, str], Awaitable[Answer]]


class Base(DeclarativeBase):
    metadata = MetaData()
    type_annotation_map: ClassVar = {int: BigInteger}


class Line(Base):
    __tablename__ = "control_line"
    id: Mapped[str] = mapped_column(primary_key=True)
    upstream_id: Mapped[str] = mapped_column(unique=True)
    currency: Mapped[str]
    balance: Mapped[int]
    held: Mapped[int]
    seq: Mapped[int]
    head_hash: Mapped[str]


class Hold(Base):
    __tablename__ = "control_hold"
    __table_args__ = (UniqueConstraint("session_id", "upstream_id"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    line_id: Mapped[str] = mapped_column(ForeignKey(Line.id), index=True)
    session_id: Mapped[str]
    upstream_id: Mapped[str]
    amount: Mapped[int]
    state: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(Moment)
    expires_at: Mapped[datetime] = mapped_column(Moment)


class Entry(Base):
    __tablename__ = "control_entry"
    line_id: Mapped[str] = mapped_column(ForeignKey(Line.id), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    held: Mapped[int]
    balance_after: Mapped[int]
    held_after: Mapped[int]
    hold_id: Mapped[str]
    actor: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(Moment)
    previous_hash: Mapped[str]
    hash: Mapped[str]


class Decision(Base):
    __tablename__ = "control_decision"
    id: Mapped[str] = mapped_column(primary_key=True)
    line_id: Mapped[str] = mapped_column(index=True)
    upstream_id: Mapped[str]
    session_id: Mapped[str] = mapped_column(index=True)
    asked: Mapped[str]
    accepted: Mapped[bool]
    hold_id: Mapped[str | None]
    actor: Mapped[str]
    request_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(Moment)


def create_service() -> FastAPI:
    """The real application, and the same request and answer without a database."""
    app = service.create_app()
    _add_first(app, PLAIN_PATH, _plain)
    return app


def create_control() -> FastAPI:
    """The real application, and an authorization in the usual way beside it."""
    app = service.create_app()
    url = settings.load().database_url
    _add_first(
        app, CONTROL_PATH, _control(_on_sqlite(url) if url.startswith("sqlite") else _on_postgresql(url))
    )
    return app


def _add_first(app: FastAPI, path: str, endpoint: Callable[..., Awaitable[Json]]) -> None:
    """Routes are tried in turn: in front, this one has none to wait for."""
    app.add_api_route(path, endpoint, methods=["POST"], response_model=AuthorizationAnswer)
    app.router.routes.insert(0, app.router.routes.pop())


async def _plain(request: Request, caller: Caller) -> Json:
    asked = await parse(request, AuthorizationRequest)
    return Json({"approval": True, "upstreamId": asked.upstream_id, "amount": float(asked.amount)})


def _control(decide: Decide) -> Callable[..., Awaitable[Json]]:
    async def control(request: Request, caller: Caller) -> Json:
        asked = await parse(request, AuthorizationRequest)
        return Json(await decide(asked, caller.name, request.state.request_id))

    return control


def _on_postgresql(url: str) -> Decide:
    engine = create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg"),
        pool_size=CONTROL_CONNECTIONS,
        max_overflow=0,
        pool_timeout=_PATIENCE_SECONDS,
    )
    sessions = async_sessionmaker(engine)

    async def decide(asked: AuthorizationRequest, actor: str, request_id: str) -> Answer:
        async with sessions.begin() as session:
            return await session.run_sync(_authorize, asked, actor, request_id)

    return decide


def _on_sqlite(url: str) -> Decide:
    engine = create_engine(
        url,
        pool_size=CONTROL_CONNECTIONS,
        max_overflow=0,
        pool_timeout=_PATIENCE_SECONDS,
        connect_args={"check_same_thread": False, "isolation_level": None},
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    sessions = sessionmaker(engine)

    def run(asked: AuthorizationRequest, actor: str, request_id: str) -> Answer:
        with sessions.begin() as session:
            return _authorize(session, asked, actor, request_id)

    async def decide(asked: AuthorizationRequest, actor: str, request_id: str) -> Answer:
        return await run_in_threadpool(run, asked, actor, request_id)

    return decide


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute(f"PRAGMA busy_timeout = {_PATIENCE_SECONDS * 1_000}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _authorize(session: Session, asked: AuthorizationRequest, actor: str, request_id: str) -> Answer:
    """Lock the line, look for the session's hold, then write hold, entry, line and decision."""
    now = datetime.now(UTC)
    line = session.scalars(
        select(Line).where(Line.upstream_id == asked.upstream_id).with_for_update()
    ).one()
    key = (Hold.session_id == asked.session_id, Hold.upstream_id == asked.upstream_id)
    earlier = session.scalars(select(Hold).where(*key)).one_or_none()
    amount = money.positive_minor(asked.amount, line.currency)
    approved = earlier is None and amount <= line.balance - line.held
    hold_id = _open_hold(session, line, asked, amount, actor, now) if approved else None
    session.add(
        Decision(
            id=ids.mint("dec"),
            line_id=line.id,
            upstream_id=asked.upstream_id,
            session_id=asked.session_id,
            asked=money.asked_text(asked.amount),
            accepted=approved,
            hold_id=hold_id,
            actor=actor,
            request_id=request_id,
            created_at=now,
        )
    )
    answer: Answer = {"approval": approved, "upstreamId": asked.upstream_id}
    return answer | ({"amount": money.to_number(amount, line.currency)} if approved else {})


def _open_hold(
    session: Session, line: Line, asked: AuthorizationRequest, amount: int, actor: str, now: datetime
) -> str:
    hold = Hold(
        id=ids.mint("hold"),
        line_id=line.id,
        session_id=asked.session_id,
        upstream_id=asked.upstream_id,
        amount=amount,
        state="open",
        created_at=now,
        expires_at=now + timedelta(days=1),
    )
    entry = Entry(
        line_id=line.id,
        seq=line.seq + 1,
        kind="held",
        held=amount,
        balance_after=line.balance,
        held_after=line.held + amount,
        hold_id=hold.id,
        actor=actor,
        created_at=now,
        previous_hash=line.head_hash,
    )
    entry.hash = hashlib.sha256(f"{vars(entry)}".encode()).hexdigest()
    line.seq, line.held, line.head_hash = entry.seq, entry.held_after, entry.hash
    session.add_all([hold, entry])
    return hold.id


def new_line(upstream_id: str, balance: int) -> Line:
    """A credit line of the control."""
    figures = {"balance": balance, "held": 0, "seq": 0, "head_hash": FIRST_HASH}
    return Line(id=ids.mint("cl"), upstream_id=upstream_id, currency="USD", **figures)


@dataclass(frozen=True, slots=True)
class Server:
    """A server process and where it listens."""

    port: int
    pid: int

    def memory_mib(self) -> int | None:
        """What the process has in memory, where the system tells it."""
        with contextlib.suppress(OSError):
            found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
            return round(int(found[1]) / 1024) if found else None
        return None


@contextlib.contextmanager
def serving(factory: str, environment: dict[str, str], folder: Path, workers: int = 1) -> Iterator[Server]:
    """A server process as in production. It is ended by its id. Raises BenchFailed."""
    port, errors = _free_port(), folder / f"{factory}-{workers}.log"
    command = [sys.executable, __file__, factory, str(port), str(workers)]
    with errors.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=file)
    try:
        _wait_until_ready(process, port, errors)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, errors: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return
        time.sleep(0.05)
    raise BenchFailed(f"The server did not start: {errors.read_text('utf-8', 'replace')[-2_000:]}")


if __name__ == "__main__":
    _, _factory, _port, _workers = sys.argv
    run(f"bench_app:{_factory}", "127.0.0.1", int(_port), int(_workers))
