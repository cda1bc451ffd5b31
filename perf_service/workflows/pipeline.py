"""The use cases from stored pages to a plan: analyze, plan, predict. No gRPC here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from perf_service.analysis.engine import AnalysisEngine, analyze_fleet
from perf_service.models.analysis import Analysis
from perf_service.models.config import ApplyMode, ConfigChange, EngineConfig, KnobValue
from perf_service.models.errors import ErrorReason, InvalidArgumentError, NotFoundError
from perf_service.models.fleet import Instance
from perf_service.models.metrics import DataIssue, Hist, IssueCode, IssueLevel, Snapshot
from perf_service.models.plan import Plan, PredictedEffect, Prediction
from perf_service.models.scraping import silent_after_seconds
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window
from perf_service.optimization.engine import OptimizationEngine
from perf_service.optimization.predictor import Predictor, parts_of
from perf_service.storage.ports import Store
from perf_service.workflows.budgets import Budgets
from perf_service.workflows.collecting import Collecting
from perf_service.workflows.stored_pages import StoredPages

ANALYZED_SECONDS = 300.0
"""Range of an analysis without a start: long enough for percentiles at moderate traffic, short enough to be "now"."""
PLAN_LIFETIME_SECONDS = 86_400.0
"""A plan stands on what was measured; after a day the workload is another."""


class Pipeline:
    """Use cases over a `Store`, shared by the workflow manager and the rpc floor. Raises PerfServiceError only.

    `collecting` scrapes where nothing is stored yet.
    """

    def __init__(
        self,
        store: Store,
        collecting: Collecting,
        *,
        clock: Callable[[], float],
        new_id: Callable[[str], str],
        analysis: AnalysisEngine | None = None,
        optimization: OptimizationEngine | None = None,
        predictor: Predictor | None = None,
    ) -> None:
        self.store = store
        self.collecting = collecting
        self.pages = StoredPages(store)
        self._clock = clock
        self._new_id = new_id
        self._analysis = analysis or AnalysisEngine()
        self._optimization = optimization or OptimizationEngine()
        self._predictor = predictor or Predictor()
        self._budgets = Budgets(store)

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
        instances = await self.pages.members(fleet_id) if fleet_id else (await self.store.get_instance(instance_id),)
        targets = tuple(slo_targets) or await self._objectives(fleet_id or instances[0].fleet_id)
        until = self._clock() if end is None else end
        since = until - ANALYZED_SECONDS if start is None else start
        if end is None and start is None and not any([await self.store.latest_snapshot(i.instance_id) for i in instances]):
            await self.collecting.collect_all(instances)
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
        `bounded`: of a fleet read as few pages as `StoredPages.series` says; for who looks every few seconds.
        """
        series = await self.pages.series(instances, start, end, bounded=bounded)
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
        instances = await self.pages.members(fleet_id) if fleet_id else (await self.store.get_instance(instance_id),)
        now = self._clock()
        if not any((await self.pages.series(instances, now - ANALYZED_SECONDS, now)).values()):
            await self.collecting.collect_all(instances)
        return await self.predict_for(instances, changes=changes, start=now - ANALYZED_SECONDS, end=self._clock())

    async def predict_for(
        self, instances: Sequence[Instance], *, changes: Mapping[str, KnobValue | None], start: float, end: float
    ) -> tuple[Prediction, Prediction, tuple[PredictedEffect, ...]]:
        """As `predict`, from the stored snapshots of these instances in a range; the busiest replica stands for all."""
        series = await self.pages.series(instances, start, end)
        windows = await asyncio.to_thread(lambda: {name: parts_of(pages) for name, pages in series.items()})
        busiest = max(windows, key=lambda name: sum(w.count(Hist.E2E_SECONDS) for w in windows[name]), default="")
        if not busiest or not windows[busiest]:
            raise InvalidArgumentError(
                "a prediction needs two snapshots or more with traffic between them: collect for some minutes first",
                reason=ErrorReason.NOT_ENOUGH_DATA,
            )
        instance = next(i for i in instances if i.instance_id == busiest)
        current: EngineConfig = instance.config.over(windows[busiest][-1].config)
        wanted = tuple(ConfigChange(name, current.get(name), value, apply_mode=ApplyMode.RESTART) for name, value in changes.items())
        return await asyncio.to_thread(self._predictor.predict, windows[busiest], current, wanted, hardware=instance.hardware)

    async def _objectives(self, fleet_id: str) -> tuple[SLOTarget, ...]:
        return (await self.store.get_fleet(fleet_id)).slo_targets if fleet_id else ()

    async def _first_instance(self, analysis: Analysis) -> Instance | None:
        try:
            if analysis.fleet_id:
                return (await self.pages.members(analysis.fleet_id))[0]
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
            return parts_of(await self.store.snapshots_between(window.instance_id, window.start, window.end))
        try:
            series = await self.pages.series(await self.pages.members(analysis.fleet_id), window.start, window.end)
        except (NotFoundError, InvalidArgumentError):
            return ()  # deleted since
        parts = await asyncio.to_thread(lambda: [parts_of(pages) for pages in series.values()])
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
        elif now - last > silent_after_seconds(instance):
            said = f"its newest page is {now - last:.0f} s old, and what is told of it is of then"
        else:
            continue
        found.append(DataIssue(IssueCode.GAP, IssueLevel.WARNING, f"{name}: {said}. It may be down: perf-service collect {name}"))
    return found


def _nothing_ended(window: Window) -> bool:
    return window.count(Hist.E2E_SECONDS) <= 0 and window.count(Hist.TTFT_SECONDS) <= 0
