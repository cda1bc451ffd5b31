"""Runs a situation on the virtual clock: a warm-up nobody looks at, then pages and what the clients saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from benchmarks.diagnosis.drawing import HARDWARE, WARM_SECONDS, Situation
from perf_service.simulator.virtual import ScrapeError, VirtualFleet
from perf_service.simulator.workload import Ledger

Page = tuple[float, str, str]  # unix seconds, text, engine version told beside the page
VERSIONS = {"vllm": ("0.31.0", "0.32.0"), "sglang": ("0.5.22", "0.5.23"), "tgi": ("3.3.6", "3.3.7")}
_STARTUP_SECONDS = 6.0
RUNNING_VERSION = b"2"  # raise it when this file changes what a run gives: kept runs are then made anew


@dataclass(frozen=True)
class Seen:
    """What the clients of one run saw, over all its replicas. Seconds; NaN where nothing finished."""

    values: dict[str, float]
    finished: int
    error_ratio: float
    tokens_per_second: float
    preemptions: float = 0.0
    hit_ratio: float = 0.0


@dataclass(frozen=True)
class Run:
    """Pages by replica and what the clients saw."""

    replicas: list[list[Page]] = field(repr=False)
    seen: Seen


def run(s: Situation, *, pages: bool = True) -> Run:
    """One situation with its trap's events; without ``pages`` only the clients' side is kept."""
    ledger = Ledger()
    replicas: list[list[Page]] = []
    preempted = hits = queries = 0.0
    for index, share in enumerate(s.shares or (1.0,)):
        load = s.workload
        if s.shares and load.rate is not None:
            load = replace(load, rate=load.rate * share)
        cold = s.trap == "cold_start"
        warm = 0.0 if cold else WARM_SECONDS
        if load.steps:
            load = replace(load, steps=tuple((at + warm, level) for at, level in load.steps))
        fleet = VirtualFleet(
            1, s.flags, workload=load, step_times=s.times, hardware=HARDWARE, seed=s.seed * 17 + index, startup_seconds=_STARTUP_SECONDS
        )
        if cold:
            fleet.slow_down(0, s.trap_value)
        fleet.advance(warm)
        fleet.ledger = ledger
        replicas.append(_observe(s, fleet, pages))
        _add_unfinished(fleet, ledger)
        stats = fleet.replicas[0].core.stats
        preempted += stats.get("preemptions")
        hits, queries = hits + stats.get("prefix_hits"), queries + stats.get("prefix_queries")
    report = ledger.report(s.duration)
    values: dict[str, float] = {}
    for metric, summary in (("ttft", report.ttft_seconds), ("itl", report.itl_seconds), ("e2e", report.e2e_seconds)):
        values |= {f"{metric}_{name}": getattr(summary, name) for name in ("mean", "p95", "p99")} | {f"{metric}_n": float(summary.count)}
    ended = report.succeeded + report.failed
    seen = Seen(
        values, report.succeeded, report.failed / ended if ended else 0.0, report.output_tokens_per_second, preempted,
        hits / queries if queries else 0.0,
    )  # fmt: skip
    return Run(replicas, seen)


def _add_unfinished(fleet: VirtualFleet, ledger: Ledger) -> None:
    """Counts the first token of requests that are still on their way: when it came, or at least as long as they have waited."""
    for call in fleet.replicas[0].calls:
        if call.sent >= fleet.epoch + WARM_SECONDS:
            ledger.ttft.append((call.times[0] if call.times else fleet.clock) - call.sent)


def _upgraded(fleet: VirtualFleet, factor: float) -> None:
    fleet.slow_down(0, factor)
    fleet.restart(0, {})


def _restarted(fleet: VirtualFleet, _: float) -> None:
    fleet.restart(0, {})


_EVENTS: Mapping[str, Callable[[VirtualFleet, float], None]] = {
    "restart": _restarted,
    "upgrade": _upgraded,
    "noisy_neighbour": lambda fleet, factor: fleet.slow_down(0, factor),
    "hang": lambda fleet, _: fleet.hang(0),
}


def _observe(s: Situation, fleet: VirtualFleet, pages: bool) -> list[Page]:
    start = fleet.clock
    old, new = VERSIONS[s.engine]
    version = old if s.trap == "upgrade" else new
    half = start + s.duration * 0.5
    if s.trap in _EVENTS:
        fleet.at(half - 1e-3, lambda _: _EVENTS[s.trap](fleet, s.trap_value))
    if s.trap == "cold_start":
        fleet.at(start + s.duration * 0.15, lambda _: fleet.slow_down(0, 1.0))
    kept: list[Page] = []
    for k in range(s.pages):
        fleet.advance_to(start + s.duration * k / (s.pages - 1))
        if not pages:
            continue
        try:
            when, text = fleet.scrape()
        except ScrapeError:
            continue
        kept.append((when, text, new if fleet.clock > half else version))
    return kept


def log_ratio(value: float, bound: float, cap: float = 30.0) -> float:
    """How far above its bound a value lies, as a logarithm from 0 (met) to log(cap)."""
    if not value > 0 or math.isnan(value):
        return 0.0
    return min(max(math.log(value / bound), 0.0), math.log(cap))
