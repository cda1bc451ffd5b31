"""What commands that read a Prometheus share: the options, times as people write them, and the read itself for `doctor`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perf_service.collectors.saved import SavedPage
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.fleet import PrometheusSource
from perf_service.models.metrics import Engine

if TYPE_CHECKING:
    from perf_service.models.metrics import DataIssue

__all__ = [
    "DEFAULT_RANGE",
    "EndOption",
    "HeaderOption",
    "History",
    "MatchOption",
    "PrometheusOption",
    "RangeOption",
    "StartOption",
    "TokenFileOption",
    "read_engine",
    "source_of",
    "time_range",
]

DEFAULT_RANGE = "10m"
_MOST_PAGES = 1000
"""More scrapes than these show nothing more: the counters between them are what counts."""
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+\Z")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")

PrometheusOption = Annotated[
    str,
    typer.Option("--prometheus", metavar="URL", help="Read from this Prometheus (or Thanos, Mimir, VictoriaMetrics).", show_default=False),
]
MatchOption = Annotated[
    list[str] | None, typer.Option("--match", help="""Which engine, by labels: 'job="vllm",instance="10.0.0.1:8000"'. Repeatable.""")
]
HeaderOption = Annotated[
    list[str] | None, typer.Option("--header", help="'NAME: VALUE' to send to the Prometheus, e.g. 'X-Scope-OrgID: team'. Repeatable.")
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the Prometheus' bearer token (or PERF_SERVICE_PROMETHEUS_TOKEN).", show_default=False),
]
RangeOption = Annotated[str, typer.Option("--range", metavar="DURATION", help="How far back, e.g. 10m, 6h.", show_default=False)]
StartOption = Annotated[
    str, typer.Option("--start", metavar="TIME", help="-30m, 2026-05-01T12:00:00Z, or unix seconds.", show_default=False)
]
EndOption = Annotated[str, typer.Option("--end", metavar="TIME", help="As --start (default: now).", show_default=False)]


@dataclass(frozen=True, slots=True)
class History:
    """An engine's pages as a Prometheus has them."""

    pages: list[SavedPage]
    issues: tuple[DataIssue, ...]
    target: str  # its labels


def source_of(
    url: str, match: Sequence[str] | None, header: Sequence[str] | None = None, token_file: Path | None = None
) -> PrometheusSource:
    """The source that the options tell. InvalidArgumentError, CollectError for one that cannot be."""
    from perf_service.collectors.prometheus.client import check_source
    from perf_service.settings import load_client_settings

    headers = {}
    for text in header or ():
        name, colon, value = text.partition(":")
        if not colon or not name.strip() or not value.strip():
            raise InvalidArgumentError("--header is not 'NAME: VALUE'", field="--header")
        headers[name.strip()] = value.strip()
    token = load_client_settings().prometheus_token
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgumentError(f"--token-file {str(token_file)!r} cannot be read: {error}", field="--token-file") from error
    source = PrometheusSource(url, ",".join(part.strip().removeprefix("{").removesuffix("}") for part in match or ()), token, headers)
    check_source(source)
    return source


def parse_duration(text: str, *, option: str) -> float:
    """Seconds of `10m`, `1h30m`, `90s`. InvalidArgumentError for anything else, or nothing."""
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text)) if _DURATION.match(text.strip()) else 0.0
    if seconds <= 0:
        raise InvalidArgumentError(f"{option} {text!r} is no duration; write for example 10m, 90s or 1h30m", field=option)
    return seconds


def parse_time(text: str, now: float, *, option: str) -> float:
    """Unix seconds of `-30m`, `now`, an ISO 8601 time (UTC where it names no zone) or unix seconds. InvalidArgumentError else."""
    told = text.strip()
    if told == "now":
        return now
    if told.startswith("-"):
        return now - parse_duration(told[1:], option=option)
    try:
        return float(told)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(told)
    except ValueError:
        raise InvalidArgumentError(
            f"{option} {text!r} is no time; write -30m, 2026-05-01T12:00:00Z, or unix seconds", field=option
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def time_range(range_: str, start: str, end: str, now: float) -> tuple[float, float]:
    """Start and end in unix seconds. InvalidArgumentError where both --range and --start are given, or it is empty."""
    if range_ and start:
        raise InvalidArgumentError("give --range or --start, not both", field="--range")
    until = parse_time(end, now, option="--end") if end else now
    since = parse_time(start, now, option="--start") if start else until - parse_duration(range_ or DEFAULT_RANGE, option="--range")
    if since >= until:
        raise InvalidArgumentError("the range is empty: --start is not before --end", field="--start")
    return since, until


async def read_engine(source: PrometheusSource, start: float, end: float, engine: Engine | None) -> History:
    """The pages of the one engine that is meant. Raises CollectError where there is none, several, or no answer."""
    from perf_service.collectors.prometheus.client import PrometheusClient
    from perf_service.collectors.prometheus.history import nothing_found, only_target, read_history
    from perf_service.collectors.prometheus.quality import source_issues

    async with PrometheusClient() as client:
        every = (end - start) / _MOST_PAGES
        targets, warnings = await read_history(client, source, start, end, engine=engine, keep_every_seconds=every)
        if not targets:
            raise await nothing_found(client, source, f"in the {end - start:.0f} s up to {_utc(end)}", engine)
    target = only_target(targets, source)
    pages = [SavedPage(f"{target.name} at {_utc(scrape.at)}", scrape.body, scrape.at) for scrape in target.scrapes]
    return History(pages, tuple(source_issues(target, warnings, until=end)), target.name)


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
