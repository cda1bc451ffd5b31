"""The log files of one replica."""

from __future__ import annotations

from pathlib import Path

from perf_service.targets.local.logs import ReplicaLogs


def test_a_message_carries_the_end_without_colours_and_blank_lines(tmp_path: Path) -> None:
    logs = ReplicaLogs(tmp_path / "a.")
    assert logs.last_lines(1) == "It left no log."
    logs.of(1).touch()
    assert logs.last_lines(1) == f"Its log {tmp_path / 'a.1.log'} is empty."
    lines = [f"line {n}\n\n" for n in range(2000)]
    logs.of(1).write_text("".join(lines) + "\x1b[31mValueError: no\x1b[0m\n")
    said = logs.last_lines(1)
    assert said.endswith("line 1998 | line 1999 | ValueError: no")
    assert said.count("|") == 7


def test_the_last_five_generations_are_kept_and_nothing_else_is_touched(tmp_path: Path) -> None:
    logs = ReplicaLogs(tmp_path / "a.")
    for name in (*(f"a.{n}.log" for n in range(1, 12)), "a.json", "a.old.log", "b.1.log"):
        (tmp_path / name).touch()
    logs.drop_old(11)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*(f"a.{n}.log" for n in range(7, 12)), "a.json", "a.old.log", "b.1.log"}
