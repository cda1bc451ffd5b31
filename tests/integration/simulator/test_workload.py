"""Summaries of any sample."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.simulator.workload import Summary
from tests.support.examples import examples


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_summary_is_ordered_and_within_the_sample(values: list[float]) -> None:
    s = Summary.of(values)
    assert min(values) <= s.p50 <= s.p95 <= s.p99 <= s.max == max(values)
    assert s.count == len(values)
