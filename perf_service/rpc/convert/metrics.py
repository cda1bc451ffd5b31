"""Snapshots and windows."""

from __future__ import annotations

from typing import Any

from perf_service.models.metrics import DataIssue, DataQuality, Histogram, Snapshot
from perf_service.models.redaction import redacted_url
from perf_service.models.window import GaugeStats, Quantile, Window
from perf_service.rpc.convert import config as _config
from perf_service.rpc.convert.mirror import Mirror
from perf_service.v1 import snapshot_pb2, window_pb2

__all__ = ["DATA_QUALITY", "QUANTILE", "SNAPSHOT", "WINDOW"]

_ = _config  # the mirrors below stand on its own
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

DATA_ISSUE = Mirror(DataIssue, snapshot_pb2.DataIssue)
DATA_QUALITY = Mirror(DataQuality, snapshot_pb2.DataQuality, derived={"usable": "usable"})
HISTOGRAM = Mirror(Histogram, snapshot_pb2.Histogram)
GAUGE_STATS = Mirror(GaugeStats, window_pb2.GaugeStats)
QUANTILE = Mirror(Quantile, window_pb2.Quantile)


class _SnapshotMirror(Mirror[Snapshot, snapshot_pb2.Snapshot]):
    """Masks what is secret in the endpoint: a version that did not has stored it as it was."""

    def encode_into(self, value: Snapshot, message: Any) -> None:
        super().encode_into(value, message)
        message.endpoint = redacted_url(value.endpoint)


SNAPSHOT = _SnapshotMirror(Snapshot, snapshot_pb2.Snapshot)


class _WindowMirror(Mirror[Window, window_pb2.Window]):
    """Adds the usual figures, so that no client need repeat the arithmetic."""

    def encode_into(self, value: Window, message: Any) -> None:
        super().encode_into(value, message)
        for counter in value.counters:
            if (rate := value.rate(counter)) is not None:
                message.rates_per_second[counter] = rate
        for name, histogram in value.histograms.items():
            summary = message.summaries[name]
            summary.count = histogram.count
            if histogram.mean is not None:
                summary.mean = histogram.mean
            for field, q in _QUANTILES.items():
                if (quantile := value.quantile(name, q)) is not None:
                    getattr(summary, field).CopyFrom(QUANTILE.to_proto(quantile))


WINDOW = _WindowMirror(Window, window_pb2.Window, message_only=frozenset({"rates_per_second", "summaries"}))
