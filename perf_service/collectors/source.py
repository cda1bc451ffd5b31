"""Where snapshots come from: a scrape, or pages that somebody else fetched. Saved pages: `saved`; a Prometheus server: `prometheus`."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from perf_service.collectors.exposition import DEFAULT_MAX_BODY_BYTES
from perf_service.collectors.fetch import FetchedPage, PageFetcher
from perf_service.collectors.page import looks_like_html
from perf_service.collectors.snapshot import SnapshotBuilder, require_engine
from perf_service.collectors.turns import Turns
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine, Snapshot

LARGE_BODY_BYTES: Final = 256_000
"""Pages of real engines have 30 to 100 kB; this one takes up to 0.1 s to read when its layout is new."""


class MetricsSource(Protocol):
    """Something that has the present state of an instance."""

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        """The instance's snapshot. `now` is unix seconds, the time it is stamped with. Raises CollectError."""
        ...


class DirectScrape:
    """Reads the instance's own /metrics page. Strict: a page that is not the told engine's is an error.

    Pages of more than `LARGE_BODY_BYTES` are read in a thread. That takes no time off the processor, and the loop still waits for the
    interpreter's lock: 5 ms at a time, longer during a single call into C over the whole page. But it has its turns in between, where 8 MB
    of a layout not seen before held up every caller for seconds (on a busy machine 5 s at once; so, 0.3 s at the most).
    """

    def __init__(self, fetcher: PageFetcher, *, max_body_bytes: int = DEFAULT_MAX_BODY_BYTES) -> None:
        self._fetcher = fetcher
        self._builders = {engine: SnapshotBuilder(engine, max_body_bytes=max_body_bytes) for engine in Engine}
        self._turns = Turns()
        # Builders are not for several threads at once: large pages have their own and one thread, so one page is read at a time.
        self._large_builders = {engine: SnapshotBuilder(engine, max_body_bytes=max_body_bytes) for engine in Engine}
        self._large = ThreadPoolExecutor(1, "large-pages")

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        """Fetch and read one page.

        Raises:
            CollectError: as `Fetcher.fetch`; ENGINE_MISMATCH or BODY_NOT_METRICS for another engine's page or none's.
        """
        page = await self._fetcher.fetch(instance.endpoint)
        if len(page.body) <= LARGE_BODY_BYTES:
            await self._turns.wait()
            return _read(self._builders[instance.engine], page, instance, now)
        builder = self._large_builders[instance.engine]
        return await asyncio.get_running_loop().run_in_executor(self._large, _read, builder, page, instance, now)


def _read(builder: SnapshotBuilder, page: FetchedPage, instance: Instance, now: float) -> Snapshot:
    snapshot = builder.build(
        page.body,
        instance.instance_id,
        now,
        endpoint=instance.endpoint,
        config=instance.config,
        engine_version=instance.engine_version,
        content_type=page.content_type,
    )
    require_engine(snapshot)
    return snapshot


class SharedScrape:
    """One scrape of an instance at a time: who asks while one is under way gets the same page.

    Two scrapes that overlap can be answered in the other order than they were begun; their counters would then seem to fall, as after
    a restart. One of where the instance was before its registration changed is not joined: its page is of another server.
    """

    def __init__(self, source: MetricsSource) -> None:
        self._source = source
        self._running: dict[str, tuple[Instance, asyncio.Task[Snapshot]]] = {}

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        """The page of the scrape under way, else of a new one. Raises CollectError as the source does."""
        key = instance.instance_id
        of, task = self._running.get(key, (instance, None))
        if task is None or (of.engine, of.endpoint, of.prometheus) != (instance.engine, instance.endpoint, instance.prometheus):
            task = asyncio.create_task(self._source.snapshot(instance, now))
            self._running[key] = instance, task
            task.add_done_callback(lambda done: self._ended(key, done))
        # Shielded: one caller's cancellation is not the others'.
        return await asyncio.shield(task)

    def _ended(self, key: str, task: asyncio.Task[Snapshot]) -> None:
        _, latest = self._running.get(key, (None, None))
        if latest is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # retrieved here too, for a task whose callers have all gone


class ImportedText:
    """Pages that somebody else fetched and pushed. Strict like `DirectScrape`."""

    def __init__(self, *, max_body_bytes: int = DEFAULT_MAX_BODY_BYTES) -> None:
        self._builders = {engine: SnapshotBuilder(engine, max_body_bytes=max_body_bytes) for engine in Engine}

    def read(self, instance: Instance, text: bytes | str, collected_at: float | None) -> Snapshot:
        """The snapshot of a pushed page; `collected_at` in unix seconds, None where its time is unknown.

        Raises:
            CollectError: BODY_EMPTY, BODY_NOT_METRICS, ENGINE_MISMATCH, BODY_TOO_LARGE, TOO_MANY_SERIES.
        """
        check_text(text, "The imported text")
        snapshot = self._builders[instance.engine].build(
            text,
            instance.instance_id,
            collected_at,
            endpoint=instance.endpoint,
            config=instance.config,
            engine_version=instance.engine_version,
        )
        require_engine(snapshot)
        return snapshot


def check_text(text: bytes | str, what: str) -> None:
    """Raise CollectError (BODY_EMPTY, BODY_NOT_METRICS) for a text that is empty or an HTML page."""
    if not text.strip():
        raise CollectError(ErrorReason.BODY_EMPTY, f"{what} is empty. Save the engine's /metrics page and try again.")
    if looks_like_html(text[:200].encode("utf-8", "replace") if isinstance(text, str) else text[:200]):
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{what} is an HTML page, not metrics. Check the address it was saved from.")
