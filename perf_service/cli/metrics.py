"""`perf-service collect`: CollectService."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from perf_service.cli.console import Output, OutputOption, WithDefault, out, working
from perf_service.cli.instances import InstanceArgument
from perf_service.cli.prometheus import EndOption, RangeOption, StartOption, time_range
from perf_service.cli.remote import (
    FleetOption,
    PageSizeOption,
    PageTokenOption,
    RequestIdOption,
    ServerOption,
    TimeoutOption,
    call,
    engine_number,
    listing,
    new_request_id,
    show,
    subject,
    watch_updates,
)
from perf_service.cli.text import amount, clock_time, number, percent, seconds
from perf_service.models.errors import ErrorReason, InvalidArgumentError, PerfServiceError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from perf_service.models.metrics import Snapshot

__all__ = ["collect"]

collect = typer.Typer(cls=WithDefault("now"), no_args_is_help=True, help="Scrape now: collect INSTANCE; import pages, list, watch.")


def _stub(channel: Any) -> Any:
    from perf_service.v1.collect_service_pb2_grpc import CollectServiceStub

    return CollectServiceStub(channel)


@collect.command("now")
def now(
    instance_id: InstanceArgument,
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Scrape one instance now and keep the snapshot. What `collect INSTANCE` does."""
    from perf_service.v1 import collect_service_pb2 as pb

    request = pb.CollectMetricsRequest(instance_id=instance_id, request_id=new_request_id(request_id))
    with working(f"scraping {instance_id}"):
        response = call(server, timeout, _stub, "CollectMetrics", request)
    show(output, response, lambda: _view(response.snapshot))


@collect.command("import")
def import_(
    instance_id: InstanceArgument,
    page: Annotated[
        Path, typer.Argument(metavar="PAGE", help="A saved /metrics page (.gz too), or a directory of them.", show_default=False)
    ],
    engine: Annotated[str, typer.Option("--engine", help="If it is not the instance's own.")] = "",
    at: Annotated[float | None, typer.Option("--at", help="Unix time of the scrape (default: now).")] = None,
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Hand saved pages of an instance to the server. May be repeated: a page of a moment that is stored changes nothing.

    A page of a directory that is none is told at the end, and the others are stored.
    """
    from perf_service.collectors.saved import read_saved
    from perf_service.v1 import collect_service_pb2 as pb

    if not page.exists():
        raise InvalidArgumentError(f"there is no file {str(page)!r}", field="PAGE")
    refused: dict[str, PerfServiceError] = {}
    saved = read_saved(page, refused=refused.__setitem__)
    if page.is_dir() and (at is not None or request_id):
        raise InvalidArgumentError("--at and --request-id are of one page; those of a directory have their times in it", field="--at")
    if page.is_dir() and any(one.collected_at is None for one in saved):
        raise InvalidArgumentError(
            f"when the pages of {page} were scraped is not known: add scrapes.jsonl with their times (lines of file and t_unix), or import "
            "them one by one with --at",
            field="PAGE",
        )
    responses = []
    for one in saved:
        request = pb.ImportMetricsRequest(instance_id=instance_id, page=one.body, request_id=new_request_id(request_id))
        if engine:
            request.engine = engine_number(engine)
        if (time_ := one.collected_at if page.is_dir() else at) is not None:
            request.collected_at.FromNanoseconds(int(time_ * 1e9))
        try:
            responses.append(call(server, timeout, _stub, "ImportMetrics", request))
        except PerfServiceError as error:
            if not page.is_dir() or error.reason not in _OF_A_PAGE:
                raise
            refused[one.name] = error
    outcomes = [response.outcome for response in responses]
    counts = {name: outcomes.count(number) for name, number in _outcomes().items()}
    if not page.is_dir():
        show(output, responses[0], lambda: _view(responses[0].snapshot, "; ".join(_told(counts))))
    elif output is Output.JSON:
        pages = [{"file": Path(name).name, "reason": error.reason.value, "message": error.message} for name, error in refused.items()]
        typer.echo(json.dumps({**counts, "refused": pages}))
    else:
        out().print(f"{instance_id}: {'; '.join(_told({**counts, 'refused': len(refused)}))}")
    if refused:
        why = "; ".join(f"{Path(name).name}: {error.message}" for name, error in list(refused.items())[:_REFUSED_TOLD])
        more = f"; and {len(refused) - _REFUSED_TOLD} more" if len(refused) > _REFUSED_TOLD else ""
        first = next(iter(refused.values()))
        raise PerfServiceError(
            first.reason,
            f"{len(refused)} of {len(refused) + len(responses)} pages of {page} were refused: {why}{more}; the others are kept",
        )


_REFUSED_TOLD: Final = 5
_OF_A_PAGE: Final = frozenset(
    {
        ErrorReason.BODY_EMPTY,
        ErrorReason.BODY_NOT_METRICS,
        ErrorReason.BODY_TOO_LARGE,
        ErrorReason.MESSAGE_TOO_LARGE,
        ErrorReason.TOO_MANY_SERIES,
        ErrorReason.ENGINE_UNKNOWN,
        ErrorReason.ENGINE_MISMATCH,
        ErrorReason.INVALID_ARGUMENT,
    }
)
"""What the server says of one page, and not of all of them."""


def _outcomes() -> dict[str, int]:
    """The outcomes of an import, by the names in JSON."""
    from perf_service.v1 import collect_service_pb2 as pb

    return {name.removeprefix("IMPORT_OUTCOME_").lower(): number for name, number in pb.ImportOutcome.items() if number}


def _told(counts: Mapping[str, int]) -> list[str]:
    words = {
        "stored": "{} stored",
        "already_stored": "{} of moments that were stored before",
        "too_old": "{} older than what the server keeps, not stored",
        "refused": "{} refused",
    }
    return [words.get(name, "{} " + name).format(number) for name, number in counts.items() if number]


@collect.command("backfill")
def backfill(
    instance_id: InstanceArgument,
    range_: RangeOption = "",
    start: StartOption = "",
    end: EndOption = "",
    request_id: RequestIdOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 120.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Have the server read an instance's past from its Prometheus: the last 10 minutes, or as told. May be repeated."""
    from perf_service.v1 import collect_service_pb2 as pb

    since, until = time_range(range_, start, end, time.time())
    request = pb.BackfillMetricsRequest(instance_id=instance_id, request_id=new_request_id(request_id))
    request.range.start.FromNanoseconds(int(since * 1e9))
    request.range.end.FromNanoseconds(int(until * 1e9))
    with working(f"reading the past of {instance_id}"):
        response = call(server, timeout, _stub, "BackfillMetrics", request)

    def told() -> str:
        first, last = response.first_collected_at.ToDatetime(UTC), response.last_collected_at.ToDatetime(UTC)
        line = f"{response.imported} scrapes stored, {response.already_stored} were there: {first:%Y-%m-%d %H:%M:%S} to {last:%H:%M:%S} UTC"
        return "\n".join([line, *(f"! {issue.message}" for issue in response.quality.issues)])

    show(output, response, told)


@collect.command("list")
def list_(
    instance_id: InstanceArgument,
    page_size: PageSizeOption = 50,
    page_token: PageTokenOption = "",
    server: ServerOption = None,
    timeout: TimeoutOption = 30.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """List an instance's stored snapshots, newest first."""
    from perf_service.v1 import collect_service_pb2 as pb

    request = pb.ListSnapshotsRequest(instance_id=instance_id, page_size=page_size, page_token=page_token)
    response = call(server, timeout, _stub, "ListSnapshots", request)
    headers = ("snapshot", "at (UTC)", "running", "waiting", "KV used", "requests finished")
    show(output, response, lambda: listing(headers, map(_row, response.snapshots), response.next_page_token))


@collect.command("watch")
def watch(
    instance_id: Annotated[str, typer.Argument(metavar="[INSTANCE]", help="Id of the instance.")] = "",
    fleet: FleetOption = "",
    server: ServerOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print every new snapshot of an instance or a fleet, until interrupted."""
    from perf_service.v1 import collect_service_pb2 as pb

    for update in watch_updates(server, _stub, "WatchMetrics", pb.WatchMetricsRequest(**subject(instance_id, fleet)), output):
        if update.HasField("snapshot"):
            _, at, running, waiting, kv, finished = _row(update.snapshot)
            line = f"{at}  {update.snapshot.instance_id}  running {running}  waiting {waiting}  KV {kv}  finished {finished}"
            out().print(line, soft_wrap=True)


def _model(message: Any) -> Snapshot:
    from perf_service.rpc.convert.metrics import SNAPSHOT

    return SNAPSHOT.from_proto(message)


def _row(message: Any) -> tuple[str, ...]:
    from perf_service.models.metrics import Counter, Gauge

    s = _model(message)
    return (
        s.snapshot_id,
        clock_time(s.collected_at),
        number(s.gauges.get(Gauge.RUNNING_REQUESTS)),
        number(s.gauges.get(Gauge.WAITING_REQUESTS)),
        percent(s.gauges.get(Gauge.KV_CACHE_USAGE_RATIO)),
        number(s.counters.get(Counter.REQUESTS_SUCCEEDED)),
    )


def _view(message: Any, outcome: str = "") -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    s = _model(message)
    rows = [(name.value, amount(name.value, value)) for name, value in s.gauges.items()]
    rows += [(f"{name.value} (total)", number(value)) for name, value in s.counters.items()]
    rows += [(f"{name.value} (mean of {number(h.count)})", _mean(name.value, h.mean)) for name, h in s.histograms.items() if h.count]
    head = Text(f"{s.instance_id}  {s.engine.value} {s.engine_version}  {clock_time(s.collected_at)} UTC", style="bold")
    head.append(f"  {outcome}" if outcome else "", style="not bold")
    issues = [Text(f"! {issue.message}", style="yellow") for issue in s.quality.issues if issue.level != "info"]
    return Group(head, listing(("metric", "value"), rows), *issues)


def _mean(name: str, value: float | None) -> str:
    return seconds(value) if name.endswith("_seconds") else number(value)
