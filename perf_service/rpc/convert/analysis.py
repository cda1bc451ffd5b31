"""What the analyzer concludes."""

from __future__ import annotations

from collections.abc import Mapping

from perf_service.models.analysis import Analysis, Bottleneck, Cause, Evidence, HealthPart, HealthStatus, Severity
from perf_service.rpc.convert import metrics as _metrics
from perf_service.rpc.convert import slo as _slo
from perf_service.rpc.convert.mirror import ABSENT, Codec, Mirror, enum_item, timestamp
from perf_service.v1 import analysis_pb2, analyze_service_pb2

_ = _metrics  # the mirrors below stand on its mirrors
CAUSE = enum_item(Cause, analysis_pb2.Cause.DESCRIPTOR)
HEALTH_STATUS = enum_item(HealthStatus, analysis_pb2.HealthStatus.DESCRIPTOR)
_SEVERITY = enum_item(Severity, analysis_pb2.Severity.DESCRIPTOR)


def _set_confidences(value: Mapping[Cause, float], message: analysis_pb2.Analysis) -> None:
    for cause, ratio in sorted(value.items(), key=lambda pair: -pair[1]):
        message.cause_confidences.add(cause=CAUSE.encode(cause), confidence_ratio=ratio)


def _confidences(message: analysis_pb2.Analysis) -> dict[Cause, float]:
    pairs = ((CAUSE.decode(item.cause), item.confidence_ratio) for item in message.cause_confidences)
    return {cause: ratio for cause, ratio in pairs if cause is not ABSENT}


EVIDENCE = Mirror(Evidence, analysis_pb2.Evidence)
BOTTLENECK = Mirror(Bottleneck, analysis_pb2.Bottleneck)
HEALTH_PART = Mirror(HealthPart, analysis_pb2.HealthPart)
ANALYSIS = Mirror(Analysis, analysis_pb2.Analysis, codecs={"cause_confidences": Codec(_set_confidences, _confidences)})


def health_report(analysis: Analysis, at: float) -> analyze_service_pb2.HealthReport:
    """The short form of an analysis that WatchHealth streams."""
    report = analyze_service_pb2.HealthReport(
        instance_id=analysis.instance_id,
        fleet_id=analysis.fleet_id,
        at=timestamp(at),
        verdict=ANALYSIS.to_proto(analysis).verdict,
        summary=analysis.summary,
        status=HEALTH_STATUS.encode(analysis.health_status),
        parts=map(HEALTH_PART.to_proto, analysis.health_parts),
        slo_statuses=map(_slo.SLO_STATUS.to_proto, analysis.slo_statuses),
    )
    if analysis.overall_health_score is not None:
        report.health_score = analysis.overall_health_score
    if analysis.bottlenecks:
        report.cause = CAUSE.encode(analysis.bottlenecks[0].cause)
        report.severity = max(_SEVERITY.encode(b.severity) for b in analysis.bottlenecks)
    return report
