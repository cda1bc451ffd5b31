"""The operator's objectives under a prediction: which are met, which are broken, and how far the others are from their targets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from perf_service.models.analysis import SLOState, SLOStatus
from perf_service.models.plan import Estimate, LatencyEstimate, ObjectiveForecast, Prediction
from perf_service.models.slo import Comparison, SLOTarget
from perf_service.models.units import goal, of_target
from perf_service.models.window import Window
from perf_service.optimization.predictor.estimates import observed_quantile, ratio_of

# Shortfalls (natural log) nearer to each other than this are the same: the predictor's own noise.
TOLERANCE = 0.03
_HIGHEST_PREDICTED = 0.95  # quantile
_SHORTFALL_CAP = math.log(1000.0)


def estimate_of(prediction: Prediction, target: SLOTarget) -> Estimate | None:
    """What a prediction says of an objective's metric: its mean or quantile; of `95 % within a bound`, the 95th percentile.

    None where it is not predicted, as every quantile but the three that a LatencyEstimate has.
    """
    if target.base_metric in ("throughput_tokens_per_second", "requests_per_second", "kv_cache_usage_ratio"):
        found: Estimate | None = getattr(prediction, target.base_metric)
        return found
    latency, q = _latency(prediction, target), _quantile(target)
    return _statistics(latency).get(q) if latency is not None else None


def _latency(prediction: Prediction, target: SLOTarget) -> LatencyEstimate | None:
    return {
        "ttft": prediction.ttft_seconds, "itl": prediction.itl_seconds, "tpot": prediction.tpot_seconds,
        "e2e": prediction.e2e_seconds, "queue": prediction.queue_seconds,
    }.get(target.base_metric)  # fmt: skip


def _quantile(target: SLOTarget) -> float | None:
    return target.objective_ratio if target.objective_ratio is not None else target.quantile


def _statistics(latency: LatencyEstimate) -> dict[float | None, Estimate | None]:
    return {None: latency.mean, 0.5: latency.p50, 0.95: latency.p95, 0.99: latency.p99}


def _between(prediction: Prediction, target: SLOTarget, measured: Estimate | None, baseline: Prediction | None) -> Estimate | None:
    """A quantile below the 95th that is not predicted itself: as measured, times the predicted change of the nearest statistic.

    The statistic's own value would not do: a 95th percentile held against a bound of the 90th is an objective broken by nothing.
    None for the tail beyond it, whose change no other statistic tells.
    """
    q = _quantile(target)
    before, after = (_latency(p, target) if p is not None else None for p in (baseline, prediction))
    if q is None or q >= _HIGHEST_PREDICTED or measured is None or before is None or after is None:
        return None
    now, then = _statistics(before), _statistics(after)
    for name in (*sorted((0.5, 0.95), key=lambda known: abs(known - q)), None):
        old, new = now[name], then[name]
        if old is not None and new is not None and old.value > 0:
            ratio = ratio_of(old, new)
            return Estimate(measured.value * ratio.value, measured.value * ratio.low, measured.value * ratio.high, ratio.coverage_ratio)
    return None


def shortfall(forecasts: Iterable[ObjectiveForecast]) -> float:
    """Sum over the objectives of the natural log by which each misses its target; 0 where all that are known are met."""
    total = 0.0
    for one in forecasts:
        if one.value is None or one.met is not False:
            continue
        value, target = one.value.value, one.target.target_value
        over, under = (value, target) if one.target.comparison is Comparison.LESS_THAN else (target, value)
        ratio = over / under if under > 0 else math.inf
        total += min(_SHORTFALL_CAP, math.log(max(1.0, ratio)))
    return total


@dataclass(frozen=True, slots=True)
class Objectives:
    """What the operator asked for (built-in objectives are no wish), and how it is met at present.

    The rule of every proposal: no objective that is met may be broken, and those that are missed together may not get further from
    their targets. The prediction's own value counts, the middle of its interval; that an interval reaches beyond a target is a risk
    to be named. What cannot be predicted breaks nothing and is named, too.
    """

    now: tuple[ObjectiveForecast, ...] = ()
    baseline: Prediction | None = None

    @classmethod
    def of(
        cls, targets: Sequence[SLOTarget], statuses: Sequence[SLOStatus], baseline: Prediction | None, windows: Sequence[Window] = ()
    ) -> Objectives:
        """The wishes among the targets; met or missed as the analysis found, else by what was measured: the baseline of the windows."""
        decided = {s.target: s.state is SLOState.MET for s in statuses if s.state in (SLOState.MET, SLOState.MISSED)}
        now: list[ObjectiveForecast] = []
        for target in dict.fromkeys(targets):
            if target.builtin:
                continue
            value = estimate_of(baseline, target) if baseline is not None else None
            hist, q = target.histogram, _quantile(target)
            if value is None and hist is not None and q is not None:
                value = observed_quantile(windows, hist, q)
            by_value = target.met_by(value.value) if value is not None else None
            now.append(ObjectiveForecast(target, value, decided.get(target, by_value)))
        return cls(tuple(now), baseline)

    def under(self, prediction: Prediction | None) -> tuple[ObjectiveForecast, ...]:
        """Every objective as predicted."""
        found: list[ObjectiveForecast] = []
        for one in self.now:
            value = None
            if prediction is not None:
                value = estimate_of(prediction, one.target) or _between(prediction, one.target, one.value, self.baseline)
            found.append(ObjectiveForecast(one.target, value, one.target.met_by(value.value) if value is not None else None))
        return tuple(found)

    def broken(self, then: Sequence[ObjectiveForecast]) -> tuple[ObjectiveForecast, ...]:
        """The objectives that are met now and would be missed."""
        return tuple(after for before, after in zip(self.now, then, strict=True) if before.met and after.met is False)

    def allows(self, then: Sequence[ObjectiveForecast], than: Sequence[ObjectiveForecast] | None = None) -> bool:
        """Whether nothing that is met is broken, and what is missed gets no further from its targets than under `than` (now)."""
        return (
            not self.broken(then) and shortfall(self._comparable(then)) <= shortfall(self._comparable(than or self.now, then)) + TOLERANCE
        )

    def _comparable(
        self, forecasts: Sequence[ObjectiveForecast], known: Sequence[ObjectiveForecast] | None = None
    ) -> list[ObjectiveForecast]:
        """Those of which both the present and (in `known`) the future are known: the others would look like a change."""
        return [
            f
            for f, n, k in zip(forecasts, self.now, known or forecasts, strict=True)
            if f.value is not None and n.value is not None and k.value is not None
        ]

    def risks(self, then: Sequence[ObjectiveForecast]) -> tuple[str, ...]:
        """What a person must know of a proposal: objectives missed, perhaps missed, or not predictable, in words with units."""
        found: list[str] = []
        for before, after in zip(self.now, then, strict=True):
            target = after.target
            if after.value is None:
                if target.histogram is not None or target.base_metric == "throughput_tokens_per_second":
                    found.append(f"what becomes of {goal(target)} is not predicted: watch it in the first stage")
                continue
            value = after.value.value
            edge = after.value.high if target.comparison is Comparison.LESS_THAN else after.value.low
            if not after.met:
                still = "still " if before.met is False else ""
                found.append(f"{goal(target)} is {still}predicted to be missed: {of_target(target, value)}")
            elif not target.met_by(edge):
                found.append(f"{goal(target)} may be missed: predicted {of_target(target, value)}, at worst {of_target(target, edge)}")
        return tuple(found)
