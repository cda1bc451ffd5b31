"""`AnalysisEngine`: from metrics to an `Analysis`: trust, objectives, causes, health, one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from perf_service.analysis import attribution, changes, detector, facts, health, measure, rules_queue, rules_stall, trust, upgrade
from perf_service.analysis import thresholds as t
from perf_service.analysis.load_time import load_time
from perf_service.analysis.slo_monitor import evaluate
from perf_service.collectors.fleet_window import fleet_window
from perf_service.collectors.window import lifetime_window, overall_span, window_over
from perf_service.models.analysis import (
    Analysis,
    Bottleneck,
    Cause,
    Severity,
    SLOState,
    SLOStatus,
    Verdict,
)
from perf_service.models.config import EngineConfig
from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.metrics import Counter, DataIssue, DataQuality, Engine, Gauge, IssueCode, IssueLevel, Snapshot
from perf_service.models.slo import SLOTarget
from perf_service.models.window import GaugeStats, Window

Metrics = Snapshot | Window | Sequence[Snapshot]


class AnalysisEngine:
    """Names why an engine misses its objectives. Stateless; safe to share."""

    def analyze(
        self,
        metrics: Metrics,
        engine: Engine | str | None = None,
        slo_targets: Sequence[SLOTarget] | None = None,
        *,
        config: EngineConfig | None = None,
    ) -> Analysis:
        """Analyze one instance.

        `metrics`: a Window; or a series of Snapshots of one instance (the time since its last restart is used, else the longest span
        without one: `overall_window`); or one Snapshot, whose lifetime totals are a weaker base and marked so. `engine`: checked
        against the metrics where given.
        `slo_targets`: the operator's objectives; without any, built-in latency objectives apply. `config`: launch arguments
        known otherwise; they win over what the pages tell.

        Raises:
            InvalidArgumentError: unknown engine, no snapshots, or metrics of another engine than told.
        """
        window, pages = _window_of(metrics)
        _check_engine(engine, window)
        targets = tuple(slo_targets or ())
        blind = trust.copies_at_the_end(pages) or (trust.alternating(metrics) if isinstance(metrics, Sequence) else None)
        if blind is not None:
            window = replace(window, quality=window.quality.plus(blind))
        analysis = _of_pages(window, pages, targets, config)
        if blind is not None:
            return analysis
        hangs = analysis.verdict is Verdict.RESTART
        under_load = None if hangs else load_time([pages])
        if under_load is not None:
            window, pages = under_load.of(window, pages)
            analysis = _of_pages(window, pages, targets, config)
        worse = upgrade.regression(metrics) if isinstance(metrics, Sequence) else None
        if worse is not None and not hangs:
            analysis = changes.led_by(analysis, worse)
        elif len(pages) >= _MIN_CHANGE_PAGES and analysis.bottlenecks:
            parts = [window_over(pair) for pair in pairwise(pages)]
            analysis = changes.corrected(analysis, pages, parts, lambda some: _of_pages(window_over(some), some, targets, config))
            restarts = (i for i in window.quality.issues if i.code is IssueCode.RESET and i not in analysis.quality.issues)
            analysis = replace(analysis, quality=analysis.quality.plus(*restarts))
        return under_load.told(analysis) if under_load is not None else analysis


_MIN_CHANGE_PAGES = 5


def _of_pages(window: Window, pages: Sequence[Snapshot], targets: tuple[SLOTarget, ...], config: EngineConfig | None) -> Analysis:
    return _analysis(_facts(window, pages, config), targets, None)


def _facts(window: Window, pages: Sequence[Snapshot], config: EngineConfig | None) -> facts.Facts:
    full = config.over(window.config) if config else window.config
    parts = [window_over(pair) for pair in pairwise(pages)] if len(pages) > 2 else []
    return measure.facts_of(window, full, parts, pages)


def analyze_fleet(
    windows: Mapping[str, Window] | Mapping[str, Sequence[Snapshot]],
    engine: Engine | str | None = None,
    slo_targets: Sequence[SLOTarget] | None = None,
    *,
    config: EngineConfig | None = None,
    fleet_id: str = "",
) -> Analysis:
    """Analyze a fleet from its replicas' windows (or snapshots): the merged window, and imbalance between the replicas.

    Raises:
        InvalidArgumentError: for no replicas, replicas of different engines, or metrics of another engine than told.
    """
    if not windows:
        raise InvalidArgumentError("a fleet needs the metrics of one replica or more", field="windows")
    spans = {name: _window_of(value) for name, value in windows.items()}
    parts = {name: window for name, (window, _) in spans.items()}
    if len(parts) == 1:
        (single,) = windows.values()
        analysis = AnalysisEngine().analyze(single, engine, slo_targets, config=config)
        return _with_fleet(analysis, fleet_id)
    under_load = load_time([pages for _, pages in spans.values()])
    if under_load is not None:
        parts = {name: under_load.of(window, pages)[0] for name, (window, pages) in spans.items()}
    usable = {name: part for name, part in parts.items() if part.quality.usable}
    merged = fleet_window(fleet_id or "fleet", list((usable or parts).values()))
    _check_engine(engine, merged)
    full = config.over(merged.config) if config else merged.config
    loads = {name: part.gauges for name, part in usable.items()}
    targets = tuple(slo_targets or ())
    analysis = _analysis(measure.facts_of(merged, full), targets, loads)
    analysis = _with_replicas(analysis, {name: (part, spans[name][1]) for name, part in usable.items()}, targets, config)
    return _with_fleet(under_load.told(analysis) if under_load is not None else analysis, fleet_id)


def _with_replicas(
    analysis: Analysis,
    spans: Mapping[str, tuple[Window, list[Snapshot]]],
    targets: tuple[SLOTarget, ...],
    config: EngineConfig | None,
) -> Analysis:
    """What the fleet's sums hide: a replica that hangs while the others serve, and one that is far worse than they are."""
    scores: dict[str, health.Scored] = {}
    for name, (window, pages) in spans.items():
        found = _facts(window, [], config)
        found = trust.trusted(found, trust.gate(found))
        hang = rules_stall.hang(_facts(window, pages[-_HANG_PAGES:], config)) if _stood_still(pages) else None
        scored = health.of(found, evaluate(window, targets or t.BUILTIN_OBJECTIVES), (hang,) if hang is not None else ())
        if hang is not None and analysis.verdict is not Verdict.RESTART:
            analysis = changes.led_by(analysis, replace(hang, description=f"Replica {name}: {hang.description}"))
        if scored is not None:
            scores[name] = scored
    merged = None if analysis.overall_health_score is None else (analysis.overall_health_score, analysis.health_parts)
    return _scored(analysis, health.of_fleet(merged, scores))


_HANG_PAGES = 16
"""A hang shows at the end; windows between all pages of all replicas would cost more than the rest of the analysis."""


def _stood_still(pages: Sequence[Snapshot]) -> bool:
    """Whether no token came between the last two pages, or without them nobody knows."""
    last = [page.counters.get(Counter.GENERATION_TOKENS) for page in pages[-2:]]
    return len(last) < 2 or last[0] == last[1]


def _scored(analysis: Analysis, scored: health.Scored | None) -> Analysis:
    if scored is None:
        return analysis
    score, parts = scored
    return replace(analysis, overall_health_score=score, health_parts=parts, health_status=health.status_of(score))


def _with_fleet(analysis: Analysis, fleet_id: str) -> Analysis:
    return replace(analysis, fleet_id=fleet_id)


def _window_of(metrics: Metrics) -> tuple[Window, list[Snapshot]]:
    """The window to conclude from, and the pages it was made of (those after the last restart that count)."""
    if isinstance(metrics, Window):
        return metrics, []
    if isinstance(metrics, Snapshot):
        return lifetime_window(metrics), [metrics]
    given = list(metrics)
    if not given:
        raise InvalidArgumentError("there are no snapshots to analyze", field="metrics", reason=ErrorReason.NOT_ENOUGH_DATA)
    return overall_span(given) or (lifetime_window(given[-1]), [])


def _check_engine(engine: Engine | str | None, window: Window) -> None:
    if engine is None:
        return
    try:
        wanted = Engine(str(engine).lower())
    except ValueError as error:
        known = ", ".join(e.value for e in Engine)
        raise InvalidArgumentError(
            f"{engine!r} is not an engine; known: {known}", field="engine", reason=ErrorReason.ENGINE_UNKNOWN
        ) from error
    if wanted is not window.engine:
        raise InvalidArgumentError(
            f"the metrics are of {window.engine.value}, not of {wanted.value}", field="engine", reason=ErrorReason.ENGINE_MISMATCH
        )


def _analysis(found: facts.Facts, targets: tuple[SLOTarget, ...], loads: Mapping[str, Mapping[Gauge, GaugeStats]] | None) -> Analysis:
    window = found.window
    issues = trust.gate(found)
    quality = window.quality.plus(*issues)
    found = trust.trusted(found, issues)
    statuses = evaluate(window, targets or t.BUILTIN_OBJECTIVES)
    statuses = tuple(attribution.attributed(status, found) for status in statuses)
    if not quality.usable:
        return _blocked(found, quality, statuses)
    if found.idle and rules_stall.hang(found) is None:  # a frozen engine looks idle, were it not for the clients that pile up
        if not (window.gauges or window.counters or window.histograms):
            return _blocked(found, quality.plus(_nothing()), statuses)
        return _result(found, quality, statuses, (), None, Verdict.NOTHING_TO_DO, _NO_LOAD)
    detection = detector.detect(found, statuses, loads)
    scored = health.of(found, statuses, detection.bottlenecks)
    verdict, summary = _conclusion(found, statuses, detection.bottlenecks, scored)
    return _result(found, quality, statuses, detection.bottlenecks, scored, verdict, summary, detection.confidences)


_NO_LOAD = "No load yet: no request ran in this window, so nothing can be said about the engine's health."


def _nothing() -> DataIssue:
    return DataIssue(IssueCode.NO_KNOWN_METRICS, IssueLevel.BLOCKING, "The page carries no metric that this service knows.")


def _blocked(found: facts.Facts, quality: DataQuality, statuses: tuple[SLOStatus, ...]) -> Analysis:
    reason = quality.blocking[0].message if quality.blocking else "the data cannot be trusted"
    restarted = quality.has(IssueCode.RESET) and not any(i.code is IssueCode.UNDERCOUNT for i in quality.blocking)
    verdict = Verdict.WAIT if restarted else Verdict.NOT_ENOUGH_EVIDENCE
    unmeasured = evaluate(Window(found.window.instance_id, found.engine, None, None, None, 0), [s.target for s in statuses])
    return _result(found, quality, unmeasured, (), None, verdict, f"Not enough evidence: {reason}")


_CAPACITY = (Cause.PREFILL_COMPUTE, Cause.DECODE_BOUND, Cause.OVERLOAD)


def _worth_a_change(found: Bottleneck) -> bool:
    stands = found.symptom_of is None and found.verdict is Verdict.TUNE and found.severity is not Severity.LOW
    return stands and found.confidence_ratio >= t.CONFIDENCE_FOR_A_NOTE.value


def _conclusion(
    found: facts.Facts, statuses: Sequence[SLOStatus], bottlenecks: Sequence[Bottleneck], scored: health.Scored | None
) -> tuple[Verdict, str]:
    if bottlenecks:
        root = bottlenecks[0]
        verdict = root.verdict
        certain = any(s.state is SLOState.MISSED and not s.target.builtin for s in statuses)
        minor = all(b.severity is Severity.LOW for b in bottlenecks)
        costs = verdict is Verdict.SCALE and root.cause in _CAPACITY and (minor or not rules_queue.saturated(found))
        guess = verdict is Verdict.TUNE and minor and root.confidence_ratio < t.CONFIDENCE_FOR_A_NOTE.value
        if not certain and (costs or guess):
            # To spend money takes an objective of the operator or a queue, and a restart more than a guess at a small miss.
            own = any(not s.target.builtin for s in statuses)
            other = next((b for b in bottlenecks[1:] if _worth_a_change(b)), None)
            if other is not None:
                return Verdict.TUNE, other.description
            why = "no objective is missed for certain" if own else "only a built-in default is missed, no objective of yours"
            queue = "what is seen is small" if rules_queue.saturated(found) else "no queue lasts"
            return Verdict.NOTHING_TO_DO, f"Nothing to do: {why}, and {queue}. {root.description}"
        few = found.finished < t.REQUESTS_MIN.value and not found.window.lifetime and root.cause is not Cause.ENGINE_HANG
        if few and found.window.scrapes > 1 and verdict in (Verdict.TUNE, Verdict.SCALE):
            verdict = Verdict.WAIT
        return verdict, root.description
    measured = [s for s in statuses if s.state is not SLOState.NOT_MEASURED]
    if not measured and found.waiting is None and found.running is None:
        return Verdict.NOT_ENOUGH_EVIDENCE, "Not enough evidence: neither latency nor load is on the page."
    if scored is None:
        return Verdict.NOTHING_TO_DO, _NO_LOAD
    missed = [s for s in statuses if s.state is SLOState.MISSED]
    backwards = next((s.target for s in missed if s.target.is_backwards), None)
    if missed and backwards is None:
        told = " ".join(s.message for s in missed)
        return Verdict.NOT_ENOUGH_EVIDENCE, f"Not enough evidence: {told} Nothing piles up, and no other cause shows."
    if backwards is not None:
        text = f"the objective {backwards} is missed because it is the wrong way round: it would be met by the worst"
        return Verdict.NOTHING_TO_DO, f"Nothing to do: {text}; nothing piles up (health {scored[0]:.0f} of 100)."
    undecided = [s.metric_name for s in statuses if s.state is SLOState.UNDECIDED]
    text = f"no objective is missed for certain ({', '.join(undecided)}: undecided)" if undecided else "no objective is missed"
    return Verdict.NOTHING_TO_DO, f"Nothing to do: {text} and nothing piles up (health {scored[0]:.0f} of 100)."


def _result(
    found: facts.Facts,
    quality: DataQuality,
    statuses: tuple[SLOStatus, ...],
    bottlenecks: tuple[Bottleneck, ...],
    scored: health.Scored | None,
    verdict: Verdict,
    summary: str,
    confidences: Mapping[Cause, float] | None = None,
) -> Analysis:
    window = found.window
    score, parts = scored if scored is not None else (None, ())
    # Nothing ran, and everything else about the data is in order.
    no_load = quality.usable and not bottlenecks and verdict is Verdict.NOTHING_TO_DO
    return Analysis(
        instance_id=window.instance_id,
        engine=window.engine,
        bottlenecks=bottlenecks,
        slo_statuses=statuses,
        overall_health_score=score,
        health_parts=parts,
        verdict=verdict,
        summary=summary,
        window=window,
        quality=quality,
        config=found.config,
        engine_version=window.engine_version,
        model_name=window.model_name,
        cause_confidences=dict(confidences or {}),
        health_status=health.status_of(score, no_load=no_load),
    )
