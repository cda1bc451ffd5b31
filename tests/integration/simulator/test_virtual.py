"""Engines on a virtual clock: planted causes show, their cures cure."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from perf_service.collectors.exposition import parse
from perf_service.simulator.fit import fit_step_times, windows_from_pages
from perf_service.simulator.flags import EngineFlags, FlagError, StepTimes
from perf_service.simulator.virtual import ScrapeError, Simulation, VirtualFleet, simulate
from perf_service.simulator.workload import Lengths, Workload

TIMES = StepTimes(base=0.01, per_seq=0.0005, per_prefill_token=0.0001)
CHAT = Workload(prompt=Lengths.uniform(40, 80), output=Lengths.uniform(30, 60), concurrency=16)
SMALL = {"max_model_len": 1024, "block_size": 16}


def value(page: str, name: str, **labels: str) -> float:
    for found, its, number in parse(page):
        if found == name and labels.items() <= its.items():
            return number
    raise AssertionError(f"{name} is not on the page")


def run(flags: dict[str, object], load: Workload = CHAT, seconds: float = 20.0, seed: int = 1) -> Simulation:
    return simulate(EngineFlags(**{**SMALL, **flags}), TIMES, load, seconds, seed)  # type: ignore[arg-type]


def test_same_seed_same_pages_other_seed_other_pages() -> None:
    first, again, other = run({}, seconds=5), run({}, seconds=5), run({}, seconds=5, seed=2)
    assert first == again
    assert first.pages != other.pages
    assert [t - first.pages[0][0] for t, _ in first.pages] == [0, 5]


def test_a_raised_limit_cures_a_planted_queue() -> None:
    bad, fixed = run({"max_num_seqs": 2}), run({"max_num_seqs": 64})
    page = bad.pages[-1][1]
    assert value(page, "vllm:num_requests_running") == 2
    assert value(page, "vllm:num_requests_waiting") == 14
    assert value(fixed.pages[-1][1], "vllm:num_requests_waiting") == 0
    assert fixed.report.requests_per_second > 3 * bad.report.requests_per_second
    assert fixed.report.ttft_seconds.p50 < bad.report.ttft_seconds.p50 / 10
    assert fixed.report.itl_seconds.p50 > bad.report.itl_seconds.p50  # the price of the bigger batch


def test_few_blocks_preempt_and_more_blocks_cure() -> None:
    load = Workload(prompt=Lengths.uniform(100, 200), output=Lengths.uniform(150, 250), concurrency=16)
    bad, fixed = run({"num_gpu_blocks_override": 80}, load), run({"num_gpu_blocks_override": 1000}, load)
    assert value(bad.pages[-1][1], "vllm:num_preemptions_total") > 10
    assert value(fixed.pages[-1][1], "vllm:num_preemptions_total") == 0
    assert fixed.report.output_tokens_per_second > 1.3 * bad.report.output_tokens_per_second


def test_prefix_hits_follow_the_shared_part() -> None:
    load = Workload(prompt=Lengths.fixed(320), output=Lengths.fixed(4), rate=5, shared_prefix_tokens=256, shared_prefix_share=0.5)
    on, off = run({}, load, 40), run({"enable_prefix_caching": False}, load, 40)
    page = on.pages[-1][1]
    ratio = value(page, "vllm:prefix_cache_hits_total") / value(page, "vllm:prefix_cache_queries_total")
    assert ratio == pytest.approx(0.5 * 256 / 320, abs=0.06)
    assert value(off.pages[-1][1], "vllm:prefix_cache_queries_total") == 0
    assert on.report.ttft_seconds.mean < off.report.ttft_seconds.mean


def test_a_bigger_token_budget_cures_starved_prefill() -> None:
    load = Workload(prompt=Lengths.uniform(600, 800), output=Lengths.fixed(1), concurrency=4)
    bad = run({"max_num_batched_tokens": 32, "max_num_seqs": 16}, load)
    fixed = run({"max_num_batched_tokens": 1024, "max_num_seqs": 16}, load)
    assert value(bad.pages[-1][1], "vllm:num_requests_running") == 1
    assert fixed.report.requests_per_second > 2 * bad.report.requests_per_second


def test_client_and_server_agree() -> None:
    result = run({"max_num_seqs": 4})
    page = result.pages[-1][1]
    count = value(page, "vllm:e2e_request_latency_seconds_count")
    assert count == result.report.succeeded
    mean = value(page, "vllm:e2e_request_latency_seconds_sum") / count
    assert mean == pytest.approx(result.report.e2e_seconds.mean, rel=1e-6)
    # Little's law over the whole run: 16 clients are always in the system
    assert result.report.requests_per_second * mean == pytest.approx(16, rel=0.15)


def test_step_times_are_recovered_from_pages_of_different_mixes() -> None:
    windows = []
    for load in (CHAT, Workload(prompt=Lengths.uniform(300, 500), output=Lengths.uniform(5, 20), concurrency=4)):
        for seqs in (2, 16):
            flags = EngineFlags(max_num_seqs=seqs, enable_prefix_caching=False)
            windows += windows_from_pages(simulate(flags, TIMES, load, 30, 3).pages)
    fitted = fit_step_times(windows)
    assert fitted.median_error_ratio < 0.02
    assert fitted.step_times.base == pytest.approx(TIMES.base, rel=0.1)
    assert fitted.step_times.per_seq == pytest.approx(TIMES.per_seq, rel=0.25)
    assert fitted.step_times.per_prefill_token == pytest.approx(TIMES.per_prefill_token, rel=0.1)


def fleet(replicas: int = 3, **kwargs: object) -> VirtualFleet:
    flags = EngineFlags(**SMALL, max_num_seqs=2)  # type: ignore[arg-type]
    return VirtualFleet(replicas, flags, workload=CHAT, step_times=TIMES, **kwargs)  # type: ignore[arg-type]


def test_a_restarted_replica_is_down_then_back_with_fresh_counters_and_new_flags() -> None:
    f = fleet(startup_seconds=10)
    f.advance(20)
    _, before = f.scrape(1)
    ready = f.restart(1, {"max_num_seqs": 32})
    with pytest.raises(ScrapeError):
        f.scrape(1)
    f.scrape(0)
    f.advance_to(ready + 5)
    _, after = f.scrape(1)
    assert f.flags(1).max_num_seqs == 32
    assert f.flags(0).max_num_seqs == 2
    name = "vllm:generation_tokens_total"
    assert 0 < value(after, name) < value(before, name)
    assert value(after, "process_start_time_seconds") > value(before, "process_start_time_seconds")
    assert f.report().errors["connection reset"] >= 1
    assert set(f.report().errors) == {"connection reset"}  # the balancer leaves a starting replica out


def test_flags_the_engine_refuses_leave_the_replica_untouched() -> None:
    f = fleet()
    f.advance(5)
    with pytest.raises(FlagError):
        f.restart(0, {"max_num_seqs": 4096})
    assert f.flags(0).max_num_seqs == 2
    f.scrape(0)


def test_a_dead_fleet_only_yields_counted_errors_and_recovers() -> None:
    f = fleet(2, startup_seconds=5)
    f.advance(5)
    for index in (0, 1):
        f.stop(index)
    f.advance(5)
    assert f.report().errors["connection refused"] > 10
    done = f.report().succeeded
    f.restart(0, {})
    f.advance(15)
    assert f.report().succeeded > done


def test_a_slow_machine_is_slow_after_a_restart_too() -> None:
    f = fleet(2, startup_seconds=1)
    f.slow_down(1, 3.0)
    f.restart(1, {})
    f.advance(20)
    means = []
    for index in (0, 1):
        page = f.scrape(index)[1]
        name = "vllm:inter_token_latency_seconds"
        means.append(value(page, f"{name}_sum") / value(page, f"{name}_count"))
    assert means[1] == pytest.approx(3 * means[0], rel=0.1)


def test_a_hung_engine_serves_frozen_pages_until_it_is_restarted() -> None:
    f = fleet(1, startup_seconds=1)
    f.advance(5)
    f.hang(0)
    f.advance(1)
    frozen = f.scrape()[1]
    f.advance(5)
    assert value(f.scrape()[1], "vllm:generation_tokens_total") == value(frozen, "vllm:generation_tokens_total")
    done = f.report().succeeded
    f.restart(0, {})
    f.advance(10)
    assert f.report().succeeded > done


def test_load_steps_change_the_number_of_clients() -> None:
    load = Workload(concurrency=2, steps=((10.0, 12.0), (20.0, 1.0)))
    f = VirtualFleet(1, EngineFlags(max_num_seqs=1), workload=load, step_times=TIMES)
    seen = []
    for when in (9, 19, 60):
        f.advance_to(f.epoch + when)
        page = f.scrape()[1]
        seen.append(value(page, "vllm:num_requests_running") + value(page, "vllm:num_requests_waiting"))
    assert seen == [2, 12, 1]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tgi"])
def test_every_dialect_is_served(engine: str) -> None:
    flags = EngineFlags(engine=engine, max_num_seqs=4, max_model_len=1024)  # type: ignore[arg-type]
    result = simulate(flags, TIMES, CHAT, 5, 1, drain=True)
    assert result.report.succeeded == result.report.sent > 10
    assert list(text_string_to_metric_families(result.pages[-1][1]))
