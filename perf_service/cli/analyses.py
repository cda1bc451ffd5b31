"""`perf-service analyze`: AnalyzeService."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from perf_service.cli.console import Output, OutputOption, WithDefault, out, working
from perf_service.cli.remote import (
    FleetOption,
    PageSizeOption,
    PageTokenOption,
    RequestIdOption,
    ServerOption,
    SLOOption,
    TimeoutOption,
    call,
    enum_name,
    listing,
    new_request_id,
    show,
    slo_targets,
    subject,
    watch_updates,
)
from perf_service.cli.text import clock_time, title_of

__all__ = ["analyze"]

analyze = typer.Typer(cls=WithDefault("run"), no_args_is_help=True, help="Diagnose: analyze INSTANCE; see earlier analyses.")

MaybeInstance = Annotated[str, typer.Argument(metavar="[INSTANCE]", help="Id of the instance.", show_default=False)]


def _stub(channel: Any) -> Any:
    from perf_service.v1.analyze_service_pb2_grpc import AnalyzeServiceStub

    return AnalyzeServiceStub(channel)


@analyze.command("run")
def run(
    instance_id: MaybeInstance = "",
    fleet: FleetOption = "",
    slo: SLOOption = None,
    last: Annotated[float | None, typer.Option("--last", min=0.1, help="Seconds to look back (default: the server's).")] = None,
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 60.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Find the root cause from the stored snapshots. What `analyze INSTANCE` does."""
    from perf_service.v1 import analyze_service_pb2 as pb

    request = pb.AnalyzeRequest(**subject(instance_id, fleet), slo_targets=slo_targets(slo), request_id=new_request_id(request_id))
    if last is not None:
        now = time.time()
        request.range.start.FromNanoseconds(int((now - last) * 1e9))
        request.range.end.FromNanoseconds(int(now * 1e9))
    with working("analyzing"):
        response = call(server, timeout, _stub, "Analyze", request)
    show(output, response, lambda: _print(response.analysis))


@analyze.command("get")
def get(
    analysis_id: Annotated[str, typer.Argument(metavar="ANALYSIS", show_default=False)],
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one analysis."""
    from perf_service.v1 import analyze_service_pb2 as pb

    response = call(server, timeout, _stub, "GetAnalysis", pb.GetAnalysisRequest(analysis_id=analysis_id))
    show(output, response, lambda: _print(response.analysis))


@analyze.command("list")
def list_(
    instance_id: MaybeInstance = "",
    fleet: FleetOption = "",
    page_size: PageSizeOption = 50,
    page_token: PageTokenOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """List analyses, newest first."""
    from perf_service.cli.diagnosis_view import cause_name
    from perf_service.v1 import analysis_pb2
    from perf_service.v1 import analyze_service_pb2 as pb

    request = pb.ListAnalysesRequest(instance_id=instance_id, fleet_id=fleet, page_size=page_size, page_token=page_token)
    response = call(server, timeout, _stub, "ListAnalyses", request)
    rows = (
        (
            a.analysis_id,
            a.fleet_id or a.instance_id,
            clock_time(a.created_at.seconds),
            cause_name(enum_name(analysis_pb2.Cause, a.bottlenecks[0].cause, "CAUSE_")) if a.bottlenecks else "-",
            _health(a.overall_health_score if a.HasField("overall_health_score") else None, a.health_status),
        )
        for a in response.analyses
    )
    show(output, response, lambda: listing(("analysis", "of", "at (UTC)", "root cause", "health"), rows, response.next_page_token))


@analyze.command("watch")
def watch(
    instance_id: MaybeInstance = "",
    fleet: FleetOption = "",
    interval: Annotated[float, typer.Option("--interval", min=0, help="Seconds between two looks (0: the server's).")] = 0.0,
    slo: SLOOption = None,
    confirmations: Annotated[int, typer.Option("--confirmations", min=0, help="Looks that must agree on a change (0: 3).")] = 0,
    server: ServerOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print every change of health that lasts, until interrupted."""
    from perf_service.cli.diagnosis_view import cause_name
    from perf_service.v1 import analysis_pb2, slo_pb2
    from perf_service.v1 import analyze_service_pb2 as pb

    request = pb.WatchHealthRequest(
        **subject(instance_id, fleet), interval_seconds=interval, slo_targets=slo_targets(slo), confirmations=confirmations
    )
    for update in watch_updates(server, _stub, "WatchHealth", request, output):
        if update.HasField("report"):
            r = update.report
            health = _health(r.health_score if r.HasField("health_score") else None, r.status)
            cause = cause_name(enum_name(analysis_pb2.Cause, r.cause, "CAUSE_")) or "-"
            out().print(f"{clock_time(r.at.seconds)}  {r.fleet_id or r.instance_id}  health {health}  {cause}  {r.summary}", soft_wrap=True)
            for status in r.slo_statuses:
                if status.budget.state in (slo_pb2.BUDGET_STATE_FAST_BURN, slo_pb2.BUDGET_STATE_SLOW_BURN, slo_pb2.BUDGET_STATE_EXHAUSTED):
                    state = title_of(enum_name(slo_pb2.BudgetState, status.budget.state, "BUDGET_STATE_")).upper()
                    out().print(f"    {status.target.metric_name}: {state}: {status.budget.message}", soft_wrap=True)


def _health(score: float | None, status: Any) -> str:
    """`62 degraded`; a status without a score: `no load`."""
    from perf_service.v1 import analysis_pb2

    word = title_of(enum_name(analysis_pb2.HealthStatus, status, "HEALTH_STATUS_")) or "unknown"
    return word if score is None else f"{score:.0f} {word}"


def _print(message: Any) -> None:
    from perf_service.cli import diagnosis_view, render
    from perf_service.rpc.convert.analysis import ANALYSIS

    analysis = ANALYSIS.from_proto(message)
    rows = diagnosis_view.analysis_view(analysis)
    if analysis.window is not None and message.HasField("window"):
        rows.append(("MEASURED", diagnosis_view.measured_table(analysis.window)))
    if analysis.analysis_id:
        rows.append(("ID", analysis.analysis_id))
    render.sections(out(), rows)
