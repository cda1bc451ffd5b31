"""The past of an instance into the store, from a Prometheus that has been scraping it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from perf_service.models.errors import CollectError, ErrorReason, InvalidArgumentError
from perf_service.models.fleet import Instance
from perf_service.models.metrics import DataIssue, IssueCode, IssueLevel, Snapshot
from perf_service.storage.ports import Store

_BATCH = 100


class HistorySource(Protocol):
    """Something that has the past of an instance."""

    def history(self, instance: Instance, start: float, end: float) -> AsyncIterator[Sequence[Snapshot]]:
        """Its snapshots between two unix times, oldest first, in groups. Raises CollectError, InvalidArgumentError."""
        ...


@dataclass(frozen=True, slots=True)
class Backfill:
    """What an import of history brought."""

    imported: int
    already_stored: int
    first: Snapshot
    last: Snapshot


class Backfilling:
    """The use case over a `Store` that keeps snapshots for `retention_seconds`. `imported` is told the oldest time of each batch kept."""

    def __init__(
        self,
        store: Store,
        history: HistorySource,
        *,
        clock: Callable[[], float],
        retention_seconds: float = math.inf,
        imported: Callable[[float], None] = lambda at: None,
    ) -> None:
        self._store = store
        self._past = history
        self._clock = clock
        self._retention = retention_seconds
        self._told_import = imported

    async def backfill(self, instance_id: str, start: float, end: float) -> Backfill:
        """Keep what a Prometheus has of an instance between two unix times. Repeating it adds nothing.

        What is older than the store keeps is left out, and the quality of `last` says so. Raises INSTANCE_NOT_FOUND; INVALID_ARGUMENT for a
        range that is empty, too long, or older than that as a whole; CollectError SERIES_NOT_FOUND where the
        instance has no Prometheus or that has nothing in the range, and as `Collecting.collect`.
        """
        instance = await self._store.get_instance(instance_id)
        if instance.prometheus is None:
            raise CollectError(
                ErrorReason.SERIES_NOT_FOUND,
                f"instance {instance_id!r} is not registered with a Prometheus, so there is no history to read: register it with one, or "
                "import saved pages",
                {"instance_id": instance_id},
            )
        issues: dict[DataIssue, None] = {}
        kept_from = self._kept_from(end)
        if start < kept_from:
            left_out = (
                f"The range begins before what is kept, {self._retention / 3600:g} h (setting retention_hours): the older part is left out."
            )
            issues[DataIssue(IssueCode.TRUNCATED, IssueLevel.WARNING, left_out)] = None
            start = kept_from
        imported = total = 0
        ends: list[Snapshot] = []
        async for group in self._past.history(instance, start, end):
            imported += await self._keep_new(group, start)
            total += len(group)
            issues.update(dict.fromkeys(group[-1].quality.issues))
            ends = [*ends[:1], group[0], group[-1]]
        first, last = ends[0], ends[-1]
        return Backfill(imported, total - imported, first, replace(last, quality=last.quality.plus(*issues)))

    def _kept_from(self, end: float) -> float:
        """Unix seconds from which on snapshots are kept. Raises InvalidArgumentError where that is not before `end`."""
        kept_from = self._clock() - self._retention
        if end <= kept_from:
            raise InvalidArgumentError(
                f"the whole range is older than what is kept, {self._retention / 3600:g} h, and would be deleted at once: take a later "
                "one, or raise the server's retention_hours",
                field="range.end",
            )
        return kept_from

    async def _keep_new(self, group: Sequence[Snapshot], start: float) -> int:
        """Store what of a group is not stored yet; how many that were."""
        added = 0
        for index in range(0, len(group), _BATCH):
            new = await self._store.add_snapshots(group[index : index + _BATCH])
            if new:
                self._told_import(group[index].collected_at or start)
            added += new
        return added
