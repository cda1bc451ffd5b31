"""`perf-service fleets`: FleetService, the fleets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from perf_service.cli.console import Commands, Output, OutputOption
from perf_service.cli.remote import (
    PageSizeOption,
    PageTokenOption,
    RequestIdOption,
    ServerOption,
    SLOOption,
    TimeoutOption,
    call,
    engine_number,
    enum_name,
    labels_of,
    listing,
    new_request_id,
    show,
    slo_targets,
)
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.fleet import TargetKind

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["fleets"]

fleets = typer.Typer(cls=Commands, help="Replicas that serve one model with one config, and how they can be changed.", no_args_is_help=True)

FleetArgument = Annotated[str, typer.Argument(metavar="FLEET", help="Id of the fleet.", show_default=False)]
TargetChoice = Annotated[str, typer.Option("--target", help="dry_run (changes nothing) or local (engine processes on the server's host).")]
TargetOptions = Annotated[list[str] | None, typer.Option("--target-option", help="NAME=VALUE for the target. Repeatable.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="NAME=VALUE. Repeatable.")]
Etag = Annotated[str, typer.Option("--etag", help="Refuse if the fleet has changed since this etag.", show_default=False)]


def _stub(channel: Any) -> Any:
    from perf_service.v1.fleet_service_pb2_grpc import FleetServiceStub

    return FleetServiceStub(channel)


def _target(kind: str, options: list[str] | None) -> Any:
    from perf_service.v1 import fleet_pb2

    try:
        name = TargetKind(kind.replace("-", "_")).name
    except ValueError:
        raise InvalidArgumentError(f"--target {kind!r} is not known; choose {', '.join(TargetKind)}", field="target") from None
    return fleet_pb2.TargetSpec(
        kind=fleet_pb2.TargetKind.Value(f"TARGET_KIND_{name}"), options=labels_of(options, option="--target-option")
    )


@fleets.command("create")
def create(
    fleet_id: FleetArgument,
    engine: Annotated[str, typer.Option("--engine", help="vllm, sglang or tgi.")] = "vllm",
    model: Annotated[str, typer.Option("--model", help="Name of the model it serves.")] = "",
    name: Annotated[str, typer.Option("--name", help="Name for people.")] = "",
    target: TargetChoice = "dry_run",
    target_option: TargetOptions = None,
    slo: SLOOption = None,
    label: Labels = None,
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a fleet."""
    from perf_service.v1 import fleet_pb2
    from perf_service.v1 import fleet_service_pb2 as pb

    fleet = fleet_pb2.Fleet(
        fleet_id=fleet_id,
        engine=engine_number(engine),
        display_name=name,
        model_name=model,
        target=_target(target, target_option),
        slo_targets=slo_targets(slo),
        labels=labels_of(label, option="--label"),
    )
    response = call(server, timeout, _stub, "CreateFleet", pb.CreateFleetRequest(fleet=fleet, request_id=new_request_id(request_id)))
    show(output, response, lambda: _view([response.fleet]))


@fleets.command("get")
def get(fleet_id: FleetArgument, server: ServerOption = None, timeout: TimeoutOption = 30.0, output: OutputOption = Output.TABLE) -> None:
    """Show one fleet."""
    from perf_service.v1 import fleet_service_pb2 as pb

    response = call(server, timeout, _stub, "GetFleet", pb.GetFleetRequest(fleet_id=fleet_id))
    show(output, response, lambda: _view([response.fleet]))


@fleets.command("list")
def list_(
    page_size: PageSizeOption = 50,
    page_token: PageTokenOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """List fleets."""
    from perf_service.v1 import fleet_service_pb2 as pb

    response = call(server, timeout, _stub, "ListFleets", pb.ListFleetsRequest(page_size=page_size, page_token=page_token))
    show(output, response, lambda: _view(response.fleets, response.next_page_token))


@fleets.command("update")
def update(
    fleet_id: FleetArgument,
    model: Annotated[str | None, typer.Option("--model", help="Name of the model it serves.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name for people.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="dry_run or local; with --target-option.")] = None,
    target_option: TargetOptions = None,
    slo: SLOOption = None,
    label: Labels = None,
    etag: Etag = "",
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change what is given; the rest stays."""
    from perf_service.v1 import fleet_pb2
    from perf_service.v1 import fleet_service_pb2 as pb

    if target_option and target is None:
        raise InvalidArgumentError("--target-option needs --target with it: a target is replaced as a whole", field="target")
    fleet = fleet_pb2.Fleet(
        fleet_id=fleet_id,
        display_name=name or "",
        model_name=model or "",
        slo_targets=slo_targets(slo),
        labels=labels_of(label, option="--label"),
        target=_target(target, target_option) if target is not None else None,
        etag=etag,
    )
    given = {"display_name": name, "model_name": model, "slo_targets": slo, "labels": label, "target": target}
    request = pb.UpdateFleetRequest(fleet=fleet, request_id=new_request_id(request_id))
    request.update_mask.paths.extend(path for path, value in given.items() if value is not None)
    if not request.update_mask.paths:
        raise InvalidArgumentError("nothing to change: give --name, --model, --target, --slo or --label", field="update_mask")
    # The engine is a required field of the message, though it is not among those that are changed.
    request.fleet.engine = call(server, timeout, _stub, "GetFleet", pb.GetFleetRequest(fleet_id=fleet_id)).fleet.engine
    response = call(server, timeout, _stub, "UpdateFleet", request)
    show(output, response, lambda: _view([response.fleet]))


@fleets.command("delete")
def delete(
    fleet_id: FleetArgument,
    etag: Etag = "",
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Delete a fleet that has no instances any more."""
    from perf_service.v1 import fleet_service_pb2 as pb

    request = pb.DeleteFleetRequest(fleet_id=fleet_id, etag=etag, request_id=new_request_id(request_id))
    response = call(server, timeout, _stub, "DeleteFleet", request)
    show(output, response, lambda: f"deleted {fleet_id}")


def _view(items: Any, next_page_token: str = "") -> RenderableType:
    from perf_service.rpc.convert.slo import SLO_TARGET
    from perf_service.v1 import engine_pb2, fleet_pb2

    rows = (
        (
            f.fleet_id,
            enum_name(engine_pb2.Engine, f.engine, "ENGINE_"),
            f.model_name,
            enum_name(fleet_pb2.TargetKind, f.target.kind, "TARGET_KIND_"),
            ", ".join(str(SLO_TARGET.from_proto(s)) for s in f.slo_targets),
            f.display_name,
        )
        for f in items
    )
    return listing(("fleet", "engine", "model", "target", "objectives", "name"), rows, next_page_token)
