"""From an analysis to one consistent plan: candidates of three optimizers, scored by the predictor, merged, and printable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from perf_service.models.analysis import Analysis, Bottleneck, Cause, Verdict
from perf_service.models.config import ConfigChange, EngineConfig, KnobValue
from perf_service.models.fleet import Hardware
from perf_service.models.metrics import Engine
from perf_service.models.plan import (
    Direction,
    Optimization,
    OptimizerKind,
    Plan,
    PlanOption,
    PredictedEffect,
    Prediction,
    plan_hash,
)
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window
from perf_service.optimization import render
from perf_service.optimization.batching_optimizer import DEFAULT_MAX_BATCH_SIZE, BatchingOptimizer
from perf_service.optimization.catalogue import KnobCatalogue
from perf_service.optimization.choosing import Forecast, weigh
from perf_service.optimization.configs import ConfigLike, read_config
from perf_service.optimization.kv_cache_optimizer import KVCacheOptimizer
from perf_service.optimization.objectives import Objectives
from perf_service.optimization.predictor import Predictor
from perf_service.optimization.quantization_optimizer import QuantizationOptimizer
from perf_service.optimization.ranking import idle, not_beside, of_cause, order, ranked
from perf_service.optimization.scoring import describe, harmful
from perf_service.optimization.situation import Situation, optimization, relevant

MAX_CANDIDATES = 3
NOTHING = "No optimizations recommended"

Changes = Mapping[str, KnobValue | None] | Sequence[ConfigChange]


class Forecaster(Protocol):
    """What the engine asks of a predictor: (no-op, with the changes, effects) from an instance's windows."""

    def predict(
        self, windows: Window | Sequence[Window], current: EngineConfig, changes: Changes, *, hardware: Hardware | None = None
    ) -> Forecast:
        """Predictions of the present workload under the current config and with the changes."""
        ...


class _Forecasts:
    """What is predicted for one plan, each set of changes once: a plan of a single candidate is that candidate."""

    def __init__(self, predictor: Forecaster, at: Situation, windows: tuple[Window, ...]) -> None:
        self.windows = windows
        self._predictor, self._at = predictor, at
        self._made: dict[tuple[ConfigChange, ...], Forecast] = {}

    def of(self, changes: tuple[ConfigChange, ...]) -> Forecast:
        """Prediction of the workload with these changes; there must be windows."""
        if changes not in self._made:
            self._made[changes] = self._predictor.predict(self.windows, self._at.config, changes, hardware=self._at.hardware)
        return self._made[changes]


class OptimizationEngine:
    """Makes plans. Stateless and pure: no clock, no id; those are given to a plan by whoever stores it."""

    def __init__(self, predictor: Forecaster | None = None, catalogue: KnobCatalogue | None = None) -> None:
        self._predictor: Forecaster = predictor or Predictor()
        self._catalogue = catalogue or KnobCatalogue.load()

    def generate_plan(
        self,
        analysis: Analysis,
        current_config: ConfigLike = None,
        *,
        hardware: Hardware | None = None,
        slo_targets: Sequence[SLOTarget] | None = None,
        engine_version: str = "",
        windows: Sequence[Window] = (),
    ) -> Plan:
        """At most three optimizations in the order of predicted benefit over risk, merged, with the no-op beside them.

        `current_config` is what is known beside (and stronger than) what the analysis carries. `windows` are the parts of the
        analysis' window: with several of them the predictor sees how the instance behaves at different loads.
        A change of precision is listed but never part of the merged `changes`. Raises InvalidArgumentError for an unknown engine.
        """
        at = self._situation(analysis, current_config, hardware, slo_targets, engine_version)
        seen = _Forecasts(self._predictor, at, tuple(windows) or ((analysis.window,) if analysis.window else ()))
        candidates, advice = self._candidates(analysis, at)
        goals = Objectives.of(at.slo_targets, analysis.slo_statuses, seen.of(())[0] if seen.windows else None, seen.windows)
        if _content(analysis, goals):
            candidates, advice = [], [*(_as_advice(c, "Nothing has to be done: no restart is worth it.") for c in candidates), *advice]
        weighed = [weigh(c, at, seen.of, goals) for c in candidates] if seen.windows else []
        scored = [_with_losers(w.candidate) for w in weighed if w.candidate] if seen.windows else candidates
        dropped = [c for c in scored if harmful(c, at.slo_targets) or idle(c, seen.of, goals, at)]
        kept = sorted((c for c in scored if c not in dropped), key=order(analysis, at))
        # A trade-off loses by design what the operator's objectives allow; it is no free gain and comes last.
        kept += self._trade_off(analysis, at, seen, goals)
        chosen, changes, left_out = self._merge(kept, at, seen, goals)
        advice = [w.choice for w in weighed if w.choice] + advice
        advice += [_as_advice(c, f"Predicted to bring nothing here: {describe(c.effects) or 'no measurable effect'}.") for c in dropped]
        advice += left_out
        root = next((c.confidence_ratio for c in kept), 0.0)
        options = [of_cause(option, c, root) for c, w in zip(candidates, weighed, strict=False) for option in w.options]
        return self._plan(analysis, at, seen, goals, chosen, changes, tuple(dict.fromkeys(advice)), options)

    # ---- What is known ----

    def _situation(
        self,
        analysis: Analysis,
        current: ConfigLike,
        hardware: Hardware | None,
        slo_targets: Sequence[SLOTarget] | None,
        engine_version: str,
    ) -> Situation:
        engine, window = Engine(analysis.engine), analysis.window
        told = read_config(self._catalogue, engine, current)
        found = read_config(self._catalogue, engine, analysis.config)
        config = told.over(found)
        if window is not None:
            config = config.over(read_config(self._catalogue, engine, window.config))
        return Situation(
            engine=engine,
            version=engine_version or analysis.engine_version or (window.engine_version if window else ""),
            hardware=hardware or Hardware(),
            config=config,
            window=window,
            slo_targets=tuple(slo_targets) if slo_targets is not None else tuple(s.target for s in analysis.slo_statuses),
            catalogue=self._catalogue,
        )

    # ---- Candidates ----

    def _candidates(self, analysis: Analysis, at: Situation) -> tuple[list[Optimization], list[Optimization]]:
        """(with changes, advice) of the three optimizers."""
        findings = relevant(analysis.bottlenecks)
        if not analysis.quality.usable:
            return [], []
        # With measurements behind it, a finding whose cause could not be named supports no flag.
        tuned = [b for b in findings if analysis.window is None or b.cause is not Cause.UNKNOWN]
        default = at.catalogue.default(at.engine, at.knobs.sequences, at.version, at.hardware)
        cap = max(DEFAULT_MAX_BATCH_SIZE, default if isinstance(default, int) else 0)
        proposals: list[Optimization] = []
        for optimizer in (KVCacheOptimizer(), BatchingOptimizer(cap), QuantizationOptimizer()):
            proposals += optimizer.generate_optimizations(tuned, at.engine, situation=at)[0]
        advice = [o for o in proposals if o.advice_only]
        covered = {o.cause for o in proposals}
        advice += [_advice(b) for b in findings if b.recommendation and (b not in tuned or b.cause not in covered)]
        return [o for o in proposals if not o.advice_only], advice

    def _trade_off(self, analysis: Analysis, at: Situation, seen: _Forecasts, goals: Objectives) -> list[Optimization]:
        """Fewer sequences for a better ITL: only where an ITL objective is missed, and every objective is predicted to be met."""
        root = next((b for b in relevant(analysis.bottlenecks) if b.cause is Cause.DECODE_BOUND), None)
        wished = [f for f in goals.now if f.target.base_metric in ("itl", "tpot") and f.met is False]
        running = at.running_max
        if root is None or not wished or not running or not seen.windows:
            return []
        sequences = 1 << (int(running) - 1).bit_length()
        while sequences > 1:
            sequences //= 2
            knob = "max_num_active_seqs" if at.propose("max_num_active_seqs", sequences, "") else at.knobs.sequences
            change = at.propose(knob, sequences, "fewer sequences in a step make each step shorter")
            if change is None or sequences >= running:
                continue
            _, after, effects = seen.of((change,))
            if all(f.met for f in goals.under(after)):
                return [
                    replace(
                        optimization(
                            OptimizerKind.BATCHING, root, f"Trade throughput for ITL: lower {knob} to {sequences}",
                            f"A trade-off, not a free gain: {sequences} sequences at once keep ITL within the objective, the rest waits.",
                            change, losers=("ttft_seconds", "throughput_tokens_per_second", "queue_seconds"),
                        ),
                        effects=effects,
                    )
                ]  # fmt: skip
        return []

    # ---- Merging ----

    def _merge(
        self, candidates: Sequence[Optimization], at: Situation, seen: _Forecasts, goals: Objectives
    ) -> tuple[tuple[Optimization, ...], tuple[ConfigChange, ...], tuple[Optimization, ...]]:
        """The best three that go together, the changes that a rollout applies (none that needs a quality test), and who was left out.

        What would harm an objective beside the better candidates, or is not predicted to add anything to them, is left out: one step
        at a time shows what did it.
        """
        chosen: list[Optimization] = []
        left_out: list[Optimization] = []
        changes: dict[str, ConfigChange] = {}
        for candidate in candidates:
            if len(chosen) == MAX_CANDIDATES:
                break
            if any(c.parameter in changes for c in candidate.config_changes):
                continue
            both = (*changes.values(), *candidate.config_changes)
            if not at.fits_together(both):
                continue
            if changes and not candidate.needs_quality_gate and seen.windows:
                why = not_beside(seen.of(both), seen.of(tuple(changes.values())), candidate, goals, at)
                if why:
                    left_out.append(_as_advice(candidate, why))
                    continue
            chosen.append(candidate)
            if not candidate.needs_quality_gate:
                changes.update({c.parameter: c for c in candidate.config_changes})
        return tuple(chosen), tuple(changes.values()), tuple(left_out)

    def _plan(
        self,
        analysis: Analysis,
        at: Situation,
        seen: _Forecasts,
        goals: Objectives,
        chosen: tuple[Optimization, ...],
        changes: tuple[ConfigChange, ...],
        advice: tuple[Optimization, ...],
        options: Sequence[PlanOption],
    ) -> Plan:
        baseline: Prediction | None = None
        prediction: Prediction | None = None
        effects: tuple[PredictedEffect, ...] = ()
        if seen.windows:
            baseline, prediction, effects = seen.of(changes)
            # What becomes of the objectives with all changes together: none of them is rolled out alone.
            told = goals.risks(goals.under(prediction)) if changes else ()
            chosen = tuple(o if o.needs_quality_gate else replace(o, risks=(*told, *o.risks)) for o in chosen)
        proposed = at.config.with_changes(changes)
        return Plan(
            engine=at.engine,
            optimizations=chosen,
            advice=advice,
            changes=changes,
            current_config=at.config,
            proposed_config=proposed,
            diff=render.unified_diff(changes, at.engine, catalogue=self._catalogue),
            command_line=render.command_line(proposed, at.engine, model=analysis.model_name, version=at.version, catalogue=self._catalogue),
            baseline=baseline,
            prediction=prediction,
            effects=effects,
            estimated_total_improvement=_improvement(chosen, changes, effects, prediction),
            instance_id=analysis.instance_id,
            fleet_id=analysis.fleet_id,
            engine_version=at.version,
            hardware=at.hardware,
            analysis_id=analysis.analysis_id,
            plan_hash=plan_hash(at.engine, at.version, changes),
            options=ranked(options, changes, goals, prediction, chosen, at),
            summary=_summary(chosen, changes, advice, at, analysis.verdict),
        )


def _base(metric: str) -> str:
    for suffix in ("_mean", "_p50", "_p95", "_p99"):
        metric = metric.removesuffix(suffix)
    return metric


def _advice(bottleneck: Bottleneck) -> Optimization:
    """The analyzer's own recommendation, where no optimizer has a change for the finding."""
    what = {
        Verdict.SCALE: "Add capacity", Verdict.RESTART: "Restart the replica", Verdict.ROLL_BACK_UPGRADE: "Roll the upgrade back",
        Verdict.LOOK_AT_CLIENT: "Look at the client", Verdict.WAIT: "Wait", Verdict.NOTHING_TO_DO: "Nothing to do",
        Verdict.NOT_ENOUGH_EVIDENCE: "Collect more data",
    }.get(bottleneck.verdict, "No flag")  # fmt: skip
    return optimization(OptimizerKind.BATCHING, bottleneck, f"{what}: {bottleneck.type.value.replace('_', ' ')}", bottleneck.recommendation)


def _content(analysis: Analysis, goals: Objectives) -> bool:
    """Whether what was measured asks for nothing, and no objective is missed that the analysis did not judge.

    Findings without measurements are a caller's own, and so is the wish to have them cured.
    """
    judged = {s.target for s in analysis.slo_statuses}
    content = analysis.window is not None and analysis.verdict is Verdict.NOTHING_TO_DO
    return content and all(f.met is not False or f.target in judged for f in goals.now)


def _with_losers(candidate: Optimization) -> Optimization:
    losers = (*candidate.expected_losers, *(_base(e.metric) for e in candidate.effects if e.direction is Direction.WORSENS))
    return replace(candidate, expected_losers=tuple(dict.fromkeys(losers)))


def _as_advice(candidate: Optimization, why: str) -> Optimization:
    """A candidate that is not proposed, with the reason."""
    return replace(
        candidate,
        title=f"Not recommended: {candidate.title}",
        description=f"{candidate.description} {why}",
        config_changes=(),
        needs_restart=False,
        restart_cost="",
        rollback="",
    )


def _improvement(
    chosen: Sequence[Optimization], changes: Sequence[ConfigChange], effects: Sequence[PredictedEffect], prediction: Prediction | None
) -> str:
    if not chosen:
        return NOTHING
    if not changes:
        return "Not predicted: what is proposed needs a quality test first"
    said = describe(effects)
    if said:
        return f"Predicted, with {effects[0].ratio.coverage_ratio:.0%} intervals: {said}"
    if effects:
        return "Predicted: no measurable change"
    why = prediction.notes[0] if prediction and prediction.notes else "no windows of measurements to predict from"
    return f"Not predicted: {why}"


def _in_words(change: ConfigChange) -> str:
    if change.recommended_value is None:
        return f"remove {change.parameter}"
    present = "?" if change.current_value is None else change.current_value
    return f"{change.parameter} {present} -> {change.recommended_value}"


def _summary(
    chosen: Sequence[Optimization], changes: Sequence[ConfigChange], advice: Sequence[Optimization], at: Situation, verdict: Verdict
) -> str:
    if changes:
        what = ", ".join(_in_words(c) for c in changes)
        return f"{what}. Boot check: no conflict known for {at.engine.value}{' ' + at.version if at.version else ''}."
    if chosen:
        return f"{chosen[0].title}: not rolled out by itself, it needs a quality test."
    if advice and verdict is Verdict.WAIT:
        return "No configuration change yet: look again when the load has settled."
    if advice and verdict is Verdict.NOTHING_TO_DO:
        return "No configuration change: nothing has to be done."
    if advice:
        return f"No configuration change; {advice[0].title[0].lower()}{advice[0].title[1:]}."
    return NOTHING + "."


__all__ = ["MAX_CANDIDATES", "NOTHING", "Forecaster", "OptimizationEngine"]
