"""State files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perf_service.models.config import EngineConfig
from perf_service.models.errors import ErrorReason, TargetError
from perf_service.targets.files import config_from_document, config_to_document, locked, read_document, safe_name, write_atomically
from perf_service.targets.local.processes import ProcessId
from perf_service.targets.local.state import Intent, ReplicaRecord, StateFile


def test_names_stay_apart_and_inside_the_directory() -> None:
    names = ["a", "A", "a/b", "a%2Fb", "../a", ".a", "..", "a b", "é", "~", ""]
    made = [safe_name(name) for name in names]
    assert len(set(made)) == len(names)
    assert not any("/" in name or name.startswith(".") for name in made)


def test_a_replaced_file_is_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, {"n": 1})
    write_atomically(path, {"n": 2})
    assert read_document(path) == {"n": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, {"n": 1})

    def crash(_: int) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(TargetError, match="disk on fire"):
        write_atomically(path, {"n": 2})
    assert read_document(path) == {"n": 1}


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"'])
def test_a_damaged_file_is_an_error_not_a_fresh_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(TargetError) as info:
        read_document(path)
    assert info.value.reason is ErrorReason.TARGET_UNAVAILABLE
    assert str(path) in info.value.message


def test_a_lock_excludes_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locked(path), pytest.raises(TargetError, match="second server"), locked(path, timeout_seconds=0.0):
        raise AssertionError("two holders")
    with locked(tmp_path / "x.lock", timeout_seconds=0.0):
        pass


def test_a_config_keeps_types_and_sources() -> None:
    config = EngineConfig.of({"a": True, "b": 1, "c": 1.0, "d": "1"})
    back = config_from_document(config_to_document(config))
    assert back == config
    assert [type(v) for v in back.values().values()] == [bool, int, float, str]


def test_a_record_survives_the_round_trip(tmp_path: Path) -> None:
    initial = EngineConfig.of({"max_num_seqs": 2})
    record = ReplicaRecord(
        EngineConfig.of({"max_num_seqs": 4}),
        generation=3,
        fence=9,
        wanted=True,
        intent=Intent("op", EngineConfig.of({"x": 0.5}), 4, 1.5),
        process=ProcessId(1, 2, "boot"),
        process_generation=3,
        proven=True,
        restarts=2,
        restart_at=7.5,
        last_op_id="o",
        failure="f",
        failure_reason="TARGET_APPLY_FAILED",
        note="n",
    )
    state = StateFile(tmp_path / "r.json", initial)
    assert state.read() == ReplicaRecord(initial)
    state.update(lambda _: record)
    assert StateFile(tmp_path / "r.json", initial).read() == record


def test_a_refused_change_writes_nothing(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "r.json", EngineConfig())

    def refuse(_: ReplicaRecord) -> ReplicaRecord:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        state.update(refuse)
    assert not (tmp_path / "r.json").exists()


def test_a_state_file_of_another_format_is_refused(tmp_path: Path) -> None:
    write_atomically(tmp_path / "r.json", {"format": 99})
    with pytest.raises(TargetError, match="format 99"):
        StateFile(tmp_path / "r.json", EngineConfig()).read()
