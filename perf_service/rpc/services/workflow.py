"""WorkflowService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from perf_service.models.config import ConfigChange
from perf_service.models.errors import ErrorReason, NotFoundError, PerfServiceError
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine
from perf_service.models.workflow import Workflow, WorkflowRequest
from perf_service.rpc.context import Services, caller
from perf_service.rpc.convert.workflow import STATUS, WORKFLOW, event_to_proto, request_of
from perf_service.rpc.interceptors.access import principal
from perf_service.rpc.services.streams import draining, heartbeat, members
from perf_service.v1 import workflow_service_pb2 as pb
from perf_service.v1 import workflow_service_pb2_grpc as pb_grpc

_BATCH = 200
"""Events read at a time: what a slow reader costs in memory."""


class WorkflowServicer(pb_grpc.WorkflowServiceServicer):
    """Rollouts."""

    def __init__(self, services: Services) -> None:
        self._s = services

    async def StartWorkflow(self, request: pb.StartWorkflowRequest, context: Any) -> pb.StartWorkflowResponse:
        wanted = request_of(request.workflow, request_id=request.request_id, requested_by=principal() or request.workflow.requested_by)
        checked = replace(wanted, changes=await self._checked(wanted)) if wanted.changes else wanted
        return pb.StartWorkflowResponse(workflow=WORKFLOW.to_proto(await self._s.manager.start(checked)))

    async def _checked(self, wanted: WorkflowRequest) -> tuple[ConfigChange, ...]:
        """The caller's changes as the engine spells them. Raises KNOB_UNKNOWN, KNOB_VALUE_INVALID, CONFIG_CONFLICT and so on.

        Without the present values: a repeat of the request must be the same request, also once the rollout has changed them.
        """
        try:
            first = (await members(self._s, wanted))[0]
        except NotFoundError:
            if wanted.fleet_id:
                raise
            first = Instance(wanted.instance_id, Engine(wanted.instance_type), "")  # never registered
        values = {change.parameter: change.recommended_value for change in wanted.changes}
        made = self._s.catalogue.changes(first.engine, values, current=first.config, version=first.engine_version, hardware=first.hardware)
        reasons = {change.parameter: change.reason for change in wanted.changes}
        return tuple(replace(c, current_value=None, current_source=None, reason=reasons.get(c.parameter, "")) for c in made)

    async def GetWorkflow(self, request: pb.GetWorkflowRequest, context: Any) -> pb.GetWorkflowResponse:
        return pb.GetWorkflowResponse(workflow=WORKFLOW.to_proto(await self._s.manager.get(request.workflow_id)))

    async def ListWorkflows(self, request: pb.ListWorkflowsRequest, context: Any) -> pb.ListWorkflowsResponse:
        page = await self._s.manager.list(
            fleet_id=request.fleet_id or None,
            statuses=tuple(STATUS.decode(status) for status in request.statuses),
            page_size=request.page_size or 50,
            page_token=request.page_token,
        )
        # A page of long rollouts with all their samples would exceed what clients receive by default (4 MiB).
        items = (WORKFLOW.to_proto(replace(workflow, samples=())) for workflow in page.items)
        return pb.ListWorkflowsResponse(workflows=items, next_page_token=page.next_page_token)

    async def WatchWorkflow(self, request: pb.WatchWorkflowRequest, context: Any) -> AsyncIterator[pb.WatchWorkflowResponse]:
        workflow, cursor = await self._s.manager.get(request.workflow_id), request.after_sequence
        _check_cursor(workflow, cursor)
        yield pb.WatchWorkflowResponse(snapshot=WORKFLOW.to_proto(workflow), sequence=cursor)
        while not self._s.lifecycle.draining:
            events = await self._s.store.events_after(request.workflow_id, cursor, limit=_BATCH)
            for event in events:
                cursor = event.sequence
                yield pb.WatchWorkflowResponse(event=event_to_proto(event), sequence=cursor)
            if len(events) < _BATCH and await self._ended(request.workflow_id, cursor):
                return
            if not events and not await self._more(request.workflow_id, cursor):
                yield pb.WatchWorkflowResponse(heartbeat=heartbeat(self._s), sequence=cursor)
        yield pb.WatchWorkflowResponse(draining=draining(), sequence=cursor)

    async def _ended(self, workflow_id: str, cursor: int) -> bool:
        """Whether nothing can follow."""
        workflow = await self._s.manager.get(workflow_id)
        return workflow.status.terminal and cursor >= workflow.last_sequence

    async def _more(self, workflow_id: str, cursor: int) -> bool:
        """Wait for the next event. False once it is time for a heartbeat."""
        waiting = self._s.store.wait_for_events(workflow_id, cursor, self._s.heartbeat_seconds)
        return await self._s.lifecycle.unless_draining(waiting) is not False

    async def ApproveWorkflow(self, request: pb.ApproveWorkflowRequest, context: Any) -> pb.ApproveWorkflowResponse:
        workflow = await self._s.manager.approve(
            request.workflow_id, caller(request.principal), plan_hash=request.plan_hash, reason=request.reason
        )
        return pb.ApproveWorkflowResponse(workflow=WORKFLOW.to_proto(workflow))

    async def RejectWorkflow(self, request: pb.RejectWorkflowRequest, context: Any) -> pb.RejectWorkflowResponse:
        workflow = await self._s.manager.reject(request.workflow_id, caller(request.principal), reason=request.reason)
        return pb.RejectWorkflowResponse(workflow=WORKFLOW.to_proto(workflow))

    async def PauseWorkflow(self, request: pb.PauseWorkflowRequest, context: Any) -> pb.PauseWorkflowResponse:
        workflow = await self._s.manager.pause(request.workflow_id, caller(request.principal), reason=request.reason)
        return pb.PauseWorkflowResponse(workflow=WORKFLOW.to_proto(workflow))

    async def ResumeWorkflow(self, request: pb.ResumeWorkflowRequest, context: Any) -> pb.ResumeWorkflowResponse:
        workflow = await self._s.manager.resume(request.workflow_id, caller(request.principal), reason=request.reason)
        return pb.ResumeWorkflowResponse(workflow=WORKFLOW.to_proto(workflow))

    async def PromoteWorkflow(self, request: pb.PromoteWorkflowRequest, context: Any) -> pb.PromoteWorkflowResponse:
        workflow = await self._s.manager.promote(request.workflow_id, caller(request.principal), full=request.full, reason=request.reason)
        return pb.PromoteWorkflowResponse(workflow=WORKFLOW.to_proto(workflow))

    async def AbortWorkflow(self, request: pb.AbortWorkflowRequest, context: Any) -> pb.AbortWorkflowResponse:
        workflow = await self._s.manager.abort(request.workflow_id, caller(request.principal), reason=request.reason)
        return pb.AbortWorkflowResponse(workflow=WORKFLOW.to_proto(workflow))


def _check_cursor(workflow: Workflow, cursor: int) -> None:
    if cursor > workflow.last_sequence:
        raise PerfServiceError(
            ErrorReason.CURSOR_OUT_OF_RANGE,
            f"after_sequence {cursor} lies beyond the last event {workflow.last_sequence}; watch from 0",
            {"workflow_id": workflow.workflow_id, "after_sequence": str(cursor), "last_sequence": str(workflow.last_sequence)},
        )
