"""In what order candidates come, which of them go together, and the options that were weighed beside the no-op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from perf_service.models.analysis import Analysis, Cause
from perf_service.models.config import ConfigChange, KnobValue
from perf_service.models.plan import Optimization, PlanOption, Prediction
from perf_service.optimization.choosing import Forecast, Foresee
from perf_service.optimization.objectives import TOLERANCE, Objectives, shortfall
from perf_service.optimization.scoring import benefit, score
from perf_service.optimization.situation import CURE_CONFIDENCE, Situation, relevant

# A cause less believed than the first one by this is cured after it, however much its cure is predicted to gain if it were the cause.
_LESS_LIKELY = 0.2
# Weighted log improvement from which a change adds something to others.
_ADDS = 0.01
# What the cure of the first cause is preferred by, where nothing is predicted.
_ROOT_BONUS = 0.1


def order(analysis: Analysis, at: Situation) -> Callable[[Optimization], tuple[bool, float]]:
    """Sort key of candidates: those of causes that are as likely as the first one, then by predicted benefit over risk."""
    first = next(iter(relevant(analysis.bottlenecks)), None)

    def key(candidate: Optimization) -> tuple[bool, float]:
        believed = first.confidence_ratio * CURE_CONFIDENCE if first else 0.0
        is_first = first is not None and candidate.cause is first.cause
        bonus = _ROOT_BONUS if is_first and not candidate.effects else 0.0
        return not is_first and believed - candidate.confidence_ratio >= _LESS_LIKELY, -score(candidate, at.slo_targets) - bonus

    return key


def of_cause(option: PlanOption, candidate: Optimization, believed: float) -> PlanOption:
    """The option, with the note that its cause is clearly less likely than one believed so much (0 to 1), unless it has a note."""
    if option.note or candidate.needs_quality_gate or believed - candidate.confidence_ratio < _LESS_LIKELY:
        return option
    return replace(option, note="cures a less likely cause")


def idle(candidate: Optimization, foresee: Foresee, goals: Objectives, at: Situation) -> bool:
    """Whether a change is predicted to leave all as it is: no restart is worth that. Without throughput only half of it is seen.

    What preemptions cost, and which prefixes a larger cache would keep, is modelled too roughly or not at all to say that their cure
    brings nothing.
    """
    gained = benefit(candidate.effects, at.slo_targets)
    weighed = any(e.metric == "throughput_tokens_per_second" for e in candidate.effects)
    unsure = candidate.cause is Cause.PREFIX_CACHE_THRASHING or (candidate.cause is Cause.KV_EXHAUSTED and bool(at.preemptions))
    if candidate.needs_quality_gate or unsure or gained is None or not weighed or gained[0] > _ADDS:
        return False
    return shortfall(goals.under(foresee(tuple(candidate.config_changes))[1])) >= shortfall(goals.now) - TOLERANCE


def not_beside(both: Forecast, without: Forecast, candidate: Optimization, goals: Objectives, at: Situation) -> str:
    """Why a candidate does not go beside those before it; empty where it does."""
    together, before = goals.under(both[1]), goals.under(without[1])
    if not goals.allows(together, before):
        return "Beside the other changes it would harm an objective."
    gained, alone = benefit(both[2], at.slo_targets), benefit(without[2], at.slo_targets)
    nearer = shortfall(together) < shortfall(before) - TOLERANCE
    if candidate.effects and (nearer or (gained is not None and (alone is None or gained[0] > alone[0] + _ADDS))):
        return ""
    return "Beside the other changes it is not predicted to add anything: look again after them."


def _values(changes: Sequence[ConfigChange]) -> tuple[tuple[str, KnobValue | None], ...]:
    return tuple((c.parameter, c.recommended_value) for c in changes)


def ranked(
    options: Sequence[PlanOption],
    changes: tuple[ConfigChange, ...],
    goals: Objectives,
    prediction: Prediction | None,
    chosen: Sequence[Optimization],
    at: Situation,
) -> tuple[PlanOption, ...]:
    """What was weighed, best first: what is proposed, then by objectives broken and met, nearness to the others, and benefit."""
    applied = [o for o in chosen if not o.needs_quality_gate]
    noop = PlanOption((), goals.now, 0.0, chosen=not changes)
    found = {_values(o.changes): o for o in options}
    if changes:
        gain = max((score(o, at.slo_targets) for o in applied), default=0.0)
        found[_values(changes)] = PlanOption(changes, goals.under(prediction), gain, chosen=True)
    best_first = sorted(
        [noop, *found.values()],
        key=lambda o: (
            not o.chosen,
            len(goals.broken(o.objectives)) if o.changes else 0,
            sum(f.met is False for f in o.objectives),
            round(shortfall(o.objectives), 2),
            -o.benefit,
        ),
    )
    return tuple(best_first)
