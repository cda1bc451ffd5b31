"""Targets under test, with their fleets; whatever they started is ended, and its absence asserted."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from perf_service.models.config import EngineConfig, config_hash
from perf_service.models.fleet import Fleet, Instance, TargetKind, TargetSpec
from perf_service.models.metrics import Engine
from perf_service.targets import LocalTarget, Op, ReplicaState, Target, make_target
from tests.support.ports import free_ports

STUB = Path(__file__).with_name("stub_engine.py")
_numbers = itertools.count()


def config(max_num_seqs: int) -> EngineConfig:
    return EngineConfig.of({"max_num_seqs": max_num_seqs})


def op(fence: int = 1, op_id: str = "") -> Op:
    return Op(op_id or f"op{next(_numbers)}", fence, time.time() + 60)


def processes_with(text: str) -> list[int]:
    """Pids of live processes whose command line or output file has this text."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            output = str((path / "fd" / "1").readlink())
        except OSError:
            continue
        if state != "Z" and (text in command or text in output):
            found.append(int(path.name))
    return found


@dataclass
class Harness:
    """Makes targets of one fleet of two replicas "a" and "b" that start with max_num_seqs 2."""

    kind: str
    directory: Path
    ports: list[int] = field(default_factory=lambda: free_ports(2))
    made: list[Target] = field(default_factory=list)
    arguments: str = ""
    options: dict[str, str] = field(default_factory=dict)

    @property
    def local(self) -> bool:
        return self.kind != "dry_run"

    @property
    def command(self) -> str:
        if self.kind == "simulator":
            return "{python} -m perf_service.simulator --engine vllm --port {port} {flags}"
        return f"{{python}} -S {STUB} --port {{port}} {self.arguments} {{flags}}"

    @property
    def fleet(self) -> Fleet:
        if not self.local:
            return Fleet("fleet/1", Engine.VLLM)
        defaults = {"command": self.command, "startup_timeout_seconds": "30", "stop_timeout_seconds": "5"}
        return Fleet("fleet/1", Engine.VLLM, target=TargetSpec(TargetKind.LOCAL, defaults | self.options))

    @property
    def instances(self) -> list[Instance]:
        return [
            Instance(name, Engine.VLLM, f"http://127.0.0.1:{port}", config=config(2)) for name, port in zip("ab", self.ports, strict=True)
        ]

    def make(self) -> Target:
        self.made.append(make_target(self.fleet, self.instances, state_dir=self.directory))
        return self.made[-1]

    async def start(self) -> Target:
        target = self.make()
        if isinstance(target, LocalTarget):
            await target.start_all()
        return target

    async def change(self, target: Target, name: str, to: EngineConfig, **more: Any) -> ReplicaState:
        """Apply and wait for the end, good or bad."""
        before = await replica(target, name)
        await target.apply(name, to, expect_hash=before.config_hash, op=op(**more))
        return await settled(target, name, to)


async def replica(target: Target, name: str) -> ReplicaState:
    found = (await target.observe()).replica(name)
    assert found is not None
    return found


async def until(target: Target, name: str, condition: Callable[[ReplicaState], bool], seconds: float = 30.0) -> ReplicaState:
    deadline = time.monotonic() + seconds
    while not condition(state := await replica(target, name)):
        assert time.monotonic() < deadline, f"still {state}"
        await asyncio.sleep(0.02)
    return state


async def settled(target: Target, name: str, to: EngineConfig) -> ReplicaState:
    return await until(target, name, lambda s: s.failed or (s.ready and s.config_hash == config_hash(to)))


@pytest.fixture
def kit() -> Any:
    """This module's helpers: test modules cannot import each other."""
    import types

    return types.SimpleNamespace(
        config=config, op=op, replica=replica, until=until, settled=settled, free_ports=free_ports, processes_with=processes_with, stub=STUB
    )


async def _harness(kind: str, directory: Path) -> AsyncIterator[Harness]:
    harness = Harness(kind, directory)
    yield harness
    for target in harness.made:
        if isinstance(target, LocalTarget):
            await target.stop_all()
        await target.close()
    assert processes_with(str(directory)) == [], "an engine was left behind"
    if harness.local:
        assert not any(processes_with(f"--port {port} ") for port in harness.ports), "an engine was left behind"


@pytest.fixture(params=["dry_run", "stub", "simulator"])
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """Every kind of target."""
    async for each in _harness(request.param, tmp_path):
        yield each


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Harness]:
    """The local target with the stub engine."""
    async for each in _harness("stub", tmp_path):
        yield each
