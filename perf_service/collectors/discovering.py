"""A source that also asks each engine about itself, once for each start of its process."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from perf_service.collectors.discovery import Discovery, discover
from perf_service.collectors.fetch import PageFetcher
from perf_service.collectors.source import MetricsSource
from perf_service.models.errors import CollectError
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Snapshot

_RETRY_SECONDS = 600.0
"""An engine that could not be asked is asked again after this."""
_ASK_SECONDS = 5.0
"""The snapshot is waiting meanwhile."""


class DiscoveringScrape:
    """Completes the snapshots of another source with what the engine tells over its own endpoints.

    What the operator told wins over what the engine tells, which wins over what its metrics page shows. A version, model or config
    that nobody tells stays unknown. Never makes a scrape fail that has succeeded.
    """

    def __init__(self, source: MetricsSource, fetcher: PageFetcher) -> None:
        self._source = source
        self._fetcher = fetcher
        self._known: dict[tuple[str, str], tuple[float | None, float, Discovery]] = {}

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        """The source's snapshot, completed. `now` is unix seconds. Raises CollectError as the source does."""
        snapshot = await self._source.snapshot(instance, now)
        told = await self._discovery(instance, snapshot, now)
        return replace(
            snapshot,
            config=instance.config.over(told.config).over(snapshot.config),
            engine_version=instance.engine_version or told.engine_version or snapshot.engine_version,
            model_name=snapshot.model_name or told.model_name,
        )

    async def _discovery(self, instance: Instance, snapshot: Snapshot, now: float) -> Discovery:
        key, started = (instance.instance_id, instance.endpoint), snapshot.process_start_time
        known = self._known.get(key)
        if known is not None and known[0] == started and (known[2].answered or now - known[1] < _RETRY_SECONDS):
            return known[2]
        told = Discovery()
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                told = await discover(self._fetcher, instance.engine, instance.endpoint)
        except (CollectError, TimeoutError):
            pass  # it served its metrics; asked again later
        self._known[key] = (started, now, told)
        return told
