"""What the values of a page make: series that differ in labels, and names that stand twice, merged rightly and counted once."""

from __future__ import annotations

import pytest

from perf_service.collectors.snapshot import snapshot_of
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, IssueCode, Snapshot


def read(text: str, engine: Engine = Engine.VLLM) -> Snapshot:
    return snapshot_of(text.replace("; ", "\n") + "\n", "i", engine=engine)


GAUGES = {
    # vLLM: `engine` is the data-parallel rank.
    "requests of ranks add up": (
        'vllm:num_requests_running{engine="0"} 3; vllm:num_requests_running{engine="1"} 4',
        Gauge.RUNNING_REQUESTS,
        7,
    ),
    "the use of equal caches is a mean": (
        'vllm:kv_cache_usage_perc{engine="0"} 0.9; vllm:kv_cache_usage_perc{engine="1"} 0.1',
        Gauge.KV_CACHE_USAGE_RATIO,
        0.5,
    ),
    "a rank that sleeps counts": (
        'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 1; vllm:engine_sleep_state{engine="1",sleep_state="awake"} 0',
        Gauge.ENGINE_AWAKE,
        0,
    ),
    "capacities of ranks add up": (
        (
            'vllm:cache_config_info{engine="0",block_size="16",num_gpu_blocks="100"} 1; '
            'vllm:cache_config_info{engine="1",block_size="16",num_gpu_blocks="50"} 1'
        ),
        Gauge.KV_CAPACITY_TOKENS,
        2400,
    ),
    # Several model names: adapters, or a server that several names were given to.
    "requests of models add up": (
        'vllm:num_requests_running{model_name="a"} 3; vllm:num_requests_running{model_name="b"} 4',
        Gauge.RUNNING_REQUESTS,
        7,
    ),
    "a ratio of models does not": (
        'vllm:kv_cache_usage_perc{model_name="a"} 0.6; vllm:kv_cache_usage_perc{model_name="b"} 0.6',
        Gauge.KV_CACHE_USAGE_RATIO,
        0.6,
    ),
    # Several API servers with a folder that was not wiped: the same rank's cache, told twice.
    "a cache told twice is one cache": (
        (
            'vllm:cache_config_info{engine="0",block_size="16",num_gpu_blocks="100"} 1; '
            'vllm:cache_config_info{engine="0",block_size="16",num_gpu_blocks="90"} 1'
        ),
        Gauge.KV_CAPACITY_TOKENS,
        1600,
    ),
    "processes report the same": ('vllm:num_requests_running{pid="7"} 3; vllm:num_requests_running{pid="8"} 4', Gauge.RUNNING_REQUESTS, 4),
    # Old and new names of one thing, side by side for some releases.
    "a new name stands for the old one": ("vllm:gpu_cache_usage_perc 0.25; vllm:kv_cache_usage_perc 0.5", Gauge.KV_CACHE_USAGE_RATIO, 0.5),
    "both spellings of a relay are one": ("vllm:num_requests_running 3; vllm_num_requests_running 3", Gauge.RUNNING_REQUESTS, 3),
    "the engine's own spelling wins": ("vllm_num_requests_running 2; vllm:num_requests_running 3", Gauge.RUNNING_REQUESTS, 3),
}
SGLANG_GAUGES = {
    "data-parallel ranks add up": (
        'sglang:num_running_reqs{dp_rank="0"} 3; sglang:num_running_reqs{dp_rank="1"} 4',
        Gauge.RUNNING_REQUESTS,
        7,
    ),
    "tensor-parallel ranks report the same": (
        'sglang:num_running_reqs{tp_rank="0"} 3; sglang:num_running_reqs{tp_rank="1"} 3',
        Gauge.RUNNING_REQUESTS,
        3,
    ),
    "pipeline stages report the same": (
        'sglang:num_running_reqs{pp_rank="0"} 3; sglang:num_running_reqs{pp_rank="1"} 2',
        Gauge.RUNNING_REQUESTS,
        3,
    ),
    "expert-parallel ranks report the same": (
        'sglang:num_running_reqs{moe_ep_rank="0"} 3; sglang:num_running_reqs{moe_ep_rank="1"} 3',
        Gauge.RUNNING_REQUESTS,
        3,
    ),
    "every rank of both kinds": (
        "; ".join(
            f'sglang:num_running_reqs{{dp_rank="{dp}",tp_rank="{tp}",pid="{10 * dp + tp}"}} {3 + dp}' for dp in (0, 1) for tp in (0, 1)
        ),
        Gauge.RUNNING_REQUESTS,
        7,
    ),
    "priority classes are parts of the total": (
        'sglang:num_running_reqs{priority=""} 5; sglang:num_running_reqs{priority="0"} 2; sglang:num_running_reqs{priority="9"} 3',
        Gauge.RUNNING_REQUESTS,
        5,
    ),
    "priority classes alone add up": (
        'sglang:num_running_reqs{priority="0"} 2; sglang:num_running_reqs{priority="9"} 3',
        Gauge.RUNNING_REQUESTS,
        5,
    ),
    "retractions carry a process": (
        'sglang:num_retracted_reqs{pid="1"} 2; sglang:num_retracted_reqs{pid="2"} 5',
        Gauge.RETRACTED_REQUESTS,
        5,
    ),
    "CUDA graphs are on where every rank has them": (
        'sglang:is_cuda_graph{dp_rank="0"} 1; sglang:is_cuda_graph{dp_rank="1"} 0',
        Gauge.CUDA_GRAPH_ENABLED,
        0,
    ),
    "use of pools per rank is a mean": (
        'sglang:token_usage{dp_rank="0"} 0.8; sglang:token_usage{dp_rank="1"} 0.2',
        Gauge.KV_CACHE_USAGE_RATIO,
        0.5,
    ),
}


@pytest.mark.parametrize(("text", "gauge", "value"), GAUGES.values(), ids=GAUGES)
def test_gauges_of_vllm(text: str, gauge: Gauge, value: float) -> None:
    assert read(text).gauges[gauge] == pytest.approx(value)


@pytest.mark.parametrize(("text", "gauge", "value"), SGLANG_GAUGES.values(), ids=SGLANG_GAUGES)
def test_gauges_of_sglang(text: str, gauge: Gauge, value: float) -> None:
    assert read(text, Engine.SGLANG).gauges[gauge] == pytest.approx(value)


COUNTERS = {
    "with and without _total": (Engine.VLLM, "vllm:prompt_tokens 7; vllm:prompt_tokens_total 7", Counter.PROMPT_TOKENS, 7),
    "two spellings": (Engine.VLLM, "vllm_prompt_tokens_total 7; vllm:prompt_tokens_total 7", Counter.PROMPT_TOKENS, 7),
    "two spellings, one of them dead": (Engine.VLLM, "vllm:prompt_tokens_total 0; vllm_prompt_tokens_total 7", Counter.PROMPT_TOKENS, 7),
    "old and new name": (
        Engine.VLLM,
        "vllm:gpu_prefix_cache_hits_total 7; vllm:prefix_cache_hits_total 7",
        Counter.PREFIX_CACHE_HITS_TOKENS,
        7,
    ),
    "three names of retractions": (
        Engine.SGLANG,
        "sglang:num_retracted_requests_total 4; sglang:num_retractions_sum 4; sglang:total_retracted_reqs 4",
        Counter.PREEMPTIONS,
        4,
    ),
    "ranks and finish reasons": (
        Engine.VLLM,
        "; ".join(
            f'vllm:request_success_total{{engine="{e}",finished_reason="{r}"}} 2'
            for e in (0, 1)
            for r in ("stop", "length", "abort", "error")
        ),
        Counter.REQUESTS_SUCCEEDED,
        8,
    ),
    "no engine label": (
        Engine.VLLM,
        (
            'vllm:admission_rejections_total{model_name="m",reason="max_num_queued_reqs"} 3; '
            'vllm:admission_rejections_total{model_name="m",reason="max_num_queued_tokens"} 2'
        ),
        Counter.REQUESTS_REJECTED,
        5,
    ),
    "streaming and not": (
        Engine.SGLANG,
        ('sglang:num_requests_total{is_streaming="true"} 3; sglang:num_requests_total{is_streaming="false"} 2'),
        Counter.REQUESTS_SUCCEEDED,
        5,
    ),
    "a total beside its sources": (
        Engine.SGLANG,
        (
            'sglang:cached_tokens_total{cache_source="total"} 9; '
            'sglang:cached_tokens_total{cache_source="device"} 6; '
            'sglang:cached_tokens_total{cache_source="host"} 3'
        ),
        Counter.PROMPT_CACHED_TOKENS,
        9,
    ),
    "a TGI counter of a relay that adds _total": (
        Engine.TGI,
        "tgi_request_count 5; tgi_request_count_total 5",
        Counter.REQUESTS_RECEIVED,
        5,
    ),
}


@pytest.mark.parametrize(("engine", "text", "counter", "value"), COUNTERS.values(), ids=COUNTERS)
def test_counters(engine: Engine, text: str, counter: Counter, value: float) -> None:
    assert read(text, engine).counters[counter] == value


def histogram(name: str, labels: str, low: int, count: int, total: float) -> str:
    comma = "," if labels else ""
    return (
        f'{name}_bucket{{{labels}{comma}le="0.1"}} {low}; {name}_bucket{{{labels}{comma}le="+Inf"}} {count}; '
        f"{name}_sum{{{labels}}} {total}; {name}_count{{{labels}}} {count}"
    )


@pytest.mark.parametrize(
    ("engine", "name", "first", "second", "expected"),
    [
        (Engine.VLLM, "vllm:time_to_first_token_seconds", 'engine="0"', 'engine="1"', (5, 2.5, (3,))),
        (Engine.VLLM, "vllm:time_to_first_token_seconds", 'model_name="a"', 'model_name="b"', (5, 2.5, (3,))),
        (Engine.VLLM, "vllm:time_to_first_token_seconds", 'pid="1"', 'pid="2"', (3, 1.5, (2,))),
        (Engine.SGLANG, "sglang:time_to_first_token_seconds", 'is_streaming="true"', 'is_streaming="false"', (5, 2.5, (3,))),
        (Engine.SGLANG, "sglang:queue_time_seconds", 'tp_rank="0"', 'tp_rank="1"', (3, 1.5, (2,))),
        (Engine.SGLANG, "sglang:queue_time_seconds", 'dp_rank="0"', 'dp_rank="1"', (5, 2.5, (3,))),
        (Engine.SGLANG, "sglang:time_to_first_token_seconds", 'priority=""', 'priority="1"', (2, 1.0, (1,))),
    ],
)
def test_histograms(engine: Engine, name: str, first: str, second: str, expected: tuple[float, float, tuple[float, ...]]) -> None:
    snapshot = read(histogram(name, first, 1, 2, 1.0) + "; " + histogram(name, second, 2, 3, 1.5), engine)
    (found,) = snapshot.histograms.values()
    assert (found.count, found.sum, found.cumulative) == expected


def test_a_histogram_under_two_spellings_and_two_names_is_one() -> None:
    names = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds", "vllm_inter_token_latency_seconds")
    found = read("; ".join(histogram(name, 'engine="0"', 1, 2, 1.0) for name in names)).histograms[Hist.ITL_SECONDS]
    assert (found.count, found.sum, found.cumulative) == (2, 1.0, (1,))


def test_a_histogram_of_a_future_release_is_named_once_and_the_list_is_bounded() -> None:
    shiny = "# TYPE vllm:shiny_new_seconds histogram; " + histogram("vllm:shiny_new_seconds", "", 1, 2, 1.0)
    many = "; ".join(f"vllm:future_{number} 1" for number in range(500))
    snapshot = read(f"vllm:num_requests_running 3; {shiny}; {many}")
    (issue,) = [issue for issue in snapshot.quality.issues if issue.code is IssueCode.UNKNOWN_METRICS]
    assert issue.message.count("shiny_new_seconds") == 1
    assert "and 481 more" in issue.message
    assert len(issue.message) < 1000
    assert snapshot.gauges == {Gauge.RUNNING_REQUESTS: 3}
    assert snapshot.quality.usable
