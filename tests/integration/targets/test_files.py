"""Names of state files."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.targets.files import safe_name
from tests.support.examples import examples

_NAMES = st.text("aB.%/\\ é\n~-_", min_size=1, max_size=6)


@settings(max_examples=examples(50), deadline=None)
@given(_NAMES, _NAMES)
def test_names_stay_apart_and_inside_the_directory(one: str, other: str) -> None:
    assert "/" not in safe_name(one)
    assert not safe_name(one).startswith(".")
    assert (safe_name(one) == safe_name(other)) == (one == other)
