"""From a spec to a target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from perf_service.models.config import EngineConfig
from perf_service.models.errors import ErrorReason, InvalidArgumentError, TargetError
from perf_service.models.fleet import Fleet, Instance, TargetKind, TargetSpec
from perf_service.models.metrics import Engine
from perf_service.targets import DryRunTarget, LocalTarget, TargetPool, check_spec, make_target

LOCAL = TargetSpec(TargetKind.LOCAL, {"command": "vllm serve --port {port} {flags}"})
FLEET = Fleet("f", Engine.VLLM)
INSTANCES = [Instance("a", Engine.VLLM, "http://127.0.0.1:9")]


@pytest.mark.parametrize("kind", [TargetKind.KUBERNETES, TargetKind.WEBHOOK])
def test_a_kind_that_this_version_does_not_have(kind: TargetKind) -> None:
    for refuse in (lambda: check_spec(TargetSpec(kind)), lambda: make_target(replace(FLEET, target=TargetSpec(kind)), [])):
        with pytest.raises(TargetError, match="it has dry_run and local") as info:
            refuse()
        assert info.value.reason is ErrorReason.TARGET_KIND_UNKNOWN


def test_a_spec_is_checked_before_it_is_used() -> None:
    check_spec(TargetSpec())
    check_spec(LOCAL)
    with pytest.raises(InvalidArgumentError, match="command"):
        check_spec(TargetSpec(TargetKind.LOCAL))


def test_the_spec_given_wins_over_the_fleets(tmp_path: Path) -> None:
    fleet = replace(FLEET, target=LOCAL)
    assert isinstance(make_target(fleet, INSTANCES, state_dir=tmp_path), LocalTarget)
    assert isinstance(make_target(fleet, INSTANCES, spec=TargetSpec(), state_dir=tmp_path), DryRunTarget)


def test_local_needs_a_state_directory(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="state directory"):
        make_target(FLEET, INSTANCES, spec=LOCAL)
    told = replace(LOCAL, options={**LOCAL.options, "state_dir": str(tmp_path / "own")})
    assert isinstance(make_target(FLEET, INSTANCES, spec=told), LocalTarget)
    assert (tmp_path / "own" / "local" / "f").is_dir()


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError) as info:
        make_target(FLEET, INSTANCES, spec=LOCAL, state_dir=tmp_path / "file")
    assert info.value.reason is ErrorReason.TARGET_UNAVAILABLE


async def test_the_pool_keeps_one_target_until_something_changes() -> None:
    pool = TargetPool()
    first = await pool.get(FLEET, INSTANCES)
    assert await pool.get(replace(FLEET, labels={"a": "b"}), list(INSTANCES)) is first
    changed = [replace(INSTANCES[0], config=EngineConfig.of({"max_num_seqs": 2}))]
    second = await pool.get(FLEET, changed)
    assert second is not first
    await pool.drop("f")
    assert await pool.get(FLEET, changed) is not second
    await pool.close()
