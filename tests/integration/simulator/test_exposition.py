"""The pages are spelled as the real engines spell theirs."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from perf_service.collectors.exposition import parse
from perf_service.simulator.core import EngineCore, RejectedError, Request
from perf_service.simulator.exposition import PageContext, render
from perf_service.simulator.flags import EngineFlags, StepTimes, resolve

CAPTURES = Path(__file__).parents[2] / "fixtures" / "captures"
CONTEXT = PageContext(model_name="tiny", process_start=100.0, ready_at=130.0, http={"2xx": 3})


def served(engine: str, **flags: object) -> EngineCore:
    defaults: dict[str, object] = {"engine": engine, "max_model_len": 2048, "num_gpu_blocks_override": 150}
    core = EngineCore(resolve(EngineFlags(**{**defaults, **flags}), StepTimes()))  # type: ignore[arg-type]
    now = 1000.0
    for i in range(6):
        core.submit(Request(now, 200 + i, 20, shared_prefix_tokens=160), now)
        while (result := core.step(now)) is not None:
            now = result.time
    core.submit(Request(now, 300, 20), now)
    core.step(now)
    return core


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    page = parse(text)
    assert not page.malformed_count
    return {(name, tuple(sorted(labels.items()))): value for name, labels, value in page}


def total(page: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str) -> float:
    found = [v for (n, ls), v in page.items() if n == name and labels.items() <= dict(ls).items()]
    assert found, f"{name} {labels} is not on the page"
    return sum(found)


def real_page(scenario: str, name: str) -> str:
    return gzip.decompress((CAPTURES / scenario / name).read_bytes()).decode()


def test_vllm_page_has_exactly_the_series_of_a_real_one() -> None:
    real = samples(real_page("b_queue_bad_r2", "010.prom.gz"))
    ours = samples(render(served("vllm"), CONTEXT, 2000.0))

    def keys(page: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> set[object]:
        return {
            (n, ls) if not n.startswith("vllm:cache_config") else (n, tuple(k for k, _ in ls)) for n, ls in page if n.startswith("vllm:")
        }

    assert keys(ours) == keys(real)
    missing = {n for n, _ in real} - {n for n, _ in ours}
    assert all(n.startswith(("http_request_size", "http_response_size")) for n in missing)


def test_vllm_help_and_type_lines_are_the_real_ones() -> None:
    def comments(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("#") and " vllm:" in line]

    assert comments(render(served("vllm"), CONTEXT, 2000.0)) == comments(real_page("b_queue_bad_r2", "010.prom.gz"))


def test_vllm_values() -> None:
    core = served("vllm")
    page = samples(render(core, CONTEXT, 2000.0))
    assert total(page, "vllm:request_success_total", finished_reason="length") == 6
    assert total(page, "vllm:num_requests_running") == 1
    assert total(page, "vllm:prefix_cache_hits_total") == 5 * 160
    assert total(page, "vllm:time_to_first_token_seconds_count") == 7
    assert total(page, "vllm:time_to_first_token_seconds_bucket", le="+Inf") == 7
    assert total(page, "vllm:prompt_tokens_by_source_total", source="local_compute") == (total(page, "vllm:prompt_tokens_total") - 800)
    assert total(page, "vllm:kv_cache_usage_perc") == core.gauges.kv_usage > 0
    assert total(page, "vllm:cache_config_info", num_gpu_blocks="150", enable_prefix_caching="True") == 1
    assert total(page, "process_start_time_seconds") == 100
    assert total(page, "vllm:generation_tokens_created") == 130
    assert total(page, "http_requests_total", status="2xx") == 3


def test_vllm_http_series_appear_with_the_first_request() -> None:
    text = render(served("vllm"), PageContext(), 2000.0)
    assert "http_" not in text


def test_sglang_page_has_the_names_and_labels_of_the_real_collectors() -> None:
    real = samples(real_page("sglang_kv_pressure_synthetic", "006.prom.gz"))
    ours = samples(render(served("sglang", num_gpu_blocks_override=None, max_total_tokens=2048), CONTEXT, 2000.0))

    def keys(page: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> set[tuple[str, tuple[str, ...]]]:
        # a real server runs in multiprocess mode: no _created, and a pid on gauges without a mode
        return {(n, tuple(k for k, _ in ls if k != "pid")) for n, ls in page if n.startswith("sglang:") and not n.endswith("_created")}

    retractions = {k for k in keys(real) if "num_retracted_" in k[0] and k[0].endswith("_total")}
    assert keys(real) - keys(ours) == retractions  # appear with the first retraction
    assert keys(ours) <= keys(real)
    assert not any(n.startswith(("process_", "python_")) for n, _ in ours)


def test_sglang_values() -> None:
    page = samples(render(served("sglang", max_total_tokens=2048, num_gpu_blocks_override=None), CONTEXT, 2000.0))
    used = total(page, "sglang:kv_used_tokens")
    assert used + total(page, "sglang:kv_available_tokens") + total(page, "sglang:kv_evictable_tokens") <= 2048
    assert total(page, "sglang:max_total_num_tokens") == 2048
    assert total(page, "sglang:token_usage") == pytest.approx(used / 2048)
    assert total(page, "sglang:num_requests_total") == 6
    assert total(page, "sglang:cached_tokens_total") == 5 * 160


def test_tgi_page_speaks_the_rust_exporters_dialect() -> None:
    core = served("tgi")
    core.flags = core.flags.changed({"max_concurrent_requests": 0})
    with pytest.raises(RejectedError):
        core.submit(Request(0.0, 10, 10), 2000.0)
    text = render(core, CONTEXT, 2000.0)
    assert "# HELP" not in text
    assert "_total " not in text.replace("tgi_batch_max_total_tokens", "")
    page = samples(text)
    assert "\ntgi_request_success 6\n" in text
    assert total(page, "tgi_request_count") == 8
    assert total(page, "tgi_request_failure", err="overloaded") == 1
    assert total(page, "tgi_batch_current_size") == 1
    assert total(page, "tgi_batch_max_total_tokens") == 2400
    assert total(page, "tgi_batch_inference_duration_count", method="prefill") == 7
    assert total(page, "tgi_request_queue_duration_bucket", le="0.00015000000000000001") == 6
    assert "tgi_request_count 8" in text  # integers are bare


def test_tgi_series_appear_with_their_first_event() -> None:
    core = EngineCore(resolve(EngineFlags(engine="tgi")))
    assert set(samples(render(core, CONTEXT, 0.0))) == {
        (name, ())
        for name in (
            "tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens", "tgi_batch_max_total_tokens"
        )
    }  # fmt: skip


def test_model_names_are_escaped() -> None:
    name = 'a"b\\c'
    page = samples(render(served("vllm"), PageContext(model_name=name), 2000.0))
    assert total(page, "vllm:num_requests_running", model_name=name) == 1
