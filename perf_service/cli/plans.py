"""`perf-service plan` and `perf-service predict`: OptimizeService."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from perf_service.cli.analyses import MaybeInstance
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
    engine_number,
    enum_name,
    knob_value,
    listing,
    new_request_id,
    show,
    slo_targets,
    subject,
)
from perf_service.cli.settings_text import parse_settings
from perf_service.cli.text import clock_time, number, percent

__all__ = ["plan", "predict"]

plan = typer.Typer(cls=WithDefault("create"), no_args_is_help=True, help="Propose changes: plan INSTANCE; see plans, knobs, track record.")


def _stub(channel: Any) -> Any:
    from perf_service.v1.optimize_service_pb2_grpc import OptimizeServiceStub

    return OptimizeServiceStub(channel)


@plan.command("create")
def create(
    instance_id: MaybeInstance = "",
    fleet: FleetOption = "",
    analysis: Annotated[str, typer.Option("--analysis", help="Id of an analysis to plan from.")] = "",
    slo: SLOOption = None,
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 60.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a plan: exact changes, predicted effect, risks. What `plan INSTANCE` does. Nothing is changed."""
    from perf_service.v1 import optimize_service_pb2 as pb

    source = subject(instance_id, fleet, more={"analysis_id": analysis})
    request = pb.CreatePlanRequest(**source, slo_targets=slo_targets(slo), request_id=new_request_id(request_id))
    with working("planning"):
        response = call(server, timeout, _stub, "CreatePlan", request)
    show(output, response, lambda: _print(response.plan))


@plan.command("get")
def get(
    plan_id: Annotated[str, typer.Argument(metavar="PLAN", show_default=False)],
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one plan."""
    from perf_service.v1 import optimize_service_pb2 as pb

    response = call(server, timeout, _stub, "GetPlan", pb.GetPlanRequest(plan_id=plan_id))
    show(output, response, lambda: _print(response.plan))


@plan.command("list")
def list_(
    instance_id: MaybeInstance = "",
    fleet: FleetOption = "",
    page_size: PageSizeOption = 50,
    page_token: PageTokenOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """List plans, newest first."""
    from perf_service.v1 import optimize_service_pb2 as pb

    request = pb.ListPlansRequest(instance_id=instance_id, fleet_id=fleet, page_size=page_size, page_token=page_token)
    response = call(server, timeout, _stub, "ListPlans", request)
    rows = (
        (p.plan_id, p.fleet_id or p.instance_id, clock_time(p.created_at.seconds), ", ".join(c.parameter for c in p.changes) or "none")
        for p in response.plans
    )
    show(output, response, lambda: listing(("plan", "for", "at (UTC)", "changes"), rows, response.next_page_token))


@plan.command("knobs")
def knobs(
    engine: Annotated[str, typer.Argument(metavar="ENGINE", help="vllm, sglang or tgi.", show_default=False)],
    engine_version: Annotated[str, typer.Option("--engine-version", help="Only what this version knows.")] = "",
    page_size: PageSizeOption = 200,
    page_token: PageTokenOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """List an engine's knobs: what they are, their default, and what they trade."""
    from perf_service.v1 import optimize_service_pb2 as pb

    request = pb.ListKnobsRequest(engine=engine_number(engine), engine_version=engine_version, page_size=page_size, page_token=page_token)
    response = call(server, timeout, _stub, "ListKnobs", request)
    rows = ((k.flag, k.default, "restart" if k.needs_restart else "hot", k.description) for k in response.knobs)
    show(output, response, lambda: listing(("flag", "default", "applies", "what it is"), rows, response.next_page_token))


@plan.command("track-record")
def track_record(
    engine: Annotated[str, typer.Option("--engine", help="Of this engine only.")] = "",
    page_size: PageSizeOption = 50,
    page_token: PageTokenOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Predicted against realised over all finished rollouts, harmful advice included."""
    from perf_service.v1 import optimize_service_pb2 as pb

    request = pb.GetTrackRecordRequest(page_size=page_size, page_token=page_token)
    if engine:
        request.engine = engine_number(engine)
    response = call(server, timeout, _stub, "GetTrackRecord", request)

    def view() -> Any:
        from rich.console import Group

        record = response.track_record
        inside = f"{record.within_interval} of {record.predictions} effects within the predicted interval"
        rows = (
            (
                e.workflow_id,
                clock_time(e.finished_at.seconds),
                ", ".join(e.parameters),
                "; ".join(_effect(f) for f in e.effects[:3]),
                "harmful" if e.harmful else "",
            )
            for e in response.entries
        )
        head = f"{record.rollouts} rollouts, {record.harmful} harmful, {inside} (promised {percent(record.promised_coverage_ratio)})"
        return Group(head, listing(("workflow", "at (UTC)", "changed", "realised", ""), rows, response.next_page_token))

    show(output, response, view)


def _effect(effect: Any) -> str:
    return f"{effect.metric} x {number(effect.ratio)}"


def predict(
    instance_id: MaybeInstance = "",
    fleet: FleetOption = "",
    what_if: Annotated[list[str] | None, typer.Option("--what-if", "--set", help="A change, e.g. max_num_seqs=64. Repeatable.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="Take this flag away. Repeatable.")] = None,
    server: ServerOption = None,
    timeout: TimeoutOption = 60.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Predict what a config change would do, with intervals. Nothing is changed."""
    from perf_service.models.errors import InvalidArgumentError
    from perf_service.v1 import optimize_service_pb2 as pb

    changes = parse_settings(what_if or (), option="--what-if").values()
    assignments = [pb.KnobAssignment(parameter=name, value=knob_value(value)) for name, value in changes.items()]
    assignments += [pb.KnobAssignment(parameter=name.lstrip("-").replace("-", "_")) for name in remove or ()]
    if not assignments:
        raise InvalidArgumentError("say what would change, for example --what-if max_num_seqs=64", field="changes")
    request = pb.PredictRequest(**subject(instance_id, fleet), changes=assignments)
    with working("predicting"):
        response = call(server, timeout, _stub, "Predict", request)

    def view() -> Any:
        from perf_service.cli import render
        from perf_service.rpc.convert.plan import PREDICTION

        return render.prediction_view(PREDICTION.from_proto(response.baseline), PREDICTION.from_proto(response.prediction))

    show(output, response, view)


def _print(message: Any) -> None:
    from perf_service.cli import render
    from perf_service.rpc.convert.plan import PLAN
    from perf_service.v1 import engine_pb2

    found = PLAN.from_proto(message)
    rows = render.plan_view(found)
    about = f"{found.plan_id}  for {found.fleet_id or found.instance_id} ({enum_name(engine_pb2.Engine, message.engine, 'ENGINE_')})"
    rows.append(("ID", f"{about}\nhash {found.plan_hash}" if found.plan_hash else about))
    render.sections(out(), rows)
