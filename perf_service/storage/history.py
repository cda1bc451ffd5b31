"""How long measurements are kept, and how densely. Run now and then in the background."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Tidies(Protocol):
    """The part of `ports.SnapshotStore` that is needed."""

    async def prune_snapshots(self, *, before: float) -> int:
        """Delete every snapshot older than `before`; the number of them."""
        ...

    async def thin_snapshots(self, *, before: float, keep_every_seconds: float, after: float | None = None) -> int:
        """Of the snapshots between `after` and `before` keep one per interval; the number deleted."""
        ...


@dataclass(frozen=True, slots=True)
class HistoryPolicy:
    """Ages and intervals in seconds.

    Every snapshot is kept until `raw_seconds` old, then one per `thinned_interval_seconds`, from `thinned_seconds` on (never before
    `raw_seconds`) one per `coarse_interval_seconds`, and none from `retention_seconds` on.
    """

    raw_seconds: float
    thinned_interval_seconds: float
    thinned_seconds: float
    coarse_interval_seconds: float
    retention_seconds: float


@dataclass(frozen=True, slots=True)
class Tidied:
    """What was deleted."""

    thinned: int
    pruned: int


class History:
    """Keeps to a policy. Remembers how far it came: what was thinned once is not looked at again."""

    def __init__(self, store: Tidies, policy: HistoryPolicy) -> None:
        self._store = store
        self._policy = policy
        self._coarse_until: float | None = None
        self._thinned_until: float | None = None
        self._imported_from = math.inf

    def look_back(self, to: float) -> None:
        """Snapshots as old as `to` (unix seconds) were imported: the next `tidy` begins there again."""
        self._imported_from = min(self._imported_from, to)

    async def tidy(self, now: float) -> Tidied:
        """Delete what is due at `now` (unix seconds). Raises StoreError; the next call goes on where this one stopped."""
        policy = self._policy
        # Taken at once: what is imported while the store is at work is for the next time.
        imported_from, self._imported_from = self._imported_from, math.inf
        if self._coarse_until is not None:
            self._coarse_until = min(self._coarse_until, imported_from)
        if self._thinned_until is not None:
            self._thinned_until = min(self._thinned_until, imported_from)
        pruned = await self._store.prune_snapshots(before=now - policy.retention_seconds)
        thinned = now - policy.raw_seconds
        coarse = min(thinned, now - policy.thinned_seconds)  # what is to be kept whole is not thinned at all
        deleted = await self._store.thin_snapshots(
            before=coarse, keep_every_seconds=policy.coarse_interval_seconds, after=self._coarse_until
        )
        self._coarse_until = coarse
        if thinned > coarse:
            deleted += await self._store.thin_snapshots(
                before=thinned,
                keep_every_seconds=policy.thinned_interval_seconds,
                after=coarse if self._thinned_until is None else max(coarse, self._thinned_until),
            )
            self._thinned_until = thinned
        return Tidied(deleted, pruned)
