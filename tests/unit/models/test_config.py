from __future__ import annotations

from perf_service.models.config import ConfigChange, EngineConfig, KnobValue, Source, config_hash
from perf_service.models.metrics import DataIssue, DataQuality, Engine, IssueCode, IssueLevel
from perf_service.models.plan import plan_hash
from perf_service.models.workflow import WorkflowStatus


def test_own_values_win_over_weaker_ones_and_unknown_stays_unknown() -> None:
    told = EngineConfig.of({"max_num_seqs": 2})
    page = EngineConfig.of({"max_num_seqs": 256, "block_size": 16}, Source.PAGE)
    merged = told.over(page)
    assert merged.get("max_num_seqs") == 2
    assert merged.source("block_size") is Source.PAGE
    assert merged.get("max_model_len") is None
    assert merged.source("max_model_len") is None


def test_a_bool_is_no_number() -> None:
    config = EngineConfig.of({"enable_prefix_caching": True, "max_num_seqs": 8})
    assert config.number("enable_prefix_caching") is None
    assert config.number("max_num_seqs") == 8.0


def test_changes_set_and_remove_flags() -> None:
    config = EngineConfig.of({"num_gpu_blocks_override": 24, "max_num_seqs": 64})
    changed = config.with_changes((ConfigChange("num_gpu_blocks_override", 24, None), ConfigChange("max_num_seqs", 64, 128)))
    assert changed.values() == {"max_num_seqs": 128}
    assert config.values() == {"num_gpu_blocks_override": 24, "max_num_seqs": 64}


def test_the_hash_depends_on_values_alone() -> None:
    values: dict[str, KnobValue] = {"max_num_seqs": 2, "enable_prefix_caching": True, "kv_cache_dtype": "auto"}
    reversed_order = dict(reversed(values.items()))
    assert config_hash(EngineConfig.of(values, Source.USER)) == config_hash(EngineConfig.of(reversed_order, Source.PAGE))
    assert config_hash(EngineConfig.of({**values, "extra": 1})) != config_hash(EngineConfig.of(values))


def test_the_hash_tells_true_from_1() -> None:
    assert config_hash(EngineConfig.of({"a": True})) != config_hash(EngineConfig.of({"a": 1}))


def test_an_approval_hash_changes_with_any_value_and_not_with_the_order() -> None:
    first, second = ConfigChange("max_num_seqs", 2, 64), ConfigChange("block_size", 16, 32)
    base = plan_hash(Engine.VLLM, "0.32.0", (first, second))
    assert base == plan_hash(Engine.VLLM, "0.32.0", (second, first))
    assert base != plan_hash(Engine.VLLM, "0.33.0", (first, second))
    assert base != plan_hash(Engine.VLLM, "0.32.0", (ConfigChange("max_num_seqs", 2, 65), second))


def test_data_quality_blocks_the_page_only_without_a_metric() -> None:
    about_one = DataIssue(IssueCode.RESET, IssueLevel.BLOCKING, "reset", metric="preemptions")
    about_all = DataIssue(IssueCode.STALE, IssueLevel.BLOCKING, "stale")
    quality = DataQuality().plus(about_one, about_one)
    assert quality.issues == (about_one,)
    assert quality.usable
    assert not quality.plus(about_all).usable
    assert quality.plus(about_all).has(IssueCode.STALE)
    assert quality.blocking == (about_one,)


def test_terminal_states_are_those_that_never_change_again() -> None:
    terminal = {s for s in WorkflowStatus if s.terminal}
    assert WorkflowStatus.ROLLBACK_INCOMPLETE not in terminal
    assert terminal == {
        WorkflowStatus.COMPLETED,
        WorkflowStatus.NO_CHANGE,
        WorkflowStatus.FAILED,
        WorkflowStatus.REJECTED,
        WorkflowStatus.CANCELLED,
        WorkflowStatus.ROLLED_BACK,
    }
