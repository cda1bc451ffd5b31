"""Models as plain JSON: valid always (no NaN, no Infinity), with the names that `doctor --output json` promises."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

from perf_service.models.analysis import Analysis
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import DataQuality, Snapshot
from perf_service.models.plan import LatencyEstimate, Plan, Prediction
from perf_service.models.window import Window

__all__ = ["analysis_json", "dumps", "plain", "plan_json", "prediction_json", "quality_json", "snapshot_json", "window_json"]

_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


def dumps(value: Any) -> str:
    """Indented JSON. A number that JSON cannot write becomes null."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """Dicts, lists, strings, finite numbers, booleans and None only."""
    match value:
        case Enum():
            return value.value
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case EngineConfig():
            return {name: {"value": plain(s.value), "source": s.source.value} for name, s in value.settings.items()}
        case Window():
            return window_json(value)
        case DataQuality():
            return quality_json(value)
        case Mapping():
            return {str(plain(key)): plain(item) for key, item in value.items()}
        case tuple() | list() | set() | frozenset():
            return [plain(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return str(value)


def quality_json(quality: DataQuality) -> dict[str, Any]:
    """What is known to be wrong with the data, and whether anything may be concluded."""
    return {"usable": quality.usable, "known_metrics": quality.known_metrics, "issues": plain(quality.issues)}


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """One scrape in engine-neutral names; a name that the page did not carry is absent."""
    body = {f.name: plain(getattr(snapshot, f.name)) for f in dataclasses.fields(snapshot) if f.name != "quality"}
    body["histograms"] = {
        hist.value: {
            "count": plain(h.count),
            "sum": plain(h.sum),
            "mean": plain(h.mean),
            "buckets": [{"le": bound, "cumulative": plain(c)} for bound, c in zip(h.bounds, h.cumulative, strict=True)],
        }
        for hist, h in snapshot.histograms.items()
    }
    return {**body, "data_quality": quality_json(snapshot.quality)}


def window_json(window: Window) -> dict[str, Any]:
    """A window as rates, means and quantiles. Rates are null where the time is unknown."""
    histograms: dict[str, Any] = {}
    for hist, h in window.histograms.items():
        entry: dict[str, Any] = {"count": plain(h.count), "mean": plain(h.mean)}
        for name, q in _QUANTILES:
            quantile = window.quantile(hist, q)
            if quantile is not None:
                entry[name] = {"value": plain(quantile.value), "low": plain(quantile.low), "high": plain(quantile.high),
                               "kind": quantile.kind.value}  # fmt: skip
        histograms[hist.value] = entry
    return {
        "start": plain(window.start),
        "end": plain(window.end),
        "duration_seconds": plain(window.duration_seconds),
        "scrapes": window.scrapes,
        "lifetime": window.lifetime,
        "replicas": window.replicas,
        "gauges": plain(window.gauges),
        "deltas": plain(window.counters),
        "rates_per_second": {counter.value: plain(window.rate(counter)) for counter in window.counters},
        "histograms": histograms,
        "data_quality": quality_json(window.quality),
    }


def analysis_json(analysis: Analysis) -> dict[str, Any]:
    """An analysis: `bottlenecks` (first = root cause), `slo_statuses`, `health_score`, `data_quality`, `window`."""
    skipped = {"quality", "overall_health_score", "slo_statuses"}
    body = {f.name: plain(getattr(analysis, f.name)) for f in dataclasses.fields(analysis) if f.name not in skipped}
    body["slo_statuses"] = [{**plain(s), "objective": str(s.target), "compliant": s.compliant} for s in analysis.slo_statuses]
    body["health_score"] = plain(analysis.health_score)
    body["data_quality"] = quality_json(analysis.quality)
    return body


def prediction_json(prediction: Prediction) -> dict[str, Any]:
    """A prediction; every estimate an object `value`, `low`, `high`; null where it cannot be predicted."""
    body = {f.name: plain(getattr(prediction, f.name)) for f in dataclasses.fields(prediction)}
    for f in dataclasses.fields(prediction):
        value = getattr(prediction, f.name)
        if isinstance(value, LatencyEstimate):
            body[f.name] = {k: v for k, v in plain(value).items() if v is not None}
    return body


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan: `optimizations[].config_changes[]` with `parameter`, `current_value`, `recommended_value`; merged in `changes`."""
    body = {f.name: plain(getattr(plan, f.name)) for f in dataclasses.fields(plan)}
    for name in ("baseline", "prediction"):
        prediction = getattr(plan, name)
        body[name] = prediction_json(prediction) if prediction is not None else None
    return {**body, "empty": plan.empty, "priority_order": list(plan.priority_order)}
