"""Which value of a knob: the candidate's own, or the one short of it that the operator's objectives allow; or none, and why."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from perf_service.models.analysis import Cause
from perf_service.models.config import ConfigChange, KnobValue
from perf_service.models.plan import ObjectiveForecast, Optimization, PlanOption, PredictedEffect, Prediction
from perf_service.models.slo import Comparison
from perf_service.models.units import goal, of_target
from perf_service.optimization.objectives import TOLERANCE, Objectives, shortfall
from perf_service.optimization.scoring import score
from perf_service.optimization.situation import Situation

Forecast = tuple[Prediction, Prediction, tuple[PredictedEffect, ...]]
Foresee = Callable[[tuple[ConfigChange, ...]], Forecast]

_STEPS_MAX = 6  # values that are tried short of the proposed one


@dataclass(frozen=True, slots=True)
class Weighed:
    """A candidate after its values were held against the objectives."""

    candidate: Optimization | None  # None: no value is allowed
    options: tuple[PlanOption, ...] = ()  # every value that was tried
    choice: Optimization | None = None  # what the operator has to choose between, where no value is allowed


@dataclass(frozen=True, slots=True)
class _Tried:
    value: KnobValue | None
    candidate: Optimization
    forecasts: tuple[ObjectiveForecast, ...]


def weigh(candidate: Optimization, at: Situation, foresee: Foresee, goals: Objectives) -> Weighed:
    """The candidate with the best value that the objectives allow.

    The proposed value is kept where it is allowed and meets every objective. Else the values between it and the present one are
    tried, and of the allowed ones that is taken which meets most objectives, then comes nearest to the others, then gains most.
    Without objectives of the operator the proposal stands.
    """
    first = _try(candidate, candidate.config_changes, foresee, goals)
    if not goals.now or all(f.met is not False for f in first.forecasts):
        return Weighed(first.candidate, (_option(first, at, goals),))
    tried = [first]
    for value in ladder(candidate, at):
        lead, *others = candidate.config_changes
        changes = (replace(lead, recommended_value=value), *others)
        if at.fits_together(changes):
            tried.append(_try(_retold(candidate, lead, value), changes, foresee, goals))
    allowed = [t for t in tried if goals.allows(t.forecasts)]
    options = tuple(_option(t, at, goals) for t in tried)
    if not allowed:
        return Weighed(None, options, _choice(candidate, tried, goals))
    best = min(allowed, key=lambda t: (_missed(t), round(shortfall(t.forecasts), 2), -score(t.candidate, at.slo_targets)))
    if best is not first:
        more = tried[tried.index(best) - 1]
        best = replace(best, candidate=_held(best.candidate, _why_not(more, goals, best)))
    return Weighed(best.candidate, options)


def ladder(candidate: Optimization, at: Situation) -> list[KnobValue]:
    """Values between the first change's proposed and its present one, from the proposed one on; each is twice or half the next.

    Where the present value is not told, what shows it bounds the ladder: as many sequences as ran, half a prompt for a token budget.
    """
    change = candidate.config_changes[0] if candidate.config_changes else None
    target = change.recommended_value if change else None
    if change is None or isinstance(target, bool) or not isinstance(target, int | float) or target <= 0:
        return []
    present = at.config.number(change.parameter)
    if present is None:
        present = _shown(change.parameter, candidate.cause, at)
    if present is None or present <= 0:
        return []
    if isinstance(target, float):
        middle = round((present + target) / 2, 2)
        return [middle] if min(present, target) < middle < max(present, target) else []
    found: list[KnobValue] = []
    value = target
    while len(found) < _STEPS_MAX:
        value = value // 2 if target > present else value * 2
        if not min(present, target) < value < max(present, target):
            break
        found.append(value)
    return found


def _shown(knob: str, cause: Cause, at: Situation) -> float | None:
    """The present value of a knob that is not told, as behaviour or the documented default shows it."""
    if knob in (at.knobs.sequences, "max_num_active_seqs") and cause is Cause.BATCH_LIMIT:
        return at.running_max
    if knob == at.knobs.token_budget and cause is Cause.TOKEN_BUDGET_TOO_SMALL:
        computed = at.prompt_tokens
        return computed / 2 if computed else None
    return at.number(knob)


def _try(candidate: Optimization, changes: Sequence[ConfigChange], foresee: Foresee, goals: Objectives) -> _Tried:
    _, after, effects = foresee(tuple(changes))
    made = replace(candidate, config_changes=tuple(changes), effects=effects)
    return _Tried(changes[0].recommended_value, made, goals.under(after))


def _missed(tried: _Tried) -> int:
    return sum(f.met is False for f in tried.forecasts)


def _retold(candidate: Optimization, lead: ConfigChange, value: KnobValue) -> Optimization:
    """The candidate with the other value in its title and prerequisites.

    Its description names no value to come: an equal number in there is one that was measured.
    """
    own = re.compile(rf"(?<![\w.]){re.escape(_value(lead.recommended_value))}(?![\w.]\w)")

    def told(text: str) -> str:
        return own.sub(_value(value), text)

    return replace(
        candidate,
        title=told(candidate.title),
        prerequisites=tuple(told(text) for text in candidate.prerequisites),
    )


def _held(candidate: Optimization, why: str) -> Optimization:
    lead, *others = candidate.config_changes
    reason = f"{lead.reason}; limited to {_value(lead.recommended_value)}: {why}"
    description = f"{candidate.description} Held at {_value(lead.recommended_value)}: {why}."
    return replace(candidate, config_changes=(replace(lead, reason=reason), *others), description=description)


def _why_not(tried: _Tried, goals: Objectives, best: _Tried) -> str:
    """Why a value is not taken, with the objective that it breaks or is worse for."""
    broken = goals.broken(tried.forecasts) or tuple(
        t for t, b in zip(tried.forecasts, best.forecasts, strict=True) if t.met is False and (b.met or not _nearer(t, b))
    )
    said = " and ".join(f"{goal(f.target)} would be {of_target(f.target, f.value.value)}" for f in broken if f.value is not None)
    return f"with {_value(tried.value)} {said}" if said else f"{_value(tried.value)} gains no more"


def _nearer(one: ObjectiveForecast, other: ObjectiveForecast) -> bool:
    return shortfall((one,)) <= shortfall((other,))


def _option(tried: _Tried, at: Situation, goals: Objectives) -> PlanOption:
    broken = goals.broken(tried.forecasts)
    note = ""
    if broken:
        note = f"breaks {' and '.join(goal(f.target) for f in broken)}"
    elif not goals.allows(tried.forecasts):
        note = "takes a missed objective further from its target"
    return PlanOption(tried.candidate.config_changes, tried.forecasts, score(tried.candidate, at.slo_targets), note=note)


def _choice(candidate: Optimization, tried: Sequence[_Tried], goals: Objectives) -> Optimization:
    """What the operator has to choose between: the present state and the values, as each would be."""
    knob = candidate.config_changes[0].parameter
    helped = [b for b, a in zip(goals.now, tried[0].forecasts, strict=True) if b.met is False and a.value and _gains(b, a)]
    harmed = list(dict.fromkeys(f.target for t in tried for f in goals.broken(t.forecasts)))
    one = f"no value of {knob}" if len(tried) > 1 else candidate.title[:1].lower() + candidate.title[1:]
    if helped and harmed:
        title = f"Choose between {goal(helped[0].target)} and {goal(harmed[0])}: "
        title += f"{one} meets both" if len(tried) > 1 else f"{knob} cannot serve both"
    else:
        worse = goal(harmed[0]) if harmed else "an objective that is missed already"
        title = f"No change of {knob}: it would harm {worse}"
    worth = [t for t in reversed(tried) if not any(_dominates(o, t) for o in tried)]
    steps = [("as it is", goals.now), *((f"with {_value(t.value)}", t.forecasts) for t in worth)]
    states = "; ".join(f"{name} {_state(forecasts)}" for name, forecasts in steps if _state(forecasts))
    return replace(
        candidate,
        title=title,
        description=f"Predicted for {knob}: {states}. Loosen one of the objectives to get a proposal, or add a replica.",
        config_changes=(),
        effects=(),
        risks=(),
        prerequisites=(),
        needs_restart=False,
        restart_cost="",
        rollback="",
    )


def _dominates(one: _Tried, other: _Tried) -> bool:
    """Whether a value is better than another for one objective and worse for none."""
    pairs = [
        (a.value.value, b.value.value) if a.target.comparison is Comparison.LESS_THAN else (b.value.value, a.value.value)
        for a, b in zip(one.forecasts, other.forecasts, strict=True)
        if a.value is not None and b.value is not None
    ]
    return all(a <= b * math.exp(TOLERANCE) for a, b in pairs) and any(a < b * math.exp(-TOLERANCE) for a, b in pairs)


def _gains(before: ObjectiveForecast, after: ObjectiveForecast) -> bool:
    return shortfall((after,)) < shortfall((before,))


def _value(value: KnobValue | None) -> str:
    return "it removed" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _state(forecasts: Sequence[ObjectiveForecast]) -> str:
    return ", ".join(f"{f.target.metric_name} {of_target(f.target, f.value.value)}" for f in forecasts if f.value is not None)


__all__ = ["Forecast", "Foresee", "Weighed", "ladder", "weigh"]
