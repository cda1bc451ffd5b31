"""`WorkflowManager`: start, watch and steer rollouts. As a library it needs neither a server nor a database."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from perf_service.collectors.fetch import Fetcher
from perf_service.collectors.source import DirectScrape, MetricsSource
from perf_service.models.errors import ConflictError, ErrorReason, InvalidArgumentError, NotFoundError, PerfServiceError, WrongStateError
from perf_service.models.fleet import Fleet, Instance, TargetKind, TargetSpec
from perf_service.models.metrics import Engine, Snapshot
from perf_service.models.plan import Plan
from perf_service.models.workflow import Event, EventKind, RolloutPolicy, Workflow, WorkflowRequest, WorkflowStatus
from perf_service.storage.ports import Page, Store
from perf_service.storage.store import SqlStore
from perf_service.targets.base import Target
from perf_service.targets.dry_run import DryRunTarget
from perf_service.targets.missing import MissingTarget
from perf_service.targets.registry import TargetPool
from perf_service.workflows.draft import Draft
from perf_service.workflows.machine import command
from perf_service.workflows.observer import Observer
from perf_service.workflows.pipeline import Pipeline, implied_instance
from perf_service.workflows.reconciler import IDLE_WAIT_SECONDS, LeaseLostError, Reconciler, Scene, Wait
from perf_service.workflows.stages import default_policy, without_waiting
from perf_service.workflows.types import Abort, Approve, Command, Pause, Promote, Reject, Resume

_COMMAND_TRIES = 20
_WATCH_BATCH = 200


class TargetProvider(Protocol):
    """Open targets, one a fleet."""

    async def get(self, fleet: Fleet, instances: Sequence[Instance], *, spec: TargetSpec | None = None) -> Target:
        """The fleet's target. Raises TargetError."""
        ...


def random_id(prefix: str) -> str:
    """`prefix-` and 20 random hex digits."""
    return f"{prefix}-{uuid.uuid4().hex[:20]}"


class _OwnScrape:
    """A direct scrape whose connections are opened at first use and closed when nothing runs: for use without a server."""

    def __init__(self) -> None:
        self._fetcher: Fetcher | None = None
        self._scrape: DirectScrape | None = None

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        if self._scrape is None:
            self._fetcher = Fetcher()
            self._scrape = DirectScrape(self._fetcher)
        return await self._scrape.snapshot(instance, now)

    async def aclose(self) -> None:
        fetcher, self._fetcher, self._scrape = self._fetcher, None, None
        if fetcher is not None:
            await fetcher.aclose()


class WorkflowManager:
    """Rollouts over a store. Without arguments: an in-memory store, direct scrapes, and the dry-run target for unregistered instances.

    A server gives its own `store`, `pipeline` and `targets` and runs `run()` as a task; then `start` returns at once and the loop drives.
    Without a loop `start_workflow` drives the workflow itself. `wait` is for tests with a virtual clock.
    `instance_changed` is told the registration of an instance whose flags a completed rollout changed.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        pipeline: Pipeline | None = None,
        source: MetricsSource | None = None,
        targets: TargetProvider | None = None,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[str], str] = random_id,
        wait: Wait | None = None,
        lease_ttl_seconds: float = 15.0,
        concurrency: int = 16,
        instance_changed: Callable[[Instance], None] = lambda instance: None,
    ) -> None:
        self._store: Store = store if store is not None else SqlStore.open("sqlite://", clock=clock)
        self._own_scrape = None if source is not None or pipeline is not None else _OwnScrape()
        self._pipeline = pipeline or Pipeline(self._store, source=source or self._own_scrape or _OwnScrape(), clock=clock, new_id=new_id)
        self._own_targets = TargetPool(clock=clock) if targets is None else None
        self._targets: TargetProvider = targets or self._own_targets or TargetPool(clock=clock)
        self._clock = clock
        self._new_id = new_id
        self._wait: Wait = wait or self._store.wait_for_events
        self._dry_runs: dict[str, Target] = {}
        self._running = 0
        self._loop_task: asyncio.Task[None] | None = None
        self._reconciler = Reconciler(
            self._store,
            Observer(self._pipeline, clock),
            self._scene,
            clock=clock,
            owner=random_id("manager"),
            wait=wait,
            lease_ttl_seconds=lease_ttl_seconds,
            concurrency=concurrency,
            instance_changed=instance_changed,
        )

    @property
    def store(self) -> Store:
        """Where everything is kept."""
        return self._store

    @property
    def pipeline(self) -> Pipeline:
        """The use cases up to a plan, over the same store."""
        return self._pipeline

    # --- starting ---

    async def start(self, request: WorkflowRequest) -> Workflow:
        """Create the workflow and return at once. The same `request_id` with the same request returns the earlier one.

        Raises InvalidArgumentError, INSTANCE_NOT_FOUND, FLEET_NOT_FOUND, PLAN_NOT_FOUND, PLAN_STALE, PLAN_EMPTY, REQUEST_ID_REUSED,
        WORKFLOW_ACTIVE_ON_FLEET.
        """
        workflow = await self._new_workflow(request)
        draft = Draft(workflow, self._clock())
        what = f"plan {request.plan_id}" if request.plan_id else "given changes" if request.changes else "collect, analyze, optimize"
        draft.emit(EventKind.STATE_CHANGED, f"started{f' by {request.requested_by}' if request.requested_by else ''}: {what}")
        decision = draft.done()
        created = await self._store.create_workflow(decision.workflow, decision.events)
        self._reconciler.ring()
        return created

    async def start_workflow(self, request: WorkflowRequest) -> Workflow:
        """Start and run to a terminal state. Raises as `start`; a failure of the rollout itself is a status, not an exception.

        With `requires_approval` it waits for `approve` from another task, or for the approval's timeout.
        """
        workflow = await self.start(request)
        return await self.run_to_end(workflow.workflow_id)

    async def run_to_end(self, workflow_id: str) -> Workflow:
        """Drive a workflow (or wait for whoever drives it) until it is terminal. Raises WORKFLOW_NOT_FOUND."""
        self._running += 1
        try:
            while True:
                workflow = await self._store.get_workflow(workflow_id)
                if workflow.status.terminal:
                    return workflow
                lease = None if self._loop_runs() else await self._reconciler.claim(workflow_id)
                if lease is None:
                    await self._wait(workflow_id, workflow.last_sequence, 1.0)
                    continue
                with contextlib.suppress(LeaseLostError):
                    return await self._reconciler.drive(lease)
        finally:
            self._running -= 1
            self._dry_runs.pop(workflow_id, None)
            if not self._running and self._own_scrape is not None and not self._loop_runs():
                await self._own_scrape.aclose()

    # --- the loop of a server ---

    async def run(self) -> None:
        """Drive every active workflow of the store until `stop` or cancellation: those that a restart interrupted first."""
        if self._loop_runs():
            return
        self._loop_task = asyncio.current_task()
        try:
            await self._reconciler.run()
        finally:
            self._loop_task = None
            if self._own_scrape is not None:
                await self._own_scrape.aclose()

    async def stop(self) -> None:
        """End `run`: leases are given back, effects that are under way at the target go on there."""
        task = self._loop_task
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Stop, and close what the manager opened itself."""
        await self.stop()
        if self._own_scrape is not None:
            await self._own_scrape.aclose()
        if self._own_targets is not None:
            await self._own_targets.close()

    def _loop_runs(self) -> bool:
        return self._loop_task is not None and not self._loop_task.done()

    # --- reading ---

    async def get(self, workflow_id: str) -> Workflow:
        """One workflow. Raises WORKFLOW_NOT_FOUND."""
        return await self._store.get_workflow(workflow_id)

    async def list(
        self,
        *,
        fleet_id: str | None = None,
        statuses: Sequence[WorkflowStatus] = (),
        page_size: int = 50,
        page_token: str = "",
    ) -> Page[Workflow]:
        """Workflows, newest first. Raises PAGE_TOKEN_INVALID."""
        return await self._store.list_workflows(fleet_id=fleet_id, statuses=statuses, page_size=page_size, page_token=page_token)

    async def watch(self, workflow_id: str, after_sequence: int = 0) -> AsyncIterator[Event]:
        """Every event after a sequence, in order and without gaps, until the one that ends the workflow.

        Nothing is buffered for a slow reader: each batch is read from the store when the one before is consumed, so memory is bounded and
        a reader may come back with the last sequence it saw, also after a restart. Raises WORKFLOW_NOT_FOUND, CURSOR_OUT_OF_RANGE.
        """
        cursor = after_sequence
        while True:
            events = await self._store.events_after(workflow_id, cursor, limit=_WATCH_BATCH)
            for event in events:
                cursor = event.sequence
                yield event
            if events:
                continue
            workflow = await self._store.get_workflow(workflow_id)
            if workflow.last_sequence > cursor:
                continue
            if workflow.status.terminal:
                return
            await self._store.wait_for_events(workflow_id, cursor, IDLE_WAIT_SECONDS)

    # --- steering ---

    async def approve(self, workflow_id: str, by: str, *, plan_hash: str = "", reason: str = "") -> Workflow:
        """Approve the plan. Raises WORKFLOW_WRONG_STATE, APPROVAL_STALE for another plan's hash or after the deadline."""
        return await self._command(workflow_id, Approve(by, plan_hash, reason))

    async def reject(self, workflow_id: str, by: str, *, reason: str = "") -> Workflow:
        """Reject the plan: REJECTED. Raises WORKFLOW_WRONG_STATE."""
        return await self._command(workflow_id, Reject(by, reason))

    async def pause(self, workflow_id: str, by: str, *, reason: str = "") -> Workflow:
        """Stop forward moves; a hard breach still rolls back. Raises WORKFLOW_WRONG_STATE."""
        return await self._command(workflow_id, Pause(by, reason))

    async def resume(self, workflow_id: str, by: str, *, reason: str = "") -> Workflow:
        """End a pause. Raises WORKFLOW_WRONG_STATE."""
        return await self._command(workflow_id, Resume(by, reason))

    async def promote(self, workflow_id: str, by: str, *, full: bool = False, reason: str = "") -> Workflow:
        """Go on without waiting for the rest of the bake (`full`: of all bakes). A failed gate still rolls back. WORKFLOW_WRONG_STATE."""
        return await self._command(workflow_id, Promote(by, full, reason))

    async def abort(self, workflow_id: str, by: str, *, reason: str = "") -> Workflow:
        """Cancel before the first effect, roll back after. Raises WORKFLOW_WRONG_STATE once it has ended."""
        return await self._command(workflow_id, Abort(by, reason))

    async def _command(self, workflow_id: str, order: Command) -> Workflow:
        """A pure transition against the newest state; where the reconciler or another person was faster, against theirs."""
        for attempt in range(_COMMAND_TRIES):
            workflow = await self._store.get_workflow(workflow_id)
            decision = command(workflow, order, self._clock())
            if not decision.moved:
                return workflow
            try:
                return await self._store.save_workflow(decision.workflow, decision.events, expect_version=workflow.version, fence=None)
            except ConflictError as error:
                if error.reason is not ErrorReason.ETAG_MISMATCH or attempt + 1 == _COMMAND_TRIES:
                    raise
        raise AssertionError("unreachable")

    # --- making a workflow ---

    async def _new_workflow(self, request: WorkflowRequest) -> Workflow:
        engine = _engine(request.instance_type)
        if request.plan_id:
            plan = _usable(await self._store.get_plan(request.plan_id), self._clock())
            if not request.instance_id and not request.fleet_id:
                known = "" if plan.fleet_id else plan.instance_id
                request = replace(request, fleet_id=plan.fleet_id, instance_id=known, instance_type=plan.engine.value)
                engine = plan.engine
        if not request.instance_id and not request.fleet_id:
            raise InvalidArgumentError("name an instance, a fleet or a plan to roll out", field="instance_id")
        fleet, instance = await self._fleet_and_instance(request, engine)
        engine = fleet.engine if fleet else instance.engine if instance else engine
        policy = without_waiting(request.policy or default_policy(_checked(request)), auto_rollout=request.auto_rollout)
        check_policy(policy)
        target = fleet.target if fleet and not request.dry_run else TargetSpec()
        now = self._clock()
        return Workflow(
            workflow_id=self._new_id("wf"),
            request=request,
            engine=engine,
            fleet_id=fleet.fleet_id if fleet else request.instance_id,
            instance_id=request.instance_id,
            target=target,
            dry_run=target.kind is TargetKind.DRY_RUN,
            policy=policy,
            slo_targets=request.slo_targets or (fleet.slo_targets if fleet else ()),
            message="started",
            created_at=now,
            updated_at=now,
            phase_started_at=now,
        )

    async def _fleet_and_instance(self, request: WorkflowRequest, engine: Engine) -> tuple[Fleet | None, Instance | None]:
        instance = None
        if request.instance_id:
            with contextlib.suppress(NotFoundError):
                instance = await self._store.get_instance(request.instance_id)
        fleet_id = request.fleet_id or (instance.fleet_id if instance else "")
        if fleet_id:
            fleet = await self._store.get_fleet(fleet_id)
            await self._pipeline.members(fleet_id)
            return fleet, instance
        return None, instance or implied_instance(request.instance_id, engine)

    async def _scene(self, workflow: Workflow) -> Scene:
        """The instances and the target that a workflow acts on, as they are registered now.

        A target that cannot be had any more (its options were spoilt, its directory is gone) is one that fails at every call: the rollout
        is then held and undone like after any other trouble with a target, instead of standing still without a word.
        """
        lone = workflow.fleet_id == workflow.instance_id
        instances: tuple[Instance, ...] = ()
        fleet: Fleet | None = None
        with contextlib.suppress(NotFoundError, InvalidArgumentError):  # deleted, or without any instance by now
            fleet = await self._store.get_fleet(workflow.fleet_id)
            instances = await self._pipeline.members(workflow.fleet_id)
        if lone and not instances:
            try:
                instances = (await self._store.get_instance(workflow.instance_id),)
            except NotFoundError:
                instances = (implied_instance(workflow.instance_id, workflow.engine),)
        if workflow.target.kind is TargetKind.DRY_RUN:
            target = self._dry_runs.get(workflow.workflow_id)
            if target is None:
                target = self._dry_runs[workflow.workflow_id] = DryRunTarget(workflow.fleet_id, instances, self._clock)
        else:
            owner = fleet or Fleet(workflow.fleet_id, workflow.engine, target=workflow.target)
            try:
                target = await self._targets.get(owner, instances, spec=workflow.target)
            except PerfServiceError as error:
                target = MissingTarget(error)
        return Scene(instances, target)


def check_policy(policy: RolloutPolicy) -> None:
    """Raises InvalidArgumentError where a policy makes no sense, naming the field."""
    percents = [stage.percent for stage in policy.stages]
    if not percents:
        raise InvalidArgumentError("a rollout needs at least one stage", field="policy.stages")
    for index, stage in enumerate(policy.stages):
        where = f"policy.stages[{index}]"
        if not 0 < stage.percent <= 100:
            raise InvalidArgumentError(f"percent must be above 0 and at most 100, not {stage.percent:g}", field=f"{where}.percent")
        if not (math.isfinite(stage.bake_seconds) and stage.bake_seconds > 0):
            raise InvalidArgumentError(f"bake_seconds must be positive, not {stage.bake_seconds:g}", field=f"{where}.bake_seconds")
        if stage.min_samples < 1 or stage.min_requests < 0:
            raise InvalidArgumentError("min_samples must be 1 or more and min_requests not negative", field=where)
    if percents != sorted(set(percents)):
        raise InvalidArgumentError(f"stages must grow, but are {', '.join(f'{p:g} %' for p in percents)}", field="policy.stages")
    if percents[-1] != 100:
        raise InvalidArgumentError(f"the last stage must be 100 %, not {percents[-1]:g} %", field="policy.stages")
    for name in ("sample_interval_seconds", "hold_limit_seconds", "apply_timeout_seconds", "rollback_timeout_seconds"):
        value = getattr(policy, name)
        if not (math.isfinite(value) and value > 0):
            raise InvalidArgumentError(f"{name} must be positive, not {value:g}", field=f"policy.{name}")
    if not 0 < policy.false_alarm_probability < 1:
        raise InvalidArgumentError("false_alarm_probability must lie between 0 and 1", field="policy.false_alarm_probability")
    if policy.slo_failures < 1 or policy.slo_window < policy.slo_failures:
        raise InvalidArgumentError("slo_failures must be 1 or more and not above slo_window", field="policy.slo_failures")


def _usable(plan: Plan, now: float) -> Plan:
    """The plan. Raises WrongStateError where a rollout of it would end at once."""
    if plan.empty:
        text = f"plan {plan.plan_id} changes nothing, so there is nothing to roll out: {plan.summary or 'read its advice'}"
        raise WrongStateError(ErrorReason.PLAN_EMPTY, text, {"plan_id": plan.plan_id})
    if plan.expires_at and now > plan.expires_at:
        raise WrongStateError(ErrorReason.PLAN_STALE, f"plan {plan.plan_id} has expired: make a new one", {"plan_id": plan.plan_id})
    return plan


def _checked(request: WorkflowRequest) -> WorkflowRequest:
    seconds = request.monitoring_duration_seconds
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidArgumentError(f"monitoring_duration_seconds must be positive, not {seconds:g}", field="monitoring_duration_seconds")
    return request


def _engine(name: str) -> Engine:
    try:
        return Engine(name.lower())
    except ValueError as error:
        known = ", ".join(e.value for e in Engine)
        raise InvalidArgumentError(
            f"instance_type {name!r} is not an engine; known: {known}", field="instance_type", reason=ErrorReason.ENGINE_UNKNOWN
        ) from error
