"""Whole plans: over the real runs, over bare findings, and with objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from perf_service.models.analysis import Analysis, BottleneckType, Cause, Verdict
from perf_service.models.config import ConfigChange, EngineConfig, Source
from perf_service.models.fleet import Hardware
from perf_service.models.metrics import DataIssue, DataQuality, Engine, Gauge, Hist, IssueCode, IssueLevel
from perf_service.models.plan import (
    Calibration,
    Direction,
    Estimate,
    LatencyEstimate,
    Plan,
    PredictedEffect,
    Prediction,
)
from perf_service.models.slo import SLOTarget
from perf_service.models.window import GaugeStats, Window
from perf_service.optimization.catalogue import KnobCatalogue
from perf_service.optimization.engine import MAX_CANDIDATES, NOTHING, OptimizationEngine
from perf_service.optimization.objectives import estimate_of
from tests.support.real_runs import finding, overall, plan_of

CATALOGUE = KnobCatalogue.load()


def bare(*kinds: BottleneckType, engine: Engine = Engine.VLLM) -> Analysis:
    return Analysis("i-1", engine, bottlenecks=tuple(finding(k) for k in kinds))


# ---- Real runs ----


def test_a_fixed_queue_names_the_metric_that_gets_worse() -> None:
    plan = plan_of("b_queue_bad_r2", {"max_num_seqs": 2})
    direction = {e.metric: e.direction for e in plan.effects}
    assert direction["throughput_tokens_per_second"] is Direction.IMPROVES
    assert direction["ttft_seconds_mean"] is Direction.IMPROVES
    assert direction["itl_seconds_mean"] is Direction.WORSENS
    assert "itl_seconds" in plan.optimizations[0].expected_losers
    assert "worse" in plan.estimated_total_improvement
    assert "throughput x" in plan.estimated_total_improvement
    assert plan.optimizations[0].rollback == "max_num_seqs back to 2"
    assert "restarts" in plan.optimizations[0].restart_cost


# ---- Bare findings ----


def test_bare_findings_give_a_plan(engine: Engine) -> None:
    plan = OptimizationEngine().generate_plan(bare(BottleneckType.QUEUE_BUILDUP, BottleneckType.MEMORY_PRESSURE, engine=engine))
    assert 0 < len(plan.optimizations) <= MAX_CANDIDATES
    assert plan.estimated_total_improvement
    assert plan.instance_id == "i-1"
    assert plan.prediction is None, "nothing was measured"


def test_no_finding_no_plan(engine: Engine) -> None:
    plan = OptimizationEngine().generate_plan(bare(engine=engine))
    assert plan.empty
    assert plan.optimizations == ()
    assert NOTHING in plan.estimated_total_improvement
    assert plan.plan_hash


def test_a_change_of_precision_is_listed_but_never_rolled_out() -> None:
    plan = OptimizationEngine().generate_plan(bare(BottleneckType.HIGH_LATENCY))
    assert any(o.needs_quality_gate for o in plan.optimizations)
    assert plan.empty
    assert "quality test" in plan.summary


def test_measured_but_unexplained_supports_no_flag() -> None:
    analysis = replace(bare(BottleneckType.QUEUE_BUILDUP), window=overall("a_healthy"))
    plan = OptimizationEngine().generate_plan(analysis)
    assert plan.empty
    assert plan.advice


def test_untrusted_data_supports_nothing() -> None:
    stale = DataQuality((DataIssue(IssueCode.STALE, IssueLevel.BLOCKING, "the page does not change"),))
    plan = OptimizationEngine().generate_plan(replace(bare(BottleneckType.QUEUE_BUILDUP), quality=stale))
    assert plan.empty
    assert plan.optimizations == ()


def test_what_the_caller_knows_is_stronger_than_what_the_analysis_found() -> None:
    analysis = replace(bare(BottleneckType.QUEUE_BUILDUP), config=EngineConfig.of({"max_num_seqs": 8}, Source.INFERRED))
    assert OptimizationEngine().generate_plan(analysis).changes[0].recommended_value == 16
    assert OptimizationEngine().generate_plan(analysis, {"max_num_seqs": 32}).changes[0].recommended_value == 64


def test_large_accelerators_may_go_beyond_the_usual_cap() -> None:
    h100 = Hardware("H100-SXM", 1, 80 << 30, "9.0")
    plan = OptimizationEngine().generate_plan(
        bare(BottleneckType.QUEUE_BUILDUP), {"max_num_seqs": 256}, hardware=h100, engine_version="0.33.0"
    )
    assert plan.changes[0].recommended_value == 512


# ---- Scoring and merging, with a predictor of the test's own ----


class Says:
    """A forecaster that knows the throughput ratio of each knob."""

    def __init__(self, **ratios: float) -> None:
        self.ratios = ratios
        self.asked: list[tuple[ConfigChange, ...]] = []

    def predict(
        self, windows: Window | Sequence[Window], current: EngineConfig, changes: Any, *, hardware: Hardware | None = None
    ) -> tuple[Prediction, Prediction, tuple[PredictedEffect, ...]]:
        made: tuple[ConfigChange, ...] = tuple(changes)
        self.asked.append(made)
        ratio = 1.0
        for change in made:
            ratio *= self.ratios.get(change.parameter, 1.0)
        one, many = Estimate(100, 95, 105), Estimate(100 * ratio, 95 * ratio, 105 * ratio)
        effect = PredictedEffect(
            "throughput_tokens_per_second", Direction.IMPROVES if ratio > 1 else Direction.WORSENS, one, many,
            Estimate(ratio, ratio * 0.9, ratio * 1.1),
        )  # fmt: skip
        flat = LatencyEstimate(Estimate(0.1, 0.1, 0.1))
        return (
            Prediction(current, Calibration.FITTED, one, itl_seconds=flat),
            Prediction(current.with_changes(made), Calibration.FITTED, many, itl_seconds=flat),
            (effect,) if made else (),
        )


def exhausted() -> Analysis:
    cause = finding(BottleneckType.MEMORY_PRESSURE, Cause.KV_EXHAUSTED)
    return Analysis("i", Engine.VLLM, bottlenecks=(cause,), verdict=Verdict.TUNE, window=overall("c_kv_bad_r2"), engine_version="0.32.0")


def without_cap(analysis: Analysis) -> Analysis:
    """The same run as if nobody had capped the pool."""
    window = analysis.window
    assert window is not None
    kept = EngineConfig({k: v for k, v in window.config.settings.items() if k not in ("num_gpu_blocks_override", "kv_cache_memory_bytes")})
    return replace(analysis, window=replace(window, config=kept))


def test_candidates_come_in_the_order_of_predicted_benefit_over_risk() -> None:
    plan = OptimizationEngine(Says(gpu_memory_utilization=1.1, watermark=2.0)).generate_plan(without_cap(exhausted()))
    assert plan.changes[0].parameter == "watermark"
    assert len(plan.optimizations) <= MAX_CANDIDATES
    assert len({c.parameter for c in plan.changes}) == len(plan.changes)


def test_each_set_of_changes_is_predicted_once() -> None:
    for analysis, candidates in ((exhausted(), 1), (without_cap(exhausted()), 3)):
        predictor = Says(num_gpu_blocks_override=2.0, gpu_memory_utilization=1.1, watermark=2.0)
        plan = OptimizationEngine(predictor).generate_plan(analysis, slo_targets=[SLOTarget("itl", 0.5)])
        assert len(plan.optimizations) == candidates
        assert plan.changes in predictor.asked
        assert len(predictor.asked) == len(set(predictor.asked))


def test_what_is_predicted_to_harm_is_dropped_and_said() -> None:
    plan = OptimizationEngine(Says(gpu_memory_utilization=0.5, watermark=1.5)).generate_plan(without_cap(exhausted()))
    assert "gpu_memory_utilization" not in {c.parameter for c in plan.changes}
    assert any(o.title.startswith("Not recommended") for o in plan.advice)
    assert all(o.advice_only for o in plan.advice)


def test_an_objective_that_is_predicted_to_be_missed_is_a_risk() -> None:
    plan = OptimizationEngine(Says(watermark=1.5)).generate_plan(without_cap(exhausted()), slo_targets=[SLOTarget("itl", 0.05)])
    assert any(risk == "itl < 50.0 ms is still predicted to be missed: 100 ms" for risk in plan.optimizations[0].risks)


class Slower(Says):
    """A forecaster whose ITL is a millisecond for each four tokens of the budget, and grows with the number of changes."""

    def predict(self, *args: Any, **more: Any) -> tuple[Prediction, Prediction, tuple[PredictedEffect, ...]]:
        before, after, effects = super().predict(*args, **more)
        made: tuple[ConfigChange, ...] = tuple(args[2])
        budget = next((c.recommended_value for c in made if c.parameter == "max_num_batched_tokens"), None)
        itl = budget / 4000 if isinstance(budget, int) else 0.1 * len(made)
        return before, replace(after, itl_seconds=LatencyEstimate(Estimate(itl, itl, itl))), effects


def test_a_raised_token_budget_stops_where_an_itl_objective_would_be_missed() -> None:
    cause = finding(BottleneckType.BATCH_SIZE_SUBOPTIMAL, Cause.TOKEN_BUDGET_TOO_SMALL)
    found = Analysis("i", Engine.VLLM, bottlenecks=(cause,), window=overall("d_prefill_bad_r2"), engine_version="0.32.0")
    analysis = replace(found, verdict=Verdict.TUNE)
    predictor = Slower(max_num_batched_tokens=1.5)

    def proposed(*objectives: SLOTarget) -> object:
        plan = OptimizationEngine(predictor).generate_plan(analysis, {"max_num_batched_tokens": 64}, slo_targets=objectives)
        return plan.changes[0].recommended_value

    assert proposed() == 2048
    assert proposed(SLOTarget("itl", 0.15)) == 512


def test_what_takes_an_objective_further_beside_the_others_is_left_out_and_said() -> None:
    predictor = Slower(gpu_memory_utilization=1.2, watermark=1.5)
    plan = OptimizationEngine(predictor).generate_plan(without_cap(exhausted()), slo_targets=[SLOTarget("itl", 0.05)])
    assert [c.parameter for c in plan.changes] == ["watermark"]
    assert {r for o in plan.optimizations for r in o.risks if "missed" in r} == {"itl < 50.0 ms is still predicted to be missed: 100 ms"}
    assert any("gpu_memory_utilization" in o.title and "Beside the other changes" in o.description for o in plan.advice)


class Trade(Says):
    """A forecaster of a token budget: TTFT falls and ITL rises with it. Nothing else changes anything."""

    def predict(self, *args: Any, **more: Any) -> tuple[Prediction, Prediction, tuple[PredictedEffect, ...]]:
        before, after, effects = super().predict(*args, **more)
        made: tuple[ConfigChange, ...] = tuple(args[2])
        budget = next((c.recommended_value for c in made if c.parameter == "max_num_batched_tokens"), 64)
        assert isinstance(budget, int)

        def at(prediction: Prediction, tokens: int) -> Prediction:
            ttft, itl = (LatencyEstimate(Estimate(s, s / 2, s * 2)) for s in (64 / tokens, tokens / 4096))
            return replace(prediction, ttft_seconds=ttft, itl_seconds=itl)

        return at(before, 64), at(after, budget), effects


def small_budget(*objectives: SLOTarget) -> Plan:
    cause = finding(BottleneckType.BATCH_SIZE_SUBOPTIMAL, Cause.TOKEN_BUDGET_TOO_SMALL)
    found = Analysis("i", Engine.VLLM, bottlenecks=(cause,), window=overall("d_prefill_bad_r2"), engine_version="0.32.0")
    analysis = replace(found, verdict=Verdict.TUNE)
    predictor = Trade(max_num_batched_tokens=1.5)
    return OptimizationEngine(predictor).generate_plan(analysis, {"max_num_batched_tokens": 64}, slo_targets=objectives)


def chosen(plan: Plan) -> object:
    return plan.changes[0].recommended_value if plan.changes else None


def test_a_value_that_meets_the_missed_objective_and_keeps_the_met_one_is_taken() -> None:
    assert chosen(small_budget()) == 2048, "no objective, no reason to hold back"
    plan = small_budget(SLOTarget("ttft", 0.2), SLOTarget("itl", 0.15))
    assert chosen(plan) == 512, "TTFT 0.125 s, ITL 0.125 s"
    assert "limited to 512: with 1024 itl < 150 ms would be 250 ms" in plan.changes[0].reason
    told = plan.optimizations[0]
    assert not any("2048" in text for text in (told.title, told.description, *told.prerequisites)), "the words are of the value taken"
    assert any(r.startswith("itl < 150 ms may be missed: predicted 125 ms, at worst 250 ms") for r in told.risks)


def test_a_measured_number_that_equals_the_proposed_value_stays_as_it_was_measured() -> None:
    """64 sequences would be enough, and about 64 requests fit into the KV cache: with 32 at once they still do."""
    queue = finding(BottleneckType.QUEUE_BUILDUP, Cause.BATCH_LIMIT)
    one = overall("b_queue_bad_r2")
    tokens = (one.mean(Hist.PROMPT_TOKENS) or 0.0) + (one.mean(Hist.GENERATION_TOKENS) or 0.0)
    room = GaugeStats(64.1 * tokens, 64.1 * tokens, 64.1 * tokens, 64.1 * tokens, 9)
    window = replace(one, gauges={**one.gauges, Gauge.KV_CAPACITY_TOKENS: room})
    found = Analysis("i", Engine.VLLM, bottlenecks=(queue,), window=window, engine_version="0.32.0")

    class Longer(Says):
        """A forecaster whose ITL is a millisecond for each sequence."""

        def predict(self, *args: Any, **more: Any) -> tuple[Prediction, Prediction, tuple[PredictedEffect, ...]]:
            before, after, effects = super().predict(*args, **more)
            sequences = after.config.number("max_num_seqs")
            assert sequences
            itl = Estimate(sequences / 1000, sequences / 1000, sequences / 1000)
            return before, replace(after, itl_seconds=LatencyEstimate(itl)), effects

    engine = OptimizationEngine(Longer(max_num_seqs=1.5))
    plan = engine.generate_plan(replace(found, verdict=Verdict.TUNE), {"max_num_seqs": 2}, slo_targets=[SLOTarget("itl", 0.04)])
    assert chosen(plan) == 32
    told = plan.optimizations[0]
    assert told.title == "Raise max_num_seqs to 32"
    assert "The KV cache holds about 64 requests" in told.description


def test_a_value_that_only_comes_nearer_is_taken_and_the_miss_is_said() -> None:
    plan = small_budget(SLOTarget("ttft", 0.2), SLOTarget("itl", 0.07))
    assert chosen(plan) == 256, "TTFT 0.25 s instead of 1 s, ITL 0.0625 s"
    assert any(r == "ttft < 200 ms is still predicted to be missed: 250 ms" for r in plan.optimizations[0].risks)


def test_where_every_value_breaks_a_met_objective_the_choice_is_the_operators() -> None:
    plan = small_budget(SLOTarget("ttft", 0.2), SLOTarget("itl", 0.02))
    assert plan.empty
    assert plan.optimizations == ()
    choice = plan.advice[0]
    assert choice.advice_only
    assert choice.title == "Choose between ttft < 200 ms and itl < 20.0 ms: no value of max_num_batched_tokens meets both"
    assert "as it is ttft 1.00 s, itl 15.6 ms; with 128 ttft 500 ms, itl 31.2 ms" in choice.description
    assert choice.title[7:] in plan.summary


def test_a_missed_objective_is_not_taken_further_from_its_target() -> None:
    plan = small_budget(SLOTarget("itl", 0.01))
    assert plan.empty
    assert "would harm an objective that is missed already" in plan.advice[0].title


def test_the_no_op_is_always_ranked() -> None:
    for objectives in ((), (SLOTarget("ttft", 0.2), SLOTarget("itl", 0.15)), (SLOTarget("itl", 0.01),)):
        plan = small_budget(*objectives)
        noop = [o for o in plan.options if not o.changes]
        assert len(noop) == 1
        assert noop[0].chosen is plan.empty
        assert [o.chosen for o in plan.options] == [True] + [False] * (len(plan.options) - 1), "what is proposed comes first"
        assert [f.target for f in noop[0].objectives] == list(objectives)
    harmless = small_budget(SLOTarget("ttft", 0.2), SLOTarget("itl", 0.02)).options
    assert not harmless[0].changes
    assert all("breaks itl < 20.0 ms" in o.note for o in harmless[1:])


def test_the_likelier_cause_is_cured_first() -> None:
    """What a change would gain if a less likely cause were the one does not put it before the cure of the likely one."""

    def first(confidence: float) -> str:
        likely = replace(finding(BottleneckType.QUEUE_BUILDUP, Cause.BATCH_LIMIT), confidence_ratio=0.9)
        other = replace(finding(BottleneckType.BATCH_SIZE_SUBOPTIMAL, Cause.TOKEN_BUDGET_TOO_SMALL), confidence_ratio=confidence)
        found = Analysis("i", Engine.VLLM, bottlenecks=(likely, other), window=overall("b_queue_bad_r2"), engine_version="0.32.0")
        analysis = replace(found, verdict=Verdict.TUNE)
        predictor = Says(max_num_seqs=1.2, max_num_batched_tokens=3.0)
        known = {"max_num_seqs": 2, "max_num_batched_tokens": 64}
        return OptimizationEngine(predictor).generate_plan(analysis, known).optimizations[0].config_changes[0].parameter

    assert first(0.5) == "max_num_seqs"
    assert first(0.85) == "max_num_batched_tokens", "as likely, and it gains more"


class OneIsEnough(Says):
    """A forecaster to whom two cures bring no more than the better of them."""

    def predict(self, *args: Any, **more: Any) -> tuple[Prediction, Prediction, tuple[PredictedEffect, ...]]:
        best = max(args[2], key=lambda c: self.ratios.get(c.parameter, 1.0), default=None)
        before, after, effects = super().predict(args[0], args[1], (best,) if best else (), **more)
        return before, replace(after, config=args[1].with_changes(tuple(args[2]))), effects


def test_what_adds_nothing_beside_the_others_waits() -> None:
    plan = OptimizationEngine(OneIsEnough(watermark=1.5, gpu_memory_utilization=1.4)).generate_plan(without_cap(exhausted()))
    assert [c.parameter for c in plan.changes] == ["watermark"]
    assert any("gpu_memory_utilization" in o.title and "look again after them" in o.description for o in plan.advice)


def test_where_nothing_has_to_be_done_a_change_is_advice_only() -> None:
    content = replace(exhausted(), verdict=Verdict.NOTHING_TO_DO)
    predictor = Says(num_gpu_blocks_override=2.0)
    plan = OptimizationEngine(predictor).generate_plan(content)
    assert plan.empty
    assert plan.optimizations == ()
    assert all(o.advice_only for o in plan.advice)
    assert "Nothing has to be done: no restart is worth it." in plan.advice[0].description
    assert "nothing has to be done" in plan.summary
    asked = OptimizationEngine(predictor).generate_plan(content, slo_targets=[SLOTarget("itl", 0.01)])
    assert asked.changes, "the analysis was not asked about this objective, which is missed"


def test_a_restart_for_no_gain_is_not_proposed() -> None:
    queue = finding(BottleneckType.QUEUE_BUILDUP, Cause.BATCH_LIMIT)
    found = Analysis("i", Engine.VLLM, bottlenecks=(queue,), window=overall("b_queue_bad_r2"), engine_version="0.32.0")
    analysis = replace(found, verdict=Verdict.TUNE)
    plan = OptimizationEngine(Says(max_num_seqs=1.0)).generate_plan(analysis, {"max_num_seqs": 2})
    assert plan.empty
    assert any(o.title.startswith("Not recommended") and "bring nothing here" in o.description for o in plan.advice)
    thrashing = finding(BottleneckType.CACHE_INEFFICIENCY, Cause.PREFIX_CACHE_THRASHING)
    for rough in (exhausted(), replace(exhausted(), bottlenecks=(thrashing,))):
        cure = OptimizationEngine(Says(num_gpu_blocks_override=1.0)).generate_plan(rough)
        assert [c.parameter for c in cure.changes] == ["num_gpu_blocks_override"], "modelled too roughly to say that it brings nothing"


def test_fewer_sequences_are_no_answer_while_the_time_between_tokens_is_met() -> None:
    """Decoding may be what takes the time, but the operator is content with it: a limit would only make requests wait."""
    decoding = finding(BottleneckType.HIGH_LATENCY, Cause.DECODE_BOUND, Verdict.SCALE)
    analysis = Analysis("i", Engine.VLLM, bottlenecks=(decoding,), window=overall("e_decode_bad"), engine_version="0.32.0")

    def changes(itl: float) -> tuple[ConfigChange, ...]:
        goals = [SLOTarget("itl", itl), SLOTarget("ttft", 60.0)]
        return OptimizationEngine().generate_plan(analysis, {"max_num_seqs": 64}, slo_targets=goals).changes

    assert changes(0.025), "54 ms are measured: missed"
    assert changes(0.06) == ()


def test_a_share_of_requests_within_a_bound_is_judged_by_the_quantile() -> None:
    prediction = Prediction(
        EngineConfig(), Calibration.FITTED,
        ttft_seconds=LatencyEstimate(Estimate(0.2, 0.1, 0.3), p50=Estimate(0.1, 0.1, 0.1), p95=Estimate(0.9, 0.8, 1.0)),
    )  # fmt: skip
    found = estimate_of(prediction, SLOTarget("ttft", 0.5, objective_ratio=0.95))
    assert found is not None
    assert found.value == 0.9
    assert estimate_of(prediction, SLOTarget("ttft", 0.5, objective_ratio=0.99)) is None


def test_advice_for_nobody_is_no_change_to_make() -> None:
    analysis = bare(BottleneckType.HIGH_LATENCY)
    found = tuple(replace(b, cause=Cause.CLIENT_ABORTS) for b in analysis.bottlenecks)
    summaries = {
        verdict: OptimizationEngine().generate_plan(replace(analysis, bottlenecks=found, verdict=verdict)).summary
        for verdict in (Verdict.LOOK_AT_CLIENT, Verdict.NOTHING_TO_DO, Verdict.WAIT)
    }
    assert "nothing has to be done" in summaries[Verdict.NOTHING_TO_DO]
    assert "look again" in summaries[Verdict.WAIT]
    assert len(set(summaries.values())) == 3
