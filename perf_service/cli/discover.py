"""`perf-service instances discover`: the engines that a Prometheus scrapes, listed or registered."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perf_service.cli.console import Output, OutputOption, working
from perf_service.cli.doctor import parse_engine
from perf_service.cli.fleets import _stub
from perf_service.cli.instances import instances
from perf_service.cli.prometheus import HeaderOption, MatchOption, TokenFileOption, source_of
from perf_service.cli.remote import (
    FleetOption,
    ServerOption,
    TimeoutOption,
    engine_number,
    listing,
    new_request_id,
    server_address,
    server_token,
)
from perf_service.models.errors import ErrorReason, PerfServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perf_service.models.fleet import PrometheusSource
    from perf_service.models.metrics import Engine

__all__ = ["discover"]

_NO_ID = re.compile(r"[^A-Za-z0-9._:-]+|^[^A-Za-z0-9]+|[^A-Za-z0-9]+$")
_LONGEST_ID = 128


@instances.command("discover")
def discover(
    prometheus: Annotated[str, typer.Option("--prometheus", metavar="URL", help="The Prometheus that scrapes them.", show_default=False)],
    match: MatchOption = None,
    engine: Annotated[str, typer.Option("--engine", help="auto, vllm, sglang or tgi.")] = "auto",
    register: Annotated[bool, typer.Option("--register", help="Register each of them, to be read from this Prometheus.")] = False,
    fleet: FleetOption = "",
    scrape_interval: Annotated[float | None, typer.Option("--scrape-interval", min=1, help="Seconds between reads.")] = None,
    header: HeaderOption = None,
    token_file: TokenFileOption = None,
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the engines that a Prometheus scrapes; with --register have the server read each of them from there.

    Those that are registered already stay as they are, so it may be repeated as a fleet grows.
    """
    source = source_of(prometheus, match, header, token_file)
    with working(f"asking {prometheus}"):
        found = asyncio.run(_find(source, parse_engine(engine)))
    rows = [{"instance_id": name, "engine": kind.value, "match": told.match} for name, kind, told in found]
    if register:
        from perf_service.cli.client import connect

        with working("registering"), connect(server_address(server), timeout_seconds=timeout, token=server_token()) as remote:
            for row, (name, kind, told) in zip(rows, found, strict=True):
                row["status"] = _register(remote, name, kind, told, fleet, scrape_interval)
    if output is Output.JSON:
        from perf_service.cli.jsonable import dumps

        typer.echo(dumps({"engines": rows}))
    else:
        from perf_service.cli.console import out

        columns = ("instance_id", "engine", "match", "status") if register else ("instance_id", "engine", "match")
        out().print(listing(columns, ([str(row[column]) for column in columns] for row in rows)))


async def _find(source: PrometheusSource, engine: Engine | None) -> list[tuple[str, Engine, PrometheusSource]]:
    """An id, the engine and the source of each. Raises CollectError, SERIES_NOT_FOUND where there is none."""
    from perf_service.collectors.prometheus.client import PrometheusClient
    from perf_service.collectors.prometheus.history import engines_now, nothing_found, told_apart
    from perf_service.collectors.prometheus.matchers import parse_matchers

    async with PrometheusClient() as client:
        found = await engines_now(client, source, engine)
        if not found:
            raise await nothing_found(client, source, "at present", engine)
    own = told_apart([target for _, target in found])
    given = parse_matchers(source.match)
    names: dict[str, int] = {}
    result = []
    for (kind, target), matchers in zip(found, own, strict=True):
        text = ",".join(map(str, dict.fromkeys((*given, *matchers))))
        result.append((_id_of(target.labels, names), kind, replace(source, match=text)))
    return result


def _id_of(labels: Mapping[str, str], taken: dict[str, int]) -> str:
    """The pod's name, else the address; with a number where that is taken."""
    name = _NO_ID.sub("-", labels.get("pod") or labels.get("instance") or labels.get("job") or "engine").strip("-._:")[: _LONGEST_ID - 8]
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}-{taken[name]}"


def _register(remote: Any, name: str, kind: Engine, source: PrometheusSource, fleet: str, interval: float | None) -> str:
    from perf_service.rpc.convert.fleet import PROMETHEUS_SOURCE
    from perf_service.v1 import fleet_service_pb2 as pb
    from perf_service.v1 import instance_pb2

    instance = instance_pb2.Instance(
        instance_id=name,
        engine=engine_number(kind.value),
        fleet_id=fleet,
        prometheus=PROMETHEUS_SOURCE.to_proto(source),
        scrape_interval_seconds=interval,
    )
    try:
        request = pb.RegisterInstanceRequest(instance=instance, request_id=new_request_id(""))
        remote.call(remote.stub(_stub).RegisterInstance, request)
    except PerfServiceError as error:
        if error.reason is not ErrorReason.INSTANCE_ALREADY_EXISTS:
            raise
        return "already registered"
    return "registered"
