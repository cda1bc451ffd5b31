"""The collectors' fixed Python contract."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import AsyncMock, Mock, patch

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from perf_service.collectors.base import BaseCollector
from perf_service.collectors.exposition import parse
from perf_service.collectors.sglang_collector import SGLangCollector
from perf_service.collectors.tgi_collector import TGICollector
from perf_service.collectors.vllm_collector import VLLMCollector
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Engine, Gauge, Hist, IssueCode


def answer(text: str, status: int = 200) -> AsyncMock:
    return AsyncMock(return_value=Mock(text=text, status_code=status))


@pytest.mark.parametrize(
    ("collector", "page", "engine"),
    [
        (VLLMCollector, "vllm-0.32.0", Engine.VLLM),
        (SGLangCollector, "sglang-0.5.23", Engine.SGLANG),
        (TGICollector, "tgi-3.3.7", Engine.TGI),
    ],
)
async def test_a_snapshot_is_collected(fixtures: Path, collector: type[BaseCollector], page: str, engine: Engine) -> None:
    text = (fixtures / f"dialects/{page}.prom").read_text()
    with patch("httpx.AsyncClient.get", new=answer(text)) as get:
        async with collector(timeout=7, clock=lambda: 42.0) as opened:
            snapshot = await opened.collect("i-1", "http://h:1")
            assert opened.timeout == 7
            assert isinstance(opened.client, httpx.AsyncClient)
    closed: BaseCollector = opened
    assert closed.client is None
    get.assert_awaited_once_with("http://h:1/metrics")
    assert (snapshot.instance_id, snapshot.engine, snapshot.collected_at, snapshot.endpoint) == ("i-1", engine, 42.0, "http://h:1")
    assert snapshot.gauges[Gauge.RUNNING_REQUESTS] == 3
    assert snapshot.histograms[Hist.E2E_SECONDS].count == 9


async def test_both_spellings_and_bare_histograms_are_read() -> None:
    text = (
        "vllm_num_requests_running 3\nvllm:num_requests_waiting 1\n"
        "vllm_time_to_first_token_seconds_sum 5\nvllm_time_to_first_token_seconds_count 10\n"
    )
    with patch("httpx.AsyncClient.get", new=answer(text)):
        snapshot = await VLLMCollector().collect("i", "h:1", config=EngineConfig.of({"max_num_seqs": 4}), engine_version="0.9")
    assert (snapshot.gauges[Gauge.RUNNING_REQUESTS], snapshot.gauges[Gauge.WAITING_REQUESTS]) == (3, 1)
    assert snapshot.histograms[Hist.TTFT_SECONDS].mean == 0.5
    assert (snapshot.config.get("max_num_seqs"), snapshot.engine_version) == (4, "0.9")


async def test_a_client_of_ones_own_is_used() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="vllm:num_requests_running 3\n", headers={"x-path": request.url.path})

    collector = VLLMCollector()
    collector.client = httpx.AsyncClient(transport=httpx.MockTransport(serve))
    async with collector:
        snapshot = await collector.collect("i", "https://h")
    assert snapshot.gauges == {Gauge.RUNNING_REQUESTS: 3}


@pytest.mark.parametrize("failure", [TimeoutError(), ConnectionError("refused"), httpx.ConnectError("x"), httpx.ReadError("x")])
async def test_failures_raise(failure: Exception) -> None:
    kind = TimeoutError if isinstance(failure, TimeoutError) else ConnectionError
    with patch("httpx.AsyncClient.get", new=AsyncMock(side_effect=failure)):
        async with VLLMCollector() as collector:
            with pytest.raises(kind):
                await collector.collect("i", "h:1")


@pytest.mark.parametrize("status", [301, 404, 500, 503])
async def test_http_errors_raise(status: int) -> None:
    with patch("httpx.AsyncClient.get", new=answer("vllm:num_requests_running 1\n", status)), pytest.raises(Exception, match=str(status)):
        await VLLMCollector().collect("i", "h:1")


@pytest.mark.parametrize("text", ["", "nothing here\n", "some_metric 5\n", "<html>"])
async def test_a_body_without_known_metrics_gives_a_snapshot_that_says_so(text: str) -> None:
    with patch("httpx.AsyncClient.get", new=answer(text)):
        snapshot = await VLLMCollector().collect("i", "h:1")
    assert snapshot.quality.has(IssueCode.NO_KNOWN_METRICS)
    assert not snapshot.quality.usable


def test_outcomes_of_requests_are_counted() -> None:
    collector = VLLMCollector()
    empty = collector._extract_request_metrics([])
    assert (empty.success_total, empty.failure_total) == (0, 0)
    text = (
        'vllm:request_success_total{finished_reason="stop"} 5\nvllm:request_success_total{finished_reason="length"} 2\n'
        'vllm:request_success_total{finished_reason="error"} 3\nvllm:request_success_total{finished_reason="abort"} 1\n'
        "vllm:admission_rejections_total 4\nother 9\nvllm:num_preemptions_total NaN\nvllm:num_requests_running 1\n"
    )
    ours = collector._extract_request_metrics(parse(text))
    assert (ours.success_total, ours.failure_total, ours.aborted_total, ours.rejected_total) == (7, 3, 1, 4)
    theirs = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert collector._extract_request_metrics(theirs) == ours
