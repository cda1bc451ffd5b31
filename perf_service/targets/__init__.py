"""What a rollout acts on: the dry run, and engine processes on this host. Others implement `base.Target`."""

from perf_service.targets.base import Capabilities, FleetState, Op, PreflightReport, ReplicaState, Target
from perf_service.targets.dry_run import DryRunTarget
from perf_service.targets.local import LocalOptions, LocalTarget
from perf_service.targets.registry import TargetPool, check_spec, make_target
from perf_service.targets.supervision import LocalSupervision

__all__ = [
    "Capabilities",
    "DryRunTarget",
    "FleetState",
    "LocalOptions",
    "LocalSupervision",
    "LocalTarget",
    "Op",
    "PreflightReport",
    "ReplicaState",
    "Target",
    "TargetPool",
    "check_spec",
    "make_target",
]
