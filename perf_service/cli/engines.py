"""`perf-service fleets up` and `fleets down`: the engines of a local fleet, on the server's own host.

The server supervises and changes the engines of a local fleet; these two commands begin and end them, through the same state directory.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perf_service.cli.console import out, working
from perf_service.cli.fleets import FleetArgument, _stub, fleets
from perf_service.cli.remote import ServerOption, TimeoutOption, call
from perf_service.models.errors import ErrorReason, InvalidArgumentError, PerfServiceError
from perf_service.models.fleet import Fleet, Instance, TargetKind

if TYPE_CHECKING:
    from perf_service.targets.local import LocalTarget

__all__ = ["down", "up"]

StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="The server's state directory (default: as the server says; a relative one is taken from here)."),
]


@fleets.command("up")
def up(fleet_id: FleetArgument, state_dir: StateDir = None, server: ServerOption = None, timeout: TimeoutOption = 900.0) -> None:
    """Start the engines of a local fleet and wait until each answers. Run it on the server's host."""
    fleet, instances, directory = _known(fleet_id, state_dir, server)

    async def start() -> None:
        target = _target(fleet, instances, directory)
        try:
            state = await target.start_all(timeout_seconds=timeout)
        finally:
            await target.close()  # the engines stay; the server takes them over
        for replica in state.replicas:
            out().print(f"{replica.instance_id}  {replica.endpoint}  {'ready' if replica.ready else replica.message}")

    with working(f"starting {len(instances)} engines of {fleet_id}"):
        asyncio.run(start())


@fleets.command("down")
def down(fleet_id: FleetArgument, state_dir: StateDir = None, server: ServerOption = None) -> None:
    """Stop the engines of a local fleet; nothing of them is left running. Run it on the server's host."""
    fleet, instances, directory = _known(fleet_id, state_dir, server)
    _refuse_during_rollout(fleet_id, server)

    async def stop() -> None:
        target = _target(fleet, instances, directory)
        try:
            await target.stop_all()
        finally:
            await target.close()

    with working(f"stopping {len(instances)} engines of {fleet_id}"):
        asyncio.run(stop())
    out().print(f"stopped {len(instances)} engines of {fleet_id}")


def _refuse_during_rollout(fleet_id: str, server: str | None) -> None:
    """A rollout would bring the engines up again under our hands."""
    from perf_service.cli.rollout import stub
    from perf_service.rpc.convert.workflow import WORKFLOW
    from perf_service.v1 import workflow_service_pb2 as pb

    request = pb.ListWorkflowsRequest(fleet_id=fleet_id, page_size=1)  # the newest: a fleet has one active rollout at most
    for workflow in map(WORKFLOW.from_proto, call(server, 30.0, stub, "ListWorkflows", request).workflows):
        if not workflow.status.terminal:
            text = f"rollout {workflow.workflow_id} is {workflow.status}; end it first: perf-service rollout abort {workflow.workflow_id}"
            raise PerfServiceError(ErrorReason.WORKFLOW_ACTIVE_ON_FLEET, text)


def _target(fleet: Fleet, instances: list[Instance], directory: Path) -> LocalTarget:
    from perf_service.settings import engine_environment
    from perf_service.targets.local import LocalOptions, LocalTarget

    options = LocalOptions.parse(fleet.target.options)
    return LocalTarget(fleet, instances, options=options, state_dir=directory, clock=time.time, environment=engine_environment())


def _known(fleet_id: str, state_dir: Path | None, server: str | None) -> tuple[Fleet, list[Instance], Path]:
    """The fleet and its instances as the server has them, and the state directory that it uses."""
    from perf_service.rpc.convert.fleet import FLEET, INSTANCE
    from perf_service.v1 import fleet_service_pb2 as pb

    fleet = FLEET.from_proto(call(server, 30.0, _stub, "GetFleet", pb.GetFleetRequest(fleet_id=fleet_id)).fleet)
    if fleet.target.kind is not TargetKind.LOCAL:
        raise InvalidArgumentError(
            f"fleet {fleet_id!r} has the target {fleet.target.kind}; only a local fleet's engines are started here", field="fleet"
        )
    instances: list[Instance] = []
    token = ""
    while True:
        page: Any = call(server, 30.0, _stub, "ListInstances", pb.ListInstancesRequest(fleet_id=fleet_id, page_size=500, page_token=token))
        instances += [INSTANCE.from_proto(message) for message in page.instances]
        token = page.next_page_token
        if not token:
            break
    if not instances:
        raise InvalidArgumentError(
            f"fleet {fleet_id!r} has no instances; register them first: perf-service instances register", field="fleet"
        )
    return fleet, instances, state_dir or _servers_state_dir(server)


def _servers_state_dir(server: str | None) -> Path:
    from perf_service.cli.system import _stub as system_stub
    from perf_service.v1 import system_service_pb2

    entries = call(server, 30.0, system_stub, "GetConfig", system_service_pb2.GetConfigRequest()).entries
    return Path(next((entry.value for entry in entries if entry.name == "state_dir"), "perf_service_state"))
