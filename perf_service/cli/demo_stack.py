"""What the demo stands on: a server, a local fleet of simulated engines, and load. Everything ends with it."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from perf_service.models.config import EngineConfig
from perf_service.models.errors import ErrorReason, PerfServiceError
from perf_service.models.fleet import Fleet, Hardware, Instance, TargetKind, TargetSpec
from perf_service.models.metrics import Engine
from perf_service.models.slo import parse_slo
from perf_service.simulator.loadgen import LoadGenerator
from perf_service.simulator.workload import Lengths, Workload
from perf_service.targets.local import LocalOptions, LocalTarget

__all__ = ["ClientView", "Load", "Mark", "Stack"]

_COMMAND = (sys.executable, "-m", "perf_service.cli")
_STOP_SECONDS = 20.0
# Step times of Llama 3.1 70B (FP8) on two H100 under vLLM, read off the time per token at 4, 8 and 16 requests and the time to first token
# of 1024-token prompts that ai-dynamo/aiconfigurator publishes (silicon_sample.csv, Apache-2.0).
_PHYSICS = ("--step-base-ms", "17", "--step-per-seq-ms", "0.3", "--step-per-prefill-token-us", "100")


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the load had come at one time: lengths of the ledgers."""

    at: float  # monotonic seconds
    answered: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ClientView:
    """What the clients themselves saw between two marks: a truth that owes nothing to the engines' metrics."""

    requests: int
    ttft_seconds: float
    e2e_seconds: float
    output_tokens_per_second: float


class Load:
    """One closed-loop load for each replica, as a load balancer that spreads clients evenly would make it. Runs in a thread of its own."""

    def __init__(self, endpoints: Sequence[str], *, clients: int, seed: int, limit_seconds: float = 900.0) -> None:
        workload = Workload(prompt=Lengths.uniform(64, 192), output=Lengths.uniform(16, 48), concurrency=clients)
        self._generators = [
            LoadGenerator([url], workload, duration_seconds=limit_seconds, drain_seconds=0.0, seed=seed + index)
            for index, url in enumerate(endpoints)
        ]
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more and let go of what is under way. May be called twice, and before `start`."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        async def everything() -> None:
            await asyncio.gather(*(generator.run(self._stop) for generator in self._generators))

        self._loop.run_until_complete(everything())
        self._loop.close()

    @property
    def failed(self) -> int:
        """Requests that were refused or broken off so far."""
        return sum(sum(generator.ledger.errors.values()) for generator in self._generators)

    def mark(self) -> Mark:
        """Now."""
        ledgers = [generator.ledger for generator in self._generators]
        return Mark(time.monotonic(), tuple(len(ledger.e2e) for ledger in ledgers), sum(ledger.output_tokens for ledger in ledgers))

    def between(self, first: Mark, last: Mark) -> ClientView | None:
        """What clients saw; None where nothing was answered."""
        ttft: list[float] = []
        e2e: list[float] = []
        for generator, begin, end in zip(self._generators, first.answered, last.answered, strict=True):
            ttft += generator.ledger.ttft[begin:end]
            e2e += generator.ledger.e2e[begin:end]
        if not ttft or not e2e:
            return None
        return ClientView(len(e2e), fmean(ttft), fmean(e2e), (last.output_tokens - first.output_tokens) / (last.at - first.at))


class Stack:
    """A server as a process of its own on a temporary store, and the endpoints of a fleet that it will supervise."""

    def __init__(self, fleet_id: str, replicas: int, config: EngineConfig, objectives: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="perf-service-demo-"))
        self.state_dir = self.folder / "state"
        self.endpoints = [f"http://127.0.0.1:{port}" for port in _free_ports(replicas)]
        self.address = ""
        self._server: subprocess.Popen[str] | None = None
        target = TargetSpec(TargetKind.LOCAL, {"command": self._engine_command(), "stop_timeout_seconds": "10"})
        self.fleet = Fleet(fleet_id, Engine.VLLM, model_name="demo", target=target, slo_targets=tuple(map(parse_slo, objectives)))
        hardware = Hardware("H100-SXM", 2, 80 * 2**30, "9.0")
        self.instances = [
            Instance(
                f"replica-{index}",
                Engine.VLLM,
                url,
                fleet_id,
                model_name="demo",
                config=config,
                hardware=hardware,
                scrape_interval_seconds=2.0,
            )
            for index, url in enumerate(self.endpoints)
        ]

    @staticmethod
    def _engine_command() -> str:
        """The local target's command template: our own simulated vLLM."""
        engine = shlex.join((*_COMMAND, "simulate-engine", "--engine", "vllm", "--model-name", "demo", *_PHYSICS, "--startup-seconds", "1"))
        return f"{engine} --port {{port}} {{flags}}"

    def start_server(self) -> None:
        """Start the server and wait until it listens. PerfServiceError with its last words where it does not."""
        log = (self.folder / "server.log").open("w")
        url = f"sqlite:///{self.folder / 'demo.db'}"
        # A session of its own: Ctrl-C is for us, and we end it in order.
        self._server = subprocess.Popen(  # noqa: S603 (our own command)
            [*_COMMAND, "serve", "--port", "0", "--database-url", url, "--state-dir", str(self.state_dir)],
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        log.close()
        line = self._server.stdout.readline() if self._server.stdout is not None else ""
        if not line:
            raise PerfServiceError(ErrorReason.INTERNAL, f"the demo's server did not start: {self.last_words()}")
        self.address = str(json.loads(line)["address"])

    def start_engines(self) -> None:
        """Start the fleet's engines as an operator would, and let the server take them over. PerfServiceError where one stays down."""
        command = [*_COMMAND, "fleets", "up", self.fleet.fleet_id, "--timeout", "60"]
        done = subprocess.run(  # noqa: S603 (our own command)
            [*command, "--server", self.address, "--state-dir", str(self.state_dir)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            start_new_session=True,
        )
        if done.returncode:
            raise PerfServiceError(
                ErrorReason.TARGET_APPLY_FAILED, done.stderr.strip().removeprefix("perf-service: ") or "engines did not start"
            )

    def last_words(self) -> str:
        """The end of the server's log."""
        log = self.folder / "server.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return " | ".join(lines[-3:]) or "it said nothing"

    def close(self) -> None:
        """End engines and server and remove the folder. Ctrl-C meanwhile does not cut this short."""
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            # The server first: while it lives it brings back what dies, and goes on with a rollout.
            if self._server is not None:
                self._server.terminate()
                try:
                    self._server.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    self._server.kill()
                    self._server.wait()
                if self._server.stdout is not None:
                    self._server.stdout.close()
                asyncio.run(self._stop_engines())
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def _stop_engines(self) -> None:
        target = LocalTarget(
            self.fleet, self.instances, options=LocalOptions.parse(self.fleet.target.options), state_dir=self.state_dir, clock=time.time
        )
        try:
            await target.stop_all()
        finally:
            await target.close()


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; all are held until the last is found, so that they differ."""
    held = []
    try:
        for _ in range(count):
            listener = socket.socket()
            held.append(listener)
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in held]
    finally:
        for listener in held:
            listener.close()
