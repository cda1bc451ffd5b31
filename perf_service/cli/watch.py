"""Following a rollout over the wire: a live tree on a terminal, a line an event elsewhere; survives a restart of the server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from perf_service.cli.client import Server, connect, error_of
from perf_service.cli.console import complain, out
from perf_service.cli.watch_view import WatchState, event_line, exit_code, outcome_table, picture
from perf_service.models.errors import ErrorReason, PerfServiceError
from perf_service.models.workflow import EventKind, WorkflowStatus
from perf_service.rpc.convert.workflow import WORKFLOW, event_from_proto
from perf_service.v1 import workflow_service_pb2 as pb
from perf_service.v1.workflow_service_pb2_grpc import WorkflowServiceStub

__all__ = ["follow"]

_RETRY_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED)
_RECONNECT_SECONDS = 1.0
_GIVE_UP_SECONDS = 300.0


class _Watcher:
    """One watch, over as many connections as it takes."""

    def __init__(self, server: Server, workflow_id: str, after_sequence: int, as_json: bool, console: Console) -> None:
        self.server = server
        self.workflow_id = workflow_id
        self.after_sequence = after_sequence
        self.as_json = as_json
        self.console = console
        self.live = console.is_terminal and not as_json
        self.state: WatchState | None = None
        self.outcome = True  # whether the end shows predicted against realised
        self.told = 0  # sequence number that the first snapshot stood at
        self.notice = ""
        self.lost_at: float | None = None

    def view(self) -> RenderableType:
        """What the live display shows now."""
        if self.state is None:
            return Text(f"waiting for {self.workflow_id}", style="dim")
        parts: list[RenderableType] = [picture(self.state, now=time.time())]
        workflow = self.state.workflow
        if workflow.status is WorkflowStatus.AWAITING_APPROVAL:
            parts.append(Text(f"  {self.approval_hint}", style="magenta"))
        if self.outcome and workflow.outcome is not None and workflow.status.terminal:
            parts.append(outcome_table(workflow.outcome))
        if self.notice:
            parts.append(Text(f"  {self.notice}", style="yellow"))
        return Group(*parts)

    @property
    def approval_hint(self) -> str:
        """What to type next."""
        return f"approve it:  perf-service rollout approve {self.workflow_id}"

    def once(self) -> bool:
        """Watch over one connection. True when the rollout has ended; grpc.RpcError when the connection has."""
        request = pb.WatchWorkflowRequest(workflow_id=self.workflow_id, after_sequence=self.after_sequence)
        stream = self.server.stream(self.server.stub(WorkflowServiceStub).WatchWorkflow, request)
        try:
            for update in stream:
                self.notice, self.lost_at = "", None
                self.take(update)
                if update.HasField("draining"):
                    self.notice = "the server is restarting; reconnecting"
                    return False
        finally:
            stream.cancel()
        return self.state is not None and self.state.workflow.status.terminal

    def take(self, update: Any) -> None:
        """Bring state and output forward by one message."""
        if self.as_json:
            print(json.dumps(MessageToDict(update, preserving_proto_field_name=True)), flush=True)
        if update.HasField("snapshot"):
            workflow = WORKFLOW.from_proto(update.snapshot)
            if self.state is None:
                self.state = WatchState(workflow)
                self.say(f"{workflow.workflow_id} over {workflow.fleet_id or workflow.instance_id}")
                self.say(f"     {workflow.status:<18} {'snapshot':<18} {workflow.message}".rstrip())
                self.told = workflow.last_sequence
                if workflow.status is WorkflowStatus.AWAITING_APPROVAL:
                    self.say(f"     {self.approval_hint}")
            else:
                self.state.replace(workflow)
        elif update.HasField("event") and self.state is not None:
            event = event_from_proto(update.event)
            self.state.apply(event)
            self.after_sequence = event.sequence
            self.say(event_line(event))
            # Events up to the snapshot are history: what they asked for may have been answered long ago.
            if event.kind is EventKind.APPROVAL_REQUESTED and event.sequence > self.told:
                self.say(f"     {self.approval_hint}")

    def say(self, line: str) -> None:
        """A line for a log; the live display needs none."""
        if not self.live and not self.as_json:
            print(line, flush=True)


def follow(
    address: str,
    workflow_id: str,
    *,
    after_sequence: int = 0,
    as_json: bool = False,
    token: str = "",
    outcome: bool = True,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Watch until the rollout ends. 0 completed, 1 failed, 2 rolled back. PerfServiceError when it cannot be watched at all.

    A connection that is lost after it once stood is tried again for five minutes, from the last event seen.
    """
    console = out()
    with connect(address, token=token) as server, ExitStack() as stack:
        watcher = _Watcher(server, workflow_id, after_sequence, as_json, console)
        watcher.outcome = outcome
        if watcher.live:
            stack.enter_context(Live(get_renderable=watcher.view, console=console, refresh_per_second=4, transient=False))
        while True:
            try:
                if watcher.once():
                    break
            except grpc.RpcError as error:
                if watcher.state is None or error.code() not in _RETRY_CODES:
                    raise error_of(error, address) from error
                if not watcher.notice:
                    watcher.say(f"     connection to {address} lost; reconnecting")
                watcher.notice = f"connection to {address} lost; reconnecting"
            watcher.lost_at = watcher.lost_at or time.monotonic()
            if time.monotonic() - watcher.lost_at > _GIVE_UP_SECONDS:
                raise PerfServiceError(ErrorReason.ENDPOINT_UNREACHABLE, f"{address} did not come back within {_GIVE_UP_SECONDS:.0f} s")
            sleep(_RECONNECT_SECONDS)
    if watcher.state is None:
        raise PerfServiceError(ErrorReason.INTERNAL, f"{address} ended the watch of {workflow_id} without a word")
    workflow = watcher.state.workflow
    if outcome and not watcher.live and not as_json and workflow.outcome is not None:
        console.print(outcome_table(workflow.outcome))
    code = exit_code(workflow.status)
    if code:
        complain(f"{workflow_id} ended as {workflow.status}: {workflow.message or workflow.failure_reason}")
    return code
