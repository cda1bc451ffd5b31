"""Due times on a virtual clock."""

from __future__ import annotations

import math
import random

import pytest

from perf_service.collectors.schedule import MAX_BACKOFF_SECONDS, Schedule


def next_due(schedule: Schedule) -> float:
    due = schedule.next_due()
    assert due is not None
    return due


def test_first_scrapes_are_spread_over_the_interval() -> None:
    schedule = Schedule(random.Random(1))
    for number in range(1000):
        schedule.add(str(number), 10.0, 100.0)
    assert not schedule.due(100.0, 1000)[10:]
    halves = len(schedule.due(105.0, 1000))
    assert 400 < halves < 600
    assert len(schedule.due(110.0, 1000)) + halves > 980


def test_scrapes_keep_their_beat_however_long_they_take() -> None:
    schedule = Schedule(random.Random(1))
    schedule.add("a", 10.0, 0.0)
    first = next_due(schedule)
    for number in range(5):
        at = first + number * 10.0
        assert schedule.due(at, 10) == ["a"]
        schedule.done("a", at + 3.0, True)
        assert next_due(schedule) == pytest.approx(first + (number + 1) * 10.0)


def test_missed_beats_are_skipped() -> None:
    schedule = Schedule(random.Random(1))
    schedule.add("a", 10.0, 0.0)
    first = next_due(schedule)
    schedule.due(first, 1)
    schedule.done("a", first + 34.0, True)
    assert next_due(schedule) == pytest.approx(first + 40.0)


def test_failures_back_off_up_to_a_minute_and_a_success_ends_it() -> None:
    schedule = Schedule(random.Random(1))
    schedule.add("a", 5.0, 0.0)
    now, waits = next_due(schedule), []
    for _ in range(8):
        schedule.due(now, 1)
        schedule.done("a", now, False)
        waits.append(next_due(schedule) - now)
        now = next_due(schedule)
    assert [10 <= waits[0] < 11, 20 <= waits[1] < 22, 40 <= waits[2] < 44] == [True] * 3
    assert all(MAX_BACKOFF_SECONDS <= wait <= MAX_BACKOFF_SECONDS * 1.1 for wait in waits[4:])
    schedule.due(now, 1)
    schedule.done("a", now, True)
    assert next_due(schedule) - now <= 5.0


def test_a_target_is_handed_out_once_and_the_longest_waiting_first() -> None:
    schedule = Schedule(random.Random(1))
    for key in "abcdef":
        schedule.add(key, 10.0, 0.0)
    order = [key for at in range(100) for key in schedule.due(at / 10, 1)]
    assert sorted(order) == list("abcdef")
    assert schedule.due(1000.0, 10) == []
    assert schedule.next_due() is None


def test_removed_and_renewed_targets() -> None:
    schedule = Schedule(random.Random(1))
    schedule.add("a", 10.0, 0.0)
    schedule.add("b", 10.0, 0.0)
    schedule.remove("b")
    schedule.remove("never")
    assert ("a" in schedule, "b" in schedule, len(schedule)) == (True, False, 1)
    assert schedule.due(10.0, 5) == ["a"]
    schedule.add("a", 20.0, 10.0)
    schedule.done("a", 11.0, True)  # the scrape of the earlier registration
    assert schedule.due(30.0, 5) == ["a"]
    schedule.remove("a")
    schedule.done("a", 31.0, True)
    assert schedule.next_due() is None


def test_hurry_makes_due_now() -> None:
    schedule = Schedule(random.Random(1))
    schedule.add("a", 10.0, 0.0)
    schedule.due(10.0, 1)
    schedule.done("a", 10.0, False)
    schedule.hurry("a", 11.0)
    schedule.hurry("unknown", 11.0)
    assert schedule.due(11.0, 5) == ["a"]


def test_hurry_is_not_lost_on_a_scrape_that_hangs_on_what_is_gone() -> None:
    schedule = Schedule(random.Random(1))
    schedule.add("a", 10.0, 0.0)
    schedule.due(10.0, 1)
    schedule.hurry("a", 12.0)
    assert schedule.due(13.0, 1) == []  # never twice at a time
    schedule.done("a", 20.0, False)
    assert schedule.due(20.0, 1) == ["a"]
    schedule.done("a", 21.0, False)
    assert schedule.due(30.0, 1) == []  # and then the usual back-off


def test_the_end_of_an_earlier_registrations_scrape_is_not_taken_for_the_present_ones() -> None:
    schedule = Schedule(random.Random(1))
    schedule.add("a", 10.0, 0.0)
    old = schedule.registration("a")
    schedule.due(10.0, 1)
    schedule.add("a", 10.0, 10.0)
    assert schedule.due(20.0, 1) == ["a"]
    schedule.done("a", 21.0, True, old)
    assert schedule.due(100.0, 1) == []  # the present one's scrape still runs
    schedule.done("a", 101.0, True, schedule.registration("a"))
    assert schedule.due(200.0, 1) == ["a"]


@pytest.mark.parametrize("interval", [0.0, -1.0, math.nan, math.inf])
def test_intervals_are_positive(interval: float) -> None:
    with pytest.raises(ValueError, match="interval_seconds"):
        Schedule(random.Random(1)).add("a", interval, 0.0)
