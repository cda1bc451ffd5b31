"""Times over the wire."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.rpc.convert.mirror import seconds, timestamp
from tests.support.examples import examples


@settings(max_examples=examples(30))
@given(st.integers(0, 2**33), st.integers(0, 999_999))
def test_times_keep_their_microseconds(whole: int, micros: int) -> None:
    time = whole + micros / 1e6
    assert seconds(timestamp(time)) == time
