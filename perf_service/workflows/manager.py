"""`WorkflowManager`: start, watch and steer rollouts. As a library it needs neither a server nor a database."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

from perf_service.collectors.on_demand import OnDemandScrape
from perf_service.collectors.source import MetricsSource
from perf_service.models.errors import ConflictError, ErrorReason
from perf_service.models.fleet import Instance
from perf_service.models.workflow import Event, EventKind, Workflow, WorkflowRequest, WorkflowStatus
from perf_service.storage.ports import Page, Store
from perf_service.storage.store import SqlStore, random_id
from perf_service.targets.registry import TargetPool
from perf_service.workflows.admission import Admission
from perf_service.workflows.collecting import Collecting
from perf_service.workflows.draft import Draft
from perf_service.workflows.machine import command
from perf_service.workflows.observer import Observer
from perf_service.workflows.pipeline import Pipeline
from perf_service.workflows.reconciler import IDLE_WAIT_SECONDS, LeaseLostError, Reconciler, Wait
from perf_service.workflows.scenes import Scenes, TargetProvider
from perf_service.workflows.types import Abort, Approve, Command, Pause, Promote, Reject, Resume

_COMMAND_TRIES = 20
_WATCH_BATCH = 200


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
        self._own_scrape = OnDemandScrape() if source is None and pipeline is None else None
        if pipeline is None:
            collecting = Collecting(self._store, source or self._own_scrape or OnDemandScrape(), clock=clock)
            pipeline = Pipeline(self._store, collecting, clock=clock, new_id=new_id)
        self._pipeline = pipeline
        self._own_targets = TargetPool(clock=clock) if targets is None else None
        self._scenes = Scenes(self._store, pipeline.pages, targets or self._own_targets or TargetPool(clock=clock), clock=clock)
        self._admission = Admission(self._store, pipeline.pages, clock=clock, new_id=new_id)
        self._clock = clock
        self._wait: Wait = wait or self._store.wait_for_events
        self._running = 0
        self._loop_task: asyncio.Task[None] | None = None
        self._reconciler = Reconciler(
            self._store,
            Observer(self._pipeline, clock),
            self._scenes.of,
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
        workflow = await self._admission.workflow_of(request)
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
            self._scenes.forget(workflow_id)
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
