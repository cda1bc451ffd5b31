"""The dry-run target: records what would be applied and touches nothing.

An applied config is reported as if it ran, so that a rollout goes through all its motions, but `capabilities.changes_anything` is
False: nothing measured afterwards is an effect of it. With a state directory the record survives a restart of the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perf_service.models.config import EngineConfig, config_hash
from perf_service.models.fleet import Instance
from perf_service.targets.base import Capabilities, FleetState, Op, PreflightReport, ReplicaState
from perf_service.targets.checks import check_expected, check_fence, replica_unknown
from perf_service.targets.files import config_from_document, config_to_document, read_document, write_atomically


@dataclass(frozen=True, slots=True)
class _Record:
    """The last intended apply of one replica, on top of the config (`base_hash`) that it was known to have then."""

    base_hash: str
    config: EngineConfig
    generation: int
    fence: int
    op_id: str


@dataclass(frozen=True, slots=True)
class IntendedApply:
    """One entry of the dry run's journal: what would have been done."""

    at: float
    instance_id: str
    config: EngineConfig
    op_id: str
    restore: bool = False


@dataclass(slots=True)
class DryRunTarget:
    """See `base.Target`. `instances` with their known configs; `state_file` None keeps the record in memory."""

    fleet_id: str
    instances: Sequence[Instance]
    clock: Callable[[], float]
    state_file: Path | None = None
    journal: list[IntendedApply] = field(default_factory=list)  # of this process
    _records: dict[str, _Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        document = read_document(self.state_file) if self.state_file else None
        for instance_id, entry in (document or {}).items():
            self._records[instance_id] = _Record(
                entry["base_hash"], config_from_document(entry["config"]), entry["generation"], entry["fence"], entry["op_id"]
            )

    async def observe(self) -> FleetState:
        """Each replica with the recorded config, or its known one where nothing was recorded."""
        replicas = tuple(
            ReplicaState(
                instance_id=instance.instance_id,
                endpoint=instance.endpoint,
                config=self._config(instance),
                config_hash=config_hash(self._config(instance)),
                generation=record.generation if (record := self._record(instance)) else 0,
                ready=True,
                engine_version=instance.engine_version,
                message="dry run: recorded, not applied" if config_hash(self._config(instance)) != config_hash(instance.config) else "",
            )
            for instance in self.instances
        )
        return FleetState(replicas, self.clock(), Capabilities(changes_anything=False))

    async def preflight(self, desired: Mapping[str, EngineConfig]) -> PreflightReport:
        """Every replica must exist."""
        known = {instance.instance_id for instance in self.instances}
        problems = tuple(f"fleet {self.fleet_id!r} has no replica {name!r}" for name in desired if name not in known)
        return PreflightReport(problems, ("dry run: nothing will be changed",))

    async def apply(self, instance_id: str, desired: EngineConfig, *, expect_hash: str, op: Op) -> None:
        """Record. Raises TargetError LEASE_LOST, TARGET_DRIFT, INSTANCE_NOT_FOUND."""
        instance = self._instance(instance_id)
        self._check_fence(instance_id, op)
        present = self._config(instance)
        if config_hash(present) != config_hash(desired):
            check_expected(instance_id, present, expect_hash)
        await self._set(instance, desired, op, restore=False)

    async def restore(self, instance_id: str, recorded: EngineConfig, *, op: Op) -> None:
        """Record the old config again. Raises TargetError LEASE_LOST, INSTANCE_NOT_FOUND."""
        instance = self._instance(instance_id)
        self._check_fence(instance_id, op)
        await self._set(instance, recorded, op, restore=True)

    async def close(self) -> None:
        """Nothing to release."""

    async def _set(self, instance: Instance, desired: EngineConfig, op: Op, *, restore: bool) -> None:
        present, record = self._config(instance), self._record(instance)
        changed = config_hash(present) != config_hash(desired)
        generation = (record.generation if record else 0) + changed
        self._records[instance.instance_id] = _Record(config_hash(instance.config), desired, generation, op.fence, op.op_id)
        if changed:
            self.journal.append(IntendedApply(self.clock(), instance.instance_id, desired, op.op_id, restore))
        if self.state_file:
            document = {
                name: {
                    "base_hash": r.base_hash,
                    "config": config_to_document(r.config),
                    "generation": r.generation,
                    "fence": r.fence,
                    "op_id": r.op_id,
                }
                for name, r in self._records.items()
            }
            await asyncio.to_thread(write_atomically, self.state_file, document)

    def _check_fence(self, instance_id: str, op: Op) -> None:
        record = self._records.get(instance_id)
        check_fence(instance_id, record.fence if record else 0, op)

    def _instance(self, instance_id: str) -> Instance:
        for instance in self.instances:
            if instance.instance_id == instance_id:
                return instance
        raise replica_unknown(instance_id, self.fleet_id)

    def _record(self, instance: Instance) -> _Record | None:
        """The recorded apply, unless the replica has really been changed since: reality wins over what was only intended."""
        record = self._records.get(instance.instance_id)
        return record if record and record.base_hash == config_hash(instance.config) else None

    def _config(self, instance: Instance) -> EngineConfig:
        record = self._record(instance)
        return record.config if record else instance.config
