"""Whatever is proposed is applied in the simulator: a missed objective never gets worse, and a met one is seldom lost.

The simulator's engine is not the predictor's model: it schedules every step of every request. Situations are drawn from fixed seeds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import pytest

from perf_service.analysis.engine import AnalysisEngine
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.collectors.window import overall_window, windows_of
from perf_service.models.config import ConfigChange, EngineConfig, Source
from perf_service.models.metrics import Engine, Hist, Snapshot
from perf_service.models.plan import Plan
from perf_service.models.slo import SLOTarget
from perf_service.optimization.engine import OptimizationEngine
from perf_service.simulator.flags import EngineFlags, StepTimes
from perf_service.simulator.virtual import simulate
from perf_service.simulator.workload import Lengths, Workload

SEEDS = range(24)
NOISE = 1.15  # between two runs of one configuration with other arrivals
SECONDS, EVERY, WARM = 120.0, 5.0, 6  # the first pages see the queue fill


@dataclass(frozen=True)
class Case:
    """A faulty engine under load."""

    flags: EngineFlags
    times: StepTimes
    load: Workload
    told: dict[str, int | bool]


def draw(seed: int) -> Case:
    """A planted fault by turns, with random physics, lengths and load; the launch arguments are told half of the time."""
    rng = random.Random(seed)
    times = StepTimes(rng.uniform(0.005, 0.03), rng.uniform(0.0001, 0.0008), rng.uniform(0.00005, 0.0003))
    prompt, output = Lengths.lognormal(rng.uniform(60, 300), 0.4, 8, 1500), Lengths.lognormal(rng.uniform(20, 120), 0.4, 2, 400)
    flags, clients = EngineFlags(max_num_seqs=64, max_num_batched_tokens=2048), rng.randint(12, 48)
    fault = seed % 4
    if fault == 0:
        changes: dict[str, int | bool] = {"max_num_seqs": rng.choice((2, 3, 4, 8, 12))}
    elif fault == 1:
        prompt, clients = Lengths.lognormal(rng.uniform(400, 1200), 0.4, 64, 3000), rng.randint(4, 14)
        changes = {"max_num_batched_tokens": rng.choice((32, 64, 128, 256)), "max_num_seqs": 16}
    elif fault == 2:
        prompt = Lengths.lognormal(rng.uniform(200, 600), 0.4, 16, 2000)
        changes = {"num_gpu_blocks_override": rng.randint(520, 900)}
        output, clients = Lengths.lognormal(rng.uniform(100, 250), 0.4, 4, 800), rng.randint(24, 60)
    else:
        prompt = Lengths.uniform(900, 1100)
        changes = {"enable_prefix_caching": False}
        clients = rng.randint(4, 12)
    load = Workload(prompt, output, concurrency=clients, shared_prefix_tokens=800 if fault == 3 else 0)
    return Case(flags.changed(changes), times, load, changes if rng.random() < 0.5 else {})


def run(case: Case, flags: EngineFlags, seed: int) -> list[Snapshot]:
    pages = simulate(flags, case.times, case.load, SECONDS, seed, scrape_every_s=EVERY).pages[WARM:]
    builder = SnapshotBuilder(Engine.VLLM)
    return [builder.build(text.encode(), "i", at) for at, text in pages]


def means(pages: list[Snapshot]) -> dict[str, float]:
    window = overall_window(pages)
    assert window is not None
    found = {"ttft": window.mean(Hist.TTFT_SECONDS), "itl": window.mean(Hist.ITL_SECONDS)}
    return {name: value for name, value in found.items() if value is not None}


def applied(flags: EngineFlags, changes: tuple[ConfigChange, ...]) -> EngineFlags:
    """Removed flags fall back to what the engine resolves."""
    default = EngineFlags()
    return flags.changed(
        {c.parameter: getattr(default, c.parameter) if c.recommended_value is None else c.recommended_value for c in changes}
    )


@dataclass(frozen=True)
class Outcome:
    """What was measured before and after a plan, and the objectives it was made for."""

    plan: Plan
    before: dict[str, float]
    after: dict[str, float]
    ttft: SLOTarget  # missed before
    itl: SLOTarget  # met before


@cache
def outcome(seed: int) -> Outcome:
    case = draw(seed)
    pages = run(case, case.flags, seed)
    before = means(pages)
    rng = random.Random(1000 + seed)
    ttft = SLOTarget("ttft", before["ttft"] * rng.uniform(0.2, 0.8))
    itl = SLOTarget("itl", before["itl"] * rng.choice((1.1, 1.5, 2.5, 5.0)))
    known = EngineConfig.of(case.told, Source.LAUNCH_ARGS) if case.told else None
    analysis = AnalysisEngine().analyze(pages, "vllm", [ttft, itl], config=known)
    plan = OptimizationEngine().generate_plan(analysis, known, slo_targets=[ttft, itl], engine_version="0.32.0", windows=windows_of(pages))
    after = means(run(case, applied(case.flags, plan.changes), seed + 500)) if plan.changes else before
    return Outcome(plan, before, after, ttft, itl)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missed_objective_never_gets_worse(seed: int) -> None:
    found = outcome(seed)
    assert found.after["ttft"] <= NOISE * found.before["ttft"], found.plan.summary


def test_a_met_objective_is_seldom_lost() -> None:
    """The rule is that of the middle of an interval, so some are; but few, and not by much."""
    changed = [outcome(seed) for seed in SEEDS if not outcome(seed).plan.empty]
    lost = [o for o in changed if not o.itl.met_by(o.after["itl"])]
    assert len(changed) >= len(SEEDS) // 3, "the plans must say something"
    assert len(lost) <= len(changed) // 4
    assert all(o.after["itl"] <= 1.6 * o.itl.target_value for o in lost)


def test_most_plans_bring_the_missed_objective_nearer() -> None:
    changed = [outcome(seed) for seed in SEEDS if not outcome(seed).plan.empty]
    assert sum(o.after["ttft"] < 0.8 * o.before["ttft"] for o in changed) >= 0.8 * len(changed)
