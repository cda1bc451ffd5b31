"""Where the time of a missed objective went."""

from __future__ import annotations

import pytest

from perf_service.analysis.attribution import attributed, miss_weight, preemption_share
from perf_service.analysis.facts import Facts
from perf_service.analysis.slo_monitor import evaluate
from perf_service.models.analysis import SLOState
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Engine, Hist, Histogram
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window

BOUNDS = (0.025, 0.05, 0.1, 1.0, 2.5)


def facts(pauses: tuple[int, ...], total: float, preemptions: float | None) -> Facts:
    """Pauses between tokens by bucket, the last beyond 2.5 s; 10 requests of 5 s, 1 s of it queued and 0.5 s prefill."""
    cumulative = tuple(float(sum(pauses[: i + 1])) for i in range(5))
    hists = {
        Hist.ITL_SECONDS: Histogram(float(sum(pauses)), total, BOUNDS, cumulative),
        Hist.E2E_SECONDS: Histogram(10.0, 50.0, (1.0, 10.0), (0.0, 10.0)),
    }
    window = Window("w", Engine.VLLM, 0.0, 60.0, 60.0, 6, histograms=hists)
    return Facts(
        window, EngineConfig(), finished=10.0, e2e=5.0, itl=total / sum(pauses), queue=1.0, prefill=0.5, decode=3.5, preemptions=preemptions
    )


def test_the_longest_pauses_are_the_preempted_requests() -> None:
    """Ten preemptions, ten pauses of a second or more (told at the lower bound), among 990 of about 37 ms."""
    found = facts((0, 990, 0, 0, 10, 0), 47.0, 10.0)
    assert preemption_share(found) == pytest.approx(10 * (1.0 - 0.0375) / 47.0, rel=0.02)


def test_without_preemptions_long_pauses_are_something_else() -> None:
    for preemptions in (0.0, None):
        assert preemption_share(facts((0, 990, 0, 0, 10, 0), 47.0, preemptions)) == 0.0


def test_more_preemptions_than_long_pauses_take_no_usual_ones() -> None:
    few = preemption_share(facts((0, 990, 0, 0, 10, 0), 47.0, 10.0))
    assert preemption_share(facts((0, 990, 0, 0, 10, 0), 47.0, 500.0)) == pytest.approx(few)


def test_standing_still_is_taken_out_of_decoding_and_shares_add_up() -> None:
    found = facts((0, 990, 0, 0, 10, 0), 47.0, 10.0)
    [status] = evaluate(found.window, [SLOTarget("e2e", 3.0)])
    phases = attributed(status, found).phases
    assert phases is not None
    assert phases.queue_ratio == pytest.approx(0.2)
    assert phases.preemption_ratio > 0.1
    assert phases.queue_ratio + phases.prefill_ratio + phases.decode_ratio + phases.preemption_ratio == pytest.approx(1.0)
    [met] = evaluate(found.window, [SLOTarget("e2e", 30.0)])
    assert attributed(met, found).phases is None


def test_an_undecided_objective_is_explained_where_its_estimate_misses() -> None:
    found = facts((0, 990, 0, 0, 10, 0), 47.0, None)
    likely, unlikely = evaluate(found.window, [SLOTarget("e2e_p90", 4.0), SLOTarget("e2e_p10", 9.0)])
    assert (likely.state, unlikely.state) == (SLOState.UNDECIDED, SLOState.UNDECIDED)
    assert miss_weight(likely) > 0
    assert miss_weight(unlikely) == 0
