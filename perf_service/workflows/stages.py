"""Which replicas a stage changes and how long things take: arithmetic over a workflow, no decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from perf_service.models.workflow import (
    ReplicaPhase,
    ReplicaProgress,
    RolloutPolicy,
    StagePolicy,
    StageRecord,
    Workflow,
    WorkflowRequest,
)

PREPARATION_GRACE_SECONDS = 60.0
"""How much longer than the baseline's length collecting may take, and how long a target may take to answer the preflight."""
UNREACHABLE_SECONDS = 1.5
"""An engine that gave no page for so long while collecting is not there; the workflow fails rather than waits."""
POLL_SECONDS = 1.0
"""How often the target is looked at while replicas change: restarts take tens of seconds, a look costs little."""
SLOW_RETRY_SECONDS = 60.0
"""Between the tries of a rollback that did not finish in time."""
SAMPLES_KEPT = 1000
"""Of one stage, in the stored state; older ones are in the events."""


def default_policy(request: WorkflowRequest) -> RolloutPolicy:
    """The policy of a request that has none: 10/50/100 %, each baked for `monitoring_duration_seconds`.

    Intervals are scaled down so that a short duration still holds its samples; they are never longer than the defaults.
    """
    bake = request.monitoring_duration_seconds
    warmup = min(30.0, bake / 5.0)
    interval = min(15.0, max(0.05, bake / 8.0))
    samples = min(5, max(1, math.floor((bake - warmup) / interval) - 1))
    requests = 50 if bake >= 60 else 20
    waits = not request.auto_rollout
    stages = tuple(StagePolicy(percent, bake, samples, requests, requires_promotion=waits) for percent in (10.0, 50.0, 100.0))
    return RolloutPolicy(
        stages=stages,
        sample_interval_seconds=interval,
        warmup_seconds=warmup,
        hold_limit_seconds=min(900.0, max(60.0, 3.0 * bake)),
    )


def without_waiting(policy: RolloutPolicy, *, auto_rollout: bool) -> RolloutPolicy:
    """The policy with each stage waiting for a promotion where the request does not roll out by itself."""
    if auto_rollout:
        return policy
    return replace(policy, stages=tuple(replace(stage, requires_promotion=True) for stage in policy.stages))


def stage_size(percent: float, replicas: int) -> int:
    """Replicas changed once a stage is done: the share rounded up, one at least, all at most."""
    return max(1, min(replicas, math.ceil(percent * replicas / 100.0 - 1e-9)))


def exposure_percent(changed: int, replicas: int) -> float:
    """The real share after rounding to whole replicas."""
    return 100.0 * changed / replicas if replicas else 0.0


def stage_members(workflow: Workflow, index: int) -> tuple[ReplicaProgress, ...]:
    """The replicas that run the new config once stage `index` is done, in their fixed order (cumulative)."""
    ordered = sorted(workflow.replicas, key=lambda r: r.instance_id)
    return tuple(ordered[: stage_size(workflow.policy.stages[index].percent, len(ordered))])


def stage_policy(workflow: Workflow) -> StagePolicy:
    """Policy of the present stage."""
    return workflow.policy.stages[workflow.stage_index]


def stage_record(workflow: Workflow) -> StageRecord:
    """Record of the present stage. Raises LookupError before the stage has started."""
    for record in workflow.rollout_history:
        if record.index == workflow.stage_index:
            return record
    raise LookupError(f"stage {workflow.stage_index} of {workflow.workflow_id} has no record")


def changed_replicas(workflow: Workflow) -> tuple[ReplicaProgress, ...]:
    """Replicas that this rollout changed or began to change."""
    return tuple(r for r in workflow.replicas if r.stage >= 0)


def converged_replicas(workflow: Workflow) -> tuple[ReplicaProgress, ...]:
    """Replicas that run the new config."""
    return tuple(r for r in workflow.replicas if r.phase is ReplicaPhase.CONVERGED)


def unchanged_replicas(workflow: Workflow) -> tuple[ReplicaProgress, ...]:
    """Replicas that this rollout has not touched."""
    return tuple(r for r in workflow.replicas if r.stage < 0)


def settled_at(workflow: Workflow) -> float | None:
    """From when on samples count: convergence plus warm-up, where the stage restarted a replica. None before the bake."""
    if workflow.bake_started_at is None:
        return None
    has_new = any(r.stage == workflow.stage_index for r in workflow.replicas)
    return workflow.bake_started_at + (workflow.policy.warmup_seconds if has_new and not workflow.dry_run else 0.0)


def baked_seconds(workflow: Workflow, now: float) -> float:
    """How long the present stage has baked, without the time it was paused."""
    if workflow.bake_started_at is None:
        return 0.0
    paused = workflow.paused_seconds + (now - workflow.paused_at if workflow.paused_at is not None else 0.0)
    return max(0.0, now - workflow.bake_started_at - paused)


def baseline_seconds(workflow: Workflow) -> float:
    """How much of the time before the first effect is measured: as long as a bake; a dry run, which compares nothing, less."""
    bake = workflow.policy.stages[0].bake_seconds
    if workflow.dry_run:
        return min(60.0, bake / 5.0)
    return max(bake, 2.0 * workflow.policy.sample_interval_seconds)


def next_sample_at(workflow: Workflow) -> float | None:
    """When the next sample of the present bake is due; None outside a bake."""
    start = settled_at(workflow)
    if start is None:
        return None
    last = workflow.samples[-1].end if workflow.samples else start
    return last + workflow.policy.sample_interval_seconds


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Names for a sentence, the rest as a number."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
