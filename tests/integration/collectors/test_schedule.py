"""The schedule under any sequence of calls."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.collectors.schedule import Schedule
from tests.support.examples import examples


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "remove", "due", "done", "fail", "hurry"]), st.floats(0, 20)), max_size=40
    )
)
@settings(max_examples=examples(60), deadline=None)
def test_no_target_is_ever_lost_or_doubled(moves: list[tuple[str, str, float]]) -> None:
    schedule, now, running, known = Schedule(random.Random(1)), 0.0, set[str](), set[str]()
    for key, move, step in moves:
        now += step
        if move == "add":
            schedule.add(key, 5.0, now)
            known.add(key)
            running.discard(key)
        elif move == "remove":
            schedule.remove(key)
            known.discard(key)
            running.discard(key)
        elif move == "due":
            keys = schedule.due(now, 2)
            assert len(keys) == len(set(keys)) <= 2
            assert not running & set(keys)
            running |= set(keys)
        elif move in ("done", "fail"):
            schedule.done(key, now, move == "done")
            running.discard(key)
        else:
            schedule.hurry(key, now)
        assert running <= known
    assert set(schedule.due(now + 1000.0, 10)) == known - running
