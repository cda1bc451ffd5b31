"""Situations whose tempting answer is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from perf_service.analysis.engine import AnalysisEngine
from perf_service.models.analysis import Analysis, BottleneckType, Cause, Severity, Verdict
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram, Snapshot
from perf_service.models.slo import SLOTarget
from perf_service.models.window import GaugeStats, Window


def causes(analysis: Analysis) -> list[Cause]:
    return [b.cause for b in analysis.bottlenecks]


PHASES = {Hist.TTFT_SECONDS: 0.06, Hist.QUEUE_SECONDS: 0.0, Hist.PREFILL_SECONDS: 0.05, Hist.DECODE_SECONDS: 1.0, Hist.E2E_SECONDS: 1.06}
QUEUED = {
    Hist.TTFT_SECONDS: 5.06,
    Hist.QUEUE_SECONDS: 5.0,
    Hist.PREFILL_SECONDS: 0.05,
    Hist.DECODE_SECONDS: 1.0,
    Hist.E2E_SECONDS: 6.06,
    Hist.PROMPT_TOKENS: 100,
    Hist.GENERATION_TOKENS: 100,
}


def test_full_cache_alone_is_nothing(window: Callable[..., Window]) -> None:
    full = window(
        PHASES,
        {Gauge.KV_CACHE_USAGE_RATIO: [0.95] * 5, Gauge.RUNNING_REQUESTS: [3] * 5, Gauge.WAITING_REQUESTS: [0] * 5},
        {Counter.PREEMPTIONS: 0},
    )
    assert AnalysisEngine().analyze(full).bottlenecks == ()


def test_no_prefix_hits_on_traffic_that_shares_nothing(window: Callable[..., Window]) -> None:
    counters = {Counter.PREFIX_CACHE_QUERIES_TOKENS: 10_000, Counter.PREFIX_CACHE_HITS_TOKENS: 0, Counter.PROMPT_TOKENS: 10_000}
    found = AnalysisEngine().analyze(window(PHASES, {Gauge.RUNNING_REQUESTS: [3] * 5}, counters, config={"enable_prefix_caching": True}))
    assert found.bottlenecks == ()


def test_caching_off_without_harm_is_nothing(window: Callable[..., Window]) -> None:
    assert AnalysisEngine().analyze(window(PHASES, config={"enable_prefix_caching": False})).bottlenecks == ()


def test_caching_off_is_not_blamed_for_prompts_below_a_block(window: Callable[..., Window]) -> None:
    means = {**PHASES, Hist.TTFT_SECONDS: 0.6, Hist.PREFILL_SECONDS: 0.55, Hist.PROMPT_TOKENS: 100, Hist.GENERATION_TOKENS: 20}
    analysis = AnalysisEngine().analyze(window(means, config={"enable_prefix_caching": False, "block_size": 128}))
    assert Cause.PREFIX_CACHE_OFF not in causes(analysis)


def test_deferred_waiting_is_not_a_batch_limit(window: Callable[..., Window]) -> None:
    gauges = {
        Gauge.RUNNING_REQUESTS: [8] * 6,
        Gauge.WAITING_REQUESTS: [20] * 6,
        Gauge.WAITING_DEFERRED_REQUESTS: [19] * 6,
        Gauge.KV_CACHE_USAGE_RATIO: [0.1] * 6,
    }
    root = AnalysisEngine().analyze(window(QUEUED, gauges)).bottlenecks[0]
    assert root.cause is Cause.WAITING_NOT_CAPACITY
    assert root.verdict is not Verdict.TUNE


def test_more_adapters_than_slots_is_a_flag_and_says_which(window: Callable[..., Window]) -> None:
    gauges = {
        Gauge.RUNNING_REQUESTS: [3] * 6,
        Gauge.WAITING_REQUESTS: [14] * 6,
        Gauge.WAITING_DEFERRED_REQUESTS: [14] * 6,
        Gauge.KV_CACHE_USAGE_RATIO: [0.1] * 6,
        Gauge.LORA_ADAPTERS_SEEN: [3] * 6,
    }
    root = AnalysisEngine().analyze(window(QUEUED, gauges, config={"max_loras": 1})).bottlenecks[0]
    assert (root.cause, root.verdict) == (Cause.WAITING_NOT_CAPACITY, Verdict.TUNE)
    assert "3 adapters take turns at 1" in root.description
    assert "max_loras" in root.recommendation
    enough = AnalysisEngine().analyze(window(QUEUED, gauges, config={"max_loras": 4})).bottlenecks[0]
    assert (enough.cause, enough.verdict) == (Cause.WAITING_NOT_CAPACITY, Verdict.LOOK_AT_CLIENT)
    gauges[Gauge.WAITING_DEFERRED_REQUESTS] = [0] * 6
    assert AnalysisEngine().analyze(window(QUEUED, gauges, config={"max_loras": 1})).bottlenecks[0].cause is not Cause.WAITING_NOT_CAPACITY


def test_preemptions_beat_a_constant_batch(window: Callable[..., Window]) -> None:
    gauges = {Gauge.RUNNING_REQUESTS: [8] * 6, Gauge.WAITING_REQUESTS: [20] * 6, Gauge.KV_CACHE_USAGE_RATIO: [0.99] * 6}
    assert AnalysisEngine().analyze(window(QUEUED, gauges, {Counter.PREEMPTIONS: 40})).bottlenecks[0].cause is Cause.KV_EXHAUSTED


def test_known_limit_far_above_what_runs_acquits_it(window: Callable[..., Window]) -> None:
    gauges = {Gauge.RUNNING_REQUESTS: [8] * 6, Gauge.WAITING_REQUESTS: [20] * 6, Gauge.KV_CACHE_USAGE_RATIO: [0.1] * 6}
    root = AnalysisEngine().analyze(window(QUEUED, gauges, config={"max_num_seqs": 256, "max_num_batched_tokens": 2048})).bottlenecks[0]
    assert root.cause is not Cause.BATCH_LIMIT


def test_server_errors_come_first_and_client_errors_look_at_the_client(window: Callable[..., Window]) -> None:
    failing = AnalysisEngine().analyze(window(PHASES, counters={Counter.REQUESTS_FAILED: 60, Counter.REQUESTS_SUCCEEDED: 100}))
    assert (failing.bottlenecks[0].cause, failing.bottlenecks[0].severity) == (Cause.REQUEST_ERRORS, Severity.CRITICAL)
    refused = AnalysisEngine().analyze(window(PHASES, counters={Counter.HTTP_4XX_RESPONSES: 60, Counter.REQUESTS_SUCCEEDED: 100}))
    assert refused.verdict is Verdict.LOOK_AT_CLIENT
    assert refused.bottlenecks[0].severity.rank <= Severity.MEDIUM.rank


def test_disconnects_show_as_first_tokens_without_an_end(window: Callable[..., Window]) -> None:
    gone = window(
        {Hist.E2E_SECONDS: 1.0, Hist.QUEUE_SECONDS: 0.0},
        {Gauge.RUNNING_REQUESTS: [3, 2, 0]},
        requests=60,
        histograms={Hist.TTFT_SECONDS: Histogram(100, 5.0)},
    )
    analysis = AnalysisEngine().analyze(gone)
    assert causes(analysis) == [Cause.CLIENT_ABORTS]
    assert analysis.verdict is Verdict.LOOK_AT_CLIENT


def test_a_few_errors_are_chance(window: Callable[..., Window]) -> None:
    assert AnalysisEngine().analyze(window(PHASES, counters={Counter.REQUESTS_FAILED: 2})).bottlenecks == ()


def test_under_use_needs_minutes(window: Callable[..., Window]) -> None:
    gauges = {Gauge.RUNNING_REQUESTS: [0, 1, 0], Gauge.WAITING_REQUESTS: [0, 0, 0], Gauge.KV_CACHE_USAGE_RATIO: [0, 0.01, 0]}
    short, long = (AnalysisEngine().analyze(window({**PHASES, Hist.INFERENCE_SECONDS: 1.05}, gauges, duration=d)) for d in (60, 900))
    assert causes(short) == []
    assert [(b.cause, b.severity) for b in long.bottlenecks] == [(Cause.UNDER_USE, Severity.LOW)]


def test_a_short_wait_without_times_is_no_queue(window: Callable[..., Window]) -> None:
    means = {Hist.TTFT_SECONDS: 0.45, Hist.QUEUE_SECONDS: 0.16, Hist.PREFILL_SECONDS: 0.28,
             Hist.DECODE_SECONDS: 1.6, Hist.INFERENCE_SECONDS: 1.88, Hist.E2E_SECONDS: 2.05, Hist.ITL_SECONDS: 0.037}  # fmt: skip
    gauges = {Gauge.RUNNING_REQUESTS: (1.0, 10.0), Gauge.WAITING_REQUESTS: (0.0, 0.0)}
    analysis = AnalysisEngine().analyze(window(means, gauges, duration=None))
    assert BottleneckType.QUEUE_BUILDUP not in {b.type for b in analysis.bottlenecks}


def _silent(running: list[float], kv: list[float]) -> list[Snapshot]:
    """Scrapes 10 s apart with an API process that lives and not one token."""
    return [
        Snapshot(
            "i",
            Engine.VLLM,
            10.0 * n,
            gauges={Gauge.RUNNING_REQUESTS: busy, Gauge.WAITING_REQUESTS: 0.0, Gauge.KV_CACHE_USAGE_RATIO: used},
            counters={Counter.GENERATION_TOKENS: 500.0, Counter.PROMPT_TOKENS: 900.0, Counter.PROCESS_CPU_SECONDS: 1.0 + 0.1 * n},
        )
        for n, (busy, used) in enumerate(zip(running, kv, strict=True))
    ]


def test_a_long_prompt_that_fills_the_cache_chunk_by_chunk_is_no_hang() -> None:
    assert AnalysisEngine().analyze(_silent([1.0] * 7, [0.05 * n for n in range(7)])).bottlenecks == ()
    assert causes(AnalysisEngine().analyze(_silent([1.0] * 7, [0.3] * 7))) == [Cause.ENGINE_HANG]


def test_a_hang_that_begins_on_an_idle_engine_is_one() -> None:
    root = AnalysisEngine().analyze(_silent([0.0] * 3 + [1.0] * 5, [0.0] * 3 + [0.1] * 5)).bottlenecks[0]
    assert (root.cause, root.verdict) == (Cause.ENGINE_HANG, Verdict.RESTART)
    assert "no token for 40 s over 5 scrapes" in root.description


def test_a_hang_that_is_over_is_told_as_over() -> None:
    silent = _silent([4.0] * 8, [0.1] * 8)
    moved = [replace(page, counters={**page.counters, Counter.GENERATION_TOKENS: 900.0 + 100 * n}) for n, page in enumerate(silent[6:])]
    analysis = AnalysisEngine().analyze([*silent[:6], *moved])
    root = analysis.bottlenecks[0]
    assert (root.cause, root.severity, root.verdict) == (Cause.ENGINE_HANG, Severity.HIGH, Verdict.NOT_ENOUGH_EVIDENCE)
    assert "stood still for 50 s" in root.description
    assert "since 20 s" in root.description
    assert analysis.health_score is not None
    assert 0 < analysis.health_score < 80
    assert analysis.health_parts[0].name == "standstill"


def test_a_wait_before_the_scheduler_that_no_step_is_as_long_as_is_no_prefill(window: Callable[..., Window]) -> None:
    late = {**PHASES, Hist.TTFT_SECONDS: 2.0, Hist.E2E_SECONDS: 3.0, Hist.INFERENCE_SECONDS: 1.05, Hist.ITL_SECONDS: 0.03}
    made = window(late, {Gauge.RUNNING_REQUESTS: [8] * 6, Gauge.WAITING_REQUESTS: [0] * 6}, {Counter.PROCESS_CPU_SECONDS: 6.0})
    assert Cause.PREFILL_COMPUTE not in causes(AnalysisEngine().analyze(made))


def test_failed_requests_that_are_timed_are_counted_once(window: Callable[..., Window]) -> None:
    counters = {Counter.REQUESTS_FAILED: 100, Counter.REQUESTS_SUCCEEDED: 0}
    analysis = AnalysisEngine().analyze(window(PHASES, counters=counters), slo_targets=[SLOTarget("error_ratio", 0.01)])
    assert "100 of 100 requests" in analysis.bottlenecks[0].description
    assert analysis.slo_statuses[0].current_value == 1.0
    assert next(part for part in analysis.health_parts if part.name == "errors").text.startswith("100 %")


def test_errors_of_a_whole_life_are_told_first_and_not_as_of_now(window: Callable[..., Window]) -> None:
    counters = {Counter.REQUESTS_FAILED: 60, Counter.REQUESTS_SUCCEEDED: 100}
    root = AnalysisEngine().analyze(window(QUEUED, counters=counters, lifetime=True)).bottlenecks[0]
    assert (root.cause, root.severity) == (Cause.REQUEST_ERRORS, Severity.MEDIUM)
    assert "since the start" in root.description


def test_a_cache_that_was_filled_once_in_its_life_does_not_thrash(window: Callable[..., Window]) -> None:
    means = {**QUEUED, Hist.QUEUE_SECONDS: 0.0, Hist.PREFILL_SECONDS: 5.0, Hist.INFERENCE_SECONDS: 6.0, Hist.PROMPT_TOKENS: 2000}
    counters = {Counter.PREFIX_CACHE_QUERIES_TOKENS: 200_000, Counter.PREFIX_CACHE_HITS_TOKENS: 30_000}
    for lifetime in (False, True):
        made = window(means, {Gauge.KV_CAPACITY_TOKENS: [20_000] * 3}, counters, lifetime=lifetime)
        assert (Cause.PREFIX_CACHE_THRASHING in causes(AnalysisEngine().analyze(made))) is not lifetime


def _ranks(tokens: Sequence[float], running: Sequence[float]) -> dict[Gauge, GaugeStats]:
    def stats(values: Sequence[float]) -> GaugeStats:
        return GaugeStats(sum(values) / len(values), min(values), max(values), values[-1], len(values))

    return {Gauge.RANK_GENERATION_TOKENS: stats(tokens), Gauge.RUNNING_REQUESTS: stats(running)}


def test_a_rank_without_a_token_while_others_work_is_a_hang(window: Callable[..., Window]) -> None:
    working, standing, resting = _ranks([10, 400], [4, 5]), _ranks([70, 70], [2, 2]), _ranks([70, 70], [0, 0])
    moved = {Counter.GENERATION_TOKENS: 390, Counter.PROCESS_CPU_SECONDS: 9}
    root = AnalysisEngine().analyze(window(PHASES, counters=moved, ranks={"0": working, "1": standing})).bottlenecks[0]
    assert (root.cause, root.severity) == (Cause.ENGINE_HANG, Severity.CRITICAL)
    assert root.description.startswith("Rank 1 of the engine")
    for other in (working, resting):
        analysis = AnalysisEngine().analyze(window(PHASES, counters=moved, ranks={"0": working, "1": other}))
        assert Cause.ENGINE_HANG not in causes(analysis)


def test_a_rare_preemption_takes_no_force_out_of_a_full_cache(window: Callable[..., Window]) -> None:
    gauges = {
        Gauge.RUNNING_REQUESTS: [9, 10, 9, 10, 9, 10],
        Gauge.WAITING_REQUESTS: [16] * 6,
        Gauge.KV_CACHE_USAGE_RATIO: [0.9] * 5 + [0.97],
    }
    for rare in (0, 1):
        root = AnalysisEngine().analyze(window(QUEUED, gauges, {Counter.PREEMPTIONS: rare})).bottlenecks[0]
        assert root.cause is Cause.KV_EXHAUSTED
        assert "stays free" not in root.description


def test_few_at_a_time_that_wait_far_longer_than_a_step_wait_for_a_place(window: Callable[..., Window]) -> None:
    means = {
        **QUEUED,
        Hist.TTFT_SECONDS: 0.29,
        Hist.QUEUE_SECONDS: 0.28,
        Hist.PREFILL_SECONDS: 0.01,
        Hist.E2E_SECONDS: 1.29,
        Hist.ITL_SECONDS: 0.009,
    }
    gauges = {
        Gauge.RUNNING_REQUESTS: [2, 2, 0, 1, 2, 2],
        Gauge.WAITING_REQUESTS: [0, 1, 0, 0, 1, 1],
        Gauge.KV_CACHE_USAGE_RATIO: [0.01] * 6,
    }
    target = (SLOTarget("ttft_mean", 0.05, "less_than"),)
    made = window(means, gauges, requests=25, config={"max_num_seqs": 2})
    assert AnalysisEngine().analyze(made, None, target).bottlenecks[0].cause is Cause.BATCH_LIMIT
    soon = window({**means, Hist.TTFT_SECONDS: 0.05, Hist.QUEUE_SECONDS: 0.03}, gauges, requests=25, config={"max_num_seqs": 2})
    assert Cause.BATCH_LIMIT not in causes(AnalysisEngine().analyze(soon, None, target))


def test_adapters_are_not_blamed_where_something_else_is_short(window: Callable[..., Window]) -> None:
    gauges = {
        Gauge.RUNNING_REQUESTS: [8] * 6,
        Gauge.WAITING_REQUESTS: [12] * 6,
        Gauge.KV_CACHE_USAGE_RATIO: [0.1] * 6,
        Gauge.LORA_ADAPTERS_SEEN: [2] * 6,
    }
    config = {"max_loras": 1, "max_num_seqs": 8}
    assert AnalysisEngine().analyze(window(QUEUED, gauges, config=config)).bottlenecks[0].cause is Cause.BATCH_LIMIT
    full = {**gauges, Gauge.KV_CACHE_USAGE_RATIO: [0.99] * 6}
    found = AnalysisEngine().analyze(window(QUEUED, full, {Counter.PREEMPTIONS: 60}, config={"max_loras": 1}))
    assert found.bottlenecks[0].cause is Cause.KV_EXHAUSTED
