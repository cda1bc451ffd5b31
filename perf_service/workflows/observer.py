"""Looking at the world for one tick: scrape, ask the target, run the analysis. What is looked at depends on the workflow's phase."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from perf_service.models.config import ConfigChange
from perf_service.models.errors import ErrorReason, PerfServiceError, StoreError, TargetError
from perf_service.models.fleet import Instance
from perf_service.models.plan import Plan
from perf_service.models.workflow import StageSample, Workflow, WorkflowStatus
from perf_service.targets.base import FleetState, Target
from perf_service.workflows import measures
from perf_service.workflows.gates import judge_sample
from perf_service.workflows.machine import wants_sample
from perf_service.workflows.pipeline import Pipeline
from perf_service.workflows.preparing import config_with
from perf_service.workflows.sampler import Series, covered_seconds, from_base, measure_range, measure_sample
from perf_service.workflows.stages import baseline_seconds, settled_at
from perf_service.workflows.types import Measured, Observation, Problem

_log = logging.getLogger(__name__)
_TRANSIENT = frozenset(
    {
        ErrorReason.ENDPOINT_UNREACHABLE,
        ErrorReason.ENDPOINT_TIMEOUT,
        ErrorReason.ENDPOINT_HTTP_STATUS,
        ErrorReason.BODY_EMPTY,
        ErrorReason.STORE_UNAVAILABLE,
        ErrorReason.TARGET_UNAVAILABLE,
        ErrorReason.INTERNAL,
    }
)
"""Reasons that the same call may overcome a moment later."""
_SCRAPES_AT_ONCE = 64
_BASE_INTERVALS = 3.0
"""How far before a sample the page may lie that its differences start from: replicas are not scraped at the same moment."""
_ON_TARGET = frozenset(
    {
        WorkflowStatus.PREFLIGHT,
        WorkflowStatus.APPLYING,
        WorkflowStatus.BAKING,
        WorkflowStatus.DECIDING,
        WorkflowStatus.FINALIZING,
        WorkflowStatus.ROLLING_BACK,
        WorkflowStatus.ROLLBACK_INCOMPLETE,
    }
)


class Observer:
    """Makes the `Observation` of a tick. Errors of the world become part of it; only errors of the store are raised."""

    def __init__(self, pipeline: Pipeline, clock: Callable[[], float]) -> None:
        self._pipeline = pipeline
        self._clock = clock

    async def observe(self, workflow: Workflow, instances: Sequence[Instance], target: Target) -> Observation:
        """What is to be known in the workflow's phase."""
        seen = Observation()
        if workflow.status in _ON_TARGET:
            try:
                seen = replace(seen, fleet=await target.observe())
            except Exception as error:
                seen = replace(seen, fleet_problem=_problem(error))
            instances = _where_they_are(instances, seen.fleet)
        match workflow.status:
            case WorkflowStatus.COLLECTING:
                return await self._collect(seen, workflow, instances)
            case WorkflowStatus.ANALYZING:
                return await self._analyze(seen, workflow, instances)
            case WorkflowStatus.PLANNING:
                return await self._plan(seen, workflow, instances)
            case WorkflowStatus.PREFLIGHT:
                return await self._preflight(seen, workflow, instances, target)
            case WorkflowStatus.BAKING | WorkflowStatus.DECIDING:
                return await self._bake(seen, workflow, instances)
            case WorkflowStatus.FINALIZING:
                return await self._finalize(seen, workflow, instances)
        return seen

    # --- preparation ---

    async def _collect(self, seen: Observation, workflow: Workflow, instances: Sequence[Instance]) -> Observation:
        interval = workflow.policy.sample_interval_seconds
        problems = await self._scrape(instances, older_than=interval * 0.9)
        now = self._clock()
        series = await self._pipeline.pages.series(instances, _range_start(workflow, workflow.phase_started_at, now), now)
        wanted = workflow.status is WorkflowStatus.PREFLIGHT
        return replace(
            seen,
            pages=sum(len(pages) for pages in series.values()),
            covered_seconds=covered_seconds(series),
            measured=measure_range(series, measures.keys_for(workflow.slo_targets)) if wanted else None,
            collect_problems=problems,
        )

    async def _analyze(self, seen: Observation, workflow: Workflow, instances: Sequence[Instance]) -> Observation:
        now = self._clock()
        start = _range_start(workflow, workflow.created_at, now)
        try:
            analysis = await self._pipeline.analyze_range(
                instances, fleet_id=_known_fleet(workflow), start=start, end=now, slo_targets=workflow.slo_targets
            )
        except Exception as error:
            return replace(seen, problem=_problem(error, pure=True))
        return replace(seen, analysis=analysis)

    async def _plan(self, seen: Observation, workflow: Workflow, instances: Sequence[Instance]) -> Observation:
        request, store = workflow.request, self._pipeline.store
        try:
            if request.plan_id:
                return replace(seen, plan=await store.get_plan(request.plan_id))
            if request.changes:
                return replace(seen, plan=await self._hypothesis(workflow, instances, request.changes))
            analysis = await store.get_analysis(workflow.analysis_id)
            plan = await self._pipeline.plan_for(analysis, instances[0] if instances else None, slo_targets=workflow.slo_targets)
        except Exception as error:
            return replace(seen, problem=_problem(error, pure=True))
        return replace(seen, plan=plan)

    async def _hypothesis(self, workflow: Workflow, instances: Sequence[Instance], changes: Sequence[ConfigChange]) -> Plan | None:
        """What given changes are expected to do, where that can be predicted; the gates then know it."""
        now = self._clock()
        start = _range_start(workflow, workflow.created_at, now)
        wanted = {change.parameter: change.recommended_value for change in changes}
        try:
            _, _, effects = await self._pipeline.predict_for(instances, changes=wanted, start=start, end=now)
        except StoreError:
            raise  # a hypothesis that is there must not be lost: without it the gates would take an expected loss for harm
        except PerfServiceError:
            return None
        return Plan(engine=workflow.engine, changes=tuple(changes), effects=effects)

    async def _preflight(self, seen: Observation, workflow: Workflow, instances: Sequence[Instance], target: Target) -> Observation:
        seen = await self._collect(seen, workflow, instances)
        if seen.fleet is None:
            return seen
        desired = {r.instance_id: config_with(r.config, workflow.changes) for r in seen.fleet.replicas}
        try:
            return replace(seen, preflight=await target.preflight(desired))
        except Exception as error:
            return replace(seen, problem=_problem(error))

    # --- rollout ---

    async def _bake(self, seen: Observation, workflow: Workflow, instances: Sequence[Instance]) -> Observation:
        settled = settled_at(workflow)
        if settled is None or self._clock() < settled - 1e-6:
            return seen
        start = workflow.samples[-1].end if workflow.samples else settled
        due = wants_sample(workflow, self._clock())
        since = max(settled, start - _BASE_INTERVALS * workflow.policy.sample_interval_seconds) - 1e-6
        series = await self._pipeline.pages.series(instances, since, self._clock())
        if due or any(not series[i.instance_id] for i in instances):
            problems = await self._scrape(instances, older_than=0.0)
            seen = replace(seen, collect_problems=problems)
            series = await self._pipeline.pages.series(instances, since, self._clock())
        series = {name: from_base(pages, start) for name, pages in series.items()}
        if due:
            seen = replace(seen, sample=self._sample(workflow, series, start))
        if workflow.status is WorkflowStatus.DECIDING:
            seen = replace(seen, health_score=await self._health(workflow, instances, settled))
        return seen

    def _sample(self, workflow: Workflow, series: Series, start: float) -> StageSample:
        changed = {r.instance_id for r in workflow.replicas if r.stage >= 0}
        end = self._clock()
        if workflow.dry_run:
            # One page is enough to see that the engine is there; nothing is compared.
            pages = [p for own in series.values() for p in own if (p.collected_at or 0.0) > start]
            canary = measure_range(series, (measures.REQUEST_RATE,))
            if pages and canary is None:
                canary = Measured(start, end)
            return judge_sample(workflow, canary if pages else None, None, start=start, end=end)
        keys = measures.keys_for(workflow.slo_targets)
        canary = measure_sample({n: p for n, p in series.items() if n in changed}, keys, need_all=True)
        rest = {n: p for n, p in series.items() if n not in changed}
        baseline = measure_sample(rest, keys, need_all=False) if rest else None
        if rest and baseline is None:
            canary = None  # nothing to compare with in this interval
        last = max((p.collected_at or start for own in series.values() for p in own), default=end)
        return judge_sample(workflow, canary, baseline, start=start, end=max(start, last) if canary else end)

    async def _finalize(self, seen: Observation, workflow: Workflow, instances: Sequence[Instance]) -> Observation:
        settled = settled_at(workflow) or self._clock()
        series = await self._pipeline.pages.series(instances, settled - 1e-6, self._clock())
        # Before was all replicas: a part of them, as after a promotion without a bake, would be no after.
        keys = measures.keys_for(workflow.slo_targets)
        found = measure_range(series, keys, need_all=not workflow.dry_run)
        if found is None and not workflow.dry_run:
            await self._scrape(instances, older_than=workflow.policy.sample_interval_seconds * 0.9)
            series = await self._pipeline.pages.series(instances, settled - 1e-6, self._clock())
            found = measure_range(series, keys, need_all=True)
        if found is None and workflow.dry_run:
            found = Measured(settled, self._clock())
        return replace(seen, measured=found, health_score=await self._health(workflow, instances, settled))

    async def _health(self, workflow: Workflow, instances: Sequence[Instance], start: float) -> float | None:
        try:
            analysis = await self._pipeline.analyze_range(
                instances,
                fleet_id=_known_fleet(workflow),
                start=start - 1e-6,
                end=self._clock(),
                slo_targets=workflow.slo_targets,
                keep=False,
            )
        except PerfServiceError:
            return None
        return analysis.overall_health_score

    async def _scrape(self, instances: Sequence[Instance], *, older_than: float) -> tuple[Problem, ...]:
        """One page of each instance whose last one is older than so many seconds; the problems of those that gave none."""
        limit = asyncio.Semaphore(_SCRAPES_AT_ONCE)

        async def one(instance: Instance) -> Problem | None:
            async with limit:
                latest = await self._pipeline.store.latest_snapshot(instance.instance_id)
                if latest and older_than and self._clock() - (latest.collected_at or 0.0) < older_than:
                    return None
                try:
                    await self._pipeline.collecting.collect_from(instance)
                except Exception as error:
                    return replace(_problem(error), instance_id=instance.instance_id)
                return None

        return tuple(p for p in await asyncio.gather(*(one(i) for i in instances)) if p is not None)


def _range_start(workflow: Workflow, begun: float | None, now: float) -> float:
    """From when on pages count as the time before the change: the baseline's length, or longer where collecting took longer."""
    usual = now - baseline_seconds(workflow) - workflow.policy.sample_interval_seconds
    return min(usual, now if begun is None else begun)


def _known_fleet(workflow: Workflow) -> str:
    """The fleet's id, empty where the workflow is about a lone instance."""
    return "" if workflow.fleet_id == workflow.instance_id else workflow.fleet_id


def _where_they_are(instances: Sequence[Instance], fleet: FleetState | None) -> list[Instance]:
    """Instances with the endpoints that the target tells, which knows them best."""
    if fleet is None:
        return list(instances)
    states = {r.instance_id: r for r in fleet.replicas}
    found = []
    for instance in instances:
        state = states.get(instance.instance_id)
        if state and state.endpoint:
            instance = replace(instance, endpoint=state.endpoint)
        if state and len(state.config):
            instance = replace(instance, config=state.config)
        found.append(instance)
    return found


def _problem(error: Exception, *, pure: bool = False) -> Problem:
    """An error as data. `pure`: it comes from a computation, which would fail again on the same input."""
    if isinstance(error, TargetError):
        return Problem(error.reason, error.message, permanent=error.permanent)
    if isinstance(error, PerfServiceError):
        return Problem(error.reason, error.message, permanent=error.reason not in _TRANSIENT)
    # A bug, or an adapter's own exception. The log has the details; a message for people does not.
    _log.exception("an observation failed")
    text = f"an unexpected {type(error).__name__} inside the service; its log says where"
    return Problem(ErrorReason.INTERNAL, text, permanent=pure)
