"""AnalyzeService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from perf_service.models.errors import ErrorReason, PerfServiceError
from perf_service.rpc.context import Services
from perf_service.rpc.convert.analysis import ANALYSIS, health_report
from perf_service.rpc.convert.mirror import seconds, timestamp
from perf_service.rpc.convert.slo import targets_of
from perf_service.rpc.services.streams import Metronome, draining, heartbeat, members
from perf_service.v1 import analysis_pb2
from perf_service.v1 import analyze_service_pb2 as pb
from perf_service.v1 import analyze_service_pb2_grpc as pb_grpc
from perf_service.workflows.pipeline import ANALYZED_SECONDS

_MIN_CHANGE = 5.0


class AnalyzeServicer(pb_grpc.AnalyzeServiceServicer):
    """Diagnosis."""

    def __init__(self, services: Services) -> None:
        self._s = services

    async def Analyze(self, request: pb.AnalyzeRequest, context: Any) -> pb.AnalyzeResponse:
        analysis = await self._s.pipeline.analyze(
            instance_id=request.instance_id,
            fleet_id=request.fleet_id,
            start=seconds(request.range.start) if request.range.HasField("start") else None,
            end=seconds(request.range.end) if request.range.HasField("end") else None,
            slo_targets=targets_of(request.slo_targets),
        )
        return pb.AnalyzeResponse(analysis=ANALYSIS.to_proto(analysis))

    async def GetAnalysis(self, request: pb.GetAnalysisRequest, context: Any) -> pb.GetAnalysisResponse:
        return pb.GetAnalysisResponse(analysis=ANALYSIS.to_proto(await self._s.store.get_analysis(request.analysis_id)))

    async def ListAnalyses(self, request: pb.ListAnalysesRequest, context: Any) -> pb.ListAnalysesResponse:
        page = await self._s.store.list_analyses(
            instance_id=request.instance_id or None,
            fleet_id=request.fleet_id or None,
            page_size=request.page_size or 50,
            page_token=request.page_token,
        )
        return pb.ListAnalysesResponse(analyses=map(ANALYSIS.to_proto, page.items), next_page_token=page.next_page_token)

    async def WatchHealth(self, request: pb.WatchHealthRequest, context: Any) -> AsyncIterator[pb.WatchHealthResponse]:
        instances = await members(self._s, request)
        interval = request.interval_seconds or min(instance.scrape_interval_seconds for instance in instances)
        beat, told = Metronome(self._s.heartbeat_seconds), None
        while not self._s.lifecycle.draining:
            report = await self._report(request)
            if told is None or _changed(told, report, request.min_change or _MIN_CHANGE):
                told = report
                yield pb.WatchHealthResponse(report=report)
                beat.reset()
            elif beat.due():
                yield pb.WatchHealthResponse(heartbeat=heartbeat(self._s))
            await self._s.lifecycle.pause(min(interval, self._s.heartbeat_seconds))
        yield pb.WatchHealthResponse(draining=draining())

    async def _report(self, request: pb.WatchHealthRequest) -> pb.HealthReport:
        """The health now. Too little data is an answer, not an error."""
        now = self._s.clock()
        try:
            instances = await members(self._s, request)
            targets = targets_of(request.slo_targets)
            if not targets and (fleet_id := request.fleet_id or instances[0].fleet_id):
                targets = (await self._s.store.get_fleet(fleet_id)).slo_targets
            analysis = await self._s.pipeline.analyze_range(
                instances, fleet_id=request.fleet_id, start=now - ANALYZED_SECONDS, end=now, slo_targets=targets, keep=False
            )
            return health_report(analysis, now)
        except PerfServiceError as error:
            if error.reason is not ErrorReason.NOT_ENOUGH_DATA:
                raise
            return pb.HealthReport(
                instance_id=request.instance_id,
                fleet_id=request.fleet_id,
                at=timestamp(now),
                verdict=analysis_pb2.VERDICT_NOT_ENOUGH_EVIDENCE,
                summary=error.message,
            )


def _changed(before: pb.HealthReport, now: pb.HealthReport, min_change: float) -> bool:
    """Whether the change is worth telling: a noisy score alone is not."""
    if (before.verdict, before.cause, before.HasField("health_score")) != (now.verdict, now.cause, now.HasField("health_score")):
        return True
    return abs(before.health_score - now.health_score) >= min_change
