"""A direct scrape for use without a server: its connections are opened at first use and closed when nothing runs."""

from __future__ import annotations

from perf_service.collectors.fetch import Fetcher
from perf_service.collectors.source import DirectScrape
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Snapshot


class OnDemandScrape:
    """A `MetricsSource` that needs no opening, and works again after it was closed."""

    def __init__(self) -> None:
        self._fetcher: Fetcher | None = None
        self._scrape: DirectScrape | None = None

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        """As `DirectScrape.snapshot`."""
        if self._scrape is None:
            self._fetcher = Fetcher()
            self._scrape = DirectScrape(self._fetcher)
        return await self._scrape.snapshot(instance, now)

    async def aclose(self) -> None:
        """Close the connections."""
        fetcher, self._fetcher, self._scrape = self._fetcher, None, None
        if fetcher is not None:
            await fetcher.aclose()
