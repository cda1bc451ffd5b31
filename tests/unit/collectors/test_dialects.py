"""Each bracket of versions reads as the same engine-neutral metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perf_service.collectors.dialects import DIALECTS, detect_engine, dialect_of
from perf_service.collectors.dialects.base import MAX_SPELLINGS, Binding
from perf_service.collectors.exposition import UNKNOWN
from perf_service.collectors.snapshot import snapshot_of
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, IssueCode

VLLM_COMMON: dict[Any, Any] = {
    Gauge.RUNNING_REQUESTS: 3,
    Gauge.WAITING_REQUESTS: 5,
    Counter.PROMPT_TOKENS: 1000,
    Counter.GENERATION_TOKENS: 2000,
    Counter.PREEMPTIONS: 4,
    Counter.REQUESTS_SUCCEEDED: 8,
    Counter.REQUESTS_ABORTED: 1,
    Hist.TTFT_SECONDS: (10, 3.5),
    Hist.E2E_SECONDS: (9, 9.0),
    Hist.QUEUE_SECONDS: (9, 1.8),
    Hist.PROMPT_TOKENS: (9, 1100),
    Hist.ITL_SECONDS: (100, 2.5),
}
VLLM_PREFIX = {Counter.PREFIX_CACHE_QUERIES_TOKENS: 800, Counter.PREFIX_CACHE_HITS_TOKENS: 200}
SGLANG_COMMON: dict[Any, Any] = {
    Gauge.RUNNING_REQUESTS: 3,
    Gauge.WAITING_REQUESTS: 5,
    Gauge.KV_CACHE_USAGE_RATIO: 0.41,
    Gauge.GENERATION_TOKENS_PER_SECOND: 123,
    Counter.PROMPT_TOKENS: 1000,
    Counter.GENERATION_TOKENS: 2000,
    Counter.REQUESTS_SUCCEEDED: 8,
    Hist.TTFT_SECONDS: (10, 3.5),
    Hist.E2E_SECONDS: (9, 9.0),
    Hist.ITL_SECONDS: (100, 2.5),
}
SGLANG_CACHE = {Counter.PREFIX_CACHE_QUERIES_TOKENS: 1000, Counter.PREFIX_CACHE_HITS_TOKENS: 250, Counter.PROMPT_CACHED_TOKENS: 250}
TGI_COMMON: dict[Any, Any] = {
    Gauge.RUNNING_REQUESTS: 3,
    Gauge.WAITING_REQUESTS: 5,
    Counter.REQUESTS_RECEIVED: 12,
    Counter.REQUESTS_SUCCEEDED: 9,
    Counter.REQUESTS_FAILED: 1,
    Counter.REQUESTS_REJECTED: 2,
    Counter.GENERATION_TOKENS: 450,
    Counter.PROMPT_TOKENS: 1100,
    Hist.E2E_SECONDS: (9, 9.0),
    Hist.QUEUE_SECONDS: (9, 1.8),
    Hist.ITL_SECONDS: (100, 2.0),
    Hist.PREFILL_SECONDS: (4, 0.8),
    # queue 0.2 + validation 0.01 + one prefill step 0.2, for nine requests
    Hist.TTFT_SECONDS: (9, 9 * 0.41),
}
ABSENT = None

EXPECTED: dict[str, dict[Any, Any]] = {
    "vllm-0.6.6": VLLM_COMMON
    | {
        Gauge.KV_CACHE_USAGE_RATIO: 0.41,
        Gauge.PREFIX_CACHE_HIT_RATIO: 0.25,
        Gauge.KV_CAPACITY_TOKENS: 16000,
        Counter.PREFIX_CACHE_QUERIES_TOKENS: ABSENT,
        Hist.TPOT_SECONDS: ABSENT,
        "enable_prefix_caching": False,
        "num_gpu_blocks_override": ABSENT,
    },
    "vllm-0.8.5": VLLM_COMMON
    | VLLM_PREFIX
    | {
        Gauge.KV_CACHE_USAGE_RATIO: 0.42,
        Hist.ITERATION_TOKENS: (50, 900),
        Hist.PREFILL_SECONDS: (9, 0.9),
        Hist.DECODE_SECONDS: (9, 7.0),
        Counter.SPEC_DRAFT_TOKENS: 50,
        Counter.SPEC_ACCEPTED_TOKENS: 30,
        "kv_cache_dtype": "fp8",
        "swap_space": 4,
    },
    "vllm-0.9.2": VLLM_COMMON | VLLM_PREFIX | {Gauge.KV_CACHE_USAGE_RATIO: 0.43},
    "vllm-0.11.0": VLLM_COMMON | VLLM_PREFIX | {Gauge.KV_CACHE_USAGE_RATIO: 0.44, Hist.TPOT_SECONDS: (9, 0.25)},
    "vllm-0.16.0": VLLM_COMMON
    | VLLM_PREFIX
    | {Gauge.KV_CACHE_USAGE_RATIO: 0.45, Gauge.KV_CAPACITY_TOKENS: 16000, Gauge.ENGINE_AWAKE: 1, Counter.PROMPT_CACHED_TOKENS: 200},
    "vllm-0.32.0": VLLM_COMMON
    | VLLM_PREFIX
    | {
        Gauge.WAITING_CAPACITY_REQUESTS: 4,
        Gauge.WAITING_DEFERRED_REQUESTS: 1,
        Gauge.KV_CAPACITY_TOKENS: 15000,
        Counter.REQUESTS_REJECTED: 8,
        Hist.PREEMPTIONS: (9, 4),
        "gpu_memory_utilization": 0.92,
        "kv_cache_size_tokens": 15000,
    },
    "sglang-0.4.3": SGLANG_COMMON | {Gauge.KV_USED_TOKENS: 4100, Hist.QUEUE_SECONDS: ABSENT, Counter.PREFIX_CACHE_HITS_TOKENS: ABSENT},
    "sglang-0.4.6": SGLANG_COMMON | SGLANG_CACHE,
    "sglang-0.5.2": SGLANG_COMMON
    | SGLANG_CACHE
    | {Hist.QUEUE_SECONDS: (9, 1.8), Counter.PREEMPTIONS: 4, Counter.REQUESTS_ABORTED: 1, Gauge.RETRACTED_REQUESTS: 2},
    "sglang-0.5.3": SGLANG_COMMON
    | SGLANG_CACHE
    | {Hist.QUEUE_SECONDS: (9, 1.8), Counter.REQUESTS_ABORTED: 1, Hist.PREFILL_SECONDS: (9, 0.9)},
    "sglang-0.5.9": SGLANG_COMMON
    | SGLANG_CACHE
    | {
        Counter.PREEMPTIONS: 4,
        Counter.EVICTED_TOKENS: 70,
        Gauge.KV_CAPACITY_TOKENS: 10000,
        Gauge.CUDA_GRAPH_ENABLED: 1,
        Hist.PREEMPTIONS: (8, 4),
    },
    "sglang-0.5.23": SGLANG_COMMON
    | SGLANG_CACHE
    | {
        Gauge.KV_USED_TOKENS: 4200,
        Gauge.FORWARD_OCCUPANCY_RATIO: ABSENT,
        Gauge.STARTUP_AVAILABLE_GPU_MEMORY_BYTES: 2 * 2**30,
        Counter.HTTP_2XX_RESPONSES: 8,
        Counter.HTTP_5XX_RESPONSES: 2,
        Hist.TPOT_SECONDS: (9, 0.25),
        Hist.PREFILL_COMPUTED_TOKENS: (9, 900),
        "page_size": 1,
        "context_length": 8192,
    },
    "tgi-2.0.4": TGI_COMMON | {Gauge.KV_CAPACITY_TOKENS: ABSENT, Gauge.KV_CACHE_USAGE_RATIO: ABSENT},
    "tgi-3.3.7": TGI_COMMON | {Gauge.KV_CAPACITY_TOKENS: 16000, Gauge.KV_CACHE_USAGE_RATIO: 0.25, "max_batch_total_tokens": 16000},
}


@pytest.mark.parametrize("version", EXPECTED)
def test_a_version_reads_as_the_neutral_metrics(fixtures: Path, version: str) -> None:
    snapshot = snapshot_of((fixtures / "dialects" / f"{version}.prom").read_bytes(), "i")
    assert snapshot.engine.value == version.partition("-")[0]
    found: dict[Any, Any] = {
        **snapshot.gauges,
        **snapshot.counters,
        **{hist: (histogram.count, histogram.sum) for hist, histogram in snapshot.histograms.items()},
        **snapshot.config.values(),
    }
    for metric, value in EXPECTED[version].items():
        assert found.get(metric) == (pytest.approx(value) if value is not ABSENT else None), metric
    assert not snapshot.quality.has(IssueCode.UNKNOWN_METRICS)
    assert snapshot.quality.usable
    if not version.startswith("tgi"):
        assert snapshot.model_name == "m"


def test_data_parallel_ranks_of_vllm_are_merged_and_kept(fixtures: Path) -> None:
    snapshot = snapshot_of((fixtures / "dialects/vllm-0.32.0-dp2.prom").read_bytes(), "i")
    assert snapshot.gauges[Gauge.RUNNING_REQUESTS] == 4
    assert snapshot.gauges[Gauge.KV_CACHE_USAGE_RATIO] == pytest.approx(0.5)
    assert snapshot.gauges[Gauge.KV_CAPACITY_TOKENS] == 30000
    assert snapshot.counters[Counter.GENERATION_TOKENS] == 2000
    assert snapshot.ranks["0"][Gauge.KV_CACHE_USAGE_RATIO] == 0.9
    assert snapshot.ranks["1"][Gauge.WAITING_REQUESTS] == 0
    ttft = snapshot.histograms[Hist.TTFT_SECONDS]
    assert (ttft.count, ttft.sum, ttft.cumulative) == (15, 2.0, (6, 10, 13, 14))


def test_ranks_and_priorities_of_sglang_are_not_counted_twice(fixtures: Path) -> None:
    snapshot = snapshot_of((fixtures / "dialects/sglang-0.5.23-ranks.prom").read_bytes(), "i")
    # Two data-parallel ranks of 6 and 2; two tensor-parallel ranks say the same; priority classes are parts of the total.
    assert snapshot.gauges[Gauge.RUNNING_REQUESTS] == 8
    assert snapshot.gauges[Gauge.KV_CACHE_USAGE_RATIO] == pytest.approx(0.6)
    assert snapshot.gauges[Gauge.KV_CAPACITY_TOKENS] == 20000
    assert snapshot.counters == {
        Counter.PREEMPTIONS: 6,
        Counter.GENERATION_TOKENS: 2000,
    }
    assert snapshot.ranks["0"][Gauge.KV_CACHE_USAGE_RATIO] == 0.9


def test_derived_metrics_are_told(fixtures: Path) -> None:
    tgi = snapshot_of((fixtures / "dialects/tgi-3.3.7.prom").read_bytes(), "i")
    assert {"ttft_seconds", "itl_seconds", "tpot_seconds", "kv_cache_usage_ratio"} <= set(tgi.derived)
    vllm = snapshot_of((fixtures / "dialects/vllm-0.32.0.prom").read_bytes(), "i")
    assert vllm.derived == ()


@pytest.mark.parametrize(
    "text",
    [
        "vllm:num_requests_running 3\nvllm:prompt_tokens_total 7\n",
        "vllm_num_requests_running 3\nvllm_prompt_tokens_total 7\n",
        "vllm:num_requests_running 3\nvllm:prompt_tokens 7\n",
        'vllm_num_requests_running{engine="0"} 3\nvllm_prompt_tokens{engine="0"} 7\n',
    ],
)
def test_other_spellings_of_relays_are_read(text: str) -> None:
    snapshot = snapshot_of(text, "i")
    assert snapshot.gauges[Gauge.RUNNING_REQUESTS] == 3
    assert snapshot.counters[Counter.PROMPT_TOKENS] == 7


def test_unknown_names_are_listed_and_created_series_are_not_values() -> None:
    snapshot = snapshot_of(
        "vllm:prompt_tokens_total 7\nvllm:prompt_tokens_created 1.7e9\nvllm:brand_new_thing 5\nvllm:brand_new_seconds_bucket 5\nother 1\n",
        "i",
    )
    (issue,) = [issue for issue in snapshot.quality.issues if issue.code is IssueCode.UNKNOWN_METRICS]
    assert "vllm:brand_new_thing, vllm:brand_new_seconds_bucket" in issue.message
    assert snapshot.counters == {Counter.PROMPT_TOKENS: 7}


def test_the_engine_is_detected() -> None:
    assert detect_engine(b"# HELP\nvllm:a 1\n") is Engine.VLLM
    assert detect_engine("  sglang_a 1\n") is Engine.SGLANG
    assert detect_engine("tgi_queue_size 1\nvllm:a 1\ntgi_x 1\n") is Engine.TGI
    assert detect_engine("# TYPE vllm:a gauge\n") is None
    assert detect_engine(b"\x00\xff") is None


@pytest.mark.parametrize("engine", Engine)
def test_the_tables_are_sound(engine: Engine) -> None:
    dialect = DIALECTS[engine]
    assert dialect_of(engine) is dialect
    for rule in dialect.rules:
        assert 0 < len(rule.names) <= MAX_SPELLINGS
        assert len(set(rule.names)) == len(rule.names)
        # Every spelling is found again under itself.
        suffix = "_count" if isinstance(rule.target, Hist) else ""
        labels = {label: next(iter(values)) for label, values, wanted in rule.where if wanted}
        for name in rule.names:
            binding = dialect.bind(name + suffix, labels)
            assert isinstance(binding, Binding), name
            assert any(dialect.rules[slot.rule] is rule for slot in binding.slots)
    targets = {rule.target for rule in dialect.rules}
    assert set(dialect.core) <= targets
    assert dialect.bind(dialect.prefix + "no_such_metric", {}) is UNKNOWN
