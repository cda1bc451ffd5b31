"""Adding and subtracting histograms."""

from __future__ import annotations

from perf_service.collectors.histograms import added, subtracted
from perf_service.models.metrics import Histogram


def test_equal_layouts_add_bucket_by_bucket() -> None:
    one = Histogram(3, 3.0, (1.0, 2.0), (1.0, 2.0))
    assert added([one, one]) == Histogram(6, 6.0, (1.0, 2.0), (2.0, 4.0))


def test_other_layouts_leave_count_and_sum() -> None:
    assert added([Histogram(3, 3.0, (1.0,), (1.0,)), Histogram(1, 1.0, (2.0,), (1.0,))]) == Histogram(4, 4.0)


def test_an_empty_one_without_buckets_does_not_spoil_the_others() -> None:
    one = Histogram(3, 3.0, (1.0,), (1.0,))
    assert added([one, Histogram(0, 0.0)]) == one
    assert added([]) == Histogram(0, 0)


def test_a_difference_is_bucket_by_bucket() -> None:
    later, earlier = Histogram(9, 9.0, (1.0, 2.0), (4.0, 7.0)), Histogram(3, 3.0, (1.0, 2.0), (1.0, 2.0))
    assert subtracted(later, earlier) == Histogram(6, 6.0, (1.0, 2.0), (3.0, 5.0))


def test_going_back_is_a_reset() -> None:
    assert subtracted(Histogram(2, 9.0), Histogram(3, 3.0)) is None
    assert subtracted(Histogram(4, 2.0), Histogram(3, 3.0)) is None
    assert subtracted(Histogram(4, 4.0, (1.0,), (0.0,)), Histogram(3, 3.0, (1.0,), (1.0,))) is None


def test_float_noise_in_the_sum_is_not_a_reset() -> None:
    assert subtracted(Histogram(3, 3.0 - 1e-9), Histogram(3, 3.0)) == Histogram(0, 0.0)


def test_a_scrape_between_two_updates_stays_cumulative() -> None:
    difference = subtracted(Histogram(5, 5.0, (1.0, 2.0), (4.0, 4.0)), Histogram(2, 2.0, (1.0, 2.0), (0.0, 1.0)))
    assert difference == Histogram(3, 3.0, (1.0, 2.0), (3.0, 3.0))
