"""What every client command shares: where the server is, one call, one way to print, and values of the contract from typed text."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perf_service.cli.console import Output, out
from perf_service.models.config import EngineConfig, KnobValue
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Engine
from perf_service.models.slo import parse_slo

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import RenderableType

    from perf_service.v1 import config_pb2, slo_pb2

__all__ = [
    "FleetOption",
    "PageSizeOption",
    "PageTokenOption",
    "RequestIdOption",
    "SLOOption",
    "ServerOption",
    "TimeoutOption",
    "call",
    "config_of",
    "engine_number",
    "enum_name",
    "knob_value",
    "labels_of",
    "listing",
    "new_request_id",
    "server_address",
    "show",
    "slo_targets",
    "subject",
    "watch_updates",
]

ServerOption = Annotated[
    str | None, typer.Option("--server", "-s", metavar="HOST:PORT", help="The server (default: PERF_SERVICE_SERVER, else 127.0.0.1:50051).")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")]
FleetOption = Annotated[str, typer.Option("--fleet", help="Id of a fleet.")]
SLOOption = Annotated[list[str] | None, typer.Option("--slo", help="An objective, e.g. 'ttft_p95<0.5'. Repeatable.")]
RequestIdOption = Annotated[
    str, typer.Option("--request-id", help="Makes a retry safe: the same id gives the earlier result.", show_default=False)
]
PageSizeOption = Annotated[int, typer.Option("--page-size", min=1, max=1000, help="At most this many.")]
PageTokenOption = Annotated[str, typer.Option("--page-token", help="Where the previous page ended.", show_default=False)]


def server_address(told: str | None) -> str:
    """--server, else the environment's or the default server."""
    if told:
        return told
    from perf_service.settings import load_client_settings

    return str(load_client_settings().server)


def server_token() -> str:
    """The bearer token of the environment; empty: none."""
    from perf_service.settings import load_client_settings

    return str(load_client_settings().token)


def call(server: str | None, timeout: float, stub: Callable[[Any], Any], method: str, request: Message) -> Any:
    """One unary call on a fresh connection."""
    from perf_service.cli.client import connect

    with connect(server_address(server), timeout_seconds=timeout, token=server_token()) as remote:
        return remote.call(getattr(remote.stub(stub), method), request)


def watch_updates(server: str | None, stub: Callable[[Any], Any], method: str, request: Message, output: Output) -> Iterator[Any]:
    """The messages of a stream until it ends or is interrupted; with JSON output one line each, and nothing is yielded."""
    import json

    from google.protobuf.json_format import MessageToDict

    from perf_service.cli.client import connect, translated

    address = server_address(server)
    with connect(address, token=server_token()) as remote, translated(address):
        stream = remote.stream(getattr(remote.stub(stub), method), request)
        try:
            for update in stream:
                if output is Output.JSON:
                    print(json.dumps(MessageToDict(update, preserving_proto_field_name=True)), flush=True)
                else:
                    yield update
        finally:
            stream.cancel()


def show(output: Output, message: Message, view: Callable[[], RenderableType | str | None]) -> None:
    """The response as JSON, or as the view."""
    from perf_service.cli.client import message_json

    if output is Output.JSON:
        typer.echo(message_json(message))
        return
    body = view()
    if body is not None:
        out().print(body)


def listing(headers: Sequence[str], rows: Iterable[Sequence[str]], next_page_token: str = "") -> RenderableType:
    """A table, left-aligned, with a hint where there is more."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for index, header in enumerate(headers):
        # The first column is the id: broken over two lines it could not be copied.
        table.add_column(header, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    if not table.row_count:
        return Text("none", style="dim")
    return Group(table, Text(f"more: --page-token {next_page_token}", style="dim")) if next_page_token else table


def new_request_id(told: str) -> str:
    """The told id, or a fresh one: a command line is a request of its own."""
    return told or str(uuid.uuid4())


def subject(instance: str, fleet: str, *, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Exactly one of instance and fleet (and of `more`), as request fields."""
    told = {name: value for name, value in {"instance_id": instance, "fleet_id": fleet, **(more or {})}.items() if value}
    if len(told) != 1:
        raise InvalidArgumentError("name one INSTANCE, or a fleet with --fleet" + (" (or another source)" if more else ""), field="subject")
    return told


def engine_number(engine: str) -> Any:
    """The contract's number of an engine's name."""
    from perf_service.v1 import engine_pb2

    try:
        return engine_pb2.Engine.Value(f"ENGINE_{Engine(engine.lower()).value.upper()}")
    except ValueError:
        raise InvalidArgumentError(f"--engine {engine!r} is not supported; choose {', '.join(Engine)}", field="engine") from None


def enum_name(enum: Any, number: int, prefix: str) -> str:
    """`batch_limit` of CAUSE_BATCH_LIMIT; empty for unspecified."""
    name = enum.Name(number) if number in enum.values() else str(number)
    short = str(name).removeprefix(prefix).lower()
    return "" if short == "unspecified" else short


def knob_value(value: KnobValue) -> config_pb2.KnobValue:
    """A typed value of the contract."""
    from perf_service.rpc.convert.mirror import knob_value as typed

    return typed(value)


def config_of(config: EngineConfig) -> config_pb2.EngineConfig:
    """Launch flags as the user told them."""
    from perf_service.rpc.convert.config import ENGINE_CONFIG

    return ENGINE_CONFIG.to_proto(config)


def slo_targets(texts: Sequence[str] | None) -> list[slo_pb2.SLOTarget]:
    """Objectives of the contract from `ttft_p95<0.5`."""
    from perf_service.rpc.convert.slo import SLO_TARGET

    return [SLO_TARGET.to_proto(parse_slo(text)) for text in texts or ()]


def labels_of(pairs: Sequence[str] | None, *, option: str) -> dict[str, str]:
    """NAME=VALUE pairs kept as text."""
    found = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise InvalidArgumentError(f"{option} {pair!r} is not NAME=VALUE", field=option)
        found[name.strip()] = value
    return found
