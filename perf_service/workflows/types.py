"""What goes into and comes out of the pure machine: observations, decisions, actions and commands, all plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from perf_service.models.analysis import Analysis
from perf_service.models.config import EngineConfig
from perf_service.models.errors import ErrorReason
from perf_service.models.plan import Plan
from perf_service.models.workflow import Event, StageSample, Workflow
from perf_service.targets.base import FleetState, PreflightReport


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an observation or an action did not succeed. `permanent`: trying again cannot help."""

    reason: ErrorReason
    message: str
    permanent: bool = False
    instance_id: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics of a group of replicas over one range of time, by metric key (see measures.py), with their sample counts."""

    start: float
    end: float
    values: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Length of the range."""
        return max(0.0, self.end - self.start)


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen in one tick. None means "not looked at, or could not be seen"; the problem says which."""

    fleet: FleetState | None = None
    fleet_problem: Problem | None = None
    # Preparation
    pages: int = 0  # scrapes of the fleet in the range asked for
    covered_seconds: float = 0.0  # how much of the range they span
    measured: Measured | None = None  # baseline before the first effect; the whole stage when finalizing
    collect_problems: tuple[Problem, ...] = ()
    analysis: Analysis | None = None
    plan: Plan | None = None
    problem: Problem | None = None  # of the analysis, the plan or the preflight check
    preflight: PreflightReport | None = None
    # Rollout
    sample: StageSample | None = None
    health_score: float | None = None
    failures: tuple[Problem, ...] = ()  # of the last tick's actions, by replica
    accepted: frozenset[str] = frozenset()  # op ids that the target accepted from this process


@dataclass(frozen=True, slots=True)
class ApplyReplica:
    """Bring one replica to a config, provided that it still has the recorded one."""

    instance_id: str
    desired: EngineConfig
    expect_hash: str
    op_id: str
    deadline: float


@dataclass(frozen=True, slots=True)
class RestoreReplica:
    """Bring one replica back to the recorded config, whatever it has now."""

    instance_id: str
    recorded: EngineConfig
    op_id: str
    deadline: float


Action = ApplyReplica | RestoreReplica


@dataclass(frozen=True, slots=True)
class Decision:
    """The next state with the events that lead there, and what to do about the world once both are stored.

    `write_ledger` asks for the ledger entry to be written before the state is.
    """

    workflow: Workflow
    events: tuple[Event, ...] = ()
    actions: tuple[Action, ...] = ()
    write_ledger: bool = False

    @property
    def moved(self) -> bool:
        """Whether there is something to store."""
        return bool(self.events)


@dataclass(frozen=True, slots=True)
class Approve:
    """A person's yes, bound to a plan hash where one is given."""

    by: str
    plan_hash: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """A person's no."""

    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop forward moves."""

    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Resume:
    """End a pause."""

    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Promote:
    """Go on without waiting for the rest of this stage's bake (`full`: of every stage's)."""

    by: str
    full: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Abort:
    """End it: cancelled before the first effect, rolled back after."""

    by: str
    reason: str = ""


Command = Approve | Reject | Pause | Resume | Promote | Abort
