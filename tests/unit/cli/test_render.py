"""A plan as the operator reads it: what may be pasted, and which risks belong to what is changed."""

from __future__ import annotations

from perf_service.cli.render import plan_view
from perf_service.models.config import ConfigChange
from perf_service.models.metrics import Engine
from perf_service.models.plan import Optimization, OptimizerKind, Plan

_CHANGE = ConfigChange("max_num_seqs", 2, 64)
_RAISE = Optimization(
    OptimizerKind.BATCHING, "Raise", "More at once.", (_CHANGE,), restart_cost="a restart",
    risks=("longer steps", "itl < 0.05 is predicted to be missed (0.1)"),
)  # fmt: skip
_PRECISION = Optimization(
    OptimizerKind.QUANTIZATION, "An fp8 cache", "Twice the tokens.", (ConfigChange("kv_cache_dtype", "auto", "fp8"),),
    risks=("accuracy may fall",), prerequisites=("a quality test",), needs_quality_gate=True,
)  # fmt: skip
_PLAN = Plan(Engine.VLLM, (_RAISE, _PRECISION), changes=(_CHANGE,), command_line="vllm serve tiny --max-num-seqs 64")


def test_a_command_says_that_it_is_not_all_of_it_and_can_be_pasted_with_that() -> None:
    command = str(dict(plan_view(_PLAN))["COMMAND"]).splitlines()
    assert command[0] == "vllm serve tiny --max-num-seqs 64"
    assert all(line.startswith("#") and len(line) <= 80 - 11 for line in command[1:]), "a comment that would wrap is a command"
    assert len(command) == 2


def test_an_objective_that_would_be_missed_is_the_first_risk() -> None:
    assert str(dict(plan_view(_PLAN))["RISKS"]).splitlines()[0] == "- itl < 0.05 is predicted to be missed (0.1)"


def test_what_needs_a_quality_test_is_advice_and_no_risk_of_the_change() -> None:
    rows = dict(plan_view(_PLAN))
    assert "accuracy" not in str(rows["RISKS"])
    assert "NEEDS" not in rows
    assert "An fp8 cache" in str(rows["ADVICE"])
