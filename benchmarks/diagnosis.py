"""How often the analyzer names the right cause on simulated engines, labelled by intervention.

A situation's label is earned: among the single fixes (more sequences, a larger token budget, more KV blocks, prefix caching on),
the one that alone improves what the clients see most is its cause; where none helps there is none to find. Run:

    python benchmarks/diagnosis.py --situations 100 --seed 1
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter as Tally
from dataclasses import dataclass, replace

from perf_service.analysis.engine import AnalysisEngine
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.analysis import Analysis, Cause, Severity
from perf_service.models.config import EngineConfig, Source
from perf_service.models.metrics import Engine, Snapshot
from perf_service.simulator.flags import EngineFlags, StepTimes
from perf_service.simulator.virtual import Simulation, simulate
from perf_service.simulator.workload import Lengths, Workload

HELPS_RATIO = 1.3  # a fix counts when it improves mean TTFT or E2E by this factor and worsens neither by it
FIXES: dict[Cause, dict[str, object]] = {
    Cause.BATCH_LIMIT: {"max_num_seqs": 256},
    Cause.TOKEN_BUDGET_TOO_SMALL: {"max_num_batched_tokens": 4096},
    Cause.KV_EXHAUSTED: {"num_gpu_blocks_override": 8192},
    Cause.PREFIX_CACHE_OFF: {"enable_prefix_caching": True},
}
NO_FLAG = "no flag"
ACCEPTED_WITHOUT_FLAG = {
    None,
    Cause.PREFILL_COMPUTE,
    Cause.DECODE_BOUND,
    Cause.OVERLOAD,
    Cause.CPU_OVERHEAD,
    Cause.UNKNOWN,
    Cause.UNDER_USE,
}


@dataclass(frozen=True)
class Situation:
    """One engine under one load, with the fault that was planted."""

    seed: int
    planted: str
    flags: EngineFlags
    times: StepTimes
    workload: Workload
    duration: float


def draw(seed: int) -> Situation:
    """A situation with random physics, load and fault."""
    rng = random.Random(seed)
    base = rng.uniform(0.004, 0.03)
    times = StepTimes(base=base, per_seq=base * rng.uniform(0.005, 0.06), per_prefill_token=base * 10 ** rng.uniform(-3.0, -1.5))
    flags = EngineFlags(max_num_seqs=256, max_num_batched_tokens=rng.choice((2048, 4096, 8192)), num_gpu_blocks_override=8192)
    planted = rng.choice(("batch", "budget", "kv", "prefix", "healthy", "healthy", "decode", "prefill"))
    long = rng.random() < 0.5
    prompt = Lengths.lognormal(rng.uniform(600, 2000), 0.4, 16, 4000) if long else Lengths.lognormal(rng.uniform(30, 300), 0.5, 8, 1500)
    output = Lengths.lognormal(rng.uniform(8, 200), 0.5, 1, 1000)
    load = Workload(prompt, output, concurrency=rng.choice((8, 16, 32, 64)))
    if planted == "batch":
        flags = replace(flags, max_num_seqs=rng.choice((1, 2, 3, 4, 6, 8, 12)))
    elif planted == "budget":
        budget = rng.choice((16, 32, 48, 64, 96, 128, 256))
        flags = replace(flags, max_num_batched_tokens=budget, max_num_seqs=min(budget, rng.choice((16, 64, 128))))
        load = replace(
            load, prompt=Lengths.lognormal(rng.uniform(300, 2000), 0.4, 16, 4000), output=Lengths.lognormal(rng.uniform(1, 60), 0.4, 1, 300)
        )
    elif planted == "kv":
        flags = replace(flags, num_gpu_blocks_override=rng.choice((520, 600, 800)))
        load = replace(
            load,
            prompt=Lengths.lognormal(rng.uniform(300, 1500), 0.4, 16, 4000),
            output=Lengths.lognormal(rng.uniform(100, 300), 0.4, 1, 1000),
            concurrency=rng.choice((16, 32, 64)),
        )
    elif planted == "prefix":
        flags = replace(flags, enable_prefix_caching=False)
        shared = rng.choice((512, 1024, 2048))
        load = replace(
            load,
            prompt=Lengths.uniform(shared + 20, shared + 200),
            output=Lengths.lognormal(rng.uniform(4, 60), 0.4, 1, 300),
            shared_prefix_tokens=shared,
            concurrency=rng.choice((4, 8, 16)),
        )
    elif planted == "healthy":
        service = base * 30 + times.per_prefill_token * 300
        load = Workload(
            Lengths.lognormal(100, 0.5, 8, 1000), Lengths.lognormal(60, 0.5, 1, 300), rate=rng.uniform(0.3, 1.5) / service * 0.5
        )
        times = replace(
            times, base=min(base, 0.02), per_seq=min(times.per_seq, 0.0003), per_prefill_token=min(times.per_prefill_token, 0.0001)
        )
    elif planted == "decode":
        times = replace(times, per_seq=base * rng.uniform(0.05, 0.15))
        load = replace(load, prompt=Lengths.uniform(8, 64), output=Lengths.lognormal(200, 0.3, 20, 800), concurrency=rng.choice((48, 96)))
    else:
        load = replace(
            load, prompt=Lengths.lognormal(1500, 0.3, 100, 4000), output=Lengths.uniform(1, 8), concurrency=rng.choice((4, 8, 16))
        )
    return Situation(seed, planted, flags, times, load, rng.choice((20.0, 40.0)))


def run(s: Situation, **changes: object) -> Simulation:
    """The situation, or its counterpart with changed flags."""
    flags = s.flags.changed(changes)
    flags = replace(flags, max_num_seqs=min(flags.max_num_seqs, flags.max_num_batched_tokens))
    return simulate(flags, s.times, s.workload, s.duration, s.seed, scrape_every_s=s.duration / 10, drain=True)


def label(s: Situation) -> tuple[str, dict[str, float]]:
    """The cause whose fix alone helps the clients most, and every fix's gain."""
    before = run(s).report
    gains: dict[str, float] = {}
    for cause, fix in FIXES.items():
        if all(getattr(s.flags, knob) == value for knob, value in fix.items()) or (
            cause is Cause.TOKEN_BUDGET_TOO_SMALL and s.flags.max_num_batched_tokens >= 2048
        ):
            continue
        after = run(s, **fix).report
        if not after.ttft_seconds.count or not before.ttft_seconds.count:
            continue
        ttft = before.ttft_seconds.mean / after.ttft_seconds.mean
        e2e = before.e2e_seconds.mean / after.e2e_seconds.mean
        gains[cause.value] = max(ttft * min(1.0, e2e), e2e * min(1.0, ttft))
    if not gains or before.ttft_seconds.mean < 0.1:
        return NO_FLAG, gains
    best = max(gains, key=lambda name: gains[name])
    return (best if gains[best] >= HELPS_RATIO else NO_FLAG), gains


def snapshots(simulation: Simulation, config: EngineConfig | None) -> list[Snapshot]:
    """The run's pages as the service would see them."""
    builder = SnapshotBuilder(Engine.VLLM)
    return [builder.build(text.encode(), "sim", time, config=config) for time, text in simulation.pages[:-1]]


def analyze(s: Situation, with_args: bool) -> Analysis:
    """The analyzer's answer."""
    known = {"max_num_seqs": s.flags.max_num_seqs, "max_num_batched_tokens": s.flags.max_num_batched_tokens}
    config = EngineConfig.of(known, Source.LAUNCH_ARGS) if with_args else None
    return AnalysisEngine().analyze(snapshots(run(s), config), Engine.VLLM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--situations", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    right: dict[bool, list[bool]] = {True: [], False: []}
    alarms = healthy = 0
    confusion: Tally[tuple[bool, str, str]] = Tally()
    for index in range(options.situations):
        s = draw(options.seed * 100_000 + index)
        truth, gains = label(s)
        for with_args in (True, False):
            analysis = analyze(s, with_args)
            cause = analysis.root_cause.cause if analysis.root_cause else None
            ok = cause in ACCEPTED_WITHOUT_FLAG if truth == NO_FLAG else cause is not None and cause.value == truth
            right[with_args].append(ok)
            confusion[with_args, truth, cause.value if cause else "-"] += 1
            if s.planted == "healthy" and truth == NO_FLAG and with_args:
                healthy += 1
                alarms += any(b.severity in (Severity.HIGH, Severity.CRITICAL) for b in analysis.bottlenecks)
            if options.verbose and not ok:
                w = analysis.window
                rounded = {k: round(v, 2) for k, v in gains.items()}
                belief = {k.value: round(v, 2) for k, v in analysis.cause_confidences.items()}
                print(f"{s.seed} args={with_args} planted={s.planted} truth={truth} got={cause} {rounded} {belief}")
                print(
                    "   ",
                    s.flags.max_num_seqs,
                    s.flags.max_num_batched_tokens,
                    s.flags.num_gpu_blocks_override,
                    s.times,
                    s.workload.concurrency,
                    s.workload.prompt,
                    s.workload.output,
                    s.duration,
                    w and w.scrapes,
                )
                if analysis.root_cause:
                    print("    ", analysis.root_cause.description)
        if sys.stderr.isatty():
            print(f"\r{index + 1}/{options.situations}", end="", file=sys.stderr)
    for with_args, results in right.items():
        print(f"args {'known ' if with_args else 'hidden'}: {sum(results)}/{len(results)} right")
        for (kind, truth, got), n in sorted(confusion.items()):
            if kind is with_args:
                print(f"    {truth:24} -> {got:24} {n}")
    print(f"false alarms on healthy: {alarms}/{healthy}")


if __name__ == "__main__":
    main()
