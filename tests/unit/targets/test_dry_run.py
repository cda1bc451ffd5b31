"""What only the dry run does; the rest is in the conformance suite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from perf_service.models.config import EngineConfig, config_hash
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine
from perf_service.targets import DryRunTarget, Op

OLD, NEW = EngineConfig.of({"max_num_seqs": 2}), EngineConfig.of({"max_num_seqs": 64})
INSTANCE = Instance("a", Engine.VLLM, "http://h:1", config=OLD, engine_version="0.11")


def target(*instances: Instance, file: Path | None = None) -> DryRunTarget:
    return DryRunTarget("f", instances or (INSTANCE,), lambda: 5.0, file)


async def test_the_journal_says_what_would_have_been_done() -> None:
    dry = target()
    await dry.apply("a", NEW, expect_hash=config_hash(OLD), op=Op("1", 1, 0))
    await dry.apply("a", NEW, expect_hash=config_hash(OLD), op=Op("1", 1, 0))
    await dry.restore("a", OLD, op=Op("2", 1, 0))
    assert [(e.op_id, e.config, e.restore, e.at) for e in dry.journal] == [("1", NEW, False, 5.0), ("2", OLD, True, 5.0)]


async def test_observed_replicas_say_that_nothing_was_applied() -> None:
    dry = target()
    await dry.apply("a", NEW, expect_hash=config_hash(OLD), op=Op("1", 1, 0))
    [state] = (await dry.observe()).replicas
    assert (state.config, state.ready, state.engine_version) == (NEW, True, "0.11")
    assert "not applied" in state.message


async def test_a_real_change_since_wins_over_the_record(tmp_path: Path) -> None:
    dry = target(file=tmp_path / "f.json")
    await dry.apply("a", NEW, expect_hash=config_hash(OLD), op=Op("1", 1, 0))
    real = EngineConfig.of({"max_num_seqs": 8})
    [state] = (await target(replace(INSTANCE, config=real), file=tmp_path / "f.json").observe()).replicas
    assert state.config == real
    [state] = (await target(file=tmp_path / "f.json").observe()).replicas
    assert state.config == NEW
