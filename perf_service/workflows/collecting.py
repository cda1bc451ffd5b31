"""Pages into the store: scraped now, or fetched by somebody else. The past that a Prometheus has: `backfilling`."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from perf_service.collectors.dialects import detect_engine
from perf_service.collectors.saved import unpacked
from perf_service.collectors.source import ImportedText, MetricsSource
from perf_service.models.errors import CollectError, ErrorReason, NotFoundError
from perf_service.models.fleet import DEFAULT_PORTS, Instance
from perf_service.models.metrics import DataIssue, Engine, IssueCode, IssueLevel, Snapshot
from perf_service.storage.ports import Store

_HOST_PORT = re.compile(r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+):\d{1,5}$")


def implied_instance(instance_id: str, engine: Engine) -> Instance:
    """An instance that was never registered: an id like host:port is its endpoint, any other is this host at the engine's own port."""
    endpoint = instance_id if _HOST_PORT.match(instance_id) or "://" in instance_id else f"localhost:{DEFAULT_PORTS[engine]}"
    return Instance(instance_id, engine, endpoint if "://" in endpoint else f"http://{endpoint}")


class ImportOutcome(StrEnum):
    """What became of a page that was handed in."""

    STORED = "stored"
    ALREADY_STORED = "already_stored"  # a page of that instance and moment is kept, and stays
    TOO_OLD = "too_old"  # older than anything that is kept


@dataclass(frozen=True, slots=True)
class ImportedPage:
    """The snapshot of a page that was handed in: what is stored of its moment, or what was read of one that is too old."""

    snapshot: Snapshot
    outcome: ImportOutcome


class Collecting:
    """Use cases over a `Store` that keeps snapshots for `retention_seconds`, and a source.

    `imported` is told the time of a page that was kept for a moment of the past.

    Raises PerfServiceError only.
    """

    def __init__(
        self,
        store: Store,
        source: MetricsSource,
        *,
        clock: Callable[[], float],
        retention_seconds: float = math.inf,
        imported: Callable[[float], None] = lambda at: None,
    ) -> None:
        self._store = store
        self._source = source
        self._clock = clock
        self._retention = retention_seconds
        self._told_import = imported
        self._imported = ImportedText()

    async def collect(self, instance_id: str) -> Snapshot:
        """Scrape a registered instance now and keep the snapshot. Raises INSTANCE_NOT_FOUND, CollectError."""
        return await self.collect_from(await self._store.get_instance(instance_id))

    async def collect_from(self, instance: Instance) -> Snapshot:
        """Scrape this instance now and keep the snapshot. Raises CollectError."""
        return await self._store.add_snapshot(await self._source.snapshot(instance, self._clock()))

    async def collect_all(self, instances: Sequence[Instance]) -> None:
        """One page of each instance; an error only where none answers."""
        results = await asyncio.gather(*(self.collect_from(i) for i in instances), return_exceptions=True)
        failed = [r for r in results if isinstance(r, BaseException)]
        for error in failed:
            if not isinstance(error, CollectError) or len(failed) == len(results):
                raise error

    async def import_page(
        self, instance_id: str, page: bytes, *, engine: Engine | None = None, collected_at: float | None = None
    ) -> ImportedPage:
        """Keep the snapshot of a page that somebody else fetched, plain or gzip, unless it is there already or too old to be kept.

        Of an instance that is not registered the engine is told or read off the page. `collected_at` in unix seconds; None: now.
        Raises CollectError (BODY_*, ENGINE_UNKNOWN, ENGINE_MISMATCH).
        """
        page = unpacked(page, "The imported page")
        try:
            instance = await self._store.get_instance(instance_id)
        except NotFoundError:
            found = engine or detect_engine(page)
            if found is None:
                raise CollectError(
                    ErrorReason.ENGINE_UNKNOWN,
                    f"the page imported for {instance_id!r} has no metric of vLLM, SGLang or TGI: say which engine it is of",
                    {"instance_id": instance_id},
                ) from None
            instance = implied_instance(instance_id, found)
        if engine is not None and engine is not instance.engine:
            raise CollectError(
                ErrorReason.ENGINE_MISMATCH,
                f"instance {instance_id!r} is registered as {instance.engine.value}, the page was told to be of {engine.value}",
                {"instance_id": instance_id},
            )
        now = self._clock()
        time = now if collected_at is None else collected_at
        snapshot = self._imported.read(instance, page, time)
        if time <= now - self._retention:
            told = f"It is older than what is kept, {self._retention / 3600:g} h (setting retention_hours), and was not stored."
            issue = DataIssue(IssueCode.TRUNCATED, IssueLevel.WARNING, told)
            return ImportedPage(replace(snapshot, quality=snapshot.quality.plus(issue)), ImportOutcome.TOO_OLD)
        is_new = await self._store.add_snapshots([snapshot]) > 0
        if is_new:
            self._told_import(time)
        stored = await self._store.add_snapshot(snapshot)  # with its id; of a moment that is known, what is known of it
        return ImportedPage(stored, ImportOutcome.STORED if is_new else ImportOutcome.ALREADY_STORED)
