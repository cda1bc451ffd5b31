"""What is stored of a fleet's instances in a range of time, as few pages as the answer needs."""

from __future__ import annotations

from collections.abc import Sequence

from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Snapshot
from perf_service.storage.listing import all_instances
from perf_service.storage.ports import Store

_PAGES_READ = 1000
_PAGES_SAMPLED = 240
"""Of a range with more than `_PAGES_READ` scrapes: a page each six minutes of a day, each three hours of a month."""
LOOK_PAGES = 1200
"""Pages that one look at a fleet reads, as long as each replica has `LOOK_PAGES_A_REPLICA`: every one of 20 replicas scraped each 5 s."""
LOOK_PAGES_A_REPLICA = 12
"""One each 25 s of five minutes, of more than 100 replicas. Counters lose nothing by it, and gauges of so many replicas are many."""


class StoredPages:
    """Reads a `Store`. Raises PerfServiceError only."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def members(self, fleet_id: str) -> tuple[Instance, ...]:
        """Every instance of a fleet, by id. Raises FLEET_NOT_FOUND, NOT_ENOUGH_DATA for an empty one."""
        await self._store.get_fleet(fleet_id)
        found = await all_instances(self._store, fleet_id)
        if not found:
            raise InvalidArgumentError(
                f"fleet {fleet_id!r} has no instances: register one first", reason=ErrorReason.NOT_ENOUGH_DATA, field="fleet_id"
            )
        return tuple(sorted(found, key=lambda i: i.instance_id))

    async def series(
        self, instances: Sequence[Instance], start: float, end: float, *, bounded: bool = False
    ) -> dict[str, Sequence[Snapshot]]:
        """Stored snapshots of each instance between two unix times, oldest first; of a long range some, evenly spaced.

        Counters lose nothing by that, and gauges are samples anyway. `bounded`: of several instances at most `LOOK_PAGES` pages, or
        `LOOK_PAGES_A_REPLICA` of each where that is more.
        """
        if bounded and len(instances) > 1:
            most = max(LOOK_PAGES_A_REPLICA, LOOK_PAGES // len(instances))
            return dict(await self._store.snapshots_spread([i.instance_id for i in instances], start, end, most=most))
        return {i.instance_id: await self._pages(i, start, end) for i in instances}

    async def _pages(self, instance: Instance, start: float, end: float) -> Sequence[Snapshot]:
        if end - start <= _PAGES_READ * instance.scrape_interval_seconds:
            return await self._store.snapshots_between(instance.instance_id, start, end, limit=_PAGES_READ)
        step = (end - start) / _PAGES_SAMPLED
        found = [await self._store.snapshot_at(instance.instance_id, start + n * step) for n in range(_PAGES_SAMPLED + 1)]
        pages = {page.collected_at: page for page in found if page is not None and page.collected_at is not None}
        return [pages[at] for at in sorted(pages) if start <= at <= end]
