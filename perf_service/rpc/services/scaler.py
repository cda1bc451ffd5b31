"""KEDA's external scaler: the number of replicas that the diagnosis asks for.

A fleet that waits because of a flag must not grow, it must be tuned; one that no flag can help must. So the metric is not the length of
the queue but the verdict: `needed_replicas`, with target 1 for each replica.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any, Final

from perf_service.models.analysis import Analysis, Cause, Verdict
from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.metrics import Gauge
from perf_service.rpc.context import Services
from perf_service.v1._vendor.externalscaler import externalscaler_pb2 as pb
from perf_service.v1._vendor.externalscaler import externalscaler_pb2_grpc as pb_grpc
from perf_service.workflows.pipeline import ANALYZED_SECONDS

METRIC: Final = "needed_replicas"
MAX_GROWTH: Final = 2.0
"""At most twice the replicas at a time: the next look decides anew, with the new ones in it."""


class ScalerServicer(pb_grpc.ExternalScalerServicer):
    """See the module."""

    def __init__(self, services: Services) -> None:
        self._s = services

    async def IsActive(self, request: pb.ScaledObjectRef, context: Any) -> pb.IsActiveResponse:
        await self._s.store.get_fleet(_fleet_id(request))
        return pb.IsActiveResponse(result=True)

    async def StreamIsActive(self, request: pb.ScaledObjectRef, context: Any) -> AsyncIterator[pb.IsActiveResponse]:
        yield await self.IsActive(request, context)
        while not self._s.lifecycle.draining:
            await self._s.lifecycle.pause(self._s.heartbeat_seconds)
            await self._s.store.get_fleet(_fleet_id(request))  # ends the stream with FLEET_NOT_FOUND once it is deleted

    async def GetMetricSpec(self, request: pb.ScaledObjectRef, context: Any) -> pb.GetMetricSpecResponse:
        await self._s.store.get_fleet(_fleet_id(request))
        return pb.GetMetricSpecResponse(metricSpecs=[pb.MetricSpec(metricName=METRIC, targetSize=1, targetSizeFloat=1.0)])

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Any) -> pb.GetMetricsResponse:
        if request.metricName != METRIC:
            raise InvalidArgumentError(f"there is no metric {request.metricName!r}, only {METRIC!r}", field="metricName")
        fleet = await self._s.store.get_fleet(_fleet_id(request.scaledObjectRef))
        instances, now = await self._s.pipeline.pages.members(fleet.fleet_id), self._s.clock()
        analysis = await self._s.pipeline.analyze_range(
            instances, fleet_id=fleet.fleet_id, start=now - ANALYZED_SECONDS, end=now, slo_targets=fleet.slo_targets, keep=False
        )
        if analysis.verdict is Verdict.NOT_ENOUGH_EVIDENCE:
            raise InvalidArgumentError(analysis.summary or "not enough evidence", reason=ErrorReason.NOT_ENOUGH_DATA)
        needed = needed_replicas(analysis, len(instances))
        return pb.GetMetricsResponse(metricValues=[pb.MetricValue(metricName=METRIC, metricValue=needed, metricValueFloat=needed)])


def needed_replicas(analysis: Analysis, present: int) -> int:
    """How many replicas the diagnosis asks for: more only where the verdict is to scale, one fewer where the fleet is under-used."""
    if analysis.verdict is not Verdict.SCALE:
        return present
    root = analysis.root_cause
    if root is not None and root.cause is Cause.UNDER_USE:
        return max(1, present - 1)
    waiting, running = _mean(analysis, Gauge.WAITING_REQUESTS), _mean(analysis, Gauge.RUNNING_REQUESTS)
    growth = min(MAX_GROWTH, 1 + waiting / running) if running > 0 else MAX_GROWTH
    return max(present + 1, math.ceil(present * growth))


def _mean(analysis: Analysis, name: Gauge) -> float:
    stats = analysis.window.gauge(name) if analysis.window else None
    return stats.mean if stats else 0.0


def _fleet_id(request: pb.ScaledObjectRef) -> str:
    fleet_id = request.scalerMetadata.get("fleetId", "")
    if not fleet_id:
        raise InvalidArgumentError("the trigger's metadata must name the fleet: add fleetId", field="scalerMetadata.fleetId")
    return fleet_id
