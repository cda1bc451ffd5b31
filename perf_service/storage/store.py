"""`SqlStore`: everything the service keeps, in SQLite or PostgreSQL. Behaves as `ports.Store` says, on both alike."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

from perf_service.storage.database import Database, parse_url
from perf_service.storage.documents import DocumentRepository
from perf_service.storage.fleets import FleetRepository
from perf_service.storage.leases import LeaseRepository
from perf_service.storage.listener import Listener
from perf_service.storage.notifier import POLL_BESIDE_LISTENER_SECONDS, POLL_SECONDS, EventNotifier
from perf_service.storage.records import RecordRepository
from perf_service.storage.schema import prepare
from perf_service.storage.snapshot_codec import SnapshotCodec
from perf_service.storage.snapshots import SnapshotRepository
from perf_service.storage.workflows import WorkflowRepository


def random_id(prefix: str) -> str:
    """`prefix-` and 20 random hex digits."""
    return f"{prefix}-{uuid.uuid4().hex[:20]}"


class SqlStore(FleetRepository, SnapshotRepository, DocumentRepository, WorkflowRepository, LeaseRepository, RecordRepository):
    """A store over one SQL database. Safe for several tasks and several processes at once."""

    def __init__(
        self, db: Database, *, clock: Callable[[], float], lease_clock: Callable[[], float] | None, new_id: Callable[[str], str]
    ) -> None:
        self._db = db
        self._clock = clock
        self._lease_clock = lease_clock
        self._new_id = new_id
        self._codec = SnapshotCodec()
        self._stored_shapes = {}
        poll = None if db.in_memory else POLL_SECONDS if db.is_sqlite else POLL_BESIDE_LISTENER_SECONDS
        self._notifier = EventNotifier(self._last_sequences, poll_seconds=poll)
        self._listener = None if db.is_sqlite else Listener(db.url, self._notifier.publish)

    @classmethod
    def open(
        cls,
        url: str = "sqlite://",
        *,
        clock: Callable[[], float] = time.time,
        lease_clock: Callable[[], float] | None = None,
        new_id: Callable[[str], str] = random_id,
        lock_timeout_seconds: float = 5.0,
    ) -> SqlStore:
        """Open a store and bring its schema up to date.

        `sqlite://` (in memory), `sqlite:///relative.db`, `sqlite:////absolute.db`, `postgresql+psycopg://user@host/database`.
        Leases run on `lease_clock`; without one on the database's clock, which for SQLite is this host's (`clock`). Waits at most
        `lock_timeout_seconds` for another process, here and in every later call.

        Raises InvalidArgumentError SETTINGS_INVALID for the URL, StoreError STORE_SCHEMA_NEWER, STORE_READ_ONLY, STORE_UNAVAILABLE.
        """
        db = Database(parse_url(url), lock_timeout_seconds=lock_timeout_seconds)
        try:
            prepare(db)
        except BaseException:
            db.close_now()
            raise
        return cls(db, clock=clock, lease_clock=lease_clock or (clock if db.is_sqlite else None), new_id=new_id)

    async def close(self) -> None:
        """Finish running transactions and close every connection. May be called twice."""
        await self._notifier.close()
        if self._listener is not None:
            await asyncio.to_thread(self._listener.stop)
        await self._db.close()
