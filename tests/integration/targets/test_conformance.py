"""What every target does alike: idempotent, compare-and-set, fenced, restorable, observed as it is."""

from __future__ import annotations

from typing import Any

import pytest

from perf_service.models.config import config_hash
from perf_service.models.errors import ErrorReason, TargetError


async def test_a_change_converges_and_touches_no_other_replica(harness: Any, kit: Any) -> None:
    target = await harness.start()
    before = await target.observe()
    assert [(r.instance_id, r.ready, r.config.values()) for r in before.replicas] == [(n, True, {"max_num_seqs": 2}) for n in "ab"]
    after = await harness.change(target, "a", kit.config(64))
    assert (after.failed, after.config_hash) == (False, config_hash(kit.config(64)))
    assert after.generation == before.replica("a").generation + 1
    assert (await kit.replica(target, "b")) == before.replica("b")


async def test_only_a_dry_run_changes_nothing(harness: Any) -> None:
    assert (await (await harness.start()).observe()).capabilities.changes_anything is harness.local


async def test_applying_again_is_no_change(harness: Any, kit: Any) -> None:
    target = await harness.start()
    before = await kit.replica(target, "a")
    same = kit.op()
    for _ in range(2):  # a lost reply, so the caller sends it again
        await target.apply("a", kit.config(64), expect_hash=before.config_hash, op=same)
    first = await kit.settled(target, "a", kit.config(64))
    await target.apply("a", kit.config(64), expect_hash=before.config_hash, op=same)
    await target.apply("a", kit.config(64), expect_hash=first.config_hash, op=kit.op())
    assert (await kit.replica(target, "a")).generation == before.generation + 1


async def test_a_config_that_somebody_else_changed_is_left_alone(harness: Any, kit: Any) -> None:
    target = await harness.start()
    before = await kit.replica(target, "a")
    with pytest.raises(TargetError, match="somebody else") as info:
        await target.apply("a", kit.config(64), expect_hash=config_hash(kit.config(3)), op=kit.op())
    assert info.value.reason is ErrorReason.TARGET_DRIFT
    assert info.value.metadata["observed_hash"] == before.config_hash
    assert await kit.replica(target, "a") == before


async def test_a_lower_fence_is_refused(harness: Any, kit: Any) -> None:
    target = await harness.start()
    state = await harness.change(target, "a", kit.config(8), fence=7)
    for call in (
        target.apply("a", kit.config(9), expect_hash=state.config_hash, op=kit.op(fence=6)),
        target.restore("a", kit.config(2), op=kit.op(fence=6)),
    ):
        with pytest.raises(TargetError, match="lost its lease") as info:
            await call
        assert info.value.reason is ErrorReason.LEASE_LOST
    assert (await kit.replica(target, "a")).config_hash == config_hash(kit.config(8))
    await target.restore("a", kit.config(2), op=kit.op(fence=7))
    assert not (await kit.settled(target, "a", kit.config(2))).failed


async def test_a_fence_is_remembered_by_the_next_target(harness: Any, kit: Any) -> None:
    target = await harness.start()
    await harness.change(target, "a", kit.config(8), fence=7)
    await target.close()
    successor = harness.make()
    assert (await kit.replica(successor, "a")).config_hash == config_hash(kit.config(8))
    with pytest.raises(TargetError) as info:
        await successor.restore("a", kit.config(2), op=kit.op(fence=6))
    assert info.value.reason is ErrorReason.LEASE_LOST


async def test_restore_is_a_no_change_where_nothing_was_changed(harness: Any, kit: Any) -> None:
    target = await harness.start()
    before = await kit.replica(target, "a")
    await target.restore("a", before.config, op=kit.op())
    assert await kit.replica(target, "a") == before


async def test_a_change_and_its_way_back(harness: Any, kit: Any) -> None:
    target = await harness.start()
    recorded = (await kit.replica(target, "a")).config
    await harness.change(target, "a", kit.config(64))
    await target.restore("a", recorded, op=kit.op())
    state = await kit.settled(target, "a", recorded)
    assert (state.ready, state.config_hash) == (True, config_hash(recorded))


async def test_an_unknown_replica(harness: Any, kit: Any) -> None:
    target = harness.make()
    for call in (
        target.apply("x", kit.config(1), expect_hash="", op=kit.op()),
        target.restore("x", kit.config(1), op=kit.op()),
    ):
        with pytest.raises(TargetError, match="no replica 'x'") as info:
            await call
        assert info.value.reason is ErrorReason.INSTANCE_NOT_FOUND
    assert any("'x'" in problem for problem in (await target.preflight({"x": kit.config(1)})).problems)


async def test_preflight_touches_nothing(harness: Any, kit: Any) -> None:
    target = await harness.start()
    before = await target.observe()
    report = await target.preflight({"a": kit.config(64), "b": kit.config(64)})
    assert report.problems == ()
    assert report.notes
    assert (await target.observe()).replicas == before.replicas
