"""A fleet of simulated engines on a virtual clock, as the workflow manager sees one: target, metrics source, clock, wait."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.config import EngineConfig, KnobValue, config_hash
from perf_service.models.errors import CollectError, ErrorReason, TargetError
from perf_service.models.fleet import Fleet, Instance, TargetKind, TargetSpec
from perf_service.models.metrics import Engine, Snapshot
from perf_service.models.workflow import RolloutPolicy, StagePolicy
from perf_service.simulator.flags import EngineFlags, StepTimes
from perf_service.simulator.virtual import ScrapeError, VirtualFleet
from perf_service.simulator.workload import Lengths, Workload
from perf_service.storage.store import SqlStore
from perf_service.targets.base import FleetState, Op, PreflightReport, ReplicaState, Target
from perf_service.workflows.manager import WorkflowManager

Hook = Callable[[], Awaitable[object]]
POLICY = RolloutPolicy(
    stages=tuple(StagePolicy(p, bake_seconds=60.0, min_samples=5, min_requests=20) for p in (10.0, 50.0, 100.0)),
    sample_interval_seconds=5.0,
    warmup_seconds=5.0,
    hold_limit_seconds=40.0,
    apply_timeout_seconds=60.0,
    rollback_timeout_seconds=120.0,
)
SCRAPE_SECONDS = 0.05
SLOW_STEPS = StepTimes(base=0.1, per_seq=0.004, per_prefill_token=0.0005)


class World:
    """Everything outside of the manager. It survives the manager's death, as engines and databases do."""

    def __init__(
        self,
        config: Mapping[str, KnobValue],
        *,
        replicas: int = 4,
        workload: Workload | None = None,
        seed: int = 1,
        store_url: str = "sqlite://",
    ) -> None:
        load = workload or Workload(prompt=Lengths.uniform(20, 60), output=Lengths.uniform(5, 12), rate=1.5 * replicas)
        flags = EngineFlags().changed(dict(config))
        self.virtual = VirtualFleet(replicas, flags, workload=load, step_times=SLOW_STEPS, seed=seed, startup_seconds=8.0)
        self.store = SqlStore.open(store_url, clock=self.now, lease_clock=self.now)
        self.instances = [
            Instance(f"r{i}", Engine.VLLM, f"http://r{i}:8000", "f1", config=EngineConfig.of(config)) for i in range(replicas)
        ]
        self.fleet = Fleet("f1", Engine.VLLM, target=TargetSpec(TargetKind.LOCAL))
        self.target = VirtualTarget(self)
        self.changed: list[Instance] = []
        self.outage = False
        self.pages_from: Callable[[int, str], str] = lambda _, page: page
        self._hooks: list[tuple[float, int, Hook]] = []
        self._ids = itertools.count(1)
        self._builder = SnapshotBuilder(Engine.VLLM)

    def now(self) -> float:
        """Virtual unix seconds."""
        return self.virtual.clock

    async def register(self) -> None:
        """Put the fleet and its instances into the store."""
        await self.store.create_fleet(self.fleet)
        for instance in self.instances:
            await self.store.create_instance(instance)

    def manager(self) -> WorkflowManager:
        """A manager as a new process would make it."""
        return WorkflowManager(
            self.store,
            source=self,
            targets=self,
            clock=self.now,
            new_id=lambda p: f"{p}-{next(self._ids)}",
            wait=self.wait,
            instance_changed=self.changed.append,
        )

    def after(self, seconds: float, hook: Hook) -> None:
        """Run something at a later virtual time."""
        self._hooks.append((self.now() + seconds, len(self._hooks), hook))
        self._hooks.sort(key=lambda h: h[:2])

    async def wait(self, workflow_id: str, after_sequence: int, seconds: float) -> bool:
        """The reconciler's sleep: moves the virtual clock, unless there is news."""
        if (await self.store.get_workflow(workflow_id)).last_sequence > after_sequence:
            return True
        until = self.now() + seconds
        if self._hooks and self._hooks[0][0] <= until:
            when, _, hook = self._hooks.pop(0)
            self.virtual.advance_to(max(when, self.now()))
            await hook()
            return False
        self.virtual.advance_to(until)
        return False

    # MetricsSource
    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        index = int(instance.instance_id[1:])
        if self.outage:
            raise CollectError(ErrorReason.ENDPOINT_TIMEOUT, f"{instance.endpoint} did not answer")
        self.virtual.advance(SCRAPE_SECONDS)  # a scrape takes time, and is stamped with its beginning
        try:
            _, page = self.virtual.scrape(index)
        except ScrapeError as error:
            raise CollectError(ErrorReason.ENDPOINT_UNREACHABLE, str(error)) from error
        return self._builder.build(self.pages_from(index, page), instance.instance_id, now, config=instance.config)

    # TargetProvider
    async def get(self, fleet: Fleet, instances: Sequence[Instance], *, spec: TargetSpec | None = None) -> Target:
        return self.target


class VirtualTarget:
    """The target over the virtual fleet, with faults to plant and a journal of what really happened."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.configs = {i.instance_id: i.config for i in world.instances}
        self.generations = dict.fromkeys(self.configs, 0)
        self.restarts = dict.fromkeys(self.configs, 0)
        self.fence = 0
        self.journal: list[tuple[str, str, str]] = []  # (op id, instance, config hash) of real restarts
        self.unreachable = False
        self.refuse: Callable[[str, EngineConfig], TargetError | None] = lambda *_: None

    async def observe(self) -> FleetState:
        if self.unreachable:
            raise TargetError(ErrorReason.TARGET_UNAVAILABLE, "the target does not answer")
        now = self._world.now()
        return FleetState(
            tuple(
                ReplicaState(
                    i.instance_id,
                    i.endpoint,
                    self.configs[i.instance_id],
                    config_hash(self.configs[i.instance_id]),
                    self.generations[i.instance_id],
                    self._world.virtual.replicas[n].is_ready(now),
                    restarts=self.restarts[i.instance_id],
                )
                for n, i in enumerate(self._world.instances)
            ),
            now,
        )

    async def preflight(self, desired: Mapping[str, EngineConfig]) -> PreflightReport:
        return PreflightReport()

    async def apply(self, instance_id: str, desired: EngineConfig, *, expect_hash: str, op: Op) -> None:
        self._guard(instance_id, desired, op)
        present = config_hash(self.configs[instance_id])
        if present == config_hash(desired):
            return
        if present != expect_hash:
            raise TargetError(ErrorReason.TARGET_DRIFT, f"{instance_id} is not as expected", permanent=True)
        self._restart(instance_id, desired, op.op_id)

    async def restore(self, instance_id: str, recorded: EngineConfig, *, op: Op) -> None:
        self._guard(instance_id, recorded, op)
        index = int(instance_id[1:])
        stopped = self._world.virtual.replicas[index].stopped
        if config_hash(self.configs[instance_id]) != config_hash(recorded) or stopped:
            self._restart(instance_id, recorded, op.op_id)

    async def close(self) -> None: ...

    def drift(self, instance_id: str, **values: KnobValue) -> None:
        """Somebody else changes a replica."""
        self._restart(instance_id, EngineConfig.of(values).over(self.configs[instance_id]), "foreign")

    def _guard(self, instance_id: str, desired: EngineConfig, op: Op) -> None:
        assert op.fence >= self.fence, "a stale fence acted"
        self.fence = op.fence
        error = self.refuse(instance_id, desired)
        if error is not None:
            raise error

    def _restart(self, instance_id: str, config: EngineConfig, op_id: str) -> None:
        flags = replace(EngineFlags(), **config.values())  # type: ignore[arg-type]
        self._world.virtual.restart(int(instance_id[1:]), flags)
        self.configs[instance_id] = config
        self.generations[instance_id] += 1
        self.journal.append((op_id, instance_id, config_hash(config)))
