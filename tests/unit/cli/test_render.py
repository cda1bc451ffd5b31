"""A plan as the operator reads it: what may be pasted, and which risks belong to what is changed."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from perf_service.cli.render import plan_view, sections
from perf_service.models.config import ConfigChange
from perf_service.models.metrics import Engine
from perf_service.models.plan import Estimate, ObjectiveForecast, Optimization, OptimizerKind, Plan, PlanOption
from perf_service.models.slo import parse_slo

_CHANGE = ConfigChange("max_num_seqs", 2, 64)
_RAISE = Optimization(
    OptimizerKind.BATCHING, "Raise", "More at once.", (_CHANGE,), restart_cost="a restart",
    risks=("longer steps", "itl < 50.0 ms is predicted to be missed: 100 ms"),
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
    assert str(dict(plan_view(_PLAN))["RISKS"]).splitlines()[0] == "- itl < 50.0 ms is predicted to be missed: 100 ms"


def test_what_needs_a_quality_test_is_advice_and_no_risk_of_the_change() -> None:
    rows = dict(plan_view(_PLAN))
    assert "accuracy" not in str(rows["RISKS"])
    assert "NEEDS" not in rows
    assert "An fp8 cache" in str(rows["ADVICE"])


def _seen(*milliseconds: float) -> tuple[ObjectiveForecast, ...]:
    targets = (parse_slo("ttft<500ms"), parse_slo("itl<50ms"))
    values = [Estimate(ms / 1000, ms / 1000, ms / 1000) for ms in milliseconds]
    return tuple(ObjectiveForecast(t, v, t.met_by(v.value)) for t, v in zip(targets, values, strict=True))


def _text(plan: Plan) -> str:
    out = io.StringIO()
    sections(Console(file=out, width=80), plan_view(plan))
    return out.getvalue()


def test_what_was_weighed_is_a_table_with_the_no_op_in_it() -> None:
    def option(value: int, *ms: float) -> PlanOption:
        return PlanOption((replace(_CHANGE, recommended_value=value),), _seen(*ms), chosen=value == 64)

    options = (option(64, 300, 40), PlanOption((), _seen(900, 20)), option(128, 200, 70), option(256, 200, 70))
    text = _text(replace(_PLAN, options=options))
    table = [
        " ".join(line.split())
        for line in text.splitlines()[text.splitlines().index(next(r for r in text.splitlines() if "OPTIONS" in r)) :]
    ]
    assert table[0] == "OPTIONS max_num_seqs ttft < 500 ms itl < 50.0 ms"
    assert table[2:5] == ["64 (proposed) 300 ms met 40.0 ms met", "as it is 900 ms missed 20.0 ms met", "128 200 ms met 70.0 ms missed"]
    assert not any(row.startswith("256") for row in table), "it comes to the same as 128"


def test_options_of_which_nothing_is_predicted_are_no_table() -> None:
    unknown = tuple(ObjectiveForecast(f.target) for f in _seen(1, 1))
    assert "OPTIONS" not in _text(replace(_PLAN, options=(PlanOption((_CHANGE,), unknown, chosen=True), PlanOption((), _seen(900, 20)))))
    assert "OPTIONS" not in _text(replace(_PLAN, options=(PlanOption((_CHANGE,), chosen=True), PlanOption())))


def test_the_reason_of_a_value_stands_under_it_and_one_restart_is_told_once() -> None:
    why = replace(_CHANGE, reason="limited to 64 by the KV cache: 70 requests of this length fit")
    other = replace(_RAISE, title="Other", restart_cost="a restart that takes longer")
    rows = dict(plan_view(replace(_PLAN, optimizations=(_RAISE, other), changes=(why,))))
    assert rows["WHY"] == "limited to 64 by the KV cache: 70 requests of this length fit"
    assert str(rows["RISKS"]).count("a restart") == 1
    assert "a restart that takes longer" in str(rows["RISKS"])
