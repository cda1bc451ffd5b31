"""The loop that drives workflows: observe, decide, record, act; level-triggered, leased, fenced.

State is recorded before its effects are carried out, so nothing is ever touched that a restart would not know of; effects are idempotent
and asked for again until they are seen. A process that loses its lease stops acting by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from perf_service.models.errors import ConflictError, ErrorReason, NotFoundError, PerfServiceError, StoreError, TargetError, WrongStateError
from perf_service.models.fleet import Instance
from perf_service.models.workflow import Workflow, WorkflowStatus
from perf_service.storage.ports import Lease, LedgerEntry, Store
from perf_service.targets.base import Op, Target
from perf_service.workflows.invariants import violations
from perf_service.workflows.machine import decide, next_look_at
from perf_service.workflows.observer import Observer
from perf_service.workflows.outcome import ledger_entry
from perf_service.workflows.types import Action, ApplyReplica, Decision, Problem

_log = logging.getLogger(__name__)
LEASE_TTL_SECONDS = 15.0
IDLE_WAIT_SECONDS = 30.0
"""Longest sleep of a workflow that only a command can move; a command rings, and the store is asked again this often anyway."""
CLAIM_INTERVAL_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 5.0

Wait = Callable[[str, int, float], Awaitable[object]]
"""(workflow id, last sequence seen, seconds): returns when there are later events or the time is over."""


class InvariantError(Exception):
    """A decision that must not be stored: a bug. Nothing was done; an operator has to look."""


class LeaseLostError(Exception):
    """Another process owns the workflow, or this one could not renew in time: it must not act."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a workflow acts on."""

    instances: Sequence[Instance]
    target: Target


SceneOf = Callable[[Workflow], Awaitable[Scene]]


@dataclass(slots=True)
class Run:
    """What one process remembers of one workflow between ticks. All of it may be lost at any time."""

    lease: Lease
    ttl_seconds: float
    held_until: float = 0.0  # on time.monotonic
    renewed_at: float = 0.0
    failures: tuple[Problem, ...] = ()
    accepted: set[str] = field(default_factory=set)

    @property
    def valid(self) -> bool:
        """Whether this process may still act."""
        return time.monotonic() < self.held_until


class Reconciler:
    """Drives workflows of a store. `owner` is unique per process start."""

    def __init__(
        self,
        store: Store,
        observer: Observer,
        scene_of: SceneOf,
        *,
        clock: Callable[[], float],
        owner: str,
        wait: Wait | None = None,
        lease_ttl_seconds: float = LEASE_TTL_SECONDS,
        concurrency: int = 16,
        instance_changed: Callable[[Instance], None] = lambda instance: None,
    ) -> None:
        self._store = store
        self._observer = observer
        self._scene_of = scene_of
        self._clock = clock
        self._wait: Wait = wait or store.wait_for_events
        self._instance_changed = instance_changed
        self._ttl = lease_ttl_seconds
        self._ticks = asyncio.Semaphore(concurrency)
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._claim = asyncio.Event()
        self.owner = owner

    # --- the loop of a server ---

    async def run(self) -> None:
        """Claim and drive every active workflow until cancelled; leases are given back at the end."""
        try:
            while True:
                await self._claim_all()
                self._claim.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLAIM_INTERVAL_SECONDS):
                        await self._claim.wait()
        finally:
            tasks = list(self._runs.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def ring(self) -> None:
        """There may be a new workflow to claim."""
        self._claim.set()

    async def _claim_all(self) -> None:
        try:
            while (lease := await self._store.acquire_lease(self.owner, self._ttl)) is not None:
                if lease.workflow_id in self._runs:
                    # Our own, expired while its task was late. The task now finds its fence too low and ends; the next round begins anew.
                    await self._store.release_lease(lease)
                    return
                task = asyncio.create_task(self._drive_leased(lease), name=f"workflow {lease.workflow_id}")
                self._runs[lease.workflow_id] = task
                task.add_done_callback(partial(self._forget, lease.workflow_id))
        except StoreError as error:
            _log.warning("no workflow can be claimed: %s", error.message)

    def _forget(self, workflow_id: str, _: asyncio.Task[None]) -> None:
        self._runs.pop(workflow_id, None)

    async def _drive_leased(self, lease: Lease) -> None:
        try:
            await self.drive(lease)
        except LeaseLostError:
            _log.info("lost the lease of workflow %s", lease.workflow_id)
        except Exception:
            _log.exception("workflow %s: its driver failed; it is claimed again when the lease expires", lease.workflow_id)

    # --- one workflow ---

    async def claim(self, workflow_id: str) -> Lease | None:
        """The lease of one workflow, None where another process has it or it has ended."""
        return await self._store.acquire_lease(self.owner, self._ttl, workflow_id=workflow_id)

    async def drive(self, lease: Lease) -> Workflow:
        """Tick until the workflow is terminal. Raises LeaseLostError. The lease is given back whatever happens."""
        run = self._run_of(lease)
        beat = asyncio.create_task(self._keep_lease(run), name=f"lease {lease.workflow_id}")
        backoff = 0.1
        try:
            while True:
                try:
                    async with self._ticks:
                        workflow, again = await self.tick(run)
                    backoff = 0.1
                    if workflow.status.terminal:
                        return workflow
                    if not again:
                        await self._sleep(workflow)
                except StoreError as error:
                    # Without a store nothing is known and nothing may be done.
                    _log.warning("workflow %s waits for the store: %s", lease.workflow_id, error.message)
                    await asyncio.sleep(backoff)
                    backoff = min(MAX_BACKOFF_SECONDS, backoff * 2)
        finally:
            beat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beat
            with contextlib.suppress(PerfServiceError):
                await self._store.release_lease(run.lease)

    async def tick(self, run: Run) -> tuple[Workflow, bool]:
        """One round; returns the workflow as stored and whether to look again at once."""
        await self._renew_if_due(run)
        workflow = await self._store.get_workflow(run.lease.workflow_id)
        if workflow.status.terminal:
            return workflow, False
        scene = await self._scene_of(workflow)
        seen = await self._observer.observe(workflow, scene.instances, scene.target)
        seen = replace(seen, failures=run.failures, accepted=frozenset(run.accepted))
        decision = decide(workflow, seen, self._clock())
        if broken := violations(workflow, decision):
            raise InvariantError(f"workflow {workflow.workflow_id}: a decision was refused: {'; '.join(broken)}")
        if decision.moved:
            try:
                saved = await self._record(workflow, decision, run)
            except ConflictError as error:
                if error.reason is ErrorReason.LEASE_LOST:
                    raise LeaseLostError from error
                return workflow, True  # a command came in between: decide again on what it left
            except WrongStateError:
                return await self._store.get_workflow(workflow.workflow_id), True
        else:
            saved = workflow
        run.failures = ()
        await self._act(decision.actions, scene.target, run)
        return saved, saved.status is not workflow.status

    async def _record(self, before: Workflow, decision: Decision, run: Run) -> Workflow:
        if decision.write_ledger:
            entry = await self._ledger_entry(decision.workflow)
            await self._store.add_ledger_entry(entry)
        if decision.workflow.status is WorkflowStatus.COMPLETED and not decision.workflow.dry_run:
            await self._register_changes(decision.workflow)
        return await self._store.save_workflow(decision.workflow, decision.events, expect_version=before.version, fence=run.lease.fence)

    async def _register_changes(self, workflow: Workflow) -> None:
        """Registered launch flags follow the rollout, or the next analysis would judge the new engines by the old limits. Idempotent."""
        for replica in workflow.replicas:
            with contextlib.suppress(NotFoundError):  # walked through without being registered, or deregistered since
                instance = await self._store.get_instance(replica.instance_id)
                config = instance.config.with_changes(workflow.changes)
                if config != instance.config:
                    self._instance_changed(await self._store.update_instance(replace(instance, config=config), expect_etag=instance.etag))

    async def _ledger_entry(self, workflow: Workflow) -> LedgerEntry:
        causes: list[str] = []
        version = ""
        if workflow.plan_id:
            with contextlib.suppress(NotFoundError):
                plan = await self._store.get_plan(workflow.plan_id)
                causes = [o.cause.value for o in plan.optimizations if o.config_changes]
                version = plan.engine_version
        return ledger_entry(workflow, causes=causes, engine_version=version)

    async def _act(self, actions: Sequence[Action], target: Target, run: Run) -> None:
        """Carry out effects one after the other; a failure becomes part of the next observation."""
        failures = []
        for action in actions:
            if not run.valid:
                raise LeaseLostError
            op = Op(action.op_id, run.lease.fence, action.deadline)
            try:
                if isinstance(action, ApplyReplica):
                    await target.apply(action.instance_id, action.desired, expect_hash=action.expect_hash, op=op)
                else:
                    await target.restore(action.instance_id, action.recorded, op=op)
                run.accepted.add(action.op_id)
            except TargetError as error:
                if error.reason is ErrorReason.LEASE_LOST:
                    raise LeaseLostError from error
                failures.append(Problem(error.reason, error.message, error.permanent, action.instance_id))
            except PerfServiceError as error:
                failures.append(Problem(error.reason, error.message, False, action.instance_id))
            except Exception as error:
                _log.exception("an effect on %s failed", action.instance_id)
                text = f"an unexpected {type(error).__name__} inside the service; its log says where"
                failures.append(Problem(ErrorReason.INTERNAL, text, False, action.instance_id))
        run.failures = tuple(failures)

    async def _sleep(self, workflow: Workflow) -> None:
        now = self._clock()
        due = next_look_at(workflow, now)
        seconds = IDLE_WAIT_SECONDS if due is None else max(0.0, min(IDLE_WAIT_SECONDS, due - now))
        if seconds > 0:
            await self._wait(workflow.workflow_id, workflow.last_sequence, seconds)

    # --- the lease ---

    def _run_of(self, lease: Lease) -> Run:
        now = time.monotonic()
        return Run(lease, self._ttl, now + self._ttl, now)

    async def _renew_if_due(self, run: Run) -> None:
        started = time.monotonic()
        if started - run.renewed_at < self._ttl / 3 and self._clock() < run.lease.expires_at:
            return
        try:
            run.lease = await self._store.renew_lease(run.lease, self._ttl)
        except ConflictError as error:
            run.held_until = 0.0
            raise LeaseLostError from error
        run.renewed_at, run.held_until = started, started + self._ttl

    async def _keep_lease(self, run: Run) -> None:
        """Renew in time also while an observation or an effect takes long."""
        while True:
            await asyncio.sleep(self._ttl / 3)
            with contextlib.suppress(StoreError):
                try:
                    await self._renew_if_due(run)
                except LeaseLostError:
                    return
