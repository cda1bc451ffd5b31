"""Where the values of a layout go: the quick way and the careful way make the same histogram, or the quick one makes none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.collectors.dialects.base import Part, Slot
from perf_service.collectors.histograms import HistogramReader
from perf_service.collectors.plan import HistogramParts, Spelling, origins_of, without_classes
from perf_service.models.metrics import Hist, Histogram
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


def test_sets_that_differ_in_other_labels_are_added() -> None:
    entries = [(slot(Part.BUCKET, 1.0), 0), (slot(Part.SUM), 1), (slot(Part.COUNT), 2), (slot(Part.BUCKET, 1.0), 3), (slot(Part.SUM), 4)]
    entries.append((slot(Part.COUNT), 5))
    parts = HistogramParts.of(entries)
    assert parts is not None
    assert parts.read([1.0, 2.0, 3.0, 1.0, 0.5, 1.0]) == Histogram(4.0, 2.5, (1.0,), (2.0,))
    assert parts.read([5.0, 2.0, 3.0, 1.0, 0.5, 1.0]) is None  # a bucket above the count


@pytest.mark.parametrize(
    "entries", [[(slot(Part.SUM), 0)], [(slot(Part.COUNT), 0)], [(slot(Part.BUCKET, 1.0), 0), (slot(Part.SUM), 1)], []]
)
def test_what_is_not_whole_is_left_to_the_reader(entries: list[tuple[Slot, int]]) -> None:
    assert HistogramParts.of(entries) is None


def test_the_last_bucket_stands_for_a_missing_count() -> None:
    parts = HistogramParts.of([(slot(Part.BUCKET, math.inf), 0), (slot(Part.SUM), 1)])
    assert parts is not None
    assert parts.read([3.0, 1.5]) == Histogram(3.0, 1.5)


def test_origins_keep_ranks_and_processes_apart() -> None:
    entries = [(slot(Part.VALUE, rank="0"), 0), (slot(Part.VALUE, rank="0", replica="p"), 1), (slot(Part.VALUE, rank="0"), 2)]
    assert origins_of(entries) == (("0", (0, 2)), ("0", (1,)))


def test_classes_are_left_out_beside_their_total() -> None:
    total, part = (slot(Part.VALUE), 0), (slot(Part.VALUE, is_class=True), 1)
    assert without_classes([total, part]) == [total]
    assert without_classes([part, part]) == [part, part]
