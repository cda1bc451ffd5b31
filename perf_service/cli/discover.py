"""`perf-service instances discover`: the engines that a Prometheus scrapes, listed or registered."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
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
from perf_service.models.errors import ConflictError, ErrorReason, PerfServiceError
from perf_service.models.redaction import MASK, redacted_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perf_service.collectors.prometheus.mapping import TargetHistory
    from perf_service.models.fleet import PrometheusSource
    from perf_service.models.metrics import Engine

__all__ = ["discover"]

_NO_ID = re.compile(r"[^A-Za-z0-9._:-]+|^[^A-Za-z0-9]+|[^A-Za-z0-9]+$")
_LONGEST_ID = 128
_TAKEN = "not registered"
_THERE = "already registered"


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
    with working(f"asking {redacted_url(prometheus)}"):
        found = asyncio.run(_find(source, parse_engine(engine)))
    rows = [{"instance_id": one.instance_id, "engine": one.engine.value, "match": one.source.match} for one in found]
    if register:
        from perf_service.cli.client import connect

        with working("registering"), connect(server_address(server), timeout_seconds=timeout, token=server_token()) as remote:
            for row, (name, status) in zip(rows, _register(remote, found, fleet, scrape_interval), strict=True):
                row |= {"instance_id": name, "status": status}
    if output is Output.JSON:
        from perf_service.cli.jsonable import dumps

        typer.echo(dumps({"engines": rows}))
    else:
        from perf_service.cli.console import out

        columns = ("instance_id", "engine", "match", "status") if register else ("instance_id", "engine", "match")
        out().print(listing(columns, ([str(row[column]) for column in columns] for row in rows)))
    taken = [row["instance_id"] for row in rows if row.get("status") == _TAKEN]
    if taken:
        raise ConflictError(
            ErrorReason.INSTANCE_ALREADY_EXISTS,
            f"not registered: {', '.join(taken)}: under this id the server has an instance with another endpoint, Prometheus or --match "
            "(see: instances get); correct it with instances update, deregister it, or register this engine by hand under another id",
            {"instance_ids": ",".join(taken)},
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """An engine that the Prometheus scrapes, and what the server is told of it."""

    instance_id: str
    engine: Engine
    source: PrometheusSource
    target: TargetHistory


async def _find(source: PrometheusSource, engine: Engine | None) -> list[_Found]:
    """What there is at present. Raises CollectError, SERIES_NOT_FOUND where there is none."""
    from perf_service.collectors.prometheus.client import PrometheusClient
    from perf_service.collectors.prometheus.history import engines_now, nothing_found, told_apart
    from perf_service.collectors.prometheus.matchers import parse_matchers

    async with PrometheusClient() as client:
        found = await engines_now(client, source, engine)
        if not found:
            raise await nothing_found(client, source, "at present", engine)
    targets = [target for _, target in found]
    given = parse_matchers(source.match)
    return [
        _Found(name, kind, replace(source, match=",".join(map(str, dict.fromkeys((*given, *matchers))))), target)
        for name, (kind, target), matchers in zip(ids_of(targets), found, told_apart(targets), strict=True)
    ]


def ids_of(targets: Sequence[TargetHistory]) -> list[str]:
    """An id for each: the pod's name, else the address; where several have the same, with the labels that tell them apart.

    Never a number: an engine that comes later would shift it.
    """
    from perf_service.collectors.prometheus.history import told_apart

    names = [target.labels.get("pod") or target.labels.get("instance") or target.labels.get("job") or "engine" for target in targets]
    found = [_id_text(name) for name in names]
    for name, count in Counter(names).items():
        if count > 1:
            same = [index for index, other in enumerate(names) if other == name]
            for index, matchers in zip(same, told_apart([targets[index] for index in same]), strict=True):
                found[index] = _id_text("-".join([name, *(matcher.value for matcher in matchers if matcher.value)]))
    counts = Counter(found)
    return [
        text if text and counts[text] == 1 and len(text) <= _LONGEST_ID else f"{text[: _LONGEST_ID - 9] or 'engine'}-{_digest(target)}"
        for text, target in zip(found, targets, strict=True)
    ]


def _id_text(text: str) -> str:
    return _NO_ID.sub("-", text).strip("-._:")


def _digest(target: TargetHistory) -> str:
    return hashlib.sha256(target.name.encode()).hexdigest()[:8]


def _register(remote: Any, found: Sequence[_Found], fleet: str, interval: float | None) -> list[tuple[str, str]]:
    """Id and status of each. An engine that the server reads already keeps the id that it has there, whatever it would be called now."""
    stored = _stored(remote)
    result = []
    for one in found:
        for there in (instance for instance in stored if _reads(instance, one, found)):
            # What a mask hides, the server alone can compare: told the URL in full under that id, it says whether that is the one.
            name = there.instance_id
            status = _added(remote, replace(one, instance_id=name), fleet, interval) if MASK in there.prometheus.url else _THERE
            if status != _TAKEN:
                break
        else:
            name, status = one.instance_id, _added(remote, one, fleet, interval)
            status = _TAKEN if status == _THERE else status  # the same Prometheus, but another engine of it
        result.append((name, status))
    return result


def _stored(remote: Any) -> list[Any]:
    """Every instance that is read from a Prometheus."""
    from perf_service.v1 import fleet_service_pb2 as pb

    stored: list[Any] = []
    token = ""
    while True:
        page = remote.call(remote.stub(_stub).ListInstances, pb.ListInstancesRequest(page_size=1000, page_token=token))
        stored += [instance for instance in page.instances if instance.HasField("prometheus")]
        token = page.next_page_token
        if not token:
            return stored


def _reads(instance: Any, one: _Found, found: Sequence[_Found]) -> bool:
    """Whether the instance's source is this engine, and none of the others that there are; what is masked in its URL aside."""
    from perf_service.collectors.prometheus.matchers import parse_matchers, selects

    told = instance.prometheus
    if told.url.rstrip("/") != redacted_url(one.source.url).rstrip("/") or instance.engine != engine_number(one.engine.value):
        return False
    own = parse_matchers(one.source.match)
    matchers = parse_matchers(told.match)
    if set(matchers) == set(own):
        return True
    # What was asked for holds of everything that was found, also where it is of labels that a target does not have.
    given = set(own).intersection(*(parse_matchers(other.source.match) for other in found)) if len(found) > 1 else set()
    rest = [matcher for matcher in matchers if matcher not in given]
    return [other for other in found if other.engine is one.engine and selects(rest, other.target.labels)] == [one]


def _added(remote: Any, one: _Found, fleet: str, interval: float | None) -> str:
    from perf_service.rpc.convert.fleet import PROMETHEUS_SOURCE
    from perf_service.v1 import fleet_service_pb2 as pb
    from perf_service.v1 import instance_pb2

    instance = instance_pb2.Instance(
        instance_id=one.instance_id,
        engine=engine_number(one.engine.value),
        fleet_id=fleet,
        prometheus=PROMETHEUS_SOURCE.to_proto(one.source),
        scrape_interval_seconds=interval,
    )
    try:
        request = pb.RegisterInstanceRequest(instance=instance, request_id=new_request_id(""))
        remote.call(remote.stub(_stub).RegisterInstance, request)
    except PerfServiceError as error:
        if error.reason is not ErrorReason.INSTANCE_ALREADY_EXISTS:
            raise
        return _THERE if error.metadata.get("prometheus") == "same" else _TAKEN
    return "registered"
