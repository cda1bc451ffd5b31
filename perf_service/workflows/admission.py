"""What a request to roll out becomes: a workflow with its fleet, target, policy and objectives, or a refusal that names the field."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace

from perf_service.models.errors import ErrorReason, InvalidArgumentError, NotFoundError, WrongStateError
from perf_service.models.fleet import Fleet, Instance, TargetKind, TargetSpec
from perf_service.models.metrics import Engine
from perf_service.models.plan import Plan
from perf_service.models.workflow import RolloutPolicy, Workflow, WorkflowRequest
from perf_service.storage.ports import Store
from perf_service.workflows.collecting import implied_instance
from perf_service.workflows.stages import default_policy, without_waiting
from perf_service.workflows.stored_pages import StoredPages


class Admission:
    """Looks at what is registered; changes nothing."""

    def __init__(self, store: Store, pages: StoredPages, *, clock: Callable[[], float], new_id: Callable[[str], str]) -> None:
        self._store = store
        self._pages = pages
        self._clock = clock
        self._new_id = new_id

    async def workflow_of(self, request: WorkflowRequest) -> Workflow:
        """A new workflow, not stored yet.

        Raises InvalidArgumentError, FLEET_NOT_FOUND, PLAN_NOT_FOUND, PLAN_STALE, PLAN_EMPTY, NOT_ENOUGH_DATA for a fleet without instances.
        """
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
            await self._pages.members(fleet_id)
            return fleet, instance
        return None, instance or implied_instance(request.instance_id, engine)


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
