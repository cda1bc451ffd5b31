"""The local target against processes that die, refuse, linger, and against its own death."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from perf_service.models.config import config_hash
from perf_service.models.errors import ErrorReason, TargetError
from perf_service.targets import LocalTarget
from perf_service.targets.files import hold


def engine_pids(kit: Any, local: Any, index: int = 0) -> list[int]:
    found: list[int] = kit.processes_with(f"stub_engine.py --port {local.ports[index]} ")
    return found


async def test_a_killed_engine_comes_back_with_its_config_and_is_counted(local: Any, kit: Any) -> None:
    target = await local.start()
    await local.change(target, "a", kit.config(5))
    [pid] = engine_pids(kit, local)
    os.kill(pid, signal.SIGKILL)
    state = await kit.until(target, "a", lambda s: s.restarts == 1 and s.ready)
    assert state.config_hash == config_hash(kit.config(5))
    assert "SIGKILL" in state.message
    [successor] = engine_pids(kit, local)
    assert successor != pid
    assert (await kit.replica(target, "b")).restarts == 0


async def test_restarts_are_counted_anew_for_each_config(local: Any, kit: Any) -> None:
    target = await local.start()
    os.kill(engine_pids(kit, local)[0], signal.SIGKILL)
    await kit.until(target, "a", lambda s: s.restarts == 1 and s.ready)
    assert (await local.change(target, "a", kit.config(5))).restarts == 0


async def test_an_engine_that_cannot_boot_says_why_and_can_be_restored(local: Any, kit: Any) -> None:
    target = await local.start()
    recorded = (await kit.replica(target, "a")).config
    same = kit.op()
    await target.apply("a", kit.config(13), expect_hash=config_hash(recorded), op=same)
    state = await kit.until(target, "a", lambda s: s.failed)
    assert not state.ready
    assert "exit code 3" in state.message
    assert "max_num_seqs 13 is unlucky" in state.message
    with pytest.raises(TargetError, match="unlucky") as info:
        await target.apply("a", kit.config(13), expect_hash=config_hash(recorded), op=same)
    assert info.value.reason is ErrorReason.TARGET_APPLY_FAILED
    assert info.value.permanent
    await target.restore("a", recorded, op=kit.op())
    assert (await kit.settled(target, "a", recorded)).ready


@pytest.mark.parametrize(("seqs", "why"), [(14, "does not answer"), (15, "HTTP 503")])
async def test_only_a_completion_counts_and_only_in_time(local: Any, kit: Any, seqs: int, why: str) -> None:
    await (await local.start()).close()  # the first start may take its time
    local.options["startup_timeout_seconds"] = "1"
    target = local.make()
    state = await local.change(target, "a", kit.config(seqs))
    assert state.failed
    assert "no completion within 1 s" in state.message
    assert why in state.message
    assert engine_pids(kit, local) == []


@pytest.mark.parametrize("seqs", [14, 16])
async def test_a_restore_cuts_off_a_change_that_is_under_way(local: Any, kit: Any, seqs: int) -> None:
    target = await local.start()
    recorded = (await kit.replica(target, "a")).config
    await target.apply("a", kit.config(seqs), expect_hash=config_hash(recorded), op=kit.op())
    await kit.until(target, "a", lambda s: s.config_hash == config_hash(kit.config(seqs)))
    with pytest.raises(TargetError) as info:
        await target.apply("a", kit.config(7), expect_hash=config_hash(recorded), op=kit.op())
    assert info.value.reason is ErrorReason.TARGET_DRIFT
    await target.restore("a", recorded, op=kit.op())
    state = await kit.settled(target, "a", recorded)
    assert state.ready
    assert len(engine_pids(kit, local)) == 1


async def test_a_replica_is_not_ready_while_a_change_of_it_is_unfinished(local: Any, kit: Any, tmp_path: Path) -> None:
    """The old process still answers for a while: believed, a rollback would be over before the engine is stopped."""
    target = await local.start()
    async with hold(tmp_path / "local" / "fleet%2F1" / "a.work"):  # the change is accepted and cannot begin
        await target.apply("a", kit.config(7), expect_hash=config_hash(kit.config(2)), op=kit.op())
        state = await kit.replica(target, "a")
        assert (state.ready, state.config_hash, state.message) == (False, config_hash(kit.config(2)), "stopping the old process")
        await target.restore("a", kit.config(2), op=kit.op())
        assert not (await kit.replica(target, "a")).ready
    assert (await kit.settled(target, "a", kit.config(2))).ready


async def test_a_failed_restore_can_be_ordered_again(local: Any, kit: Any) -> None:
    target = await local.start()
    recorded = (await kit.replica(target, "a")).config
    await local.change(target, "a", kit.config(13))
    with socket.create_server(("127.0.0.1", local.ports[0])):
        order = kit.op()
        await target.restore("a", recorded, op=order)
        assert "cannot have port" in (await kit.until(target, "a", lambda s: s.failed and "port" in s.message)).message
    with pytest.raises(TargetError, match="cannot have port"):
        await target.restore("a", recorded, op=order)
    await target.restore("a", recorded, op=kit.op())
    assert (await kit.settled(target, "a", recorded)).ready


async def test_nothing_an_engine_leaves_behind_survives_a_change(local: Any, kit: Any, tmp_path: Path) -> None:
    local.arguments = "--children"
    local.options["stop_timeout_seconds"] = "0.3"
    target = await local.start()
    old = set(kit.processes_with(str(tmp_path))) | set(engine_pids(kit, local))
    assert len(old) >= 2
    await local.change(target, "a", kit.config(5))
    b = {*engine_pids(kit, local, 1)}
    assert len(engine_pids(kit, local)) == 1
    # Each replica has its server, the child that writes to its log, and the one that carries its variable.
    assert len(_marked(tmp_path)) == 6
    assert not (old - b) & set(engine_pids(kit, local))
    await target.stop_all()
    assert _marked(tmp_path) == []


async def test_what_a_killed_server_leaves_behind_is_ended_before_its_restart(local: Any, kit: Any, tmp_path: Path) -> None:
    local.arguments = "--children"
    local.options["stop_timeout_seconds"] = "0.3"
    target = await local.start()
    before = set(_marked(tmp_path))
    os.kill(engine_pids(kit, local)[0], signal.SIGKILL)
    await kit.until(target, "a", lambda s: s.restarts == 1 and s.ready)
    after = set(_marked(tmp_path))
    assert len(after) == 6
    assert len(before & after) == 3, "only those of the other replica are the same"


async def test_a_port_that_somebody_else_has(local: Any, kit: Any) -> None:
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", local.ports[0]))
        foreign.listen()
        target = local.make()
        assert isinstance(target, LocalTarget)
        [problem] = (await target.preflight({"a": kit.config(2)})).problems
        with pytest.raises(TargetError, match="was not started by this target") as info:
            await target.start_all()
        assert str(local.ports[0]) in problem
        assert str(os.getpid()) in info.value.message
        assert info.value.reason is ErrorReason.TARGET_APPLY_FAILED
    await target.start_all()


async def test_a_program_that_is_not_installed(local: Any, kit: Any) -> None:
    local.options["command"] = "no-such-engine --port {port} {flags}"
    target = local.make()
    assert any("'no-such-engine'" in p for p in (await target.preflight({"a": kit.config(2)})).problems)
    with pytest.raises(TargetError, match="no-such-engine"):
        await target.start_all()


async def test_environment_and_placeholders_reach_the_engine(local: Any, tmp_path: Path) -> None:
    local.options["env.COLOUR"] = "dark blue"
    await local.start()
    [log] = (tmp_path / "local" / "fleet%2F1").glob("a.1.log")
    assert log.read_text() == "starting with max_num_seqs=2 and COLOUR=dark blue\n"


async def test_closing_leaves_the_engines_running_and_the_next_takes_them_over(local: Any, kit: Any) -> None:
    target = await local.start()
    pids = [engine_pids(kit, local, i) for i in (0, 1)]
    await target.close()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{local.ports[0]}/health")).status_code == 200
    successor = local.make()
    state = await successor.start_all()
    assert [(r.ready, r.restarts, r.generation) for r in state.replicas] == [(True, 0, 1)] * 2
    assert [engine_pids(kit, local, i) for i in (0, 1)] == pids


async def test_old_logs_are_dropped(local: Any, kit: Any, tmp_path: Path) -> None:
    target = await local.start()
    for seqs in range(20, 27):
        await local.change(target, "a", kit.config(seqs))
    logs = sorted(int(p.name.split(".")[1]) for p in (tmp_path / "local" / "fleet%2F1").glob("a.*.log"))
    assert logs == [4, 5, 6, 7, 8]


_SUPERVISOR = """
import asyncio, json, sys, time
from pathlib import Path
from perf_service.models.config import EngineConfig, config_hash
from perf_service.models.fleet import Fleet, Instance, TargetKind, TargetSpec
from perf_service.models.metrics import Engine
from perf_service.targets import Op, make_target

async def main():
    options, directory, ports = json.loads(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    instances = [
        Instance(n, Engine.VLLM, f"http://127.0.0.1:{p}", config=EngineConfig.of({"max_num_seqs": 2})) for n, p in zip("ab", ports)
    ]
    fleet = Fleet("fleet/1", Engine.VLLM, target=TargetSpec(TargetKind.LOCAL, options))
    target = make_target(fleet, instances, state_dir=directory)
    await target.start_all()
    desired = EngineConfig.of({"max_num_seqs": 64})
    await target.apply("a", desired, expect_hash=config_hash(instances[0].config), op=Op("apply", 5, time.time() + 60))
    print("accepted", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
async def test_a_supervisor_killed_in_the_middle_of_a_change(local: Any, kit: Any, tmp_path: Path, delay: float) -> None:
    """Wherever it is cut off, the next one finishes the change, with one process on the port and none left behind."""
    import json

    local.arguments = "--start-seconds 0.1"
    arguments = [json.dumps(dict(local.fleet.target.options)), str(tmp_path), json.dumps(local.ports)]
    supervisor = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
        [sys.executable, "-c", _SUPERVISOR, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    with supervisor.stdout:
        assert supervisor.stdout.readline() == "accepted\n"
        await asyncio.sleep(delay)
        supervisor.kill()
        supervisor.wait(10)

    target = local.make()
    state = await kit.settled(target, "a", kit.config(64))
    assert (state.failed, state.generation, state.restarts) == (False, 2, 0)
    assert len(engine_pids(kit, local)) == 1
    b = await kit.replica(target, "b")
    assert (b.ready, b.generation, b.restarts) == (True, 1, 0)
    with pytest.raises(TargetError) as info:
        await target.restore("a", kit.config(2), op=kit.op(fence=4))
    assert info.value.reason is ErrorReason.LEASE_LOST


async def test_two_targets_on_one_directory_do_not_fight(local: Any, kit: Any) -> None:
    first = await local.start()
    second = local.make()
    await kit.replica(second, "a")
    before = (await kit.replica(first, "a")).config_hash
    await asyncio.gather(
        *(t.apply("a", kit.config(64), expect_hash=before, op=kit.op(op_id="same")) for t in (first, second)),
    )
    os.kill(engine_pids(kit, local, 1)[0], signal.SIGKILL)
    states = [await kit.settled(t, "a", kit.config(64)) for t in (first, second)]
    assert [s.generation for s in states] == [2, 2]
    assert (await kit.until(first, "b", lambda s: s.restarts > 0 and s.ready)).restarts == 1
    assert len(engine_pids(kit, local)) == len(engine_pids(kit, local, 1)) == 1


def _marked(directory: Path) -> list[int]:
    """Every live process with the directory in its environment or its output."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) == os.getpid():
            continue
        try:
            alive = (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            texts = (path / "environ").read_bytes().decode(errors="replace"), str((path / "fd" / "1").readlink())
        except OSError:
            continue
        if alive and any(str(directory) in text for text in texts):
            found.append(int(path.name))
    return found
