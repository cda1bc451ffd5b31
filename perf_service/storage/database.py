"""One database: connections, threads and transactions. `await db.read(fn)` and `await db.write(fn)` each run `fn(connection)` in one.

Writers of one process queue in one thread (SQLite has one writer anyway, and its own waiting is neither fair nor prompt); other
processes are waited for with a bound, and so is one's turn: while the store is locked or gone, callers are told so instead of piling up.
A cancelled caller does not cancel its transaction: it is committed or rolled back as a whole.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.pool import StaticPool

from perf_service.models.errors import ErrorReason, InvalidArgumentError, StoreError
from perf_service.storage.errors import TRANSIENT_SQLSTATES, describe, sqlstate, translate

T = TypeVar("T")

_EXAMPLES: Final = "sqlite:///perf-service.db, sqlite:// (in memory) or postgresql+psycopg://user@host/database"
_LEAST_TURN_SECONDS: Final = 5.0  # a loaded host may keep a sound store busy for seconds
_ATTEMPTS: Final = 3  # of a transaction that PostgreSQL gave up for another's sake


def parse_url(text: str) -> URL:
    """The URL of a supported store. Raises InvalidArgumentError SETTINGS_INVALID."""
    try:
        url = make_url(text)
    except ArgumentError as error:
        # The text may hold a password: it is not repeated.
        raise InvalidArgumentError(
            f"the database URL cannot be read; write for example {_EXAMPLES}", field="database_url", reason=ErrorReason.SETTINGS_INVALID
        ) from error
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise InvalidArgumentError(
            f"the database kind {url.drivername!r} is not supported; write for example {_EXAMPLES}",
            field="database_url",
            reason=ErrorReason.SETTINGS_INVALID,
        )
    if url.get_backend_name() == "postgresql" and importlib.util.find_spec("psycopg") is None:
        raise InvalidArgumentError(
            "PostgreSQL needs the psycopg driver, which is not installed: pip install 'perf-service[postgres]'",
            field="database_url",
            reason=ErrorReason.SETTINGS_INVALID,
        )
    return url


class Database:
    """An engine with its threads. `lock_timeout_seconds` bounds the wait for another process."""

    def __init__(self, url: URL, *, lock_timeout_seconds: float = 5.0) -> None:
        self.url = url
        self.lock_timeout_seconds = lock_timeout_seconds
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.in_memory = self.is_sqlite and (not url.database or url.database == ":memory:")
        self.engine = self._create_engine()
        self._writer = ThreadPoolExecutor(1 if self.is_sqlite else 4, "store-write")
        # An in-memory SQLite database is one connection: its readers queue behind the writer.
        self._reader = self._writer if self.in_memory or not self.is_sqlite else ThreadPoolExecutor(2, "store-read")
        self._closed = False

    def _create_engine(self) -> Engine:
        if not self.is_sqlite:
            engine = create_engine(self.url, pool_size=4, max_overflow=0, pool_pre_ping=True, connect_args={"connect_timeout": 5})

            @event.listens_for(engine, "begin")
            def _bound_waits(connection: Connection) -> None:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(self.lock_timeout_seconds * 1000)}")

            return engine
        arguments: dict[str, Any] = {"check_same_thread": False, "timeout": self.lock_timeout_seconds}
        engine = create_engine(self.url, connect_args=arguments, **({"poolclass": StaticPool} if self.in_memory else {}))

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _record: object) -> None:
            # The driver's own implicit transactions are switched off: `_begin` says BEGIN itself, and as what.
            connection.isolation_level = None
            connection.execute("PRAGMA foreign_keys = ON")
            # WAL with synchronous=NORMAL may lose the last commits in a power cut, and a rollout must not forget that it touched a target.
            connection.execute("PRAGMA synchronous = FULL")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            writing = connection.get_execution_options().get("writing", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

        return engine

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a read transaction. Raises StoreError."""
        return await self._submit(self._reader, work, writing=False)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that may write, committed when it returns, rolled back when it raises. Raises StoreError."""
        return await self._submit(self._writer, work, writing=True)

    async def _submit(self, executor: ThreadPoolExecutor, work: Callable[[Connection], T], *, writing: bool) -> T:
        if self._closed:
            raise StoreError(ErrorReason.STORE_UNAVAILABLE, "the store has been closed: the service is shutting down")
        asked = time.monotonic()
        limit = max(_LEAST_TURN_SECONDS, 2.0 * self.lock_timeout_seconds)

        def in_turn() -> T:
            waited = time.monotonic() - asked
            if waited > limit:
                raise StoreError(
                    ErrorReason.STORE_UNAVAILABLE,
                    f"{describe(self.url)} was busy with earlier calls for {waited:.0f} s, so this one was not begun. Try again; if it "
                    "lasts, look for what locks or slows down the store.",
                    {"store": describe(self.url), "waited_seconds": f"{waited:.1f}"},
                    retry_after_seconds=1.0,
                )
            return self.transact(work, writing=writing)

        return await asyncio.get_running_loop().run_in_executor(executor, in_turn)

    def transact(self, work: Callable[[Connection], T], *, writing: bool) -> T:
        """The same, here and now, for opening the store and for tools. `work` may run again after a deadlock: it has no other effects."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self.engine.connect().execution_options(writing=writing) as connection, connection.begin():
                    return work(connection)
            except IntegrityError:
                # Two transactions looked, saw nothing, and inserted: the loser's second look sees the winner's row. On SQLite writers
                # take turns from their BEGIN on.
                if self.is_sqlite or attempt > 1:
                    raise
            except DBAPIError as error:
                if sqlstate(error) in TRANSIENT_SQLSTATES - {"55P03"} and attempt < _ATTEMPTS:
                    continue
                raise translate(error, self.url, waited_seconds=self.lock_timeout_seconds) from error
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Wait for running transactions, then close every connection. May be called twice."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """The same without an event loop."""
        self._closed = True
        self._writer.shutdown(wait=True)
        self._reader.shutdown(wait=True)
        self.engine.dispose()
