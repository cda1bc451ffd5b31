"""Whatever the rows of a layout, the quick way and the careful way make the same histogram, or the quick one makes none."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.collectors.dialects.base import Part, Slot
from perf_service.collectors.histograms import HistogramReader
from perf_service.collectors.plan import Spelling
from perf_service.models.metrics import Hist
from tests.support.examples import examples


def slot(part: Part, bound: float | None = None, *, rank: str = "", replica: str = "", is_class: bool = False) -> Slot:
    return Slot(0, 0, part, rank, replica, is_class, bound)


PIECES = st.one_of(
    st.tuples(st.just(Part.BUCKET), st.sampled_from([0.1, 1.0, 5.0, math.inf])),
    st.tuples(st.sampled_from([Part.SUM, Part.COUNT]), st.none()),
    st.tuples(st.just(Part.BARE), st.none()),
)


@given(st.lists(st.tuples(PIECES, st.sampled_from(["0", "1"]), st.sampled_from(["", "p"]), st.integers(0, 9).map(float)), max_size=12))
@settings(max_examples=examples(200), deadline=None)
def test_the_quick_way_is_the_careful_way(rows: list[tuple[tuple[Part, float | None], str, str, float]]) -> None:
    entries = [(slot(part, bound, rank=rank, replica=replica), place) for place, ((part, bound), rank, replica, _) in enumerate(rows)]
    values = [value for *_, value in rows]
    spelling = Spelling("h", entries)
    ranks = spelling.quick(values)
    reader = HistogramReader("h", Hist.TTFT_SECONDS)
    if ranks:
        found = reader.combined(ranks)
        quick_issues = list(reader.issues)
        careful = HistogramReader("h", Hist.TTFT_SECONDS)
        assert found == careful.read([(one, values[place]) for one, place in entries])
        assert quick_issues == careful.issues
