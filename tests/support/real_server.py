"""A `perf-service serve` process over a fleet of simulated engines under the local target, to be killed, stopped and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from perf_service.models.config import ConfigChange, EngineConfig
from perf_service.models.fleet import Fleet, Instance, TargetKind, TargetSpec
from perf_service.models.metrics import Engine
from perf_service.models.workflow import RolloutPolicy, StagePolicy, Workflow, WorkflowRequest, WorkflowStatus
from perf_service.rpc.convert.fleet import FLEET, INSTANCE
from perf_service.rpc.convert.workflow import WORKFLOW
from perf_service.simulator.loadgen import LoadGenerator
from perf_service.simulator.workload import Lengths, Workload
from perf_service.targets.base import FleetState
from perf_service.targets.local import LocalOptions, LocalTarget
from perf_service.v1 import fleet_service_pb2, workflow_pb2, workflow_service_pb2
from tests.support.ports import free_ports
from tests.support.remote import Remote

COMMAND = "{python} -m perf_service.simulator --engine vllm --host {host} --port {port} --startup-seconds 0.2 --step-base-ms 15 {flags}"
POLICY = RolloutPolicy(
    stages=tuple(StagePolicy(p, bake_seconds=4.0, min_samples=2, min_requests=4) for p in (10.0, 50.0, 100.0)),
    sample_interval_seconds=1.0,
    warmup_seconds=0.5,
    hold_limit_seconds=30.0,
    max_relative_regression_ratio=2.0,  # the test's own host is the noise
)
WORK = Workload(prompt=Lengths.uniform(10, 30), output=Lengths.uniform(3, 6), rate=4.0)


class RealServer:
    """The server, its store and its engines, all in one directory. `target` looks at the same engines from outside."""

    def __init__(self, directory: Path, replicas: int, *, command: str = COMMAND) -> None:
        self.directory = directory
        self.ports = free_ports(replicas)
        self.database = directory / "perf.db"
        planted = EngineConfig.of({"max_num_seqs": 4})
        self.fleet = Fleet("f", Engine.VLLM, model_name="sim", target=TargetSpec(TargetKind.LOCAL, {"command": command}))
        self.instances = [
            Instance(f"r{i}", Engine.VLLM, f"http://127.0.0.1:{port}", "f", model_name="sim", config=planted, scrape_interval_seconds=1.0)
            for i, port in enumerate(self.ports)
        ]
        options = LocalOptions.parse(self.fleet.target.options)
        self.target = LocalTarget(self.fleet, self.instances, options=options, state_dir=directory, clock=time.time)
        self.process: asyncio.subprocess.Process | None = None
        self.remote: Any = None

    async def serve(self) -> None:
        """Start the server, as often as wanted, and connect to it."""
        environment = {**os.environ, "PERF_SERVICE_LEASE_SECONDS": "2", "PERF_SERVICE_LOCK_TIMEOUT_SECONDS": "1"}
        arguments = ["serve", "--port", "0", "--database-url", f"sqlite:///{self.database}", "--state-dir", str(self.directory)]
        with (self.directory / "server.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "perf_service.cli", *arguments, stdout=asyncio.subprocess.PIPE, stderr=log, env=environment
            )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 60)
        assert line, (self.directory / "server.log").read_text()
        self.remote = Remote(grpc.aio.insecure_channel(json.loads(line)["address"]))

    async def end(self, how: signal.Signals) -> None:
        """Signal the server and wait for its end."""
        assert self.process is not None
        self.process.send_signal(how)
        await self.process.wait()
        await self.remote.channel.close()

    async def register(self) -> None:
        """The fleet with its instances."""
        await self.remote.fleets.CreateFleet(fleet_service_pb2.CreateFleetRequest(fleet=FLEET.to_proto(self.fleet)))
        for instance in self.instances:
            await self.remote.fleets.RegisterInstance(fleet_service_pb2.RegisterInstanceRequest(instance=INSTANCE.to_proto(instance)))

    async def rollout(self, value: int, **more: Any) -> str:
        """Start a rollout of max_num_seqs; its id."""
        change = ConfigChange("max_num_seqs", None, value)
        request = WorkflowRequest(fleet_id="f", requires_approval=False, changes=(change,), policy=more.pop("policy", POLICY), **more)
        made = WORKFLOW.to_proto(Workflow("-", request, Engine.VLLM)).request
        spec = workflow_pb2.WorkflowSpec()
        spec.CopyFrom(made)
        spec.ClearField("request_id")
        spec.ClearField("requested_by")
        answer = await self.remote.workflows.StartWorkflow(workflow_service_pb2.StartWorkflowRequest(workflow=spec))
        return str(answer.workflow.workflow_id)

    async def workflow(self, workflow_id: str) -> Workflow:
        """As it is now."""
        request = workflow_service_pb2.GetWorkflowRequest(workflow_id=workflow_id)
        return WORKFLOW.from_proto((await self.remote.workflows.GetWorkflow(request)).workflow)

    async def until(self, workflow_id: str, condition: Callable[[Workflow], bool], seconds: float = 90.0) -> Workflow:
        """Wait for a state of the workflow."""
        deadline = time.monotonic() + seconds
        while not condition(found := await self.workflow(workflow_id)):
            state = f"{found.status.value} ({found.gate.value}): {found.message}"
            assert not found.status.terminal, state
            assert time.monotonic() < deadline, state
            await asyncio.sleep(0.05)
        return found

    async def done(self, workflow_id: str, seconds: float = 120.0) -> Workflow:
        """Wait for the end."""
        return await self.until(workflow_id, lambda w: w.status.terminal, seconds)

    async def events(self, workflow_id: str, after: int = 0) -> list[Any]:
        """The history of a workflow that has ended."""
        request = workflow_service_pb2.WatchWorkflowRequest(workflow_id=workflow_id, after_sequence=after)
        return [u.event async for u in self.remote.workflows.WatchWorkflow(request) if u.HasField("event")]

    def engine_pids(self) -> list[list[int]]:
        """The engine processes of each replica, found by their command lines: whoever started them."""
        lines = {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                try:
                    if (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                        lines[int(path.name)] = (path / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
        return [sorted(pid for pid, words in lines.items() if b"--port" in words and str(port).encode() in words) for port in self.ports]

    async def state(self) -> FleetState:
        """The engines as they are. Only a look: what they need is the server's work, not ours."""
        try:
            return await self.target.observe()
        finally:
            await self.release()

    async def release(self) -> None:
        """Stop supervising from here."""
        await self.target._unwatch()
        for replica in self.target._replicas.values():
            await replica.detach()

    async def settled(self, seconds: float = 30.0) -> set[Any]:
        """Wait until every replica is ready with one process each; the values of max_num_seqs they run."""
        deadline = time.monotonic() + seconds
        while True:
            state = await self.state()
            if all(r.ready for r in state.replicas) and all(len(p) == 1 for p in self.engine_pids()):
                return {r.config.get("max_num_seqs") for r in state.replicas}
            assert time.monotonic() < deadline, [(r.instance_id, r.ready, r.message) for r in state.replicas]
            await asyncio.sleep(0.1)


def is_at(status: WorkflowStatus, stage: int = -1) -> Callable[[Workflow], bool]:
    """Condition for `until`."""
    return lambda w: w.status is status and stage in (-1, w.stage_index)


@asynccontextmanager
async def under_load(endpoints: Sequence[str], *, rate: float = 4.0) -> AsyncIterator[None]:
    """Open-loop requests to all endpoints in turn."""
    enough = asyncio.Event()
    work = Workload(prompt=WORK.prompt, output=WORK.output, rate=rate * len(endpoints))
    traffic = asyncio.create_task(LoadGenerator(endpoints, work, duration_seconds=300, drain_seconds=0.5).run(enough))
    try:
        yield
    finally:
        enough.set()
        await traffic


@asynccontextmanager
async def real_server(directory: Path, replicas: int = 3, *, command: str = COMMAND) -> AsyncIterator[RealServer]:
    """A server with its fleet up and under load; at the end nothing is left running."""
    server = RealServer(directory, replicas, command=command)
    try:
        await server.target.start_all(timeout_seconds=60)
        await server.release()
        await server.serve()
        await server.register()
        async with under_load([i.endpoint for i in server.instances]):
            yield server
    finally:
        if server.process is not None and server.process.returncode is None:
            server.process.kill()
            await server.process.wait()
        if server.remote is not None:
            await server.remote.channel.close()
        await server.target.stop_all()
        await server.target.close()
        assert server.engine_pids() == [[] for _ in server.ports], "an engine was left behind"
