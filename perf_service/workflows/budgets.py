"""Error budgets from stored snapshots: reads as few of them as the answer needs, however many there are.

Counters are cumulative, so a horizon needs one page at its start and one at its end, as long as the process in between is the same.
Where its start time differs, the page before that start is read too: one more for each restart. Engines whose pages tell no start
time are looked at every six hours, since a restart shows there only as a counter that fell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, Protocol

from perf_service.analysis.error_budget import HORIZONS, error_budget, has_budget
from perf_service.collectors.window import START_TIME_TOLERANCE_SECONDS, is_reset
from perf_service.models.analysis import ErrorBudget, SLOStatus
from perf_service.models.metrics import Snapshot
from perf_service.models.slo import SLOTarget

BLIND_SECONDS: Final = 6 * 3600.0
"""Without a start time a restart is missed if its counters overtake the earlier ones within this long."""
RESET_RESOLUTION_SECONDS: Final = 60.0
"""How near the pages around such a restart are looked for."""
REUSE_SECONDS: Final = 60.0
"""A stream that looks every few seconds need not read 30 days each time; the shortest burn window is 5 minutes."""
MAX_RESTARTS: Final = 200
_CONCURRENCY: Final = 8
_KEPT: Final = 256


class SnapshotsByTime(Protocol):
    """What of the store is needed."""

    async def snapshot_at(self, instance_id: str, at: float) -> Snapshot | None: ...


class Budgets:
    """The error budgets of instances and fleets. Belongs to one event loop."""

    def __init__(self, store: SnapshotsByTime) -> None:
        self._store = store
        self._kept: dict[tuple[object, ...], tuple[float, dict[SLOTarget, ErrorBudget | None]]] = {}

    async def added(
        self, statuses: Sequence[SLOStatus], instance_ids: Sequence[str], now: float, *, max_age_seconds: float = 0.0
    ) -> tuple[SLOStatus, ...]:
        """The statuses with their budgets up to `now` (unix seconds). With `max_age_seconds` an answer of that age is good enough."""
        targets = tuple(dict.fromkeys(s.target for s in statuses if has_budget(s.target)))
        if not targets or not instance_ids:
            return tuple(statuses)
        key = (tuple(instance_ids), targets)
        at, budgets = self._kept.get(key, (float("-inf"), {}))
        if now - at > max_age_seconds or now < at:
            histories = await self._histories(instance_ids, now)
            budgets = await asyncio.to_thread(lambda: {target: error_budget(target, histories, now) for target in targets})
            self._keep(key, now, budgets)
        return tuple(replace(s, budget=budgets.get(s.target)) for s in statuses)

    def _keep(self, key: tuple[object, ...], now: float, budgets: dict[SLOTarget, ErrorBudget | None]) -> None:
        self._kept.pop(key, None)
        self._kept[key] = (now, budgets)
        while len(self._kept) > _KEPT:
            self._kept.pop(next(iter(self._kept)))

    async def _histories(self, instance_ids: Sequence[str], now: float) -> dict[str, list[Snapshot]]:
        places = asyncio.Semaphore(_CONCURRENCY)

        async def one(instance_id: str) -> list[Snapshot]:
            async with places:
                return await history(self._store, instance_id, now)

        return dict(zip(instance_ids, await asyncio.gather(*map(one, instance_ids)), strict=True))


async def history(store: SnapshotsByTime, instance_id: str, now: float) -> list[Snapshot]:
    """The pages of one instance that budgets up to `now` need, oldest first."""
    last = await store.snapshot_at(instance_id, now)
    if last is None or last.collected_at is None:
        return []
    found: dict[float, Snapshot] = {last.collected_at: last}
    for horizon in HORIZONS:
        page = await store.snapshot_at(instance_id, now - horizon)
        if page is not None and page.collected_at is not None:
            found[page.collected_at] = page
    search = _Search(store, instance_id, found)
    times = sorted(found)
    for start, end in pairwise(times):
        await search.between(found[start], found[end], start, end)
    return [found[at] for at in sorted(found)]


class _Search:
    """Looks for the pages around restarts between two pages."""

    def __init__(self, store: SnapshotsByTime, instance_id: str, found: dict[float, Snapshot]) -> None:
        self._store = store
        self._instance_id = instance_id
        self._found = found
        self._left = MAX_RESTARTS

    async def between(self, earlier: Snapshot, later: Snapshot, start: float, end: float) -> None:
        """Find what is needed between two pages, which are the newest at `start` and at `end`."""
        if self._left <= 0 or _same_life(earlier, later):
            return
        begun = later.process_start_time
        if begun is not None and start < begun < end:
            # The later page's totals tell its whole life; what remains to be found lies before it.
            middle, end = await self._at(begun), begun
            if middle is not None and middle is not earlier:
                self._left -= 1
                await self.between(earlier, middle, start, middle.collected_at or end)
            return
        is_seen = is_reset(earlier, later)
        if end - start <= (RESET_RESOLUTION_SECONDS if is_seen else BLIND_SECONDS):
            return
        self._left -= 1
        half = (start + end) / 2
        middle = await self._at(half)
        if middle is None:
            return
        await self.between(earlier, middle, start, half)
        await self.between(middle, later, half, end)

    async def _at(self, at: float) -> Snapshot | None:
        page = await self._store.snapshot_at(self._instance_id, at)
        if page is None or page.collected_at is None:
            return None
        return self._found.setdefault(page.collected_at, page)


def _same_life(earlier: Snapshot, later: Snapshot) -> bool:
    was, now = earlier.process_start_time, later.process_start_time
    return earlier is later or (was is not None and now is not None and abs(now - was) <= START_TIME_TOLERANCE_SECONDS)
