"""Engines and transactions; the one place that knows how SQLite and PostgreSQL differ in running them.

All SQL of the service is written as plain functions of a `Connection`. On PostgreSQL they run over
asyncpg inside the event loop; on SQLite over the standard driver in threads of their own: one for the
only writer, some for readers. Either way a transaction costs the loop one hand-over, not one a statement.
Brief writes to SQLite run in the event loop; only COMMIT, and waiting for another process, are left to the
writer's thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, Engine, RootTransaction, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from store_credit import direct
from store_credit.direct import Fetch, OwnConnection
from store_credit.failures import CommitFailed, is_busy

P = ParamSpec("P")
T = TypeVar("T")

CONNECTIONS_MIN = 3
READERS = 4
BUSY_TIMEOUT_MS = 2_000
CACHE_KIB = 8 * 1024
"""Of the one that writes to SQLite: room for the inner pages of the indexes of some millions of rows."""
CHECKPOINT_PAGES = 8_000
"""After which SQLite copies its write-ahead log into the file. Over many lines, few changes share a page:
at the default of 1,000 it would do so after every few dozen requests."""
POOL_TIMEOUT_SECONDS = 2
LOCK_TIMEOUT_MS = 300
"""Transactions of ours hold a row for far less; for whoever holds it longer, nobody else shall wait."""
STATEMENT_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_SECONDS = 3
COMMAND_TIMEOUT_SECONDS = 12

_HAS_ANSWERED = "has answered"
"""Whether a connection of PostgreSQL's has, since it was taken from the pool."""


class InvalidUrl(ValueError):
    """The database URL is of no use. The message is fit to show and holds no password."""


class Database(Protocol):
    """Runs functions of a `Connection` in transactions."""

    dialect: str

    async def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run the function in a read transaction of its own."""

    async def write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run the function in a transaction and commit it. Raises CommitFailed for COMMIT alone.

        After a COMMIT that succeeded, nothing is raised any more. No result of a statement may outlive the
        function unread.
        """

    async def write_briefly(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `write`, for what takes milliseconds: on SQLite the event loop itself runs it."""

    async def at_once(self, function: Callable[[Fetch], Awaitable[T]]) -> T:
        """Run a function whose statements commit by themselves, one after the other. Of PostgreSQL only.

        Raises what the driver raises; see `failures`.
        """

    async def close(self) -> None:
        """Give all connections back."""


def connect(
    url: str,
    *,
    connections: int = 5,
    command_timeout_seconds: float | None = COMMAND_TIMEOUT_SECONDS,
) -> Database:
    """The database behind a URL; `postgresql://` selects the asynchronous driver by itself.

    It takes three `connections` to PostgreSQL at least. Raises InvalidUrl.
    """
    if connections < CONNECTIONS_MIN:
        raise ValueError(f"{connections} connections are too few")
    try:
        parsed = make_url(url)
    except Exception:
        raise InvalidUrl("it can not be read as a database URL") from None
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        url_with_driver = parsed.set(drivername="postgresql+asyncpg", query=_driver_query(parsed.query))
        return PostgresqlDatabase(url_with_driver, connections, command_timeout_seconds)
    if backend != "sqlite":
        raise InvalidUrl(f"{backend!r} is neither sqlite nor postgresql")
    if parsed.database in (None, "", ":memory:"):
        raise InvalidUrl("SQLite needs a file: a database in memory would lose what it promised")
    return SqliteDatabase(parsed.set(drivername="sqlite"))


def _driver_query(query: Mapping[str, Any]) -> dict[str, Any]:
    """PostgreSQL's own `sslmode` under the name that the driver knows."""
    return {"ssl" if name == "sslmode" else name: value for name, value in query.items()}


def _transact(connection: Connection, function: Callable[[Connection], T]) -> T:
    with connection.begin() as transaction:
        result = function(connection)
        _commit(transaction, result)
    return result


def _commit(transaction: RootTransaction, result: object) -> None:
    try:
        transaction.commit()
    except Exception as error:
        # The connection may still be in the transaction, and the engine would not roll it back.
        transaction.connection.invalidate()
        raise CommitFailed(result) from error


class PostgresqlDatabase:
    """PostgreSQL over asyncpg. Several processes and machines may use one database at once."""

    dialect = "postgresql"

    def __init__(self, url: Any, connections: int, command_timeout_seconds: float | None) -> None:
        # A plan that is made once keeps the sizes that the tables had then.
        self._engine = _postgresql_engine(
            url, connections - 1, command_timeout_seconds, plan_cache_mode="force_custom_plan"
        )
        # What commits at once has a connection of its own. It runs few statements, again and again, that
        # name their rows: they are planned once, and look rows up by an index, also while PostgreSQL knows
        # nothing of its tables' sizes yet.
        self._at_once = OwnConnection(
            _postgresql_engine(
                url,
                1,
                command_timeout_seconds,
                plan_cache_mode="force_generic_plan",
                enable_seqscan="off",
                enable_hashjoin="off",
                enable_mergejoin="off",
            )
        )
        # One snapshot for all statements of a read, and never the last connection: that one writes.
        self._snapshots = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._readers = asyncio.Semaphore(connections - 2)

    async def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        async with asyncio.timeout(POOL_TIMEOUT_SECONDS):
            await self._readers.acquire()
        try:
            return await self._read(lambda c: function(c, *args, **kwargs), tries=2)
        finally:
            self._readers.release()

    async def _read(self, function: Callable[[Connection], T], *, tries: int) -> T:
        async with self._snapshots.connect() as connection:
            info = connection.sync_connection.info  # type: ignore[union-attr]
            info[_HAS_ANSWERED] = False
            try:
                return await connection.run_sync(function)
            except DBAPIError as error:
                # The server had ended it while nobody used it. What was answered may have been told on.
                if tries == 1 or info[_HAS_ANSWERED] or not error.connection_invalidated:
                    raise
        return await self._read(function, tries=tries - 1)

    async def write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        async with self._engine.connect() as connection:
            return await connection.run_sync(_transact, lambda c: function(c, *args, **kwargs))

    async def write_briefly(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self.write(function, *args, **kwargs)

    async def at_once(self, function: Callable[[Fetch], Awaitable[T]]) -> T:
        return await self._at_once.use(function)

    async def close(self) -> None:
        await self._at_once.close()
        await self._engine.dispose()


def _postgresql_engine(
    url: Any, connections: int, command_timeout_seconds: float | None, **planning: str
) -> AsyncEngine:
    engine = create_async_engine(
        url,
        # Errors are logged, and the values of statements are nobody's business.
        hide_parameters=True,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        connect_args={
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "command_timeout": command_timeout_seconds,
            "server_settings": {
                "application_name": "store-credit",
                # Rows are locked first and read after, or looked at again when they are: a stricter default
                # would only cost retries.
                "default_transaction_isolation": "read committed",
                "lock_timeout": str(LOCK_TIMEOUT_MS),
                "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                "idle_in_transaction_session_timeout": str(STATEMENT_TIMEOUT_MS),
                **planning,
            },
        },
    )

    @event.listens_for(engine.sync_engine, "after_cursor_execute")
    def _answered(connection: Connection, *_: object) -> None:
        connection.info[_HAS_ANSWERED] = True

    return engine


class SqliteDatabase:
    """SQLite in a file: one writer, and readers that see the last committed state (WAL)."""

    dialect = "sqlite"

    def __init__(self, url: Any) -> None:
        self._writer = _sqlite_engine(url, begin="BEGIN IMMEDIATE", connections=1, read_only=False)
        self._reader = _sqlite_engine(url, begin="BEGIN", connections=READERS, read_only=True)
        self._alone = asyncio.Lock()
        self._writing: Connection | None = None
        self._writer_thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")
        self._reader_threads = ThreadPoolExecutor(READERS, thread_name_prefix="sqlite-reader")

    async def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        def run() -> T:
            with self._reader.connect() as connection:
                return function(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._reader_threads, run)

    async def write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        async with self._alone:
            return await self._in_writer_thread(self._transact, lambda c: function(c, *args, **kwargs))

    async def write_briefly(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        async with self._alone:
            # Whoever was just answered goes on before, and not after all that this does.
            await asyncio.sleep(0)
            try:
                transaction = self._begin_unless_locked()
                if transaction is None:
                    return await self._in_writer_thread(
                        self._transact, lambda c: function(c, *args, **kwargs)
                    )
                result = function(transaction.connection, *args, **kwargs)
                await self._in_writer_thread(_commit, transaction, result)
            except BaseException:
                self._give_up()
                raise
            return result

    def _transact(self, function: Callable[[Connection], T]) -> T:
        # It is kept: to take a connection and to give it back takes as long as some works do.
        self._writing = self._writing or self._writer.connect()
        try:
            return _transact(self._writing, function)
        except BaseException:
            self._give_up()
            raise

    def _begin_unless_locked(self) -> RootTransaction | None:
        """A transaction, unless there is no connection yet, or another process writes just now.

        How long a lock is waited for is the connection's, also when it comes back from the pool.
        """
        if self._writing is None:
            return None
        direct.run(self._writing, "PRAGMA busy_timeout = 0")
        try:
            return self._writing.begin()
        except sqlite3.Error as error:
            if not is_busy(error):
                raise
            return None
        finally:
            direct.run(self._writing, f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")

    def _give_up(self) -> None:
        given_up, self._writing = self._writing, None
        if given_up is not None:
            given_up.close()

    async def _in_writer_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it in the writer's thread, to its end: before that nobody else may use the connection.

        A caller that is cancelled waits for that too.
        """
        run = partial(function, *args, **kwargs)
        running = asyncio.get_running_loop().run_in_executor(self._writer_thread, run)
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            running.exception()  # Or asyncio complains that nobody asked for it.
            raise cancelled
        return running.result()

    async def at_once(self, function: Callable[[Fetch], Awaitable[T]]) -> T:
        raise NotImplementedError("SQLite has one writer, and no trips to save")

    async def close(self) -> None:
        async with self._alone:
            await asyncio.to_thread(self._writer_thread.shutdown)
            self._give_up()
        self._writer.dispose()
        await asyncio.to_thread(self._reader_threads.shutdown)
        self._reader.dispose()


def _sqlite_engine(url: Any, *, begin: str, connections: int, read_only: bool) -> Engine:
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        connect_args={"check_same_thread": False, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        # The waiting time comes first: to switch to WAL needs a lock that another process may hold.
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # What a statement might have to undo would go to a file elsewhere, on a disk that may be full.
        connection.execute("PRAGMA temp_store = MEMORY")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        direct.run(connection, begin)

    return engine
