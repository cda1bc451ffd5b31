"""The use cases up to a plan: collect, import, analyze, plan, predict, and the track record, over a store. No gRPC here."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from perf_service.analysis.engine import AnalysisEngine, analyze_fleet
from perf_service.collectors.dialects import detect_engine
from perf_service.collectors.saved import unpacked
from perf_service.collectors.source import ImportedText, MetricsSource
from perf_service.collectors.window import windows_of
from perf_service.models.analysis import Analysis
from perf_service.models.config import ApplyMode, ConfigChange, EngineConfig, KnobValue
from perf_service.models.errors import CollectError, ErrorReason, InvalidArgumentError, NotFoundError
from perf_service.models.fleet import DEFAULT_PORTS, Instance
from perf_service.models.metrics import DataIssue, Engine, Hist, IssueCode, IssueLevel, Snapshot
from perf_service.models.plan import Plan, PredictedEffect, Prediction
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window
from perf_service.models.workflow import RealisedEffect
from perf_service.optimization.engine import OptimizationEngine
from perf_service.optimization.predictor import Predictor
from perf_service.storage.ports import LedgerEntry, Store
from perf_service.workflows.budgets import Budgets

ANALYZED_SECONDS = 300.0
"""Range of an analysis without a start: long enough for percentiles at moderate traffic, short enough to be "now"."""
_SILENT_INTERVALS = 3.0
_SILENT_SECONDS = 30.0
"""An instance is silent after three intervals without a page (as a gap within a window), and not within half a minute."""
_PAGES_READ = 1000
_PAGES_SAMPLED = 240
"""Of a range with more than `_PAGES_READ` scrapes: a page each six minutes of a day, each three hours of a month."""
LOOK_PAGES = 1200
"""Pages that one look at a fleet reads, as long as each replica has `LOOK_PAGES_A_REPLICA`: every one of 20 replicas scraped each 5 s."""
LOOK_PAGES_A_REPLICA = 12
"""One each 25 s of `ANALYZED_SECONDS`, of more than 100 replicas. Counters lose nothing by it, and gauges of so many replicas are many."""
PLAN_LIFETIME_SECONDS = 86_400.0
"""A plan stands on what was measured; after a day the workload is another."""
_BACKFILL_BATCH = 100
_BACKFILL_STORED = 10_000
_HOST_PORT = re.compile(r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+):\d{1,5}$")


@dataclass(frozen=True, slots=True)
class TrackRecord:
    """Predicted against realised over finished rollouts."""

    entries: tuple[LedgerEntry, ...]
    predictions: int  # metrics that were predicted and then measured
    within: int  # of them inside the predicted interval
    harmful: int  # rollouts that made things worse

    @property
    def coverage_ratio(self) -> float | None:
        """Share of the predictions that held; None without any."""
        return self.within / self.predictions if self.predictions else None


def implied_instance(instance_id: str, engine: Engine) -> Instance:
    """An instance that was never registered: an id like host:port is its endpoint, any other is this host at the engine's own port."""
    endpoint = instance_id if _HOST_PORT.match(instance_id) or "://" in instance_id else f"localhost:{DEFAULT_PORTS[engine]}"
    return Instance(instance_id, engine, endpoint if "://" in endpoint else f"http://{endpoint}")


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


class Pipeline:
    """Use cases over a `Store`, shared by the workflow manager and the rpc floor. Raises PerfServiceError only."""

    def __init__(
        self,
        store: Store,
        *,
        source: MetricsSource,
        history: HistorySource | None = None,
        retention_seconds: float = math.inf,
        imported: Callable[[float], None] = lambda at: None,
        clock: Callable[[], float],
        new_id: Callable[[str], str],
        analysis: AnalysisEngine | None = None,
        optimization: OptimizationEngine | None = None,
        predictor: Predictor | None = None,
    ) -> None:
        self.store = store
        self._source = source
        self._past = history
        self._retention = retention_seconds
        self._told_import = imported  # with the time of the oldest
        self._clock = clock
        self._new_id = new_id
        self._analysis = analysis or AnalysisEngine()
        self._optimization = optimization or OptimizationEngine()
        self._predictor = predictor or Predictor()
        self._imported = ImportedText()
        self._budgets = Budgets(store)

    # --- collect ---

    async def collect(self, instance_id: str) -> Snapshot:
        """Scrape a registered instance now and keep the snapshot. Raises INSTANCE_NOT_FOUND, CollectError."""
        return await self.collect_from(await self.store.get_instance(instance_id))

    async def collect_from(self, instance: Instance) -> Snapshot:
        """Scrape this instance now and keep the snapshot. Raises CollectError."""
        snapshot = await self._source.snapshot(instance, self._clock())
        if instance.prometheus is not None and snapshot.collected_at is not None:
            # Its time is that of the scrape: asked again before the next one, it is the same.
            stored = await self.store.snapshots_between(instance.instance_id, snapshot.collected_at, snapshot.collected_at, limit=1)
            if stored:
                return stored[0]
        return await self._keep(snapshot)

    async def backfill(self, instance_id: str, start: float, end: float) -> Backfill:
        """Keep what a Prometheus has of an instance between two unix times. Repeating it adds nothing.

        What is older than the store keeps is left out, and the quality of `last` says so. Raises INSTANCE_NOT_FOUND; INVALID_ARGUMENT for a
        range that is empty, too long, or older than that as a whole; CollectError SERIES_NOT_FOUND where the
        instance has no Prometheus or that has nothing in the range, and as `collect`.
        """
        instance = await self.store.get_instance(instance_id)
        if instance.prometheus is None or self._past is None:
            raise CollectError(
                ErrorReason.SERIES_NOT_FOUND,
                f"instance {instance_id!r} is not registered with a Prometheus, so there is no history to read: register it with one, or "
                "import saved pages",
                {"instance_id": instance_id},
            )
        kept_from = self._clock() - self._retention
        issues: dict[DataIssue, None] = {}
        if start < kept_from < end:
            left_out = (
                f"The range begins before what is kept, {self._retention / 3600:g} h (setting retention_hours): the older part is left out."
            )
            issues[DataIssue(IssueCode.TRUNCATED, IssueLevel.WARNING, left_out)] = None
            start = kept_from
        elif end <= kept_from:
            raise InvalidArgumentError(
                f"the whole range is older than what is kept, {self._retention / 3600:g} h, and would be deleted at once: take a later "
                "one, or raise the server's retention_hours",
                field="range.end",
            )
        imported = total = 0
        ends: list[Snapshot] = []
        async for group in self._past.history(instance, start, end):
            earliest, latest = group[0].collected_at or start, group[-1].collected_at or end
            stored = await self.store.snapshots_between(instance_id, earliest, latest, limit=_BACKFILL_STORED)
            known = {snapshot.collected_at for snapshot in stored}
            fresh = [replace(s, snapshot_id=self._new_id("snap")) for s in group if s.collected_at not in known]
            for index in range(0, len(fresh), _BACKFILL_BATCH):
                await self.store.add_snapshots(fresh[index : index + _BACKFILL_BATCH])
                self._told_import(fresh[index].collected_at or start)
            imported += len(fresh)
            total += len(group)
            issues.update(dict.fromkeys(group[-1].quality.issues))
            ends = [*ends[:1], group[0], group[-1]]
        first, last = ends[0], ends[-1]
        return Backfill(imported, total - imported, first, replace(last, quality=last.quality.plus(*issues)))

    async def import_page(
        self, instance_id: str, page: bytes, *, engine: Engine | None = None, collected_at: float | None = None
    ) -> Snapshot:
        """Keep the snapshot of a page that somebody else fetched, plain or gzip.

        Of an instance that is not registered the engine is told or read off the page. `collected_at` in unix seconds; None: now.
        Raises CollectError (BODY_*, ENGINE_UNKNOWN, ENGINE_MISMATCH).
        """
        page = unpacked(page, "The imported page")
        try:
            instance = await self.store.get_instance(instance_id)
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
        time = self._clock() if collected_at is None else collected_at
        kept = await self._keep(self._imported.read(instance, page, time))
        self._told_import(time)
        return kept

    async def _keep(self, snapshot: Snapshot) -> Snapshot:
        named = snapshot if snapshot.snapshot_id else replace(snapshot, snapshot_id=self._new_id("snap"))
        return await self.store.add_snapshot(named)

    # --- analyze ---

    async def analyze(
        self,
        *,
        instance_id: str = "",
        fleet_id: str = "",
        start: float | None = None,
        end: float | None = None,
        slo_targets: Sequence[SLOTarget] = (),
    ) -> Analysis:
        """Analyze stored snapshots of an instance or a fleet and keep the result.

        Default range: the last 5 minutes, scraped now where there is nothing. Without `slo_targets` those of the fleet.
        Raises INSTANCE_NOT_FOUND, FLEET_NOT_FOUND, NOT_ENOUGH_DATA, CollectError.
        """
        if bool(instance_id) == bool(fleet_id):
            raise InvalidArgumentError("name either an instance or a fleet", field="instance_id")
        if start is not None and end is not None and end <= start:
            raise InvalidArgumentError(f"the range ends ({end}) before it starts ({start})", field="end")
        instances = await self.members(fleet_id) if fleet_id else (await self.store.get_instance(instance_id),)
        targets = tuple(slo_targets) or await self._objectives(fleet_id or instances[0].fleet_id)
        until = self._clock() if end is None else end
        since = until - ANALYZED_SECONDS if start is None else start
        if end is None and start is None and not any([await self.store.latest_snapshot(i.instance_id) for i in instances]):
            await self._collect_now(instances)
            until = self._clock()
        return await self.analyze_range(
            instances, fleet_id=fleet_id, start=since, end=until, slo_targets=targets, budgets_age_seconds=0.0, present=end is None
        )

    async def analyze_range(
        self,
        instances: Sequence[Instance],
        *,
        fleet_id: str,
        start: float,
        end: float,
        slo_targets: Sequence[SLOTarget],
        keep: bool = True,
        budgets_age_seconds: float | None = None,
        present: bool = False,
        bounded: bool = False,
    ) -> Analysis:
        """Analyze what is stored of these instances between two times; `keep` stores the result. Raises NOT_ENOUGH_DATA.

        `budgets_age_seconds`: add error budgets up to `end`, at most so old. None: without them.
        `present`: `end` is now, so that an instance without a fresh page is told in the data quality: it may be gone.
        `bounded`: of a fleet read at most `LOOK_PAGES` pages, or `LOOK_PAGES_A_REPLICA` of each replica where that is more; for who looks
        every few seconds.
        """
        most = max(LOOK_PAGES_A_REPLICA, LOOK_PAGES // len(instances)) if bounded and len(instances) > 1 else None
        series = await self.series(instances, start, end, most=most)
        if not any(series.values()):
            for instance in instances:
                latest = await self.store.latest_snapshot(instance.instance_id)
                if latest is not None and start <= (latest.collected_at or start) <= end:
                    series[instance.instance_id] = [latest]
        pages = {name: snapshots for name, snapshots in series.items() if snapshots}
        if not pages:
            names = ", ".join(i.instance_id for i in instances)
            raise InvalidArgumentError(
                f"nothing was collected from {names} between {start:.0f} and {end:.0f}: collect first, or take another range",
                reason=ErrorReason.NOT_ENOUGH_DATA,
                field="start",
            )
        analysis = await asyncio.to_thread(self._analyze, pages, instances[0], tuple(slo_targets), fleet_id)
        analysis = replace(analysis, fleet_id=fleet_id, created_at=self._clock(), analysis_id=self._new_id("an") if keep else "")
        if present:
            analysis = replace(analysis, quality=analysis.quality.plus(*_silent(instances, pages, end)))
        if budgets_age_seconds is not None:
            ids = [i.instance_id for i in instances]
            statuses = await self._budgets.added(analysis.slo_statuses, ids, end, max_age_seconds=budgets_age_seconds)
            analysis = replace(analysis, slo_statuses=statuses)
        return await self.store.add_analysis(analysis) if keep else analysis

    def _analyze(self, pages: Mapping[str, Sequence[Snapshot]], like: Instance, targets: tuple[SLOTarget, ...], fleet_id: str) -> Analysis:
        config, engine = like.config if len(like.config) else None, like.engine
        if len(pages) > 1:
            return analyze_fleet(pages, engine, targets, config=config, fleet_id=fleet_id)
        (snapshots,) = pages.values()
        analysis = self._analysis.analyze(snapshots if len(snapshots) > 1 else snapshots[-1], engine, targets, config=config)
        window = analysis.window
        if len(snapshots) > 1 and (window is None or (not window.counters and not window.histograms) or _nothing_ended(window)):
            # Nothing happened between the pages: what the process did since its start is weaker evidence, but evidence, and is marked so.
            lifetime = self._analysis.analyze(snapshots[-1], engine, targets, config=config)
            if lifetime.bottlenecks and not analysis.bottlenecks:
                return lifetime
        return analysis

    # --- plan and predict ---

    async def create_plan(
        self,
        *,
        analysis_id: str = "",
        instance_id: str = "",
        fleet_id: str = "",
        slo_targets: Sequence[SLOTarget] = (),
    ) -> Plan:
        """Make a plan from a kept analysis, or from one made now, and keep it. Raises ANALYSIS_NOT_FOUND and as `analyze`."""
        if analysis_id:
            analysis = await self.store.get_analysis(analysis_id)
        else:
            analysis = await self.analyze(instance_id=instance_id, fleet_id=fleet_id, slo_targets=slo_targets)
        return await self.plan_for(analysis, await self._first_instance(analysis), slo_targets=slo_targets)

    async def plan_for(self, analysis: Analysis, instance: Instance | None, *, slo_targets: Sequence[SLOTarget] = ()) -> Plan:
        """Make a plan from an analysis for engines like `instance`, and keep it."""
        windows = await self._parts_of(analysis)
        plan = await asyncio.to_thread(
            self._optimization.generate_plan,
            analysis,
            instance.config if instance and len(instance.config) else None,
            hardware=instance.hardware if instance else None,
            slo_targets=tuple(slo_targets) or None,
            engine_version=(instance.engine_version if instance else "") or analysis.engine_version,
            windows=windows,
        )
        now = self._clock()
        return await self.store.add_plan(
            replace(plan, plan_id=self._new_id("plan"), created_at=now, expires_at=now + PLAN_LIFETIME_SECONDS)
        )

    async def predict(
        self, *, instance_id: str = "", fleet_id: str = "", changes: Mapping[str, KnobValue | None]
    ) -> tuple[Prediction, Prediction, tuple[PredictedEffect, ...]]:
        """What-if: (prediction as it is, prediction with the changes, effects), from the last 5 minutes. Raises as `analyze`."""
        if bool(instance_id) == bool(fleet_id):
            raise InvalidArgumentError("name either an instance or a fleet", field="instance_id")
        instances = await self.members(fleet_id) if fleet_id else (await self.store.get_instance(instance_id),)
        now = self._clock()
        if not any((await self.series(instances, now - ANALYZED_SECONDS, now)).values()):
            await self._collect_now(instances)
        return await self.predict_for(instances, changes=changes, start=now - ANALYZED_SECONDS, end=self._clock())

    async def predict_for(
        self, instances: Sequence[Instance], *, changes: Mapping[str, KnobValue | None], start: float, end: float
    ) -> tuple[Prediction, Prediction, tuple[PredictedEffect, ...]]:
        """As `predict`, from the stored snapshots of these instances in a range; the busiest replica stands for all."""
        series = await self.series(instances, start, end)
        windows = await asyncio.to_thread(lambda: {name: windows_of(pages) for name, pages in series.items()})
        busiest = max(windows, key=lambda name: sum(w.count(Hist.E2E_SECONDS) for w in windows[name]), default="")
        if not busiest or not windows[busiest]:
            raise InvalidArgumentError(
                "a prediction needs two snapshots or more with traffic between them: collect for some minutes first",
                reason=ErrorReason.NOT_ENOUGH_DATA,
            )
        instance = next(i for i in instances if i.instance_id == busiest)
        page = series[busiest][-1]
        current: EngineConfig = instance.config.over(page.config)
        wanted = tuple(ConfigChange(name, current.get(name), value, apply_mode=ApplyMode.RESTART) for name, value in changes.items())
        return await asyncio.to_thread(self._predictor.predict, windows[busiest], current, wanted, hardware=instance.hardware)

    # --- track record ---

    async def track_record(self, *, engine: Engine | None = None, cause: str | None = None, limit: int = 1000) -> TrackRecord:
        """How predictions held up in finished rollouts, newest first, harmful advice included."""
        entries = tuple(await self.store.ledger(engine=engine.value if engine else None, cause=cause, limit=limit))
        judged: list[RealisedEffect] = [e for entry in entries for e in entry.effects if e.within_prediction is not None]
        return TrackRecord(entries, len(judged), sum(bool(e.within_prediction) for e in judged), sum(e.harmful for e in entries))

    # --- helpers that the manager uses too ---

    async def members(self, fleet_id: str) -> tuple[Instance, ...]:
        """Every instance of a fleet. Raises FLEET_NOT_FOUND, NOT_ENOUGH_DATA for an empty one."""
        await self.store.get_fleet(fleet_id)
        found: list[Instance] = []
        token = ""
        while True:
            page = await self.store.list_instances(fleet_id=fleet_id, page_size=500, page_token=token)
            found += page.items
            token = page.next_page_token
            if not token:
                break
        if not found:
            raise InvalidArgumentError(
                f"fleet {fleet_id!r} has no instances: register one first", reason=ErrorReason.NOT_ENOUGH_DATA, field="fleet_id"
            )
        return tuple(sorted(found, key=lambda i: i.instance_id))

    async def series(
        self, instances: Sequence[Instance], start: float, end: float, *, most: int | None = None
    ) -> dict[str, Sequence[Snapshot]]:
        """Stored snapshots of each instance between two times, oldest first; of a long range, or of more than `most`, some, evenly spaced.

        Counters lose nothing by that, and gauges are samples anyway.
        """
        return {i.instance_id: await self._pages(i, start, end, most) for i in instances}

    async def _pages(self, instance: Instance, start: float, end: float, most: int | None = None) -> Sequence[Snapshot]:
        if most is not None:
            return await self.store.snapshots_spread(instance.instance_id, start, end, most=most)
        if end - start <= _PAGES_READ * instance.scrape_interval_seconds:
            return await self.store.snapshots_between(instance.instance_id, start, end, limit=_PAGES_READ)
        step = (end - start) / _PAGES_SAMPLED
        found = [await self.store.snapshot_at(instance.instance_id, start + n * step) for n in range(_PAGES_SAMPLED + 1)]
        pages = {page.collected_at: page for page in found if page is not None and page.collected_at is not None}
        return [pages[at] for at in sorted(pages) if start <= at <= end]

    async def _collect_now(self, instances: Sequence[Instance]) -> None:
        """One page of each instance; an error only where none answers."""
        results = await asyncio.gather(*(self.collect_from(i) for i in instances), return_exceptions=True)
        failed = [r for r in results if isinstance(r, BaseException)]
        for error in failed:
            if not isinstance(error, CollectError) or len(failed) == len(results):
                raise error

    async def _objectives(self, fleet_id: str) -> tuple[SLOTarget, ...]:
        return (await self.store.get_fleet(fleet_id)).slo_targets if fleet_id else ()

    async def _first_instance(self, analysis: Analysis) -> Instance | None:
        try:
            if analysis.fleet_id:
                return (await self.members(analysis.fleet_id))[0]
            return await self.store.get_instance(analysis.instance_id)
        except (NotFoundError, InvalidArgumentError):
            return None  # imported pages, or deregistered since

    async def _parts_of(self, analysis: Analysis) -> Sequence[Window]:
        """The windows inside the analysis' own: they show the predictor several loads.

        Of a fleet the busiest replica stands for all: the merged window holds the demand on all of them, which no single one meets.
        """
        window = analysis.window
        if window is None or window.lifetime or window.start is None or window.end is None:
            return ()
        if window.replicas <= 1:
            return windows_of(await self.store.snapshots_between(window.instance_id, window.start, window.end))
        try:
            series = await self.series(await self.members(analysis.fleet_id), window.start, window.end)
        except (NotFoundError, InvalidArgumentError):
            return ()  # deleted since
        parts = await asyncio.to_thread(lambda: [windows_of(pages) for pages in series.values()])
        return max(parts, key=lambda windows: sum(w.count(Hist.E2E_SECONDS) for w in windows), default=())


def _silent(instances: Sequence[Instance], pages: Mapping[str, Sequence[Snapshot]], now: float) -> list[DataIssue]:
    """Of each instance that is scraped and has no page of its last few intervals: since when. A dead engine leaves only its past."""
    found: list[DataIssue] = []
    for instance in instances:
        if not (instance.endpoint or instance.prometheus):
            continue  # its pages are imported when somebody has one
        name = instance.instance_id
        last = max((page.collected_at or 0.0 for page in pages.get(name, ())), default=None)
        if last is None:
            said = "nothing could be collected in this range, so it is left out here"
        elif now - last > max(_SILENT_INTERVALS * instance.scrape_interval_seconds, _SILENT_SECONDS):
            said = f"its newest page is {now - last:.0f} s old, and what is told of it is of then"
        else:
            continue
        found.append(DataIssue(IssueCode.GAP, IssueLevel.WARNING, f"{name}: {said}. It may be down: perf-service collect {name}"))
    return found


def _nothing_ended(window: Window) -> bool:
    return window.count(Hist.E2E_SECONDS) <= 0 and window.count(Hist.TTFT_SECONDS) <= 0
