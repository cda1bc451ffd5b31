"""Engines, simulated and saved, that a real Prometheus scrapes while they are under load; what each target served is kept."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.fleet import PrometheusSource
from perf_service.models.metrics import Engine, Snapshot
from tests.support.ports import free_ports
from tests.support.prometheus_server import PrometheusServer, end_with_parent, running_prometheus
from tests.support.recorded_targets import NUMBER, RecordedTarget, Served, forwarded, saved

FIXTURES = Path(__file__).parents[1] / "fixtures"
ENGINES = {"vllm": Engine.VLLM, "sglang": Engine.SGLANG, "tgi": Engine.TGI}
EXTRA = {"vllm": ("--max-num-seqs", "2"), "sglang": ("--enable-metrics",), "tgi": ()}
FAILING = (3, 4)
HOLDS = {"vllm": 'job="vllm"', "honor": 'job="honor"', "renamed": 'job="renamed"', "sglang": 'job="sglang"', "tgi": 'job="tgi"'}
SAVED = {"ranks": 'job="ranks"', "flaky": 'job="flaky"'}
RULES = {
    "groups": [
        {
            "name": "recorded",
            "rules": [
                {"record": "vllm:e2e:mean", "expr": "vllm:e2e_request_latency_seconds_sum / vllm:e2e_request_latency_seconds_count"},
                {"record": "vllm:busy", "expr": "vllm:num_requests_running > bool 0"},
                {"record": "vllm:num_requests_waiting", "expr": 'sum by (job) (vllm:num_requests_waiting{instance!=""})'},
            ],
        }
    ]
}


class Rig:
    """What there is to test against."""

    def __init__(
        self, prometheus: PrometheusServer, targets: dict[str, RecordedTarget], engines: dict[str, str], began: float, ended: float
    ) -> None:
        self.prometheus = prometheus
        self.targets = targets
        self.engines = engines  # base URLs of the simulated ones
        self.began = began  # unix seconds; the load lies inside
        self.ended = ended
        self._numbers: dict[str, dict[float, int]] = {}

    def source(self, match: str) -> PrometheusSource:
        return PrometheusSource(self.prometheus.url, match)

    def direct(self, job: str, scrapes: list[float]) -> list[Snapshot]:
        """Snapshots of the pages that the target served at these scrapes."""
        engine = ENGINES.get(job, Engine.VLLM)
        builder = SnapshotBuilder(engine)
        return [builder.build(self.served(job, at).body or b"", "i", self.served(job, at).asked_at) for at in scrapes]

    def served(self, job: str, scraped_at: float) -> Served:
        """What was served at the scrape of this time."""
        if scraped_at not in self._numbers.get(job, {}):
            found = self.prometheus.query(f'{NUMBER}{{job="{job}"}}[1h]')
            self._numbers[job] = {at: int(value) for entry in found for at, value in entry["values"]}
        return self.targets[job].served[self._numbers[job][scraped_at]]


@contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    """Everything up, a load begun, and enough scraped before, during and after it. Nothing is left behind."""
    with contextlib.ExitStack() as stack:
        ports = dict(zip(ENGINES, free_ports(len(ENGINES)), strict=True))
        engines = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        processes = [_engine(name, port) for name, port in ports.items()]
        stack.callback(_end, processes)
        for process in processes:
            _wait_listening(process)
        targets = {name: RecordedTarget(forwarded(f"{url}/metrics")) for name, url in engines.items()}
        targets |= {name: RecordedTarget(forwarded(f"{engines['vllm']}/metrics")) for name in ("honor", "renamed")}
        targets["ranks"] = RecordedTarget(saved(FIXTURES / "held_out/dp2_busy"))
        targets["flaky"] = RecordedTarget(saved(FIXTURES / "captures/h_restart", failing=FAILING))
        for target in targets.values():
            stack.callback(target.close)
        began = time.time()
        rules = folder / "rules.yml"
        folder.mkdir(parents=True, exist_ok=True)
        rules.write_text(json.dumps(RULES))
        prometheus = stack.enter_context(running_prometheus(folder, _jobs(targets), rule_files=[rules]))
        # Idle first: what was counted before the load is then known exactly, whoever looks and when.
        for job in HOLDS:
            prometheus.wait_until(f'count_over_time(up{{job="{job}"}}[5m]) >= 2')
        load = [sys.executable, "-m", "perf_service.cli", "simulate-load", engines["vllm"], "--seconds", "4", "--clients", "6"]
        others = [*load[:4], engines["sglang"], engines["tgi"], *load[5:]]
        piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "preexec_fn": end_with_parent}
        running = [subprocess.Popen(words, **piped) for words in (load, others)]
        stack.callback(_end, running)
        said = [process.communicate(timeout=60)[0].decode() for process in running]
        assert [process.returncode for process in running] == [0, 0], said
        ended = time.time()
        for job in HOLDS:
            prometheus.wait_until(f'timestamp(up{{job="{job}"}}) > {ended + 1:.3f}')
        yield Rig(prometheus, targets, engines, began, time.time())


def _jobs(targets: dict[str, RecordedTarget]) -> list[dict[str, Any]]:
    def job(name: str, labels: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        address = targets[name].address if name in targets else more.pop("address")
        return {"job_name": name, "static_configs": [{"targets": [address], "labels": labels or {}}], **more}

    return [
        # Labels that stand in the way of the engine's own: Prometheus renames those to exported_...
        job("vllm", {"engine": "blue", "model_name": "mine", "pod": "pod-a", "cluster": "c"}),
        job("honor", {"engine": "blue", "model_name": "mine", "pod": "pod-b"}, honor_labels=True),
        job(
            "renamed",
            metric_relabel_configs=[
                {"source_labels": ["__name__"], "regex": "vllm:(.*)", "target_label": "__name__", "replacement": "vllm_$1"},
                {"target_label": "team", "replacement": "search"},
            ],
        ),
        job("sglang"),
        job("tgi"),
        job("ranks"),
        job("flaky"),
        job("dead", address="127.0.0.1:1"),
    ]


def _engine(name: str, port: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "perf_service.simulator",
        "--engine",
        name,
        "--port",
        str(port),
        "--startup-seconds",
        "0.1",
        *EXTRA[name],
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=end_with_parent)


def _wait_listening(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("event") == "ready":
            return
    raise AssertionError("an engine ended before it was ready")


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()
