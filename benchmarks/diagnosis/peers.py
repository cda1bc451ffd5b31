"""The others in the same harness: vllm-doctor, five hand rules, and "always raise max_num_seqs".

An answer of a peer is a set of causes (its words mapped onto ours, generously: right when one of them is true); the empty set is
silence.

| vllm-doctor says | counts as |
|---|---|
| queue_pressure, queue_latency | batch_limit, under_admission, overload |
| kv_cache_pressure, preemption_pressure | kv_exhausted, reservation_limit |
| ttft_bottleneck | token_budget_too_small, prefill_compute, head_of_line_blocking |
| tpot_bottleneck | decode_bound, token_budget_too_large, overload |
| prefix_cache_efficiency | prefix_cache_off, prefix_cache_thrashing |
| error_rate | request_errors, rejections, client_aborts |
| replica_imbalance / low_throughput | replica_imbalance / under_use |

Its first finding by its own order (severity, then confidence) is its answer; a finding of severity warning or critical is an
alarm. It reads vLLM only.
It runs in its Prometheus mode, whose queries are answered from the first page of the run and the last one with a request running
(gauges from that).

The hand rules, in order, over the whole run: preemptions > 0: KV; TTFT p95 and TPOT p95 within their objectives: nothing; prefix
caching off: prefix;
mean waiting >= 1, queue time > prefill time and prompt tokens < 10 x generated: queue; mean waiting >= 1 and prompt tokens >= 10
x generated: prefill;
TPOT p95 above its objective: decode. Objectives: the told ones with their own statistic, else
p95 of 1 s and 50 ms.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.diagnosis.running import Page
from perf_service.models.analysis import Cause
from perf_service.models.metrics import Counter, Gauge, Hist
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window

Answer = tuple[str, ...]  # names of causes; empty: silent

DOCTOR_SAYS: Mapping[str, Answer] = {
    "queue_pressure": ("batch_limit", "under_admission", "overload"),
    "queue_latency": ("batch_limit", "under_admission", "overload"),
    "kv_cache_pressure": ("kv_exhausted", "reservation_limit"),
    "preemption_pressure": ("kv_exhausted", "reservation_limit"),
    "ttft_bottleneck": ("token_budget_too_small", "prefill_compute", "head_of_line_blocking"),
    "tpot_bottleneck": ("decode_bound", "token_budget_too_large", "overload"),
    "prefix_cache_efficiency": ("prefix_cache_off", "prefix_cache_thrashing"),
    "error_rate": ("request_errors", "rejections", "client_aborts"),
    "replica_imbalance": ("replica_imbalance",),
    "low_throughput": ("under_use",),
}
HAND_KV = (Cause.KV_EXHAUSTED.value,)
HAND_PREFIX = (Cause.PREFIX_CACHE_OFF.value,)
HAND_QUEUE = (Cause.BATCH_LIMIT.value,)
HAND_PREFILL = (Cause.TOKEN_BUDGET_TOO_SMALL.value, Cause.PREFILL_COMPUTE.value)
HAND_DECODE = (Cause.DECODE_BOUND.value, Cause.OVERLOAD.value)
MORE_SEQS = (Cause.BATCH_LIMIT.value,)


def hand_rules(window: Window, targets: Sequence[SLOTarget]) -> Answer:
    """The five rules over one window; a rule whose metric is not on the page does not fire."""
    goals = {"ttft": SLOTarget("ttft_p95", 1.0), "itl": SLOTarget("itl_p95", 0.05)}
    goals |= {target.base_metric: target for target in targets if target.base_metric in goals}
    if (window.delta(Counter.PREEMPTIONS) or 0) > 0:
        return HAND_KV
    slow_first = _missed(window, goals["ttft"], Hist.TTFT_SECONDS)
    slow_pace = _missed(window, goals["itl"], Hist.TPOT_SECONDS, Hist.ITL_SECONDS)
    if not slow_first and not slow_pace:
        return ()
    if window.config.get("enable_prefix_caching") in (False, "False"):
        return HAND_PREFIX
    waiting = window.gauge(Gauge.WAITING_REQUESTS)
    prompt, output = window.delta(Counter.PROMPT_TOKENS) or 0.0, window.delta(Counter.GENERATION_TOKENS) or 0.0
    queue, prefill = window.mean(Hist.QUEUE_SECONDS), window.mean(Hist.PREFILL_SECONDS)
    if waiting is not None and waiting.mean >= 1:
        if prompt >= 10 * output:
            return HAND_PREFILL
        if queue is not None and queue > (prefill or 0.0):
            return HAND_QUEUE
    return HAND_DECODE if slow_pace else ()


def _missed(window: Window, goal: SLOTarget, *hists: Hist) -> bool:
    """Whether the objective's own statistic of the first of these that was measured lies above its bound."""
    for hist in hists:
        quantile = window.quantile(hist, goal.quantile) if goal.quantile else None
        value = quantile.value if quantile else window.mean(hist)
        if value is not None:
            return value > goal.target_value
    return False


def _busy(pages: Sequence[Page]) -> Page:
    """The last page with a request running: a queue that has drained at the end of a run is no queue to an instant gauge."""
    running = re.compile(r"^vllm:num_requests_running(?:\{.*\})? (?!0(?:\.0)?$)", re.MULTILINE)
    return next((page for page in reversed(pages[1:]) if running.search(page[1])), pages[-1])


class DoctorMissingError(RuntimeError):
    """vllm-doctor cannot be installed or started here; the text says why."""


class Doctor:
    """vllm-doctor in a virtual environment of its own; many runs per process start."""

    def __init__(self, folder: Path) -> None:
        self._python = folder / "bin" / "python"
        if not self._python.exists() or self._call("-c", "import vllm_doctor").returncode:
            self._install(folder)
        found = self._call("-c", "from importlib.metadata import version; print(version('vllm-doctor'))")
        if found.returncode:
            raise DoctorMissingError(found.stderr.strip()[-300:])
        self.version = found.stdout.strip()

    def _call(self, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return subprocess.run([str(self._python), *words], capture_output=True, text=True, input=text, env=clean, check=False)

    def _install(self, folder: Path) -> None:
        made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
        if made.returncode:
            raise DoctorMissingError(made.stderr.strip()[-300:])
        got = self._call("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "vllm-doctor")
        if got.returncode:
            raise DoctorMissingError(got.stderr.strip()[-300:])

    def diagnose(self, runs: Mapping[str, Sequence[Sequence[Page]]]) -> dict[str, list[tuple[str, str, str]]]:
        """Per run the findings (rule, severity, confidence) in vllm-doctor's order. A run: the pages of each replica."""
        with tempfile.TemporaryDirectory() as place:
            lines = []
            for number, (name, replicas) in enumerate(runs.items()):
                ends = []
                for index, pages in enumerate(replicas):
                    files = []
                    for end, page in (("first", pages[0]), ("last", _busy(pages))):
                        file = Path(place) / f"{number}-{index}-{end}.gz"
                        file.write_bytes(gzip.compress(page[1].encode(), 1))
                        files.append(str(file))
                    ends.append(files)
                lines.append(json.dumps({"name": name, "replicas": ends}))
            script = Path(__file__).with_name("vllm_doctor_batch.py")
            done = self._call(str(script), text="\n".join(lines))
        if done.returncode:
            raise DoctorMissingError(done.stderr.strip()[-300:])
        return {(answer := json.loads(line))["name"]: [tuple(f) for f in answer["findings"]] for line in done.stdout.splitlines()}
