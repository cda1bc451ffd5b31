"""`perf-service rollout`: WorkflowService."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perf_service.cli.analyses import MaybeInstance
from perf_service.cli.console import Commands, Output, OutputOption
from perf_service.cli.remote import (
    FleetOption,
    PageSizeOption,
    PageTokenOption,
    RequestIdOption,
    ServerOption,
    SLOOption,
    TimeoutOption,
    call,
    engine_number,
    knob_value,
    listing,
    new_request_id,
    server_address,
    server_token,
    show,
    slo_targets,
    subject,
)
from perf_service.cli.settings_text import parse_settings
from perf_service.cli.text import clock_time, title_of
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.workflow import WorkflowStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["rollout"]

rollout = typer.Typer(cls=Commands, help="Roll a change out in stages: start, watch, approve, pause, promote, abort.", no_args_is_help=True)

WorkflowArgument = Annotated[str, typer.Argument(metavar="WORKFLOW", help="Id of the rollout's workflow.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="Kept with the decision.")]
By = Annotated[str, typer.Option("--by", help="Who decides (default: the login name); a server with auth takes it from the token.")]


def stub(channel: Any) -> Any:
    """WorkflowService."""
    from perf_service.v1.workflow_service_pb2_grpc import WorkflowServiceStub

    return WorkflowServiceStub(channel)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


@rollout.command("start")
def start(
    instance_id: MaybeInstance = "",
    fleet: FleetOption = "",
    engine: Annotated[str, typer.Option("--engine", help="For an instance that is not registered.")] = "",
    plan: Annotated[str, typer.Option("--plan", help="Id of the plan to roll out (default: collect, analyze and plan now).")] = "",
    change: Annotated[list[str] | None, typer.Option("--change", help="Roll out this change instead, e.g. max_num_seqs=64.")] = None,
    approval: Annotated[bool, typer.Option("--approval/--no-approval", help="Wait for a person before the first change.")] = True,
    stages: Annotated[str, typer.Option("--stages", help="Cumulative percent of the replicas, e.g. 10,50,100.")] = "",
    bake: Annotated[
        float | None,
        typer.Option("--bake", min=0, help="Seconds to measure before, and to watch each stage (default 300)."),
    ] = None,
    warmup: Annotated[float | None, typer.Option("--warmup", min=0, help="Seconds after a restart that do not count.")] = None,
    sample_interval: Annotated[float | None, typer.Option("--sample-interval", min=0.1, help="Seconds between two samples.")] = None,
    min_requests: Annotated[int | None, typer.Option("--min-requests", min=0, help="Requests that a stage must have seen.")] = None,
    min_samples: Annotated[int | None, typer.Option("--min-samples", min=0, help="Samples that a stage must have seen.")] = None,
    promote: Annotated[bool, typer.Option("--promote-each", help="Wait for `rollout promote` before every further stage.")] = False,
    slo: SLOOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Go through everything, touch nothing.")] = False,
    watch_it: Annotated[bool, typer.Option("--watch", "-w", help="Watch it until it ends.")] = False,
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 60.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Start a rollout over a fleet or one instance; returns at once unless --watch."""
    from perf_service.v1 import config_pb2, workflow_pb2
    from perf_service.v1 import workflow_service_pb2 as pb

    changes = parse_settings(change or (), option="--change").values()
    spec = workflow_pb2.WorkflowSpec(
        **subject(instance_id, fleet),
        plan_id=plan,
        changes=[config_pb2.ConfigChange(parameter=name, recommended_value=knob_value(value)) for name, value in changes.items()],
        requires_approval=approval,
        slo_targets=slo_targets(slo),
        dry_run=dry_run,
    )
    if engine:
        spec.engine = engine_number(engine)
    percents = _stages(stages)
    # Only what was told is sent: the rest is the server's policy.
    if percents or promote or min_requests is not None or min_samples is not None or bake is not None:
        for index, percent in enumerate(percents or (10.0, 50.0, 100.0)):
            stage = spec.policy.stages.add(percent=percent, requires_promotion=promote and index > 0)
            if bake is not None:
                stage.bake_seconds = bake
            if min_requests is not None:
                stage.min_requests = min_requests
            if min_samples is not None:
                stage.min_samples = min_samples
    if warmup is not None:
        spec.policy.warmup_seconds = warmup
    if sample_interval is not None:
        spec.policy.sample_interval_seconds = sample_interval
    request = pb.StartWorkflowRequest(workflow=spec, request_id=new_request_id(request_id))
    response = call(server, timeout, stub, "StartWorkflow", request)
    if watch_it:
        _follow(response.workflow.workflow_id, 0, server, output)
    show(output, response, lambda: f"{_line(response.workflow)}\nwatch it: perf-service rollout watch {response.workflow.workflow_id}")


def _stages(text: str) -> list[float]:
    if not text:
        return []
    try:
        percents = [float(part.strip().rstrip("%")) for part in text.split(",")]
    except ValueError:
        percents = []
    if not percents or any(not 0 < p <= 100 for p in percents) or percents != sorted(set(percents)):
        raise InvalidArgumentError(f"--stages {text!r} must be rising percents up to 100, for example 10,50,100", field="stages")
    return percents


@rollout.command("watch")
def watch(
    workflow_id: WorkflowArgument,
    after: Annotated[int, typer.Option("--after", min=0, help="Only events after this sequence number.")] = 0,
    server: ServerOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Watch a rollout until it ends. Exit code 0: completed, 1: failed, 2: rolled back."""
    _follow(workflow_id, after, server, output)


def _follow(workflow_id: str, after: int, server: str | None, output: Output) -> None:
    from perf_service.cli.watch import follow

    raise typer.Exit(follow(server_address(server), workflow_id, after_sequence=after, as_json=output is Output.JSON, token=server_token()))


@rollout.command("get")
def get(
    workflow_id: WorkflowArgument, server: ServerOption = None, timeout: TimeoutOption = 30.0, output: OutputOption = Output.TABLE
) -> None:
    """Show one rollout as it stands."""
    from perf_service.v1 import workflow_service_pb2 as pb

    response = call(server, timeout, stub, "GetWorkflow", pb.GetWorkflowRequest(workflow_id=workflow_id))
    show(output, response, lambda: _picture(response.workflow))


@rollout.command("list")
def list_(
    fleet: FleetOption = "",
    status: Annotated[list[str] | None, typer.Option("--status", help="e.g. baking. Repeatable.")] = None,
    page_size: PageSizeOption = 50,
    page_token: PageTokenOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """List rollouts, newest first."""
    from perf_service.rpc.convert.workflow import WORKFLOW
    from perf_service.v1 import workflow_pb2
    from perf_service.v1 import workflow_service_pb2 as pb

    request = pb.ListWorkflowsRequest(fleet_id=fleet, page_size=page_size, page_token=page_token)
    for name in status or ():
        if name.lower() not in set(WorkflowStatus):
            raise InvalidArgumentError(f"--status {name!r} is not one of {', '.join(WorkflowStatus)}", field="statuses")
        request.statuses.append(workflow_pb2.WorkflowStatus.Value(f"WORKFLOW_STATUS_{name.upper()}"))
    response = call(server, timeout, stub, "ListWorkflows", request)
    rows = (
        (w.workflow_id, w.fleet_id or w.instance_id, title_of(w.status), f"{w.stage_index + 1}/{len(w.policy.stages)}",
         ", ".join(c.parameter for c in w.changes), clock_time(w.created_at))
        for w in map(WORKFLOW.from_proto, response.workflows)
    )  # fmt: skip
    headers = ("workflow", "of", "status", "stage", "changes", "started (UTC)")
    show(output, response, lambda: listing(headers, rows, response.next_page_token))


@rollout.command("approve")
def approve(
    workflow_id: WorkflowArgument,
    plan_hash: Annotated[str, typer.Option("--plan-hash", help="Refuse if the plan is no longer this one.")] = "",
    reason: Reason = "",
    by: By = "",
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a rollout that waits for approval begin."""
    from perf_service.v1 import workflow_service_pb2 as pb

    request = pb.ApproveWorkflowRequest(
        workflow_id=workflow_id, plan_hash=plan_hash, reason=reason, principal=by or _login(), request_id=new_request_id(request_id)
    )
    _verb("ApproveWorkflow", request, server, timeout, output)


def _plain(name: str, meaning: str) -> None:
    """Register a verb that has nothing to say but who gives it and why."""
    method = f"{name.capitalize()}Workflow"

    @rollout.command(name, help=meaning)
    def verb(
        workflow_id: WorkflowArgument,
        reason: Reason = "",
        by: By = "",
        request_id: RequestIdOption = "",
        server: ServerOption = None,
        timeout: TimeoutOption = 30.0,
        output: OutputOption = Output.TABLE,
    ) -> None:
        from perf_service.v1 import workflow_service_pb2 as pb

        message = getattr(pb, f"{method}Request")
        request = message(workflow_id=workflow_id, reason=reason, principal=by or _login(), request_id=new_request_id(request_id))
        _verb(method, request, server, timeout, output)


_plain("reject", "End a rollout that waits for approval; nothing has been changed.")
_plain("pause", "Stop forward moves; a rollback still happens when it must.")
_plain("resume", "Go on with a paused rollout.")


@rollout.command("promote")
def promote(
    workflow_id: WorkflowArgument,
    full: Annotated[bool, typer.Option("--full", help="Skip all further waiting, not the hard limits.")] = False,
    reason: Reason = "",
    by: By = "",
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Go on to the next stage without waiting for the rest of the bake."""
    from perf_service.v1 import workflow_service_pb2 as pb

    request = pb.PromoteWorkflowRequest(
        workflow_id=workflow_id, full=full, reason=reason, principal=by or _login(), request_id=new_request_id(request_id)
    )
    _verb("PromoteWorkflow", request, server, timeout, output)


_plain("abort", "End a rollout and bring back what was there before.")


def _verb(method: str, request: Any, server: str | None, timeout: float, output: Output) -> None:
    response = call(server, timeout, stub, method, request)
    show(output, response, lambda: _line(response.workflow))


def _line(message: Any) -> str:
    from perf_service.rpc.convert.workflow import WORKFLOW

    workflow = WORKFLOW.from_proto(message)
    gate = f" [{workflow.gate}]" if workflow.gate != "open" else ""
    return f"{workflow.workflow_id}  {title_of(workflow.status)}{gate}  {workflow.message}".rstrip()


def _picture(message: Any) -> RenderableType:
    import time

    from rich.console import Group

    from perf_service.cli.watch_view import WatchState, outcome_table, picture
    from perf_service.rpc.convert.workflow import WORKFLOW

    workflow = WORKFLOW.from_proto(message)
    view = picture(WatchState(workflow), now=time.time())
    return Group(view, outcome_table(workflow.outcome)) if workflow.outcome is not None else view
