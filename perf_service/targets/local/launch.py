"""How one replica's engine is started on this host: its command line, its variables, its port."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Engine
from perf_service.optimization import render
from perf_service.targets.local import processes
from perf_service.targets.local.options import LocalOptions
from perf_service.targets.local.probe import EngineProbe


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything but the config. `environment` None: the engine inherits ours."""

    instance_id: str
    engine: Engine
    engine_version: str
    model: str
    port: int
    options: LocalOptions
    environment: Mapping[str, str] | None

    def argv(self, config: EngineConfig) -> list[str]:
        """The command line."""
        flags = render.flags(render.settable(config, self.engine, version=self.engine_version), self.engine)
        return self.options.argv(port=self.port, instance_id=self.instance_id, model=self.model, flags=flags)

    def variables(self, config: EngineConfig, mark: str) -> dict[str, str]:
        """What comes on top of `environment`; `mark` names the replica's state file, so that its processes are found again."""
        return {**render.env(config, self.engine, only=True), **self.options.environment, processes.REPLICA_VARIABLE: mark}

    def missing_program(self, config: EngineConfig) -> str:
        """A sentence where the command's program is not there, else empty."""
        program = self.argv(config)[0]
        return "" if shutil.which(program) else f"the program {program!r} of the fleet's command is not installed on this host"

    def foreign_listener(self) -> str:
        """A sentence where somebody listens on the replica's port (while no process of ours runs), else empty."""
        family = socket.AF_INET6 if ":" in self.options.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            # Connections of the old process that linger in TIME_WAIT do not count.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((self.options.host, self.port))
            except OSError as error:
                pid = processes.listener_of(self.port)
                who = f"process {pid} ({processes.command_of(pid)})" if pid else f"another process ({error.strerror})"
                return (
                    f"replica {self.instance_id!r} cannot have port {self.port}: {who} uses it and was not started by this target. "
                    "End that process, or give the replica another port."
                )
        return ""

    async def completion(self, probe: EngineProbe, timeout_seconds: float) -> str:
        """Ask for one completion: why there is none, empty where there is."""
        model = await probe.served_model(self.port) or self.model
        path, body = self.options.probe(self.engine, model)
        return await probe.completion(self.port, path, body, timeout_seconds=timeout_seconds)
