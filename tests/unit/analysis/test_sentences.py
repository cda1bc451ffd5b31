"""Every finding is one sentence with its numbers and units, whatever the page leaves out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from perf_service.analysis import attribution
from perf_service.analysis.explain import NAMES, TITLES
from perf_service.analysis.facts import Facts
from perf_service.analysis.sentences import _SENTENCES, sentence
from perf_service.models.analysis import Cause
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram
from perf_service.models.window import GaugeStats, Window

CAUSES = [cause for cause in Cause if cause not in TITLES]


def full(replicas: int = 1) -> Facts:
    """Facts with everything known."""
    waiting, running, kv = (GaugeStats(m * replicas, 0, m * replicas, m, 6) for m in (23.0, 2.0, 0.5))
    hists = {
        Hist.ITL_SECONDS: Histogram(1000, 20.0, (0.02, 0.1, 1.0), (700, 950, 1000)),
        Hist.PROMPT_TOKENS: Histogram(100, 9e4, (100, 1000, 8000), (50, 90, 100)),
    }
    counters = {Counter.SPEC_DRAFTS: 100.0, Counter.SPEC_ACCEPTED_TOKENS: 20.0}
    gauges = {Gauge.WAITING_REQUESTS: waiting, Gauge.RUNNING_REQUESTS: running}
    window = Window("w", Engine.VLLM, 0.0, 60.0, 60.0, 6, gauges=gauges, histograms=hists, counters=counters, replicas=replicas)
    return Facts(
        window, EngineConfig(), finished=50.0, ttft=8.33, itl=0.0137, e2e=9.0, queue=8.27, prefill=0.0262, decode=0.65, prompt_tokens=900.0,
        computed_tokens=600.0, waiting=waiting, running=running, kv=kv, preemptions=26.0, hit_ratio=0.12, deferred_share=0.8,
        cpu_cores=0.97,
    )  # fmt: skip


def empty() -> Facts:
    return Facts(Window("w", Engine.VLLM, None, None, None, 1), EngineConfig())


@pytest.mark.parametrize("cause", CAUSES)
def test_one_sentence_with_a_number_and_its_unit(cause: Cause) -> None:
    for phase in (attribution.QUEUE, attribution.PREFILL, attribution.DECODE, attribution.UNKNOWN):
        text = sentence(cause, full(), phase)
        assert text[0].isupper() or text[0].isdigit()
        assert text.endswith(".")
        assert not re.search(r"[.!?] [A-Z]", text), "one sentence"
        assert re.search(r"\d (ms|s|%|requests?|tokens?|accepted|CPU)\b|\d %", text), text
        assert " - " not in text
        assert "None" not in text


@pytest.mark.parametrize("cause", CAUSES)
def test_what_is_not_known_is_left_out(cause: Cause) -> None:
    text = sentence(cause, empty(), attribution.QUEUE)
    assert text.endswith(".")
    for nonsense in ("None", "nan", " - ", "()", "  ", " ."):
        assert nonsense not in text, text


def test_counts_of_a_fleet_are_told_as_what_they_are() -> None:
    assert sentence(Cause.BATCH_LIMIT, full(), "queue").startswith(
        "Only 2 requests run at a time although 50.0 % of the KV cache stays free: "
    )
    assert "only 2.00 requests run at a time on each of 3 replicas" in sentence(Cause.BATCH_LIMIT, full(3), "queue").lower()
    assert "(sum of 3 replicas)" in sentence(Cause.WAITING_NOT_CAPACITY, full(3), "queue")


def test_every_cause_is_told_one_way_or_the_other() -> None:
    assert set(_SENTENCES) | set(TITLES) | {Cause.UNKNOWN} == set(Cause) == set(NAMES)


def test_a_short_prompt_in_shared_steps_is_told_as_that() -> None:
    alone = full()
    beside = replace(alone, running_occupancy=30.0, computed_tokens=40.0, itl=0.03, ttft=0.4, queue=0.0, prefill=0.1)
    text = sentence(Cause.PREFILL_COMPUTE, beside, attribution.PREFILL)
    assert "shares the steps of 30.0 ms with 30.0 requests, most of which decode; 300 ms pass before" in text
    assert "shares" not in sentence(Cause.PREFILL_COMPUTE, alone, attribution.PREFILL)
