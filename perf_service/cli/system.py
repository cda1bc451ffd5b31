"""`perf-service system`: SystemService."""

from __future__ import annotations

from typing import Any

import typer

from perf_service.cli.console import Commands, Output, OutputOption
from perf_service.cli.remote import ServerOption, TimeoutOption, call, enum_name, listing, show

__all__ = ["system"]

system = typer.Typer(cls=Commands, help="The server itself: version, effective settings, what it can do.", no_args_is_help=True)


def _stub(channel: Any) -> Any:
    from perf_service.v1.system_service_pb2_grpc import SystemServiceStub

    return SystemServiceStub(channel)


@system.command("version")
def version(server: ServerOption = None, timeout: TimeoutOption = 30.0, output: OutputOption = Output.TABLE) -> None:
    """The server's version."""
    from perf_service.v1 import system_service_pb2 as pb

    r = call(server, timeout, _stub, "GetVersion", pb.GetVersionRequest())
    about = {"version": r.version, "contract": ", ".join(r.api_versions), "store schema": r.schema_version, **r.runtime}
    show(output, r, lambda: listing(("", ""), about.items()))


@system.command("config")
def config(server: ServerOption = None, timeout: TimeoutOption = 30.0, output: OutputOption = Output.TABLE) -> None:
    """The server's effective settings; secrets are masked."""
    from perf_service.v1 import system_service_pb2 as pb

    r = call(server, timeout, _stub, "GetConfig", pb.GetConfigRequest())
    rows = ((e.variable or e.name, e.value, "default" if e.is_default else "set") for e in r.entries)
    show(output, r, lambda: listing(("setting", "value", ""), rows))


@system.command("capabilities")
def capabilities(server: ServerOption = None, timeout: TimeoutOption = 30.0, output: OutputOption = Output.TABLE) -> None:
    """Engines, versions and targets that the server knows."""
    from perf_service.v1 import engine_pb2, fleet_pb2
    from perf_service.v1 import system_service_pb2 as pb

    r = call(server, timeout, _stub, "GetCapabilities", pb.GetCapabilitiesRequest())
    rows = [
        (f"engine {enum_name(engine_pb2.Engine, e.engine, 'ENGINE_')}", f"{e.knobs} knobs, versions {', '.join(e.known_versions)}")
        for e in r.engines
    ]
    rows += [
        (f"target {enum_name(fleet_pb2.TargetKind, t.kind, 'TARGET_KIND_')}", "available" if t.available else "not available")
        for t in r.targets
    ]
    rows.append(("objectives", ", ".join(r.slo_metrics)))
    show(output, r, lambda: listing(("what", "details"), rows))
