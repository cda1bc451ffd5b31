"""Situations whose tempting answer is wrong, played by the simulated engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from perf_service.analysis.engine import AnalysisEngine
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.analysis import Analysis, BottleneckType, Cause, Severity, Verdict
from perf_service.models.metrics import Engine, Snapshot
from perf_service.models.slo import SLOTarget
from perf_service.simulator.flags import EngineFlags, StepTimes
from perf_service.simulator.virtual import VirtualFleet
from perf_service.simulator.workload import Lengths, Workload

CHAT = Workload(Lengths.lognormal(150, 0.5, 8, 1000), Lengths.lognormal(50, 0.5, 1, 200), rate=3)

BUILDERS = {engine: SnapshotBuilder(engine) for engine in Engine}  # they remember the series


def fleet(workload: Workload = CHAT, **flags: object) -> VirtualFleet:
    return VirtualFleet(1, EngineFlags().changed(flags), workload=workload, step_times=StepTimes(base=0.02))


def scrape(world: VirtualFleet, times: int, every: float = 5.0) -> list[tuple[float, str]]:
    pages = []
    for _ in range(times):
        world.advance(every)
        pages.append(world.scrape())
    return pages


def judged(pages: Sequence[tuple[float, str]], targets: Sequence[SLOTarget] = (), engine: Engine = Engine.VLLM) -> Analysis:
    builder = BUILDERS[engine]
    snapshots: list[Snapshot] = [builder.build(text.encode(), "s", time) for time, text in pages]
    return AnalysisEngine().analyze(snapshots, engine, targets)


def causes(analysis: Analysis) -> list[Cause]:
    return [b.cause for b in analysis.bottlenecks]


def test_hang_with_a_living_page_is_a_restart() -> None:
    world = fleet()
    pages = scrape(world, 4)
    world.hang(0)
    analysis = judged(pages + scrape(world, 5))
    assert causes(analysis) == [Cause.ENGINE_HANG]
    assert (analysis.verdict, analysis.overall_health_score) == (Verdict.RESTART, 0.0)


def test_copies_of_one_page_are_not_a_hang() -> None:
    world = fleet()
    (_, text), *_ = scrape(world, 1)
    analysis = judged([(1000.0, text), (1030.0, text), (1060.0, text)])
    assert analysis.bottlenecks == ()
    assert analysis.verdict is Verdict.NOT_ENOUGH_EVIDENCE


def test_fresh_overload_after_a_load_step_waits() -> None:
    world = fleet(replace(CHAT, steps=((40, 18.0),)), max_num_seqs=16)
    analysis = judged(scrape(world, 13))
    assert analysis.verdict is Verdict.WAIT
    assert all(b.severity.rank <= Severity.MEDIUM.rank for b in analysis.bottlenecks)


def test_load_step_that_the_engine_takes_is_nothing() -> None:
    world = fleet(replace(CHAT, steps=((40, 9.0),)))
    assert judged(scrape(world, 14)).bottlenecks == ()


def test_slower_host_under_the_same_load_blames_no_flag() -> None:
    world = fleet()
    pages = scrape(world, 8)
    world.slow_down(0, 4.0)
    analysis = judged(pages + scrape(world, 8))
    assert analysis.bottlenecks[0].cause is Cause.UNKNOWN
    assert analysis.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert "slower" in analysis.summary


def test_start_up_that_is_over_asks_for_nothing() -> None:
    world = fleet()
    world.slow_down(0, 8.0)
    pages = [world.scrape(), *scrape(world, 3)]
    world.slow_down(0, 1.0)
    analysis = judged(pages + scrape(world, 10), [SLOTarget("ttft", 0.1), SLOTarget("itl", 0.04)])
    assert analysis.verdict is Verdict.NOTHING_TO_DO
    assert "slow at first" in analysis.summary


def test_client_that_asks_for_little_is_not_low_throughput_of_the_engine() -> None:
    world = fleet(replace(CHAT, rate=None, concurrency=2))
    analysis = judged(scrape(world, 8), [SLOTarget("throughput", 5000, "greater_than")])
    assert analysis.verdict is Verdict.LOOK_AT_CLIENT
    assert analysis.bottlenecks[0].type is BottleneckType.LOW_THROUGHPUT


def test_contradictory_objectives_end_in_scale() -> None:
    world = fleet(replace(CHAT, rate=20), max_num_seqs=8)
    analysis = judged(scrape(world, 6), [SLOTarget("ttft_p95", 0.5), SLOTarget("itl", 0.01)])
    assert analysis.bottlenecks[0].cause is Cause.OVERLOAD
    assert analysis.verdict is Verdict.SCALE


def test_prefill_spikes_of_a_large_budget() -> None:
    workload = Workload(Lengths.lognormal(400, 1.4, 30, 7000), Lengths.uniform(100, 200), rate=3.0)
    times = StepTimes(base=0.008, per_seq=0.0001, per_prefill_token=0.0002)
    world = VirtualFleet(1, EngineFlags(max_num_batched_tokens=8192), workload=workload, step_times=times)
    analysis = judged(scrape(world, 8), [SLOTarget("itl_p99", 0.1), SLOTarget("ttft", 5.0)])
    assert analysis.bottlenecks[0].cause is Cause.TOKEN_BUDGET_TOO_LARGE


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_batch_limit_on_each_engine(engine: str) -> None:
    world = fleet(replace(CHAT, rate=20), engine=engine, max_num_seqs=8)
    analysis = judged(scrape(world, 8), engine=Engine(engine))
    assert analysis.bottlenecks[0].cause is Cause.BATCH_LIMIT


def test_timid_sglang_admission() -> None:
    workload = replace(CHAT, rate=None, concurrency=64, max_tokens=4000)
    world = fleet(workload, engine="sglang", num_gpu_blocks_override=1000, schedule_conservativeness=1.5)
    assert judged(scrape(world, 10), engine=Engine.SGLANG).bottlenecks[0].cause is Cause.UNDER_ADMISSION


def test_tgi_reserves_for_the_worst_case() -> None:
    world = fleet(replace(CHAT, rate=20, max_tokens=2000), engine="tgi", num_gpu_blocks_override=1000)
    assert judged(scrape(world, 10), engine=Engine.TGI).bottlenecks[0].cause is Cause.RESERVATION_LIMIT


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tgi"])
def test_light_load_is_silent_on_each_engine(engine: str) -> None:
    analysis = judged(scrape(fleet(engine=engine), 8), engine=Engine(engine))
    assert analysis.bottlenecks == ()
    assert analysis.verdict is Verdict.NOTHING_TO_DO


def test_two_causes_are_both_named() -> None:
    workload = Workload(Lengths.uniform(2100, 2200), Lengths.uniform(20, 26), concurrency=12, shared_prefix_tokens=2048)
    world = fleet(workload, max_num_seqs=2, enable_prefix_caching=False)
    found = causes(judged(scrape(world, 8)))
    assert found[0] is Cause.BATCH_LIMIT
    assert Cause.PREFIX_CACHE_OFF in found


def test_start_of_a_closed_loop_is_no_load_step() -> None:
    world = fleet(replace(CHAT, rate=None, concurrency=64), max_num_seqs=8)
    pages = [world.scrape(), *scrape(world, 8)]
    assert judged(pages).verdict is Verdict.TUNE
