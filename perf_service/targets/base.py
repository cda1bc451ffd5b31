"""What a rollout acts on. Every method is idempotent; effects carry a fence, and a target refuses a lower one than it has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from perf_service.models.config import EngineConfig


@dataclass(frozen=True, slots=True)
class Op:
    """Identity of one effect: the same `op_id` may arrive twice; `deadline` is unix seconds."""

    op_id: str
    fence: int
    deadline: float


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One replica as observed, never from a cache."""

    instance_id: str
    endpoint: str
    config: EngineConfig  # full launch config as applied
    config_hash: str
    generation: int  # grows with every applied config
    ready: bool  # a real completion answered
    weight: float = 1.0  # share of traffic relative to the others, where weighted
    engine_version: str = ""
    restarts: int = 0  # process restarts that nobody asked for
    message: str = ""
    failed: bool = False  # the last apply ended without a running engine; `message` says why, and nothing tries again by itself


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a target can do."""

    per_replica_config: bool = True
    weighted_traffic: bool = False
    surge: bool = False
    hot_apply: bool = False
    drain: bool = False
    changes_anything: bool = True  # False: a dry run


@dataclass(frozen=True, slots=True)
class FleetState:
    """All replicas of a fleet at one time."""

    replicas: tuple[ReplicaState, ...]
    observed_at: float
    capabilities: Capabilities = field(default_factory=Capabilities)

    def replica(self, instance_id: str) -> ReplicaState | None:
        """The named replica, None where it is gone."""
        return next((r for r in self.replicas if r.instance_id == instance_id), None)


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """Whether a change could be applied and restored: problems are sentences for a person; empty means go."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # capacity lost, restarts, start-up time expected


class Target(Protocol):
    """A rollout target of one fleet. Raises TargetError."""

    async def observe(self) -> FleetState:
        """Authoritative state, read now."""
        ...

    async def preflight(self, desired: Mapping[str, EngineConfig]) -> PreflightReport:
        """Check without touching anything."""
        ...

    async def apply(self, instance_id: str, desired: EngineConfig, *, expect_hash: str, op: Op) -> None:
        """Begin to bring one replica to `desired`: compare-and-set on `expect_hash`, no-op when already there, TARGET_DRIFT otherwise.

        Returns once the change has been accepted; convergence is seen through `observe`.
        """
        ...

    async def restore(self, instance_id: str, recorded: EngineConfig, *, op: Op) -> None:
        """Bring one replica back to the recorded config, whatever it is now; no-op when already there."""
        ...

    async def close(self) -> None:
        """Release handles; never stops an engine."""
        ...
