"""Single causes on windows made by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest

from perf_service.analysis import rules_length
from perf_service.analysis.engine import AnalysisEngine
from perf_service.models.analysis import Analysis, Cause
from perf_service.models.config import EngineConfig, Source
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window

Make = Callable[..., Window]
SLOW_FIRST = {
    Hist.TTFT_SECONDS: 0.6, Hist.QUEUE_SECONDS: 0.0, Hist.PREFILL_SECONDS: 0.5, Hist.DECODE_SECONDS: 0.4, Hist.INFERENCE_SECONDS: 0.9,
    Hist.E2E_SECONDS: 1.0, Hist.PROMPT_TOKENS: 1400.0, Hist.GENERATION_TOKENS: 10.0, Hist.ITL_SECONDS: 0.04,
}  # fmt: skip
LENGTHS = (10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)


def prompts(*counts: int) -> Histogram:
    cumulative = tuple(float(n) for n in accumulate(counts))
    return Histogram(cumulative[-1], 1400.0 * cumulative[-1], LENGTHS, cumulative)


def root(window: Window, *targets: SLOTarget) -> Cause | None:
    found: Analysis = AnalysisEngine().analyze(window, slo_targets=targets or None)
    return found.bottlenecks[0].cause if found.bottlenecks else None


def test_short_prompts_beside_long_ones_wait_for_them(window: Make) -> None:
    mixed, even = prompts(0, 10, 30, 10, 0, 0, 0, 50, 0), prompts(0, 0, 0, 0, 0, 10, 40, 50, 0)
    assert root(window(SLOW_FIRST, histograms={Hist.PROMPT_TOKENS: mixed})) is Cause.HEAD_OF_LINE_BLOCKING
    assert root(window(SLOW_FIRST, histograms={Hist.PROMPT_TOKENS: even})) is Cause.PREFILL_COMPUTE
    found = rules_length.mix(mixed)
    assert found is not None
    assert (round(found.short_share, 2), found.long_tokens > 1400) == (0.5, True)


@pytest.mark.parametrize(
    ("hits", "capacity", "cause"),
    [
        (0.2, 20_000, Cause.PREFIX_CACHE_THRASHING),  # written anew seven times
        (0.2, 2_000_000, Cause.PREFILL_COMPUTE),  # nothing was ever evicted
        (0.0, 20_000, Cause.PREFILL_COMPUTE),  # nothing is shared
        (0.9, 20_000, Cause.PREFILL_COMPUTE),  # prefixes do survive
    ],
)
def test_thrashing_needs_some_hits_and_a_cache_written_anew(window: Make, hits: float, capacity: int, cause: Cause) -> None:
    counters = {Counter.PREFIX_CACHE_QUERIES_TOKENS: 140_000.0, Counter.PREFIX_CACHE_HITS_TOKENS: hits * 140_000}
    made = window(SLOW_FIRST, {Gauge.KV_CAPACITY_TOKENS: [capacity] * 3}, counters, config={"enable_prefix_caching": True})
    assert root(made) is cause


def test_a_radix_cache_that_keeps_nothing_is_off(window: Make) -> None:
    means = {k: v for k, v in SLOW_FIRST.items() if k is not Hist.PREFILL_SECONDS}
    for kept, cause in ((0.0, Cause.PREFIX_CACHE_OFF), (5000.0, Cause.PREFILL_COMPUTE)):
        gauges = {Gauge.KV_EVICTABLE_TOKENS: [kept] * 4, Gauge.RUNNING_REQUESTS: [2] * 4, Gauge.WAITING_REQUESTS: [0] * 4}
        assert root(window(means, gauges, engine=Engine.SGLANG)) is cause


def test_reservations_that_cannot_fill_the_pool_hold_nobody_back(window: Make) -> None:
    means = {
        Hist.TTFT_SECONDS: 3.0,
        Hist.QUEUE_SECONDS: 2.9,
        Hist.E2E_SECONDS: 6.0,
        Hist.PROMPT_TOKENS: 100.0,
        Hist.GENERATION_TOKENS: 90.0,
    }
    for capacity, likely in ((30_000, True), (3_000_000, False)):
        gauges = {
            Gauge.RUNNING_REQUESTS: [7, 5, 8, 6, 4, 7], Gauge.WAITING_REQUESTS: [20] * 6,
            Gauge.KV_CACHE_USAGE_RATIO: [0.3] * 6, Gauge.KV_CAPACITY_TOKENS: [capacity] * 6,
        }  # fmt: skip
        made = window(means, gauges, engine=Engine.SGLANG)
        found = AnalysisEngine().analyze(made).cause_confidences
        assert (found.get(Cause.UNDER_ADMISSION, 0.0) > 0.4) is likely
        boldest = EngineConfig.of({"schedule_conservativeness": 0.3}, Source.LAUNCH_ARGS)
        found = AnalysisEngine().analyze(made, config=boldest).cause_confidences
        assert Cause.UNDER_ADMISSION not in found
        assert (found.get(Cause.KV_EXHAUSTED, 0.0) > 0.4) is likely  # they can't be made smaller: the pool is


def test_the_missed_objective_leads_by_ratio_and_not_by_seconds(window: Make) -> None:
    """An answer that takes ten seconds ten percent too long is less than a first token four times too late."""
    means = {
        Hist.TTFT_SECONDS: 0.4, Hist.QUEUE_SECONDS: 0.0, Hist.PREFILL_SECONDS: 0.38, Hist.DECODE_SECONDS: 11.0,
        Hist.INFERENCE_SECONDS: 11.4, Hist.E2E_SECONDS: 11.4, Hist.PROMPT_TOKENS: 800.0, Hist.GENERATION_TOKENS: 400.0,
        Hist.ITL_SECONDS: 0.028,
    }  # fmt: skip
    assert root(window(means), SLOTarget("ttft", 0.1), SLOTarget("itl", 0.025)) is Cause.PREFILL_COMPUTE
    assert root(window(means), SLOTarget("ttft", 0.39), SLOTarget("itl", 0.01)) is Cause.DECODE_BOUND


def test_drafts_that_hardly_anybody_accepts(window: Make) -> None:
    means = {**SLOW_FIRST, Hist.ITL_SECONDS: 0.09, Hist.TTFT_SECONDS: 0.05, Hist.PREFILL_SECONDS: 0.04, Hist.DECODE_SECONDS: 9.0,
             Hist.E2E_SECONDS: 9.1, Hist.INFERENCE_SECONDS: 9.05, Hist.PROMPT_TOKENS: 50.0, Hist.GENERATION_TOKENS: 100.0}  # fmt: skip
    for accepted, cause in ((100.0, Cause.SPECULATION_NOT_PAYING), (2500.0, Cause.DECODE_BOUND)):
        counters = {Counter.SPEC_DRAFTS: 1000.0, Counter.SPEC_DRAFT_TOKENS: 3000.0, Counter.SPEC_ACCEPTED_TOKENS: accepted}
        assert root(window(means, {Gauge.RUNNING_REQUESTS: [4] * 5}, counters)) is cause


def test_a_small_told_budget_is_the_second_cause_behind_a_limit(window: Make) -> None:
    means = {
        Hist.TTFT_SECONDS: 2.65, Hist.QUEUE_SECONDS: 2.5, Hist.PREFILL_SECONDS: 0.13, Hist.DECODE_SECONDS: 0.47,
        Hist.INFERENCE_SECONDS: 0.6,
        Hist.E2E_SECONDS: 3.1, Hist.PROMPT_TOKENS: 300.0, Hist.GENERATION_TOKENS: 32.0, Hist.ITL_SECONDS: 0.015,
    }  # fmt: skip
    gauges = {Gauge.RUNNING_REQUESTS: [3] * 6, Gauge.WAITING_REQUESTS: [12] * 6, Gauge.KV_CACHE_USAGE_RATIO: [0.01] * 6}
    made = window(means, gauges, requests=290, config={"max_num_seqs": 3, "max_num_batched_tokens": 48})
    causes = [b.cause for b in AnalysisEngine().analyze(made).bottlenecks if b.symptom_of is None]
    assert causes[:2] == [Cause.BATCH_LIMIT, Cause.TOKEN_BUDGET_TOO_SMALL]


def test_a_tiny_prompt_among_many_that_decode_is_no_prefill_at_its_limit(window: Make) -> None:
    """TTFT is some steps of a large batch: its length is the batch's, not the prompt's."""
    means = {
        Hist.TTFT_SECONDS: 0.5, Hist.QUEUE_SECONDS: 0.0, Hist.PREFILL_SECONDS: 0.16, Hist.DECODE_SECONDS: 7.0, Hist.INFERENCE_SECONDS: 7.16,
        Hist.E2E_SECONDS: 7.5, Hist.PROMPT_TOKENS: 12.0, Hist.GENERATION_TOKENS: 130.0, Hist.ITL_SECONDS: 0.054,
    }  # fmt: skip
    gauges = {Gauge.RUNNING_REQUESTS: [36] * 6, Gauge.WAITING_REQUESTS: [0] * 6}
    found = AnalysisEngine().analyze(window(means, gauges, {Counter.PROCESS_CPU_SECONDS: 6.0}, requests=300))
    assert {b.cause for b in found.bottlenecks if b.symptom_of is None} == {Cause.DECODE_BOUND}


LARGE_BATCH = {
    Hist.TTFT_SECONDS: 2.1,
    Hist.QUEUE_SECONDS: 1.95,
    Hist.PREFILL_SECONDS: 0.07,
    Hist.DECODE_SECONDS: 4.1,
    Hist.INFERENCE_SECONDS: 4.17,
    Hist.E2E_SECONDS: 6.2,
    Hist.PROMPT_TOKENS: 87.0,
    Hist.GENERATION_TOKENS: 79.0,
    Hist.ITL_SECONDS: 0.053,
}


def test_one_prompt_in_each_step_of_a_large_batch_is_no_saturated_prefill(window: Make) -> None:
    """64 places taken while others wait: a prompt in each step is what they come at, not what they wait for."""
    gauges = {Gauge.RUNNING_REQUESTS: [60, 64], Gauge.WAITING_REQUESTS: [20, 40], Gauge.KV_CACHE_USAGE_RATIO: [0.05, 0.05]}
    assert root(window(LARGE_BATCH, gauges, requests=860)) is Cause.BATCH_LIMIT


def test_a_queue_that_no_scrape_saw_makes_nobody_sure_of_a_limit(window: Make) -> None:
    gauges = {Gauge.RUNNING_REQUESTS: [60, 64], Gauge.WAITING_REQUESTS: [0, 0], Gauge.KV_CACHE_USAGE_RATIO: [0.05, 0.05]}
    found = AnalysisEngine().analyze(window(LARGE_BATCH, gauges, requests=860)).bottlenecks[0]
    assert found.cause is not Cause.BATCH_LIMIT or found.confidence_ratio < 0.6


def test_a_pool_without_room_for_two_more_is_nearly_full(window: Make) -> None:
    """12 % free are five blocks of 41, and a request takes four."""
    means = {**LARGE_BATCH, Hist.PROMPT_TOKENS: 394.0, Hist.GENERATION_TOKENS: 90.0}
    gauges = {Gauge.RUNNING_REQUESTS: [8, 9], Gauge.WAITING_REQUESTS: [6, 7], Gauge.KV_CACHE_USAGE_RATIO: [0.878, 0.878]}
    small, large = (
        AnalysisEngine().analyze(window(means, {**gauges, Gauge.KV_CAPACITY_TOKENS: [size] * 2}, config={"block_size": 128}))
        for size in (5248, 52480)
    )
    assert small.cause_confidences[Cause.KV_EXHAUSTED] > 1.5 * large.cause_confidences[Cause.KV_EXHAUSTED]


def test_long_prompts_that_give_way_already_hold_up_nobody(window: Make) -> None:
    mixed = prompts(0, 10, 30, 10, 0, 0, 0, 50, 0)
    given = window(SLOW_FIRST, histograms={Hist.PROMPT_TOKENS: mixed}, config={"long_prefill_token_threshold": 128})
    assert root(given) is not Cause.HEAD_OF_LINE_BLOCKING


@pytest.mark.parametrize(
    ("accepted", "tokens", "cause"),
    [
        (40.0, 9_000.0, Cause.SPECULATION_NOT_PAYING),
        (5500.0, 9_000.0, Cause.PREFILL_COMPUTE),
        (40.0, 500_000.0, Cause.PREFILL_COMPUTE),  # hardly a step has a draft
    ],
)
def test_drafts_that_are_never_accepted_cost_every_step(window: Make, accepted: float, tokens: float, cause: Cause) -> None:
    """First token and tokens alike: each step checks the drafts of all that run. No objective on decoding need be missed."""
    counters = {Counter.SPEC_DRAFTS: 6900.0, Counter.SPEC_DRAFT_TOKENS: 54_778.0, Counter.SPEC_ACCEPTED_TOKENS: accepted}
    counters[Counter.GENERATION_TOKENS] = tokens
    found = AnalysisEngine().analyze(window(SLOW_FIRST, {Gauge.RUNNING_REQUESTS: [2] * 5}, counters))
    assert found.bottlenecks[0].cause is cause
    assert (found.bottlenecks[0].confidence_ratio > 0.85) or cause is not Cause.SPECULATION_NOT_PAYING


@pytest.mark.parametrize(("waiting", "told"), [([0, 10, 25, 40, 60, 79], True), ([30, 36, 33, 31, 35, 34], False)])
def test_a_queue_that_grows_is_told(window: Make, waiting: list[int], told: bool) -> None:
    gauges = {Gauge.RUNNING_REQUESTS: [60, 64] * 3, Gauge.WAITING_REQUESTS: waiting, Gauge.KV_CACHE_USAGE_RATIO: [0.05] * 6}
    (first, *_) = AnalysisEngine().analyze(window(LARGE_BATCH, gauges, requests=860)).bottlenecks
    assert any("The queue grows" in item.text for item in first.evidence) is told
