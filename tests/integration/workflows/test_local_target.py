"""A rollout over real processes: two simulated engines under the local target, real HTTP, real load, a planted bottleneck."""

from __future__ import annotations

import asyncio
from pathlib import Path

from perf_service.models.config import EngineConfig
from perf_service.models.fleet import Fleet, Instance, TargetKind, TargetSpec
from perf_service.models.metrics import Engine
from perf_service.models.workflow import WorkflowRequest, WorkflowStatus
from perf_service.simulator.loadgen import LoadGenerator
from perf_service.simulator.workload import Lengths, Workload
from perf_service.storage.store import SqlStore
from perf_service.targets.local import LocalTarget
from perf_service.targets.registry import TargetPool
from perf_service.workflows.manager import WorkflowManager
from tests.support.ports import free_ports


async def test_diagnose_plan_roll_out_and_prove(tmp_path: Path) -> None:
    ports = free_ports(2)
    command = "{python} -m perf_service.simulator --engine vllm --host {host} --port {port} --startup-seconds 0.2 --step-base-ms 40 {flags}"
    options = {"command": command, "ports": ",".join(map(str, ports))}
    fleet = Fleet("f1", Engine.VLLM, model_name="sim", target=TargetSpec(TargetKind.LOCAL, options))
    planted = EngineConfig.of({"max_num_seqs": 2})
    instances = [
        Instance(f"r{i}", Engine.VLLM, f"http://127.0.0.1:{p}", "f1", model_name="sim", config=planted) for i, p in enumerate(ports)
    ]
    store = SqlStore.open(f"sqlite:///{tmp_path}/perf.db")
    await store.create_fleet(fleet)
    for instance in instances:
        await store.create_instance(instance)
    pool = TargetPool(state_dir=tmp_path)
    target = await pool.get(fleet, instances)
    assert isinstance(target, LocalTarget)
    enough = asyncio.Event()
    manager = WorkflowManager(store, targets=pool)
    try:
        await target.start_all()
        work = Workload(prompt=Lengths.uniform(20, 60), output=Lengths.uniform(4, 10), concurrency=16)
        load = LoadGenerator([i.endpoint for i in instances], work, duration_seconds=120, drain_seconds=1)
        traffic = asyncio.create_task(load.run(enough))
        done = await manager.start_workflow(WorkflowRequest(fleet_id="f1", requires_approval=False, monitoring_duration_seconds=8))
        enough.set()
        await traffic
        assert done.status is WorkflowStatus.COMPLETED, done.message
        assert [c.parameter for c in done.changes] == ["max_num_seqs"]
        running = (await target.observe()).replicas
        assert {r.config.get("max_num_seqs") for r in running} == {done.changes[0].recommended_value}
        assert all(r.ready for r in running)
        assert done.outcome is not None
        assert next(e for e in done.outcome.effects if e.metric == "ttft_seconds_mean").ratio < 0.7
        (entry,) = await store.ledger()
        assert entry.causes == ("batch_limit",)
        assert not entry.harmful
    finally:
        enough.set()
        await manager.close()
        await target.stop_all()
        await pool.close()
        await store.close()
