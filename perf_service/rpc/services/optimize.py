"""OptimizeService."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.metrics import Engine
from perf_service.rpc.context import Services
from perf_service.rpc.convert.analysis import CAUSE
from perf_service.rpc.convert.config import HARDWARE, changes_of
from perf_service.rpc.convert.mirror import ABSENT
from perf_service.rpc.convert.plan import KNOB, PLAN, PREDICTED_EFFECT, PREDICTION
from perf_service.rpc.convert.slo import targets_of
from perf_service.rpc.convert.track_record import ENGINE, entry_to_proto, summary
from perf_service.rpc.services.streams import members
from perf_service.v1 import optimize_service_pb2 as pb
from perf_service.v1 import optimize_service_pb2_grpc as pb_grpc

T = TypeVar("T")


class OptimizeServicer(pb_grpc.OptimizeServiceServicer):
    """Advice."""

    def __init__(self, services: Services) -> None:
        self._s = services

    async def CreatePlan(self, request: pb.CreatePlanRequest, context: Any) -> pb.CreatePlanResponse:
        plan = await self._s.pipeline.create_plan(
            analysis_id=request.analysis_id,
            instance_id=request.instance_id,
            fleet_id=request.fleet_id,
            slo_targets=targets_of(request.slo_targets),
        )
        return pb.CreatePlanResponse(plan=PLAN.to_proto(plan))

    async def GetPlan(self, request: pb.GetPlanRequest, context: Any) -> pb.GetPlanResponse:
        return pb.GetPlanResponse(plan=PLAN.to_proto(await self._s.store.get_plan(request.plan_id)))

    async def ListPlans(self, request: pb.ListPlansRequest, context: Any) -> pb.ListPlansResponse:
        page = await self._s.store.list_plans(
            instance_id=request.instance_id or None,
            fleet_id=request.fleet_id or None,
            page_size=request.page_size or 50,
            page_token=request.page_token,
        )
        return pb.ListPlansResponse(plans=map(PLAN.to_proto, page.items), next_page_token=page.next_page_token)

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        first = (await members(self._s, request))[0]
        checked = self._s.catalogue.changes(
            first.engine, changes_of(request.changes), current=first.config, version=first.engine_version, hardware=first.hardware
        )
        changes = {change.parameter: change.recommended_value for change in checked}
        baseline, prediction, effects = await self._s.pipeline.predict(
            instance_id=request.instance_id, fleet_id=request.fleet_id, changes=changes
        )
        return pb.PredictResponse(
            baseline=PREDICTION.to_proto(baseline),
            prediction=PREDICTION.to_proto(prediction),
            effects=map(PREDICTED_EFFECT.to_proto, effects),
        )

    async def ListKnobs(self, request: pb.ListKnobsRequest, context: Any) -> pb.ListKnobsResponse:
        engine: Engine = ENGINE.decode(request.engine)
        hardware = HARDWARE.from_proto(request.hardware) if request.HasField("hardware") else None
        knobs, token = _page(self._s.catalogue.knobs(engine, request.engine_version, hardware), request)
        return pb.ListKnobsResponse(knobs=map(KNOB.to_proto, knobs), next_page_token=token)

    async def GetTrackRecord(self, request: pb.GetTrackRecordRequest, context: Any) -> pb.GetTrackRecordResponse:
        engine, cause = ENGINE.decode(request.engine), CAUSE.decode(request.cause)
        ledger = await self._s.store.ledger(
            engine=None if engine is ABSENT else engine.value, cause=None if cause is ABSENT else cause.value
        )
        entries, token = _page(ledger, request)
        return pb.GetTrackRecordResponse(track_record=summary(ledger), entries=map(entry_to_proto, entries), next_page_token=token)


def _page(items: Sequence[T], request: Any) -> tuple[Sequence[T], str]:
    """One page of what is held in memory; the token is the position. Raises PAGE_TOKEN_INVALID."""
    token = request.page_token
    if token and not (token.isascii() and token.isdigit() and int(token) <= len(items)):
        raise InvalidArgumentError(
            f"page_token {token!r} is not one of this listing; list from the start",
            field="page_token",
            reason=ErrorReason.PAGE_TOKEN_INVALID,
            metadata={"page_token": token},
        )
    start = int(token or 0)
    end = start + (request.page_size or 50)
    return items[start:end], str(end) if end < len(items) else ""
