"""Where snapshots come from: a scrape, or pages that were saved. A Prometheus server would be one more class here."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from perf_service.collectors.dialects import detect_engine
from perf_service.collectors.exposition import DEFAULT_MAX_BODY_BYTES, body_too_large
from perf_service.collectors.fetch import PageFetcher, looks_like_html
from perf_service.collectors.snapshot import SnapshotBuilder, require_engine
from perf_service.models.config import EngineConfig
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine, Snapshot

INDEX_NAME: Final = "scrapes.jsonl"
_PAGE_SUFFIXES: Final = (".prom", ".txt", ".metrics", ".prom.gz", ".txt.gz", ".metrics.gz")


class MetricsSource(Protocol):
    """Something that has the present state of an instance."""

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        """The instance's snapshot. `now` is unix seconds, the time it is stamped with. Raises CollectError."""
        ...


class DirectScrape:
    """Reads the instance's own /metrics page. Strict: a page that is not the told engine's is an error."""

    def __init__(self, fetcher: PageFetcher, *, max_body_bytes: int = DEFAULT_MAX_BODY_BYTES) -> None:
        self._fetcher = fetcher
        self._builders = {engine: SnapshotBuilder(engine, max_body_bytes=max_body_bytes) for engine in Engine}

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        """Fetch and read one page.

        Raises:
            CollectError: as `Fetcher.fetch`; ENGINE_MISMATCH or BODY_NOT_METRICS for another engine's page or none's.
        """
        page = await self._fetcher.fetch(instance.endpoint)
        snapshot = self._builders[instance.engine].build(
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
    a restart.
    """

    def __init__(self, source: MetricsSource) -> None:
        self._source = source
        self._running: dict[str, asyncio.Task[Snapshot]] = {}

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        """The page of the scrape under way, else of a new one. Raises CollectError as the source does."""
        key = instance.instance_id
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._source.snapshot(instance, now))
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        # Shielded: one caller's cancellation is not the others'.
        return await asyncio.shield(task)

    def _ended(self, key: str, task: asyncio.Task[Snapshot]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # retrieved here too, for a task whose callers have all gone


def unpacked(page: bytes, name: str, limit: int = DEFAULT_MAX_BODY_BYTES) -> bytes:
    """The page itself where it is gzip, else as it is. Raises CollectError: BODY_NOT_METRICS where the gzip is damaged, BODY_TOO_LARGE."""
    if page[:2] != b"\x1f\x8b":
        return page
    try:
        # One byte beyond the limit is enough to know; a small file can unpack to gigabytes.
        with gzip.GzipFile(fileobj=io.BytesIO(page)) as packed:
            text = packed.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{name} is damaged: {error}.") from error
    if len(text) > limit:
        raise body_too_large(limit)
    return text


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


@dataclass(frozen=True, slots=True)
class SavedPage:
    """A page read from a file; `t_unix` None where its time is unknown."""

    name: str
    body: bytes
    t_unix: float | None


def read_saved(path: Path, *, interval_seconds: float | None = None, max_body_bytes: int = DEFAULT_MAX_BODY_BYTES) -> list[SavedPage]:
    """The pages of a file or a directory, gzip or plain, in order.

    A directory is read in the order of its `scrapes.jsonl` (lines `{"file": ..., "t_unix": ...}`, a null file is a failed
    scrape), else by file name. `interval_seconds` gives pages of unknown time a time of their own, counted from 0.

    Raises:
        CollectError: BODY_NOT_METRICS for a path, index or file that cannot be read; BODY_EMPTY for a directory without
            pages; BODY_TOO_LARGE beyond the limit, compressed or not.
    """
    if path.is_dir():
        pages = list(_read_directory(path, max_body_bytes))
        if not pages:
            raise CollectError(
                ErrorReason.BODY_EMPTY, f"{path} has no pages: no {INDEX_NAME} and no file ending in {', '.join(_PAGE_SUFFIXES)}."
            )
    else:
        pages = [SavedPage(path.name, _read_file(path, max_body_bytes), None)]
    return with_interval(pages, interval_seconds)


def with_interval(pages: list[SavedPage], interval_seconds: float | None) -> list[SavedPage]:
    """Give pages a time, `interval_seconds` apart and counted from 0, unless every page has one of its own."""
    if interval_seconds is None or all(page.t_unix is not None for page in pages):
        return pages
    return [SavedPage(page.name, page.body, index * interval_seconds) for index, page in enumerate(pages)]


def snapshots_of(
    pages: list[SavedPage], instance_id: str, *, engine: Engine | None = None, config: EngineConfig | None = None
) -> list[Snapshot]:
    """The snapshots of saved pages of one instance. `engine` None takes the engine of the first page that has one.

    Raises:
        CollectError: ENGINE_UNKNOWN when no page tells its engine; ENGINE_MISMATCH when a page is of another; BODY_EMPTY or
            BODY_NOT_METRICS when none of the pages is a metrics page.
    """
    if engine is None:
        engine = next((found for page in pages if (found := detect_engine(page.body))), None)
        if engine is None:
            for page in pages:
                check_text(page.body, page.name)
            raise CollectError(
                ErrorReason.ENGINE_UNKNOWN,
                "No page has a metric of vLLM, SGLang or TGI, so the engine cannot be told. "
                "Check that these are /metrics pages, and that metrics are on (SGLang needs --enable-metrics).",
            )
    builder = SnapshotBuilder(engine)
    snapshots = [builder.build(page.body, instance_id, page.t_unix, endpoint=page.name, config=config) for page in pages]
    usable = [snapshot for snapshot in snapshots if snapshot.quality.usable]
    for page, snapshot in zip(pages, snapshots, strict=True):
        if detect_engine(page.body) not in (None, engine):
            require_engine(snapshot)
    if not usable:
        for page in pages:
            check_text(page.body, page.name)
        require_engine(snapshots[0])
    return snapshots


def check_text(text: bytes | str, what: str) -> None:
    """Raise CollectError (BODY_EMPTY, BODY_NOT_METRICS) for a text that is empty or an HTML page."""
    if not text.strip():
        raise CollectError(ErrorReason.BODY_EMPTY, f"{what} is empty. Save the engine's /metrics page and try again.")
    if looks_like_html(text[:200].encode("utf-8", "replace") if isinstance(text, str) else text[:200]):
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{what} is an HTML page, not metrics. Check the address it was saved from.")


def _read_directory(path: Path, limit: int) -> Iterator[SavedPage]:
    index = path / INDEX_NAME
    if not index.is_file():
        for file in sorted(path.iterdir()):
            if file.name.endswith(_PAGE_SUFFIXES) and file.is_file() and file.name not in ("truth.txt", "command.txt"):
                yield SavedPage(file.name, _read_file(file, limit), None)
        return
    for number, line in enumerate(index.read_text("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, time = entry.get("file"), entry.get("t_unix")
        except (ValueError, AttributeError) as error:
            raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{index}, line {number} is not a JSON object.") from error
        if not name:
            continue
        file = path / str(name)
        if file.resolve().parent != path.resolve():
            raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{index}, line {number} names a file outside of its directory: {name!r}.")
        is_time = isinstance(time, int | float) and not isinstance(time, bool)
        yield SavedPage(file.name, _read_file(file, limit), float(time) if is_time else None)


def _read_file(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{path} cannot be read: {error.strerror or error}.") from error
    if len(data) > limit:
        raise body_too_large(limit)
    return unpacked(data, str(path), limit)
