"""Between the scraper and the store: snapshots of many instances go into one transaction, and a store that is busy stops no scrape."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from perf_service.models.errors import StoreError
from perf_service.models.metrics import Snapshot

LINGER_SECONDS: Final = 0.5
"""How long a snapshot waits for company. A commit is forced to the disk: at hundreds of scrapes a second, one each would be its limit."""
_GROUP: Final = 100
"""Snapshots of one transaction; about 10 ms of work."""
MAX_WAITING: Final = 4_000
"""About 40 MB. A store that stays away longer than this lasts costs the oldest ones."""
_RETRY_SECONDS: Final = 1.0

Lost = Callable[[int, StoreError], None]


class Keeps(Protocol):
    """The part of `ports.SnapshotStore` that is needed."""

    async def add_snapshots(self, group: list[Snapshot]) -> int:
        """Store them in one transaction, each moment of an instance once; how many were new. Raises StoreError."""
        ...


class SnapshotBuffer:
    """Takes snapshots at once and stores them shortly after, in the order they came. Bounded: the oldest go first.

    `trouble` is told of every failure, with how many snapshots it has cost so far (0: they are tried again). Snapshots need their times, by
    which the store knows them again: a group is tried again after a failure that may have come after its commit.
    """

    def __init__(
        self,
        store: Keeps,
        *,
        trouble: Lost,
        linger_seconds: float = LINGER_SECONDS,
        max_waiting: int = MAX_WAITING,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self._store = store
        self._trouble = trouble
        self._linger = linger_seconds
        self._retry = retry_seconds
        self._max_waiting = max_waiting
        self._waiting: deque[Snapshot] = deque()
        self._news = asyncio.Event()
        self.lost = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, snapshot: Snapshot) -> None:
        """Take one. Never waits."""
        if len(self._waiting) >= self._max_waiting:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(snapshot)
        self._news.set()

    async def run(self) -> None:
        """Store what comes, until cancelled; then what is left, if the store takes it."""
        try:
            while True:
                await self._news.wait()
                await asyncio.sleep(self._linger)
                if not await self.flush():
                    await asyncio.sleep(self._retry)
        finally:
            await asyncio.shield(self.flush())

    async def flush(self) -> bool:
        """Store what is waiting; False where the store failed and some is still waiting."""
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(_GROUP, len(self._waiting)))]
            try:
                await self._store.add_snapshots(group)
            except asyncio.CancelledError:
                self._waiting.extendleft(reversed(group))  # whether it was written is not known: `run` stores it again as it ends
                raise
            except StoreError as error:
                lost = self.lost
                room = self._max_waiting - len(self._waiting)
                self._waiting.extendleft(reversed(group[len(group) - min(room, len(group)) :]))
                self.lost += max(0, len(group) - room)
                self._trouble(self.lost - lost, error)
                return False
        self._news.clear()
        return True
