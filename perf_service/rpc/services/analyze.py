"""AnalyzeService."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from perf_service.analysis.health_watch import DEFAULT_CONFIRMATIONS, DEFAULT_MARGIN, HealthWatch, Look
from perf_service.models.analysis import HealthStatus, Verdict
from perf_service.models.errors import ErrorReason, PerfServiceError
from perf_service.rpc.context import Services
from perf_service.rpc.convert.analysis import ANALYSIS, HEALTH_STATUS, health_report
from perf_service.rpc.convert.mirror import seconds, timestamp
from perf_service.rpc.convert.slo import targets_of
from perf_service.rpc.services.looks import SharedLooks
from perf_service.rpc.services.streams import Metronome, draining, heartbeat, members
from perf_service.v1 import analysis_pb2
from perf_service.v1 import analyze_service_pb2 as pb
from perf_service.v1 import analyze_service_pb2_grpc as pb_grpc
from perf_service.workflows.budgets import REUSE_SECONDS
from perf_service.workflows.pipeline import ANALYZED_SECONDS


class AnalyzeServicer(pb_grpc.AnalyzeServiceServicer):
    """Diagnosis."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._looks: SharedLooks[tuple[Look, pb.HealthReport]] = SharedLooks()

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
        instances, lifecycle = await members(self._s, request), self._s.lifecycle
        interval = request.interval_seconds or min(instance.scrape_interval_seconds for instance in instances)
        beat = Metronome(self._s.heartbeat_seconds)
        watch = HealthWatch(margin=request.min_change or DEFAULT_MARGIN, confirmations=request.confirmations or DEFAULT_CONFIRMATIONS)
        next_look, last = time.monotonic(), None
        while not lifecycle.draining:
            if time.monotonic() >= next_look:
                # Read anew at each turn: a reader that was slow gets the present, and costs one message in memory.
                look = await lifecycle.unless_draining(self._looks.get(_seen(request), interval, lambda: self._look(request)))
                if look is None:
                    break
                next_look = time.monotonic() + interval
                if look is not last and watch.feed(look[0]):  # the same again confirms nothing
                    update = pb.WatchHealthResponse(report=look[1])  # a copy: the look is others' too, the status is this watch's
                    update.report.status = HEALTH_STATUS.encode(watch.status)
                    yield update
                    beat.reset()
                last = look
            if beat.due():
                yield pb.WatchHealthResponse(heartbeat=heartbeat(self._s))
            await lifecycle.pause(min(max(0.0, next_look - time.monotonic()), beat.remaining_seconds))
        yield pb.WatchHealthResponse(draining=draining())

    async def _look(self, request: pb.WatchHealthRequest) -> tuple[Look, pb.HealthReport]:
        """The health now. Too little data is an answer, not an error."""
        now = self._s.clock()
        try:
            instances = await members(self._s, request)
            targets = targets_of(request.slo_targets)
            if not targets and (fleet_id := request.fleet_id or instances[0].fleet_id):
                targets = (await self._s.store.get_fleet(fleet_id)).slo_targets
            analysis = await self._s.pipeline.analyze_range(
                instances,
                fleet_id=request.fleet_id,
                start=now - ANALYZED_SECONDS,
                end=now,
                slo_targets=targets,
                keep=False,
                budgets_age_seconds=REUSE_SECONDS,
                bounded=True,
            )
            return Look.of(analysis), health_report(analysis, now)
        except PerfServiceError as error:
            if error.reason is not ErrorReason.NOT_ENOUGH_DATA:
                raise
            report = pb.HealthReport(
                instance_id=request.instance_id,
                fleet_id=request.fleet_id,
                at=timestamp(now),
                verdict=analysis_pb2.VERDICT_NOT_ENOUGH_EVIDENCE,
                summary=error.message,
            )
            return Look(None, HealthStatus.UNKNOWN, Verdict.NOT_ENOUGH_EVIDENCE), report


def _seen(request: pb.WatchHealthRequest) -> tuple[str, str, tuple[bytes, ...]]:
    """What a look depends on; each watch compares and confirms for itself."""
    return request.instance_id, request.fleet_id, tuple(target.SerializeToString(deterministic=True) for target in request.slo_targets)
