"""Seeded workloads and what clients measure."""

from __future__ import annotations

import math
import random

import pytest

from perf_service.simulator.flags import FlagError
from perf_service.simulator.workload import Ledger, Lengths, Summary, Workload


def test_lengths_stay_in_their_bounds_and_centre() -> None:
    rng = random.Random(1)
    draws = [Lengths.lognormal(200, 0.8, 10, 1000).sample(rng) for _ in range(2000)]
    assert min(draws) >= 10
    assert max(draws) <= 1000
    assert 180 < sorted(draws)[1000] < 220
    assert {Lengths.fixed(7).sample(rng) for _ in range(5)} == {7}
    assert {Lengths.uniform(1, 3).sample(rng) for _ in range(100)} == {1, 2, 3}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lengths.uniform(5, 4),
        lambda: Lengths.fixed(0),
        lambda: Lengths.lognormal(0, 1),
        lambda: Workload(),
        lambda: Workload(rate=1, concurrency=1),
        lambda: Workload(rate=-1),
        lambda: Workload(rate=1, shared_prefix_share=2),
        lambda: Workload(rate=1, prefixes=0),
    ],
)
def test_nonsense_is_refused(make: object) -> None:
    with pytest.raises(FlagError):
        make()  # type: ignore[operator]


def test_poisson_gaps_have_the_rate() -> None:
    rng, load = random.Random(3), Workload(rate=4.0)
    gaps = [load.next_gap(rng, 0.0) for _ in range(4000)]
    assert sum(gaps) / len(gaps) == pytest.approx(0.25, rel=0.05)


def test_rate_steps_are_exact() -> None:
    rng = random.Random(5)
    load = Workload(rate=2.0, steps=((100.0, 0.0), (200.0, 20.0), (300.0, 0.0)))
    at, arrivals = 0.0, []
    while math.isfinite(gap := load.next_gap(rng, at)):
        at += gap
        arrivals.append(at)
    assert 150 < sum(t < 100 for t in arrivals) < 250
    assert not [t for t in arrivals if 100 <= t < 200]
    assert 1800 < sum(200 <= t < 300 for t in arrivals) < 2200
    assert max(arrivals) < 300


def test_share_of_prefix_and_prompt_long_enough_for_it() -> None:
    rng = random.Random(2)
    load = Workload(rate=1, prompt=Lengths.fixed(50), shared_prefix_tokens=100, shared_prefix_share=0.3, prefixes=4, max_tokens=500)
    drawn = [load.draw(rng, 0.0) for _ in range(2000)]
    sharing = [r for r in drawn if r.shared_prefix_tokens]
    assert 0.26 < len(sharing) / 2000 < 0.34
    assert {r.prompt_tokens for r in sharing} == {101}
    assert {r.prefix_id for r in sharing} == {0, 1, 2, 3}
    assert all(r.limit_tokens == 500 for r in drawn)


def test_summary_is_ordered() -> None:
    s = Summary.of([float(n) for n in range(100, 0, -1)])
    assert 1 <= s.p50 < s.p95 < s.p99 <= s.max == 100
    assert s.count == 100


def test_nothing_measured_is_not_zero() -> None:
    report = Ledger().report(10.0)
    assert report.ttft_seconds.count == 0
    assert math.isnan(report.ttft_seconds.p50)
    assert report.requests_per_second == 0


def test_ledger_measures_phases() -> None:
    ledger = Ledger()
    ledger.sent = 2
    ledger.success(10.0, [11.0, 11.5, 12.5], 12.5, 100, 3)
    ledger.failure("http 503")
    report = ledger.report(5.0)
    assert (report.succeeded, report.failed, report.errors) == (1, 1, {"http 503": 1})
    assert report.ttft_seconds.mean == 1.0
    assert report.itl_seconds.max == 1.0
    assert report.tpot_seconds.mean == 0.75
    assert report.e2e_seconds.mean == 2.5
    assert report.output_tokens_per_second == 0.6


def test_clients_that_hang_up_cost_the_engine_no_further_tokens() -> None:
    from perf_service.simulator.flags import EngineFlags, StepTimes
    from perf_service.simulator.virtual import simulate

    load = Workload(Lengths.fixed(20), Lengths.fixed(50), rate=5.0, leaving_share=1.0, leaving_after_tokens=3)
    run = simulate(EngineFlags(), StepTimes(), load, 4.0, drain=True)
    assert run.report.cancelled == run.report.sent > 0
    assert run.report.succeeded == run.report.failed == 0
    assert any(
        'finished_reason="abort"' in line and line.endswith(f" {float(run.report.cancelled)}") for line in run.pages[-1][1].splitlines()
    )
