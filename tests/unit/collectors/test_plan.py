"""Where the values of a layout go: what the quick way reads, and what it leaves to the careful one."""

from __future__ import annotations

import math

import pytest

from perf_service.collectors.dialects.base import Part, Slot
from perf_service.collectors.plan import HistogramParts, origins_of, without_classes
from perf_service.models.metrics import Histogram


def slot(part: Part, bound: float | None = None, *, rank: str = "", replica: str = "", is_class: bool = False) -> Slot:
    return Slot(0, 0, part, rank, replica, is_class, bound)


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
