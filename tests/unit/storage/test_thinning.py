"""What of a long history may go."""

from __future__ import annotations

import itertools
import random

from perf_service.storage.thinning import Mark, surplus


def marks(*rows: tuple[float, float], instance: str = "i", started: dict[float, float] | None = None) -> list[Mark]:
    """(time, progress) pairs."""
    return [Mark(f"{instance}@{at:g}", instance, at, (started or {}).get(at), progress) for at, progress in rows]


def test_the_first_of_each_interval_stays_and_the_newest_of_all() -> None:
    history = marks(*((float(at), float(at)) for at in range(0, 100, 10)))
    assert set(surplus(history, 30.0)) == {"i@10", "i@20", "i@40", "i@50", "i@70", "i@80"}


def test_what_is_young_stays() -> None:
    history = marks(*((float(at), float(at)) for at in range(0, 100, 10)))
    assert set(surplus(history, 30.0, before=50.0)) == {"i@10", "i@20", "i@40"}


def test_both_sides_of_a_restart_stay() -> None:
    assert list(surplus(marks((0, 1), (1, 2), (2, 3), (3, 0), (4, 1), (5, 2)), 60.0)) == ["i@1", "i@4"]


def test_a_restart_told_by_its_time_alone() -> None:
    history = marks((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), started={0: 7.0, 1: 7.0, 2: 8.0, 3: 8.0})
    assert list(surplus(history, 60.0)) == ["i@3"]


def test_instances_are_apart() -> None:
    history = marks((0, 5), (1, 6), (2, 7), instance="a") + marks((0, 1), (1, 2), (2, 3), instance="b")
    assert list(surplus(history, 60.0)) == ["a@1", "b@1"]


def test_thinning_again_deletes_nothing_more_and_loses_no_progress() -> None:
    rng = random.Random(1)
    at, progress, rows = 0.0, 0.0, []
    for _ in range(2000):
        at += rng.uniform(1, 9)
        progress = 0.0 if rng.random() < 0.01 else progress + rng.random()
        rows.append((at, progress))
    history = marks(*rows)
    gone = set(surplus(history, 60.0))
    left = [mark for mark in history if mark.snapshot_id not in gone]
    assert list(surplus(left, 60.0)) == []
    assert len(left) < len(history) / 4
    assert abs(grown(history) - grown(left)) < 1e-6


def grown(history: list[Mark]) -> float:
    """What was counted over all restarts."""
    steps = itertools.pairwise(history)
    return sum(b.progress - a.progress if b.progress >= a.progress else b.progress for a, b in steps)
