"""Predicts the steady state of an instance under any config, from its own windows, with intervals meant to hold the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from perf_service.models.config import ConfigChange, EngineConfig, KnobValue
from perf_service.models.fleet import Hardware
from perf_service.models.metrics import Counter, Engine, Gauge, Hist
from perf_service.models.plan import Calibration, Direction, Estimate, LatencyEstimate, PredictedEffect, Prediction
from perf_service.models.window import Window
from perf_service.optimization.catalogue import KnobCatalogue
from perf_service.optimization.predictor.estimates import interval, observed, ratio_of, weighted_quantile
from perf_service.optimization.predictor.roofline import prior_of
from perf_service.optimization.predictor.scenario import Scenarios, budgets_of, scenarios_of
from perf_service.optimization.predictor.service import Limits, Request, Steady, steady
from perf_service.optimization.predictor.steptime import StepCost, StepFit, fit, observations_of
from perf_service.optimization.predictor.workload import Workload, one_engine, read_workload

# Spread (standard deviation of the log) of what the model leaves out, per metric; latencies of a queue are the least certain.
MODEL_ERROR = {"throughput": 0.1, "itl": 0.12, "e2e": 0.12, "ttft": 0.4, "queue": 0.3}
# And more for every doubling of the batch beyond what was seen.
EXTRAPOLATION_ERROR = 0.1
# A change of the modelled value by this (natural log) is one that the model's own value may stand for.
_MATTERS = 0.2
# Queue times under this are noise of the scheduler (seconds); ratios of them mean nothing.
NOISE_SECONDS = 1e-3

Runs = list[tuple[float, Steady, Steady]]  # weight, now, after


class Predictor:
    """Stateless and pure. Coefficients are fitted anew from the windows of each call (some milliseconds)."""

    def __init__(self, catalogue: KnobCatalogue | None = None) -> None:
        self._catalogue = catalogue or KnobCatalogue.load()

    def predict(
        self,
        windows: Window | Sequence[Window],
        current: EngineConfig,
        changes: Mapping[str, KnobValue | None] | Sequence[ConfigChange],
        *,
        hardware: Hardware | None = None,
    ) -> tuple[Prediction, Prediction, tuple[PredictedEffect, ...]]:
        """(the no-op, with the changes, what differs) for the workload of the windows.

        Several consecutive windows are better than one: they show the instance at several loads. What cannot be predicted is None,
        with a note that says why. A mapping of changes is checked against the catalogue: raises InvalidArgumentError
        (KNOB_UNKNOWN, KNOB_VALUE_INVALID, KNOB_NOT_IN_VERSION, KNOB_NEEDS_HARDWARE, CONFIG_CONFLICT).
        """
        given = (windows,) if isinstance(windows, Window) else tuple(windows)
        parts = tuple(one_engine(w) for w in given)
        engine = parts[-1].engine if parts else Engine.VLLM
        version = parts[-1].engine_version if parts else ""
        config = current.over(parts[-1].config) if parts else current
        made = (
            self._catalogue.changes(engine, changes, current=config, version=version, hardware=hardware)
            if isinstance(changes, Mapping)
            else tuple(changes)
        )
        after = config.with_changes(made)
        load = read_workload(parts)
        if load is None:
            why = "no finished request in the window: there is no workload to predict for"
            return _nothing(config, why), _nothing(after, why), ()
        prior = prior_of(hardware, config)
        runs: Runs = []
        notes: list[str] = []
        fitted: StepFit | None = None
        spread = False
        seen = _Seen(load.requests_per_second, _mean_of(parts, Hist.ITL_SECONDS))
        hypotheses = budgets_of(config, made, load)
        for assumed in hypotheses:
            limits = scenarios_of(engine, assumed.over(config), made, parts, load, version, self._catalogue, budget_told=not len(assumed))
            budget = limits.now.token_budget
            fitted = fit(observations_of(parts, budget if math.isfinite(budget) else None), prior)
            if fitted is None:
                why = "no step times in the window: too few tokens were generated"
                return _nothing(config, why), _nothing(after, why), ()
            notes += limits.notes
            if limits.impossible:
                baseline = _baseline(config, parts, load, tuple(notes))
                return baseline, _nothing(after, limits.impossible, *notes), ()
            spread = spread or len(limits.after) > 1
            runs += seen.weighed(_runs(load, fitted, limits)) if made else []
        if fitted is None:
            raise AssertionError("there is always one hypothesis")
        if any(p is not w for p, w in zip(parts, given, strict=True)):
            notes.append("rates and counts are those of one of the engines behind these pages")
        said = tuple(dict.fromkeys([*notes, *_notes(load, fitted, prior.text)]))
        baseline = _baseline(config, parts, load, said)
        if not made:
            return baseline, replace(baseline, config=after), ()
        prediction = _prediction(after, baseline, runs, load, fitted, said, spread or len(hypotheses) > 1)
        if load.requests_per_second is None and _transient(baseline, runs):
            note = "the time between the pages is unknown and the waits on them have not settled: their change is not predicted"
            kept = tuple(e for e in _effects(baseline, prediction) if e.metric.startswith("itl"))
            return baseline, replace(prediction, notes=(*prediction.notes, note)), kept
        return baseline, prediction, _effects(baseline, prediction)


# ---- Running the model ----


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was measured, to weigh hypotheses of an untold limit by: each ran the model for the present, too."""

    requests_per_second: float | None
    itl_seconds: float | None

    def weighed(self, runs: Runs) -> Runs:
        """The runs of one hypothesis, lighter the further its present lies from what was measured; never below a fiftieth, as the
        model itself errs by the tolerances."""
        rates, itls = [(w, now.requests_per_second) for w, now, _ in runs], [(w, now.itl) for w, now, _ in runs]
        misfit = 0.0
        for measured, values, tolerance in ((self.requests_per_second, rates, 0.15), (self.itl_seconds, itls, 0.2)):
            modelled = weighted_quantile(values, 0.5) if values else 0.0
            if measured and modelled > 0:
                misfit += (math.log(measured / modelled) / tolerance) ** 2
        weight = max(0.02, math.exp(-0.5 * misfit))
        return [(w * weight, now, after) for w, now, after in runs]


def _mean_of(windows: Sequence[Window], hist: Hist) -> float | None:
    found = observed(windows, hist)
    return found.mean.value if found else None


def _runs(load: Workload, fitted: StepFit, limits: Scenarios) -> Runs:
    """The model now and after, for every set of coefficients, kind of arrivals and way the change may turn out."""
    found: Runs = []
    kinds = [(load.closed_weight, True), (1.0 - load.closed_weight, False)]
    particles = [(p.weight, p.cost) for p in fitted.particles]
    for share, closed in kinds:
        if share < 0.05 or (not closed and not load.arrivals_per_second):
            continue
        for weight, cost in particles:
            now = _run(load, cost, limits.now, None, closed)
            for scenario in limits.after:
                after = _run(load, cost, scenario.limits, scenario.hit_ratio, closed)
                # Parsing, sending and waiting for the engine's loop: in measurements a constant number of steps.
                outside = load.frontend * min(20.0, max(0.05, after.step_seconds / now.step_seconds))
                found.append((share * weight * scenario.weight, _later(now, load.frontend), _later(after, outside)))
    return found


def _later(state: Steady, seconds: float) -> Steady:
    """A state whose first tokens come that much later: time outside the engine core."""
    return replace(
        state,
        ttft=state.ttft + seconds,
        ttft_p95=state.ttft_p95 + 2 * seconds,
        e2e=state.e2e + seconds,
        e2e_p50=state.e2e_p50 + seconds,
        e2e_p95=state.e2e_p95 + seconds,
    )


def _run(load: Workload, cost: StepCost, limits: Limits, hit_ratio: float | None, closed: bool) -> Steady:
    computed = load.computed if hit_ratio is None else max(1.0, load.prompt * (1.0 - hit_ratio))
    request = Request(load.prompt, computed, load.output, load.output_cv)
    if closed:
        return steady(request, cost, limits, users=load.users)
    return steady(request, cost, limits, arrivals=load.arrivals_per_second)


# ---- Estimates ----


def _baseline(config: EngineConfig, windows: Sequence[Window], load: Workload, notes: tuple[str, ...]) -> Prediction:
    """The no-op: what was measured, as the workload goes on."""

    def latency(hist: Hist) -> LatencyEstimate | None:
        return observed(windows, hist)

    kv = [g.mean / g.nonzero_share for w in windows if (g := w.gauge(Gauge.KV_CACHE_USAGE_RATIO)) and g.nonzero_share > 0]
    seconds = sum(w.duration_seconds or 0.0 for w in windows)
    preempted = [d for w in windows if (d := w.delta(Counter.PREEMPTIONS)) is not None]
    count = max(1.0, load.requests)
    spread = min(0.5, 0.03 + 0.5 / math.sqrt(count))
    return Prediction(
        config=config,
        calibration=Calibration.FITTED,
        throughput_tokens_per_second=_around(load.tokens_per_second, spread),
        requests_per_second=_around(load.requests_per_second, spread),
        ttft_seconds=latency(Hist.TTFT_SECONDS),
        itl_seconds=latency(Hist.ITL_SECONDS),
        tpot_seconds=latency(Hist.TPOT_SECONDS) if load.output > 1.5 else None,
        e2e_seconds=latency(Hist.E2E_SECONDS),
        queue_seconds=latency(Hist.QUEUE_SECONDS),
        preemptions_per_second=_around(sum(preempted) / seconds, spread) if preempted and seconds else None,
        kv_cache_usage_ratio=_around(min(1.0, sum(kv) / len(kv)), 0.05) if kv else None,
        running_requests=_around(load.running, spread),
        notes=notes,
    )


def _around(value: float | None, spread: float) -> Estimate | None:
    return Estimate(value, value * (1 - spread), value * (1 + spread)) if value is not None else None


def _prediction(
    config: EngineConfig, baseline: Prediction, runs: Runs, load: Workload, fitted: StepFit, notes: tuple[str, ...], assumed: bool
) -> Prediction:
    stretch = _stretch(runs, fitted)
    outside = stretch > 0.5
    unstable = sum(w for w, _, a in runs if a.overloaded) / max(1e-12, sum(w for w, _, _ in runs))
    # Where arrivals exceed what can be served no latency is steady: those runs give no number, and if they are most, nothing does.
    stable = [run for run in runs if not run[2].overloaded] if unstable <= 0.6 else []
    if unstable > 0.2:
        notes = (*notes, "arrivals may exceed what this config can serve: waiting would then grow without bound")

    def anchored(of: Callable[[Steady], float], before: Estimate | None, kind: str) -> Estimate | None:
        """What was measured, times what the model says that changes; the model alone where the two disagree on the present."""
        error = math.hypot(MODEL_ERROR[kind], EXTRAPOLATION_ERROR * stretch)
        pairs = []
        for weight, now, after in runs if kind == "throughput" else stable:
            present, then = of(now), of(after)
            if before is None or before.value <= 0 or present <= 0:
                pairs.append((weight, then))
            else:
                # A present that the model misses by much belongs to a regime that it does not know: there its own value counts,
                # as far as the change matters at all. What it leaves alone stays as it was measured.
                trust = 1.0 if kind in ("throughput", "itl") else _trust(before.value, present)
                doubt = (1.0 - trust) * min(1.0, abs(math.log(then / present)) / _MATTERS if then > 0 else 1.0)
                pairs.append((weight, then * (before.value / present) ** (1.0 - doubt)))
        return interval(pairs, error)

    def latency(
        mean: Callable[[Steady], float], kind: str, before: LatencyEstimate | None, **quantiles: Callable[[Steady], float]
    ) -> LatencyEstimate | None:
        made = anchored(mean, before.mean if before else None, kind)
        if made is None:
            return None
        # Quantiles are less certain than means: the model knows the distribution of steps only roughly.
        others = {
            name: anchored(of, getattr(before, name) if before else None, "ttft" if kind in ("ttft", "itl") else "queue")
            for name, of in quantiles.items()
        }
        return LatencyEstimate(made, **others)

    decodes = load.output > 1.5
    return Prediction(
        config=config,
        calibration=Calibration.EXTRAPOLATED if outside or assumed else Calibration.FITTED,
        throughput_tokens_per_second=anchored(
            lambda s: s.requests_per_second * load.output, baseline.throughput_tokens_per_second, "throughput"
        ),
        requests_per_second=anchored(lambda s: s.requests_per_second, baseline.requests_per_second, "throughput"),
        ttft_seconds=latency(lambda s: s.ttft, "ttft", baseline.ttft_seconds, p50=lambda s: s.ttft, p95=lambda s: s.ttft_p95),
        itl_seconds=latency(lambda s: s.itl, "itl", baseline.itl_seconds, p50=lambda s: s.itl_p50, p95=lambda s: s.itl_p95)
        if decodes
        else None,
        tpot_seconds=latency(lambda s: s.itl, "itl", baseline.tpot_seconds or baseline.itl_seconds) if decodes else None,
        e2e_seconds=latency(lambda s: s.e2e, "e2e", baseline.e2e_seconds, p50=lambda s: s.e2e_p50, p95=lambda s: s.e2e_p95),
        queue_seconds=_at_least_noise(latency(lambda s: s.queue, "queue", None), runs),
        preemptions_per_second=interval([(w, a.preemptions_per_second) for w, _, a in runs], 0.5),
        kv_cache_usage_ratio=interval([(w, a.kv_ratio) for w, _, a in runs if a.kv_ratio is not None], 0.15, top=1.0),
        running_requests=interval([(w, a.running) for w, _, a in runs], 0.15),
        notes=notes,
    )


def _at_least_noise(queue: LatencyEstimate | None, runs: Runs) -> LatencyEstimate | None:
    """A queue that vanishes may still be a step long: what is waited for is the running step."""
    if queue is None:
        return None
    step = weighted_quantile([(w, a.step_seconds) for w, _, a in runs], 0.5)
    return replace(queue, mean=replace(queue.mean, high=max(queue.mean.high, step)))


def _trust(measured: float, modelled: float) -> float:
    """1 where the model is right about the present, towards 0 where it is off by more than a factor of three."""
    return max(0.0, 1.0 - max(0.0, abs(math.log(measured / modelled)) - 0.3) / 0.8)


def _transient(baseline: Prediction, runs: Runs) -> bool:
    """Whether the measured first tokens are not those of a steady state at the load that the gauges show (a queue that just began)."""
    measured = baseline.ttft_seconds.mean.value if baseline.ttft_seconds else 0.0
    modelled = weighted_quantile([(w, now.ttft) for w, now, _ in runs], 0.5) if runs else 0.0
    return measured > 0 and modelled > 0 and _trust(measured, modelled) <= 0.0


def _stretch(runs: Runs, fitted: StepFit) -> float:
    """By how many doublings the batch lies outside what was seen (mean over the runs)."""
    total = sum(w for w, _, _ in runs) or 1.0
    found = 0.0
    for weight, _, after in runs:
        n = max(1.0, after.running)
        outside = max(0.0, math.log2(n / max(1.0, fitted.decodes_high)), math.log2(max(1.0, fitted.decodes_low) / n))
        found += weight * outside
    return found / total


def _effects(baseline: Prediction, prediction: Prediction) -> tuple[PredictedEffect, ...]:
    found: list[PredictedEffect] = []

    def add(metric: str, before: Estimate | None, after: Estimate | None, higher: bool = False) -> None:
        if before is None or after is None or before.value <= 0 or max(before.value, after.value) < NOISE_SECONDS:
            return
        ratio = ratio_of(before, after)
        better = ratio.value > 1 if higher else ratio.value < 1
        unchanged = abs(math.log(max(1e-9, ratio.value))) < 0.03
        direction = Direction.UNCHANGED if unchanged else Direction.IMPROVES if better else Direction.WORSENS
        found.append(PredictedEffect(metric, direction, before, after, ratio))

    def mean(estimate: LatencyEstimate | None) -> Estimate | None:
        return estimate.mean if estimate else None

    add("throughput_tokens_per_second", baseline.throughput_tokens_per_second, prediction.throughput_tokens_per_second, higher=True)
    add("ttft_seconds_mean", mean(baseline.ttft_seconds), mean(prediction.ttft_seconds))
    add("itl_seconds_mean", mean(baseline.itl_seconds), mean(prediction.itl_seconds))
    add("e2e_seconds_mean", mean(baseline.e2e_seconds), mean(prediction.e2e_seconds))
    queue = mean(baseline.queue_seconds)
    if queue and queue.value > 0.01:
        add("queue_seconds_mean", queue, mean(prediction.queue_seconds))
    return tuple(found)


# ---- Words ----


def _nothing(config: EngineConfig, why: str, *notes: str) -> Prediction:
    return Prediction(config=config, calibration=Calibration.NONE, notes=(why, *notes))


def _notes(load: Workload, fitted: StepFit, prior: str) -> list[str]:
    seen = (
        f"batch sizes seen: about {fitted.decodes_low:.0f}"
        if fitted.decodes_high < 1.3 * fitted.decodes_low
        else f"batch sizes seen: {fitted.decodes_low:.0f} to {fitted.decodes_high:.0f}"
    )
    if load.closed_weight > 0.9:
        demand = f"the demand looks like {load.users:.0f} clients that each wait for their answer"
    elif load.closed_weight < 0.3:
        demand = "arrivals are taken to go on at the present rate"
    else:
        demand = "the windows do not tell clients that wait from arrivals of their own: both are allowed for"
    return [demand, seen, prior] if fitted.decodes_high >= 1 else [demand, prior]
