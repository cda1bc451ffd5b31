"""A rollout followed line by line says what to type when it waits for a person, and only then."""

import pytest
from rich.console import Console

from perf_service.cli.watch import _Watcher
from perf_service.models.metrics import Engine
from perf_service.models.workflow import Event, EventKind, Gate, Workflow, WorkflowRequest, WorkflowStatus
from perf_service.rpc.convert.workflow import WORKFLOW, event_to_proto
from perf_service.v1 import workflow_service_pb2 as pb

HINT = "perf-service rollout approve wf-1"


@pytest.mark.parametrize(
    ("status", "known", "hints"),
    [
        (WorkflowStatus.COLLECTING, 1, 1),  # it asks while it is watched
        (WorkflowStatus.AWAITING_APPROVAL, 2, 1),  # it asked before
        (WorkflowStatus.BAKING, 4, 0),  # it asked, and was answered
    ],
)
def test_the_command_to_approve_is_shown_while_it_is_needed(
    capsys: pytest.CaptureFixture[str], status: WorkflowStatus, known: int, hints: int
) -> None:
    watcher = _Watcher(None, "wf-1", 0, False, Console(color_system=None))  # type: ignore[arg-type]
    workflow = Workflow("wf-1", WorkflowRequest(), Engine.VLLM, status=status, fleet_id="chat", last_sequence=known)
    watcher.take(pb.WatchWorkflowResponse(snapshot=WORKFLOW.to_proto(workflow)))
    asked = Event("wf-1", 2, 1.0, EventKind.APPROVAL_REQUESTED, WorkflowStatus.AWAITING_APPROVAL, Gate.OPEN, "waiting")
    watcher.take(pb.WatchWorkflowResponse(event=event_to_proto(asked)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wf-1 over chat"
    assert sum(HINT in line for line in lines) == hints
