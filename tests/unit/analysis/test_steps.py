"""How finely prompts are cut, read off a window."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perf_service.analysis import steps
from perf_service.analysis.engine import AnalysisEngine
from perf_service.analysis.measure import facts_of
from perf_service.models.analysis import Cause
from perf_service.models.metrics import Gauge, Hist, Histogram
from perf_service.models.window import Window

Make = Callable[..., Window]
BUSY = {Gauge.RUNNING_REQUESTS: [1, 1, 1, 1], Gauge.WAITING_REQUESTS: [0, 1, 0, 1]}


def open_loop(window: Make, *, queue: float, before: float, config: dict[str, int] | None = None) -> Window:
    """Prompts of 900 tokens, prefilled in 0.4 s one after the other; `before` seconds pass until the scheduler reads a request."""
    means = {
        Hist.TTFT_SECONDS: 0.4 + queue + before,
        Hist.QUEUE_SECONDS: queue,
        Hist.PREFILL_SECONDS: 0.4,
        Hist.DECODE_SECONDS: 0.1,
        Hist.INFERENCE_SECONDS: 0.5,
        Hist.E2E_SECONDS: 0.5 + queue + before,
        Hist.PROMPT_TOKENS: 900.0,
        Hist.GENERATION_TOKENS: 6.0,
        Hist.ITL_SECONDS: 0.02,
    }
    return window(means, BUSY, requests=100, duration=60.0, config=config)


def test_short_steps_leave_the_wait_in_the_queue_and_long_ones_before_it(window: Make) -> None:
    cut, whole = open_loop(window, queue=0.24, before=0.015), open_loop(window, queue=0.05, before=0.2)
    assert steps.chunks(facts_of(cut, cut.config)).least == pytest.approx(0.4 / (2 * 0.015 / 0.833), rel=0.01)
    assert steps.chunks(facts_of(whole, whole.config)).least == 1.0


def test_no_wait_tells_nothing(window: Make) -> None:
    lonely = open_loop(window, queue=0.0, before=0.003)
    assert steps.chunks(facts_of(lonely, lonely.config)).least == 1.0


@pytest.mark.parametrize(("queue", "before", "cause"), [(0.24, 0.015, Cause.TOKEN_BUDGET_TOO_SMALL), (0.05, 0.2, Cause.PREFILL_COMPUTE)])
def test_a_small_budget_is_named_without_launch_arguments(window: Make, queue: float, before: float, cause: Cause) -> None:
    root = AnalysisEngine().analyze(open_loop(window, queue=queue, before=before)).bottlenecks[0]
    assert root.cause is cause
    assert "max_num_batched_tokens" in root.would_settle or cause is Cause.PREFILL_COMPUTE


def test_a_told_budget_that_the_steps_contradict_is_not_believed(window: Make) -> None:
    analysis = AnalysisEngine().analyze(open_loop(window, queue=0.24, before=0.015, config={"max_num_batched_tokens": 8192}))
    assert analysis.bottlenecks[0].cause is Cause.TOKEN_BUDGET_TOO_SMALL
    assert any("told as 8192" in issue.message for issue in analysis.quality.issues)


def test_pauses_as_long_as_a_prefill_tell_that_a_step_takes_whole_prompts(window: Make) -> None:
    means = {
        Hist.TTFT_SECONDS: 0.5, Hist.QUEUE_SECONDS: 0.0, Hist.PREFILL_SECONDS: 0.4, Hist.DECODE_SECONDS: 2.0,
        Hist.INFERENCE_SECONDS: 2.4, Hist.E2E_SECONDS: 2.5, Hist.PROMPT_TOKENS: 900.0, Hist.GENERATION_TOKENS: 20.0,
    }  # fmt: skip
    bounds = (0.01, 0.05, 0.2, 0.5)
    for long, whole in ((0.2, True), (0.001, False)):
        pauses = Histogram(2000, 2000 * 0.03, bounds, (100, 2000 * (1 - long), 2000 * (1 - long), 2000))
        made = window(means, {Gauge.RUNNING_REQUESTS: [4] * 5}, requests=100, histograms={Hist.ITL_SECONDS: pauses})
        assert (steps.chunks(facts_of(made, made.config)).most == 2.0) is whole


def test_a_budget_that_nobody_can_set_is_not_what_cuts_prompts(window: Make) -> None:
    means = {
        Hist.TTFT_SECONDS: 0.5, Hist.QUEUE_SECONDS: 0.0, Hist.PREFILL_SECONDS: 0.4, Hist.DECODE_SECONDS: 2.0,
        Hist.INFERENCE_SECONDS: 2.4, Hist.E2E_SECONDS: 2.5, Hist.GENERATION_TOKENS: 50.0,
    }  # fmt: skip
    pauses = Histogram(5000, 5000 * 0.04, (0.05, 0.1), (4990, 5000))
    for prompt, least in ((900.0, 8.0), (60.0, 1.0)):
        gauges = {Gauge.RUNNING_REQUESTS: [4] * 5}
        made = window({**means, Hist.PROMPT_TOKENS: prompt}, gauges, requests=100, histograms={Hist.ITL_SECONDS: pauses})
        assert steps.chunks(facts_of(made, made.config)).least == pytest.approx(least)
