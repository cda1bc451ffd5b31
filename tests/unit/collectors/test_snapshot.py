"""Absent is absent, and what is doubtful is said."""

from __future__ import annotations

import pytest

from perf_service.collectors.snapshot import SnapshotBuilder, require_engine, snapshot_of
from perf_service.models.config import EngineConfig, Source
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, IssueCode, IssueLevel, Snapshot


def issue_of(snapshot: Snapshot, code: IssueCode, metric: str = "") -> str:
    (found,) = [issue for issue in snapshot.quality.issues if issue.code is code and issue.metric == metric]
    return found.message


def test_a_real_page_reads_without_complaint(vllm_page: bytes) -> None:
    snapshot = snapshot_of(vllm_page, "i", engine=Engine.VLLM, collected_at=100.0, strict=True)
    assert snapshot.quality.issues == ()
    assert snapshot.quality.known_metrics > 30
    assert snapshot.gauges[Gauge.KV_CAPACITY_TOKENS] == 3072
    assert snapshot.counters[Counter.PREEMPTIONS] == 17
    assert snapshot.config.get("num_gpu_blocks_override") == 24
    assert snapshot.config.get("enable_prefix_caching") is True
    assert snapshot.config.source("block_size") is Source.PAGE
    assert snapshot.process_start_time == pytest.approx(1795351916.59)
    assert snapshot.collected_at == 100.0
    assert Gauge.PREFIX_CACHE_HIT_RATIO not in snapshot.gauges


def test_what_is_told_from_elsewhere_wins(vllm_page: bytes) -> None:
    told = EngineConfig.of({"block_size": 64, "max_num_seqs": 8})
    snapshot = snapshot_of(vllm_page, "i", config=told, engine_version="0.32.0", endpoint="http://x")
    assert snapshot.config.get("block_size") == 64
    assert snapshot.config.source("block_size") is Source.USER
    assert snapshot.config.get("max_num_seqs") == 8
    assert (snapshot.engine_version, snapshot.endpoint) == ("0.32.0", "http://x")


def test_an_indented_page_reads_like_any_other() -> None:
    snapshot = snapshot_of(
        """
        # TYPE vllm:num_requests_running gauge
        vllm:num_requests_running{model_name="m"} 3.0
        vllm:gpu_cache_usage_perc 0.95
        vllm:time_to_first_token_seconds_sum 5
        vllm:time_to_first_token_seconds_count 10
        """,
        "i",
    )
    assert snapshot.gauges == {Gauge.RUNNING_REQUESTS: 3, Gauge.KV_CACHE_USAGE_RATIO: 0.95}
    assert snapshot.histograms[Hist.TTFT_SECONDS].mean == 0.5
    assert snapshot.counters == {}
    assert snapshot.model_name == "m"


def test_a_plain_value_under_a_histograms_name_is_not_a_histogram() -> None:
    snapshot = snapshot_of("vllm:time_to_first_token_seconds 0.025\nvllm:num_requests_running 1\n", "i")
    assert Hist.TTFT_SECONDS not in snapshot.histograms
    assert "plain value 0.025" in issue_of(snapshot, IssueCode.WRONG_TYPE, "ttft_seconds")


def test_core_metrics_that_are_missing_are_told() -> None:
    snapshot = snapshot_of("vllm:num_requests_running 1\n", "i")
    assert "vllm:kv_cache_usage_perc or vllm:gpu_cache_usage_perc" in issue_of(
        snapshot, IssueCode.MISSING_METRIC, Gauge.KV_CACHE_USAGE_RATIO.value
    )
    assert snapshot.quality.usable


@pytest.mark.parametrize(
    "body", ["", "hello\n", "other_metric 5\n", "<html></html>", b"\x00\x01\xff" * 50, "process_cpu_seconds_total 5\n"]
)
def test_a_body_without_known_metrics_says_so(body: str | bytes) -> None:
    snapshot = snapshot_of(body, "i", engine=Engine.VLLM)
    assert snapshot.quality.known_metrics == 0
    assert not snapshot.quality.usable
    assert snapshot.quality.has(IssueCode.NO_KNOWN_METRICS)
    with pytest.raises(CollectError) as error:
        require_engine(snapshot)
    assert error.value.reason is ErrorReason.BODY_NOT_METRICS


def test_a_page_of_another_engine_is_named(vllm_page: bytes) -> None:
    snapshot = snapshot_of(vllm_page, "i", engine=Engine.SGLANG)
    assert "one of vllm, not of sglang" in issue_of(snapshot, IssueCode.ENGINE_MISMATCH)
    assert snapshot.gauges.keys() <= {Gauge.RESIDENT_MEMORY_BYTES, Gauge.OPEN_FILE_DESCRIPTORS}
    with pytest.raises(CollectError, match="set the instance's engine to vllm") as error:
        snapshot_of(vllm_page, "i", engine=Engine.TGI, strict=True)
    assert error.value.reason is ErrorReason.ENGINE_MISMATCH


def test_an_engine_that_cannot_be_told_is_an_error() -> None:
    with pytest.raises(CollectError, match="--enable-metrics") as error:
        snapshot_of("other 1\n", "i")
    assert error.value.reason is ErrorReason.ENGINE_UNKNOWN


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_values_that_are_no_numbers_are_left_out(value: str) -> None:
    snapshot = snapshot_of(
        f"vllm:num_requests_running {value}\nvllm:prompt_tokens_total {value}\n"
        f"vllm:e2e_request_latency_seconds_sum {value}\nvllm:e2e_request_latency_seconds_count 3\n"
        f'vllm:cache_config_info{{block_size="16"}} 1\nprocess_start_time_seconds {value}\nvllm:num_requests_waiting 1\n',
        "i",
    )
    assert snapshot.gauges == {Gauge.WAITING_REQUESTS: 1}
    assert snapshot.counters == {}
    assert snapshot.histograms == {}
    assert snapshot.process_start_time is None
    assert {issue.metric for issue in snapshot.quality.issues if issue.code is IssueCode.NOT_FINITE} == {
        "running_requests",
        "prompt_tokens",
        "e2e_seconds",
    }


def test_negative_counters_are_left_out() -> None:
    snapshot = snapshot_of(
        "vllm:prompt_tokens_total -5\nvllm:generation_tokens_total 5\n"
        "vllm:e2e_request_latency_seconds_sum -1\nvllm:e2e_request_latency_seconds_count 3\nvllm:gpu_prefix_cache_hit_rate -1\n",
        "i",
    )
    assert snapshot.counters == {Counter.GENERATION_TOKENS: 5}
    assert snapshot.histograms == {}
    assert snapshot.gauges == {}
    assert "is -5" in issue_of(snapshot, IssueCode.NEGATIVE_COUNTER, "prompt_tokens")


def test_duplicates_keep_the_first_value_and_are_told() -> None:
    snapshot = snapshot_of("vllm:num_requests_running 1\nvllm:num_requests_running 2\n", "i")
    assert snapshot.gauges[Gauge.RUNNING_REQUESTS] == 1
    assert "vllm:num_requests_running" in issue_of(snapshot, IssueCode.DUPLICATE_SERIES)


def test_a_cut_page_loses_its_last_histogram_and_says_so(vllm_page: bytes) -> None:
    marker = vllm_page.index(b"vllm:e2e_request_latency_seconds_count")
    snapshot = snapshot_of(vllm_page[: marker + 20], "i")
    assert Hist.E2E_SECONDS not in snapshot.histograms
    assert Hist.TTFT_SECONDS in snapshot.histograms
    assert issue_of(snapshot, IssueCode.TRUNCATED)
    assert "no _sum" in issue_of(snapshot, IssueCode.TRUNCATED, "e2e_seconds")


def test_malformed_lines_are_shown_with_their_numbers() -> None:
    snapshot = snapshot_of("vllm:num_requests_running 1\nwhat is this\n", "i")
    assert "line 2: 'what is this'" in issue_of(snapshot, IssueCode.MALFORMED_LINES)


def test_buckets_that_do_not_add_up_leave_the_mean() -> None:
    snapshot = snapshot_of(
        'vllm:e2e_request_latency_seconds_bucket{le="1"} 5\nvllm:e2e_request_latency_seconds_bucket{le="2"} 3\n'
        "vllm:e2e_request_latency_seconds_count 6\nvllm:e2e_request_latency_seconds_sum 12\n",
        "i",
    )
    histogram = snapshot.histograms[Hist.E2E_SECONDS]
    assert (histogram.bounds, histogram.mean) == ((), 2.0)
    assert snapshot.quality.has(IssueCode.CONSERVATION)


def test_the_open_bucket_stands_in_for_the_count() -> None:
    snapshot = snapshot_of(
        'vllm:e2e_request_latency_seconds_bucket{le="1"} 5\nvllm:e2e_request_latency_seconds_bucket{le="+Inf"} 6\n'
        "vllm:e2e_request_latency_seconds_sum 12\n",
        "i",
    )
    histogram = snapshot.histograms[Hist.E2E_SECONDS]
    assert (histogram.count, histogram.bounds, histogram.cumulative) == (6, (1.0,), (5.0,))


def test_an_unterminated_machine_page_is_doubtful_and_a_typed_one_is_not() -> None:
    machine = snapshot_of("# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1", "i")
    assert [issue.level for issue in machine.quality.issues if issue.code is IssueCode.TRUNCATED] == [IssueLevel.INFO]
    assert not snapshot_of("vllm:num_requests_running 1", "i").quality.has(IssueCode.TRUNCATED)


def test_a_builder_serves_many_pages(vllm_page: bytes) -> None:
    builder = SnapshotBuilder(Engine.VLLM)
    first = builder.build(vllm_page, "i", 1.0)
    assert builder.build("vllm:num_requests_running 9\n", "i", 2.0).gauges == {Gauge.RUNNING_REQUESTS: 9}
    assert builder.build(vllm_page, "i", 1.0) == first


def test_limits_reach_through() -> None:
    with pytest.raises(CollectError):
        SnapshotBuilder(Engine.VLLM, max_body_bytes=5).build("vllm:num_requests_running 9\n", "i", 2.0)


def test_lines_that_nobody_reads_may_come_and_go() -> None:
    """vLLM's page grows a line for every set of adapters that was ever loaded; what is read stays where it was."""
    builder = SnapshotBuilder(Engine.VLLM)
    page = "vllm:num_requests_running 3\nvllm:prompt_tokens_total 7\n"
    first = builder.build(page, "i", 1.0)
    for number in range(5):
        page = f'vllm:spec_decode_any{{adapters="a{number}"}} 1\n' + page
        assert builder.build(page, "i", 1.0) == first


def test_lora_adapters_are_counted_over_every_set_that_ran_or_waited() -> None:
    builder = SnapshotBuilder(Engine.VLLM)
    info = 'vllm:lora_requests_info{{max_lora="2",running_lora_adapters="{}",waiting_lora_adapters="{}"}} {}\n'
    page = "vllm:num_requests_running 3\n" + info.format("", "", 1.7e9) + info.format("sql", "", 1.8e9)
    first = builder.build(page, "i", 1.0)
    assert (first.gauges[Gauge.LORA_ADAPTERS_SEEN], first.config.get("max_loras")) == (1, 2)
    second = builder.build(page + info.format("sql,chat", "poems", 1.9e9), "i", 2.0)
    assert second.gauges[Gauge.LORA_ADAPTERS_SEEN] == 3
    assert IssueCode.UNKNOWN_METRICS not in {issue.code for issue in second.quality.issues}
    assert Gauge.LORA_ADAPTERS_SEEN not in builder.build("vllm:num_requests_running 3\n", "i", 3.0).gauges
