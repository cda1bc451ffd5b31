"""How many tokens a step, and how much of a long prompt in one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.models.analysis import BottleneckType, Cause
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Engine, Hist, Histogram
from perf_service.models.plan import Optimization
from perf_service.models.window import Window
from perf_service.optimization.batching_optimizer import BatchingOptimizer
from tests.support.proposals import change_of, situation
from tests.support.real_runs import finding, overall


@pytest.mark.parametrize(("current", "wanted"), [({"max_num_batched_tokens": 32}, 2048), ({}, 2048)])
def test_a_small_token_budget_grows_to_a_usual_prompt(current: dict[str, int], wanted: int) -> None:
    at = situation(current, window=overall("d_prefill_bad_r2"))
    found, config = BatchingOptimizer().generate_optimizations([finding(cause=Cause.TOKEN_BUDGET_TOO_SMALL)], Engine.VLLM, situation=at)
    assert change_of(found, "max_num_batched_tokens").recommended_value == wanted
    assert config is not None
    assert config.max_num_batched_tokens == wanted


def test_a_large_token_budget_shrinks_but_not_below_the_sequences() -> None:
    at = situation({"max_num_batched_tokens": 8192})
    bottleneck = finding(BottleneckType.HIGH_LATENCY, Cause.TOKEN_BUDGET_TOO_LARGE)
    found, _ = BatchingOptimizer().generate_optimizations([bottleneck], Engine.VLLM, situation=at)
    assert change_of(found, "max_num_batched_tokens").recommended_value == 2048
    assert "ttft_seconds" in found[0].expected_losers
    at = situation({"max_num_batched_tokens": 1024, "max_num_seqs": 1024})
    assert BatchingOptimizer().generate_optimizations([bottleneck], Engine.VLLM, situation=at) == ([], None)


def test_sglang_mixes_decodes_into_prefill_against_spikes() -> None:
    at = situation({"chunked_prefill_size": 8192}, Engine.SGLANG, "0.5.23")
    found, _ = BatchingOptimizer().generate_optimizations(
        [finding(BottleneckType.HIGH_LATENCY, Cause.TOKEN_BUDGET_TOO_LARGE)], Engine.SGLANG, situation=at
    )
    assert change_of(found, "enable_mixed_chunk").recommended_value is True


def test_a_budget_below_the_longest_prompt_comes_with_chunks() -> None:
    """Without them vLLM does not start, whether or not max_model_len is told; SGLang has no chunk for decodes to ride along with."""
    stalls = finding(BottleneckType.HIGH_LATENCY, Cause.TOKEN_BUDGET_TOO_LARGE)
    at = situation({"max_num_batched_tokens": 8192, "enable_chunked_prefill": False})
    found, _ = BatchingOptimizer().generate_optimizations([stalls], Engine.VLLM, situation=at)
    assert [[(c.parameter, c.recommended_value) for c in o.config_changes] for o in found] == [
        [("max_num_batched_tokens", 2048), ("enable_chunked_prefill", True)]
    ]
    at = situation({"chunked_prefill_size": -1}, Engine.SGLANG, "0.5.23")
    found, _ = BatchingOptimizer().generate_optimizations([stalls], Engine.SGLANG, situation=at)
    assert [[(c.parameter, c.recommended_value) for c in o.config_changes] for o in found] == [
        [("chunked_prefill_size", 2048), ("enable_mixed_chunk", True)]
    ]


def test_long_prompts_are_chunked_or_served_apart() -> None:
    blocked = finding(BottleneckType.HIGH_LATENCY, Cause.HEAD_OF_LINE_BLOCKING)
    at = situation({}, window=overall("d_prefill_bad_r2"))
    found, _ = BatchingOptimizer().generate_optimizations([blocked], Engine.VLLM, situation=at)
    # Prompts of up to 2,000 tokens: a cap of as many caps nothing, and above max_model_len the engine does not start.
    assert change_of(found, "long_prefill_token_threshold").recommended_value == 128
    found, _ = BatchingOptimizer().generate_optimizations([blocked], "tgi", {})
    assert [o.advice_only for o in found] == [True]


def test_a_chunk_of_long_prompts_is_never_made_longer() -> None:
    blocked = finding(BottleneckType.HIGH_LATENCY, Cause.HEAD_OF_LINE_BLOCKING)
    at = situation({"long_prefill_token_threshold": 128}, window=overall("d_prefill_bad_r2"))
    found, _ = BatchingOptimizer().generate_optimizations([blocked], Engine.VLLM, situation=at)
    assert [o.advice_only for o in found] == [True]


def test_prompts_that_are_not_chunked_at_all_are_chunked_first() -> None:
    blocked = finding(BottleneckType.HIGH_LATENCY, Cause.HEAD_OF_LINE_BLOCKING)
    at = situation({"enable_chunked_prefill": False}, window=overall("d_prefill_bad_r2"))
    found, _ = BatchingOptimizer().generate_optimizations([blocked], Engine.VLLM, situation=at)
    assert [(c.parameter, c.recommended_value) for c in found[0].config_changes] == [
        ("enable_chunked_prefill", True),
        ("long_prefill_token_threshold", 128),
    ]


def test_where_the_cap_on_a_chunk_binds_it_goes_and_the_budget_stays() -> None:
    cut = finding(BottleneckType.BATCH_SIZE_SUBOPTIMAL, Cause.TOKEN_BUDGET_TOO_SMALL)
    config = {"max_num_batched_tokens": 2048, "long_prefill_token_threshold": 64}
    at = situation(config, window=overall("d_prefill_bad_r2"))
    found, _ = BatchingOptimizer().generate_optimizations([cut], Engine.VLLM, situation=at)
    assert [(c.parameter, c.recommended_value) for o in found for c in o.config_changes] == [("long_prefill_token_threshold", None)]


def test_chunking_that_is_off_has_no_budget_to_raise() -> None:
    at = situation({"chunked_prefill_size": -1}, Engine.SGLANG, "0.5.23")
    small = finding(BottleneckType.BATCH_SIZE_SUBOPTIMAL, Cause.TOKEN_BUDGET_TOO_SMALL)
    assert BatchingOptimizer().generate_optimizations([small], Engine.SGLANG, situation=at) == ([], None)


def test_a_budget_at_its_ceiling_ends_in_advice() -> None:
    at = situation({"max_num_batched_tokens": 16384}, window=overall("d_prefill_bad_r2"))
    small = finding(BottleneckType.BATCH_SIZE_SUBOPTIMAL, Cause.TOKEN_BUDGET_TOO_SMALL)
    found, _ = BatchingOptimizer().generate_optimizations([small], Engine.VLLM, situation=at)
    assert [o.advice_only for o in found] == [True]


def steps_up_to(bound: float) -> Window:
    """A window whose largest step held at most `bound` tokens."""
    steps = Histogram(
        100.0, 5000.0, (16.0, 512.0, 1024.0, 2048.0, 8192.0), tuple(100.0 if b >= bound else 50.0 for b in (16, 512, 1024, 2048, 8192))
    )
    window = overall("b_queue_bad_r2")
    return replace(window, histograms={**window.histograms, Hist.ITERATION_TOKENS: steps})


def test_a_budget_is_lowered_below_the_steps_that_were_seen() -> None:
    stalls = finding(BottleneckType.HIGH_LATENCY, Cause.TOKEN_BUDGET_TOO_LARGE)

    def lowered(bound: float) -> list[Optimization]:
        return BatchingOptimizer().generate_optimizations([stalls], "vllm", situation=situation(window=steps_up_to(bound)))[0]

    assert change_of(lowered(2048), "max_num_batched_tokens").recommended_value == 1024, "2048 would change nothing"
    assert change_of(lowered(8192), "max_num_batched_tokens").recommended_value == 2048
    assert lowered(512) == [], "there is no room above the floor"


def test_long_prompts_are_capped_where_the_page_shows_a_release_that_can() -> None:
    blocked = finding(BottleneckType.HIGH_LATENCY, Cause.HEAD_OF_LINE_BLOCKING)
    window = overall("b_queue_bad_r2")

    def found(window: Window) -> list[Optimization]:
        return BatchingOptimizer().generate_optimizations([blocked], "vllm", situation=situation(version="", window=window))[0]

    assert "kv_cache_size_tokens" in window.config
    assert change_of(found(window), "long_prefill_token_threshold").recommended_value
    silent: dict[Hist, Histogram] = {h: v for h, v in window.histograms.items() if h is not Hist.PREFILL_COMPUTED_TOKENS}
    (advice,) = found(replace(window, config=EngineConfig(), histograms=silent))
    assert advice.advice_only
    assert "--long-prefill-token-threshold" in advice.description
    assert "since 0.8, and which one runs is not known" in advice.description
