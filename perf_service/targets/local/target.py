"""The local target: replicas as engine processes on this host, supervised across restarts of the service.

Closing it, or killing the service, leaves the engines running; the next target on the same state directory takes them over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from perf_service.models.config import EngineConfig
from perf_service.models.errors import ErrorReason, PerfServiceError, TargetError
from perf_service.models.fleet import Fleet, Instance
from perf_service.targets.base import Capabilities, FleetState, Op, PreflightReport
from perf_service.targets.checks import replica_unknown
from perf_service.targets.files import safe_name, unusable
from perf_service.targets.local.launch import Launch
from perf_service.targets.local.options import LocalOptions, endpoint_port
from perf_service.targets.local.probe import EngineProbe
from perf_service.targets.local.processes import supported
from perf_service.targets.local.replica import ReplicaSupervisor

_WATCH_SECONDS: Final = 0.5


class LocalTarget:
    """See `base.Target`. From its first use on it also watches its processes and restarts those that die by themselves."""

    def __init__(
        self,
        fleet: Fleet,
        instances: Sequence[Instance],
        *,
        options: LocalOptions,
        state_dir: Path,
        clock: Callable[[], float],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if not supported():
            raise TargetError(
                ErrorReason.TARGET_UNAVAILABLE,
                "the local target supervises processes through /proc, which this host does not have: use Linux",
                permanent=True,
            )
        self.fleet_id = fleet.fleet_id
        self._clock = clock
        self._options = options
        directory = (options.state_dir or state_dir) / "local" / safe_name(fleet.fleet_id)
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory = directory.resolve()  # /proc shows resolved paths
        except OSError as error:
            raise unusable(directory, error) from error
        self._probe = EngineProbe(options.host)
        ports = options.port_of(instances)
        self._replicas = {
            instance.instance_id: ReplicaSupervisor(
                Launch(
                    instance.instance_id,
                    engine=instance.engine,
                    engine_version=instance.engine_version,
                    model=instance.model_name or fleet.model_name,
                    port=ports[instance.instance_id],
                    options=options,
                    environment=environment,
                ),
                endpoint=instance.endpoint if endpoint_port(instance.endpoint) else self._probe.base(ports[instance.instance_id]),
                initial=instance.config,
                directory=directory,
                probe=self._probe,
                clock=clock,
            )
            for instance in instances
        }
        self._watcher: asyncio.Task[None] | None = None

    async def observe(self) -> FleetState:
        """Read now from the processes and their endpoints."""
        self._watch()
        replicas = await asyncio.gather(*(replica.observe() for replica in self._replicas.values()))
        return FleetState(tuple(replicas), self._clock(), Capabilities())

    async def preflight(self, desired: Mapping[str, EngineConfig]) -> PreflightReport:
        """The program exists, the ports are ours, the replicas are there. Says what a restart costs."""
        problems = [f"fleet {self.fleet_id!r} has no replica {name!r}" for name in desired if name not in self._replicas]
        for name, config in desired.items():
            if name in self._replicas:
                problems += await self._replicas[name].problems(config)
        notes = (
            "each changed replica is restarted in place: it serves nothing from its stop until its first completion "
            f"(at most {self._options.startup_timeout_seconds:g} s), and its caches start cold",
        )
        return PreflightReport(tuple(problems), notes)

    async def apply(self, instance_id: str, desired: EngineConfig, *, expect_hash: str, op: Op) -> None:
        """Accept a change and restart the replica in the background.

        Raises TargetError TARGET_DRIFT, LEASE_LOST, INSTANCE_NOT_FOUND; TARGET_APPLY_FAILED (with the engine's last log lines) for an
        `op_id` whose change has failed already.
        """
        self._watch()
        await self._replica(instance_id).accept(desired, op, expect_hash=expect_hash)

    async def restore(self, instance_id: str, recorded: EngineConfig, *, op: Op) -> None:
        """Accept the way back, cutting off a change that is still under way. Raises as `apply` but for TARGET_DRIFT."""
        self._watch()
        await self._replica(instance_id).accept(recorded, op, expect_hash=None)

    async def start_all(self, configs: Mapping[str, EngineConfig] | None = None, *, timeout_seconds: float | None = None) -> FleetState:
        """Bring up every replica, with its known config or the given one, and wait until all serve. Running ones are left as they are.

        Raises TargetError TARGET_APPLY_FAILED where one cannot start; the others keep running.
        """
        known = {replica.instance_id: replica.config for replica in (await self.observe()).replicas}
        limit = timeout_seconds or self._options.startup_timeout_seconds
        for instance_id, config in {**known, **(configs or {})}.items():
            replica = self._replica(instance_id)
            op = Op(f"start:{instance_id}:{self._clock()}", await replica.fence(), self._clock() + limit)
            await replica.accept(config, op, expect_hash=None)
        deadline = asyncio.get_running_loop().time() + limit
        while True:
            state = await self.observe()
            if failed := [replica for replica in state.replicas if replica.failed]:
                raise TargetError(ErrorReason.TARGET_APPLY_FAILED, failed[0].message, {"instance_id": failed[0].instance_id})
            waiting = [replica for replica in state.replicas if not replica.ready]
            if not waiting:
                return state
            if asyncio.get_running_loop().time() > deadline:
                names = ", ".join(f"{replica.instance_id} ({replica.message})" for replica in waiting)
                raise TargetError(ErrorReason.TARGET_APPLY_FAILED, f"not ready within {limit:g} s: {names}")
            await asyncio.sleep(0.1)

    async def stop_all(self) -> None:
        """End every replica's processes; nothing is left behind. For demos, tests and the end of a fleet."""
        await self._unwatch()
        await asyncio.gather(*(replica.stop() for replica in self._replicas.values()))

    async def close(self) -> None:
        """Let go: the engines keep running, and what is under way is taken up by the next target on this directory."""
        await self._unwatch()
        await asyncio.gather(*(replica.detach() for replica in self._replicas.values()))
        await self._probe.close()

    def _replica(self, instance_id: str) -> ReplicaSupervisor:
        replica = self._replicas.get(instance_id)
        if replica is None:
            raise replica_unknown(instance_id, self.fleet_id)
        return replica

    def _watch(self) -> None:
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.get_running_loop().create_task(self._watch_processes(), name=f"watch-{self.fleet_id}")

    async def _unwatch(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _watch_processes(self) -> None:
        """Take up interrupted changes and restart what died, for as long as the target is open."""
        while True:
            for replica in self._replicas.values():
                with contextlib.suppress(PerfServiceError):
                    replica.wake()
            await asyncio.sleep(_WATCH_SECONDS)
