"""`perf-service instances`: FleetService, the engine servers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perf_service.cli.console import Commands, Output, OutputOption
from perf_service.cli.fleets import _stub
from perf_service.cli.prometheus import HeaderOption, MatchOption, PrometheusOption, TokenFileOption, source_of
from perf_service.cli.remote import (
    FleetOption,
    PageSizeOption,
    PageTokenOption,
    RequestIdOption,
    ServerOption,
    TimeoutOption,
    call,
    config_of,
    engine_number,
    enum_name,
    labels_of,
    listing,
    new_request_id,
    show,
)
from perf_service.cli.settings_text import parse_settings
from perf_service.cli.text import ago
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.redaction import MASK, redacted_url

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["instances"]

instances = typer.Typer(cls=Commands, help="Engine servers (replicas).", no_args_is_help=True)

InstanceArgument = Annotated[str, typer.Argument(metavar="INSTANCE", help="Id of the instance.", show_default=False)]
Config = Annotated[list[str] | None, typer.Option("--config", help="A present launch flag, e.g. max_num_seqs=256. Repeatable.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="NAME=VALUE. Repeatable.")]
Etag = Annotated[str, typer.Option("--etag", help="Refuse if the instance has changed since this etag.", show_default=False)]


@instances.command("register")
def register(
    instance_id: InstanceArgument,
    endpoint: Annotated[
        str, typer.Option("--endpoint", help="Base URL or /metrics URL, e.g. http://10.0.0.5:8000. Or --prometheus.", show_default=False)
    ] = "",
    engine: Annotated[str, typer.Option("--engine", help="vllm, sglang or tgi.")] = "vllm",
    fleet: FleetOption = "",
    engine_version: Annotated[str, typer.Option("--engine-version", help="Where the engine does not tell it.")] = "",
    model: Annotated[str, typer.Option("--model", help="Name of the model it serves.")] = "",
    config: Config = None,
    accelerator: Annotated[str, typer.Option("--accelerator", help="e.g. H100-SXM.")] = "",
    accelerators: Annotated[int, typer.Option("--accelerators", min=0, help="How many.")] = 0,
    memory_gib: Annotated[float, typer.Option("--memory-gib", min=0, help="Memory of one accelerator.")] = 0.0,
    compute_capability: Annotated[str, typer.Option("--compute-capability", help="e.g. 9.0.")] = "",
    scrape_interval: Annotated[float | None, typer.Option("--scrape-interval", min=1, help="Seconds between scrapes.")] = None,
    prometheus: PrometheusOption = "",
    match: MatchOption = None,
    header: HeaderOption = None,
    token_file: TokenFileOption = None,
    label: Labels = None,
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Register an engine server: by its endpoint, or by a Prometheus that scrapes it already."""
    from perf_service.v1 import config_pb2, instance_pb2
    from perf_service.v1 import fleet_service_pb2 as pb

    if not endpoint and not prometheus:
        raise InvalidArgumentError("give --endpoint URL, or --prometheus URL with --match", field="--endpoint")
    hardware = config_pb2.Hardware(
        accelerator=accelerator, accelerators=accelerators, memory_bytes=int(memory_gib * 2**30), compute_capability=compute_capability
    )
    instance = instance_pb2.Instance(
        instance_id=instance_id,
        engine=engine_number(engine),
        endpoint=endpoint,
        fleet_id=fleet,
        engine_version=engine_version,
        model_name=model,
        config=config_of(parse_settings(config or (), option="--config")),
        hardware=hardware,
        labels=labels_of(label, option="--label"),
        scrape_interval_seconds=scrape_interval,
        prometheus=_source(prometheus, match, header, token_file),
    )
    request = pb.RegisterInstanceRequest(instance=instance, request_id=new_request_id(request_id))
    response = call(server, timeout, _stub, "RegisterInstance", request)
    show(output, response, lambda: _view([response.instance]))


@instances.command("get")
def get(
    instance_id: InstanceArgument, server: ServerOption = None, timeout: TimeoutOption = 30.0, output: OutputOption = Output.TABLE
) -> None:
    """Show one instance."""
    from perf_service.v1 import fleet_service_pb2 as pb

    response = call(server, timeout, _stub, "GetInstance", pb.GetInstanceRequest(instance_id=instance_id))
    show(output, response, lambda: _view([response.instance], scrapes={instance_id: response.scrape}))


@instances.command("list")
def list_(
    fleet: FleetOption = "",
    page_size: PageSizeOption = 50,
    page_token: PageTokenOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """List instances, of one fleet or all."""
    from perf_service.v1 import fleet_service_pb2 as pb

    request = pb.ListInstancesRequest(fleet_id=fleet, page_size=page_size, page_token=page_token)
    response = call(server, timeout, _stub, "ListInstances", request)
    show(output, response, lambda: _view(response.instances, response.next_page_token, response.scrapes))


@instances.command("update")
def update(
    instance_id: InstanceArgument,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Base URL or /metrics URL.")] = None,
    fleet: Annotated[str | None, typer.Option("--fleet", help="Id of a fleet.")] = None,
    engine_version: Annotated[str | None, typer.Option("--engine-version", help="Where the engine does not tell it.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name of the model it serves.")] = None,
    config: Config = None,
    scrape_interval: Annotated[float | None, typer.Option("--scrape-interval", min=1, help="Seconds between scrapes.")] = None,
    prometheus: PrometheusOption = "",
    match: MatchOption = None,
    header: HeaderOption = None,
    token_file: TokenFileOption = None,
    clear_token: Annotated[bool, typer.Option("--clear-token", help="Forget the bearer token of its Prometheus.")] = False,
    clear_headers: Annotated[bool, typer.Option("--clear-headers", help="Forget the headers for its Prometheus.")] = False,
    label: Labels = None,
    etag: Etag = "",
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change what is given; the rest stays. So do the token, the headers and --match of the same --prometheus URL."""
    from perf_service.v1 import fleet_service_pb2 as pb

    if (clear_token and token_file) or (clear_headers and header):
        raise InvalidArgumentError("--clear-token or --token-file, --clear-headers or --header: not both", field="--clear-token")
    if not prometheus:
        _no_source_options(match, header, token_file)
    given = {
        "endpoint": endpoint,
        "fleet_id": fleet,
        "engine_version": engine_version,
        "model_name": model,
        "config": config,
        "scrape_interval_seconds": scrape_interval,
        "labels": label,
        "prometheus": prometheus or None,
    }
    paths = [path for path, value in given.items() if value is not None]
    if not prometheus:
        cleared = {"prometheus.bearer_token": clear_token, "prometheus.headers": clear_headers}
        paths += [path for path, is_cleared in cleared.items() if is_cleared]
    if not paths:
        raise InvalidArgumentError("nothing to change: give --endpoint, --fleet, --config, ... (see --help)", field="update_mask")
    # Required fields of the message are sent as they are, and left out of the mask.
    instance = call(server, timeout, _stub, "GetInstance", pb.GetInstanceRequest(instance_id=instance_id)).instance
    instance.etag = etag
    for path in ("endpoint", "fleet_id", "engine_version", "model_name", "scrape_interval_seconds"):
        if given[path] is not None:
            setattr(instance, path, given[path])
    if config is not None:
        instance.config.CopyFrom(config_of(parse_settings(config, option="--config")))
    if (clear_token or clear_headers) and not (prometheus or instance.HasField("prometheus")):
        raise InvalidArgumentError(f"{instance_id} is not read from a Prometheus, so there is nothing to clear", field="--clear-token")
    if prometheus:
        instance.prometheus.CopyFrom(_changed_source(instance.prometheus, prometheus, match, header, token_file))
    if clear_token:
        instance.prometheus.ClearField("bearer_token")
    if clear_headers:
        instance.prometheus.ClearField("headers")
    if label is not None:
        instance.labels.clear()
        instance.labels.update(labels_of(label, option="--label"))
    request = pb.UpdateInstanceRequest(instance=instance, request_id=new_request_id(request_id))
    request.update_mask.paths.extend(paths)
    response = call(server, timeout, _stub, "UpdateInstance", request)
    show(output, response, lambda: _view([response.instance]))


@instances.command("deregister")
def deregister(
    instance_id: InstanceArgument,
    etag: Etag = "",
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Forget an instance; the engine itself is not touched."""
    from perf_service.v1 import fleet_service_pb2 as pb

    request = pb.DeregisterInstanceRequest(instance_id=instance_id, etag=etag, request_id=new_request_id(request_id))
    response = call(server, timeout, _stub, "DeregisterInstance", request)
    show(output, response, lambda: f"deregistered {instance_id}")


def _source(url: str, match: list[str] | None, header: list[str] | None, token_file: Path | None) -> Any:
    """The message of a source, None where none is told."""
    from perf_service.rpc.convert.fleet import PROMETHEUS_SOURCE

    if not url:
        _no_source_options(match, header, token_file)
        return None
    if not match:
        raise InvalidArgumentError("--prometheus needs --match, which selects the engine among those that it scrapes", field="--match")
    return PROMETHEUS_SOURCE.to_proto(source_of(url, match, header, token_file))


def _changed_source(stored: Any, url: str, match: list[str] | None, header: list[str] | None, token_file: Path | None) -> Any:
    """As `_source`; of the stored source of the same URL what is not told anew stays. Its secrets are masked, which keeps them."""
    if stored.url.rstrip("/") != redacted_url(url).rstrip("/"):
        return _source(url, match, header, token_file)
    is_masked = MASK in stored.url
    # Behind a mask may be another tenant's URL: its secrets the server keeps for the same one only, but its --match would go along.
    is_same = not is_masked or url == stored.url
    told = _source(url if is_masked else stored.url, match or ([stored.match] if is_same else None), header, token_file)
    told.bearer_token = told.bearer_token or stored.bearer_token
    if not header:
        told.headers.update(stored.headers)
    return told


def _no_source_options(match: list[str] | None, header: list[str] | None, token_file: Path | None) -> None:
    if match or header or token_file:
        raise InvalidArgumentError("--match, --header and --token-file go with --prometheus URL", field="--prometheus")


def _view(items: Any, next_page_token: str = "", scrapes: Mapping[str, Any] | None = None) -> RenderableType:
    from perf_service.rpc.convert.config import ENGINE_CONFIG
    from perf_service.v1 import engine_pb2

    def flags(item: Any) -> str:
        return ", ".join(f"{name}={value}" for name, value in ENGINE_CONFIG.from_proto(item).values().items())

    rows = (
        (
            i.instance_id,
            f"{enum_name(engine_pb2.Engine, i.engine, 'ENGINE_')} {i.engine_version}".strip(),
            i.fleet_id,
            *(() if scrapes is None else _state(scrapes.get(i.instance_id), time.time())),
            i.endpoint if not i.HasField("prometheus") else f"{{{i.prometheus.match}}} in {i.prometheus.url}",
            flags(i.config),
        )
        for i in items
    )
    states = () if scrapes is None else ("state", "last page")
    return listing(("instance", "engine", "fleet", *states, "endpoint", "known flags"), rows, next_page_token)


def _state(scrape: Any, now: float) -> tuple[str, str]:
    """The state of an instance's scrapes and the age of its newest page; empty where an older server does not tell."""
    from perf_service.v1 import instance_pb2

    if scrape is None or not scrape.state:
        return "", ""
    word = enum_name(instance_pb2.ScrapeState, scrape.state, "SCRAPE_STATE_")
    if scrape.HasField("down_since"):
        word = f"{word} for {ago(scrape.down_since.ToNanoseconds() / 1e9, now).removesuffix(' ago')} ({scrape.reason})"
    return word, ago(scrape.last_page_at.ToNanoseconds() / 1e9, now)
