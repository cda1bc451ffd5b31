"""Reading what a Prometheus has of engines over a range: every scrape, with its own time.

Samples are read raw, by an instant query of a range selector (`{...}[600s]`). A range query would not do: it looks at the series at
steps of its own and takes the newest sample of up to five minutes before each, so the same scrape comes again and again and the time of
it is lost. Only where a server refuses raw samples are steps taken, with the true time of each from `timestamp()`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from statistics import median
from typing import Final

from perf_service.collectors.prometheus.client import Answer, PrometheusClient
from perf_service.collectors.prometheus.mapping import Entry, TargetHistory, merged, targets_of, thinned
from perf_service.collectors.prometheus.matchers import Matcher, any_of, parse_matchers, selector
from perf_service.collectors.prometheus.selecting import UP, anchors_of, name_matchers, prefixes_of
from perf_service.models.errors import CollectError, ErrorReason, InvalidArgumentError
from perf_service.models.fleet import PrometheusSource
from perf_service.models.metrics import Engine

LONGEST_RANGE_SECONDS: Final = 7 * 86_400.0
CHUNK_SECONDS: Final = 1800.0
"""Range of one query: 120 scrapes at the usual 15 s, about 1.5 MB for one engine."""
_SHORTEST_CHUNK_SECONDS: Final = 30.0
TOO_MUCH: Final = (ErrorReason.BODY_TOO_LARGE, ErrorReason.TOO_MANY_SERIES)
_STEPS: Final = 1000
_LISTED: Final = 8


async def read_history(
    client: PrometheusClient,
    source: PrometheusSource,
    start: float,
    end: float,
    *,
    engine: Engine | None = None,
    keep_every_seconds: float = 0.0,
) -> tuple[list[TargetHistory], tuple[str, ...]]:
    """Every engine that the matchers select, with its scrapes in (start, end], and what the server warned of.

    Of scrapes that are closer together than `keep_every_seconds` only the first is kept: totals lose nothing by it. Long ranges are read in
    pieces, smaller ones where the server says that a piece is too much.

    Raises:
        InvalidArgumentError: for a range that is empty or longer than a week, or matchers that are none.
        CollectError: as `PrometheusClient.query`.
    """
    parts: list[list[TargetHistory]] = []
    warnings: dict[str, None] = {}
    async for targets, told in read_pieces(client, source, start, end, engine=engine):
        parts.append([thinned(target, keep_every_seconds) for target in targets] if keep_every_seconds else targets)
        warnings.update(dict.fromkeys(told))
    return merged(parts), tuple(warnings)


async def read_pieces(
    client: PrometheusClient, source: PrometheusSource, start: float, end: float, *, engine: Engine | None = None
) -> AsyncIterator[tuple[list[TargetHistory], tuple[str, ...]]]:
    """As `read_history`, piece by piece as they are read, so that a long range need not be held at once."""
    if not (math.isfinite(start) and math.isfinite(end)) or end <= start:
        raise InvalidArgumentError(f"the range ends ({end:.0f}) before it starts ({start:.0f})", field="start")
    if end - start > LONGEST_RANGE_SECONDS:
        raise InvalidArgumentError(f"the range is longer than {LONGEST_RANGE_SECONDS / 86_400:.0f} days: take a shorter one", field="start")
    matchers = (*name_matchers(engine), *parse_matchers(source.match))
    pieces = [(at, min(end, at + CHUNK_SECONDS)) for at in _starts(start, end)]
    while pieces:
        since, until = pieces.pop(0)
        try:
            answer = await read_raw(client, source, matchers, until - since, until)
        except CollectError as error:
            if error.reason not in TOO_MUCH or until - since < 2 * _SHORTEST_CHUNK_SECONDS:
                raise
            middle = (since + until) / 2
            pieces[:0] = [(since, middle), (middle, until)]
            continue
        yield await asyncio.to_thread(targets_of, answer.series, engine), answer.warnings


def only_target(targets: Sequence[TargetHistory], source: PrometheusSource) -> TargetHistory:
    """The one engine that was meant. Raises CollectError SERIES_AMBIGUOUS where there are several, with what tells them apart."""
    if len(targets) == 1:
        return targets[0]
    names = [",".join(map(str, matchers)) for matchers in told_apart(targets)]
    listed = "; ".join(names[:_LISTED]) + (f"; and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    raise CollectError(
        ErrorReason.SERIES_AMBIGUOUS,
        f"{_told(source)} selects {len(targets)} engines: add one of these to it: {listed}.",
        {"url": source.url, "match": source.match, "instances": listed},
    )


def told_apart(targets: Sequence[TargetHistory]) -> list[tuple[Matcher, ...]]:
    """What selects each of these targets among them: one label where its value is another one for each, else all that differ."""
    common = set(targets[0].labels.items()).intersection(*(target.labels.items() for target in targets)) if len(targets) > 1 else set()
    different = sorted({key for target in targets for key, value in target.labels.items() if (key, value) not in common})
    alone = [
        key for key in ("instance", "pod", *different) if len({target.labels.get(key) or "" for target in targets} - {""}) == len(targets)
    ]
    return [tuple(Matcher(key, "=", target.labels.get(key, "")) for key in alone[:1] or different) for target in targets]


async def engines_now(
    client: PrometheusClient, source: PrometheusSource, engine: Engine | None = None
) -> list[tuple[Engine, TargetHistory]]:
    """Every engine that the matchers select at present, with its labels; one small query, whatever their number.

    Raises:
        CollectError: as `PrometheusClient.query`.
        InvalidArgumentError: for matchers that are none.
    """
    names = any_of([UP, *anchors_of(engine)])
    answer = await client.query(source, selector(Matcher("__name__", "=~", names), *parse_matchers(source.match)), None)
    entries = [{"metric": entry["metric"], "values": [entry["value"]]} for entry in answer.series]
    found = [(kind, target) for kind in ((engine,) if engine else Engine) for target in targets_of(entries, kind)]
    return sorted(found, key=lambda pair: pair[1].name)


async def nothing_found(client: PrometheusClient, source: PrometheusSource, what: str, engine: Engine | None = None) -> CollectError:
    """The error for matchers that select nothing, with the engines that there are instead."""
    if await is_down(client, source):
        return unreachable(source)
    return selects_nothing(source, what, engine, await engines_instead(client, source, engine))


async def is_down(client: PrometheusClient, source: PrometheusSource) -> bool:
    """Whether Prometheus knows what the matchers select and can scrape none of it. False where it does not answer that."""
    try:
        ups = await client.query(source, selector(Matcher("__name__", "=", UP), *parse_matchers(source.match)), None)
    except CollectError:
        return False  # that nothing was found is what matters
    return bool(ups.series) and all(float(entry["value"][1]) == 0 for entry in ups.series)


async def engines_instead(client: PrometheusClient, source: PrometheusSource, engine: Engine | None) -> tuple[str, ...] | None:
    """Matchers of the engines that a Prometheus has, whatever `source.match`; of their jobs where they are many. None without an answer."""
    prefixes = "|".join(f"{prefix}.+" for prefix in prefixes_of(engine))
    there: list[str] = []
    try:
        for labels in ("job,instance", "job"):
            answer = await client.query(source, f"count by ({labels}) ({selector(Matcher('__name__', '=~', prefixes))})", None)
            there = sorted(",".join(str(Matcher(k, "=", v)) for k, v in sorted(entry["metric"].items())) for entry in answer.series)
            if len(there) <= _LISTED:
                break
    except CollectError:
        return tuple(there) or None
    return tuple(there)


def selects_nothing(source: PrometheusSource, what: str, engine: Engine | None, there: Sequence[str] | None) -> CollectError:
    """The error for matchers that select nothing; `there` as `engines_instead` found it."""
    of = engine.value if engine else "vLLM, SGLang or TGI"
    hint = "; ".join((there or ())[:_LISTED])
    if there and len(there) > _LISTED:
        hint += f"; and {len(there) - _LISTED} more"
    now = f" Now there are: {hint}." if hint else f" It has no metric of {of} at all: does it scrape the engines?"
    return CollectError(
        ErrorReason.SERIES_NOT_FOUND,
        f"{_told(source)} selects no series of {of} {what}.{'' if there is None else now}",
        {"url": source.url, "match": source.match, "instances": hint},
    )


def unreachable(source: PrometheusSource) -> CollectError:
    """The error for an engine that Prometheus knows and cannot scrape."""
    return CollectError(
        ErrorReason.ENDPOINT_UNREACHABLE,
        f"Prometheus cannot scrape the engine: `up` is 0 for {_told(source)}. Its page of targets tells why.",
        {"url": source.url, "match": source.match},
        retry_after_seconds=15.0,
    )


async def read_raw(
    client: PrometheusClient, source: PrometheusSource, matchers: Sequence[Matcher], seconds: float, at: float | None, *, now: float = 0.0
) -> Answer:
    """Raw samples of the last `seconds` up to `at` (None: the server's present, which is `now` of our clock).

    Raises as `PrometheusClient.query`.
    """
    expression = f"{selector(*matchers)}[{max(1, math.ceil(seconds * 1000))}ms]"
    try:
        answer = await client.query(source, expression, at)
    except CollectError as error:
        if error.reason is not ErrorReason.INVALID_ARGUMENT:
            raise
        end = now if at is None else at
        try:
            return await _by_steps(client, source, matchers, end - seconds, end)
        except CollectError:
            raise error from None
    return answer


async def _by_steps(client: PrometheusClient, source: PrometheusSource, matchers: Sequence[Matcher], start: float, end: float) -> Answer:
    """As raw samples, from range queries: the value at each step is put at the time of the scrape that it is from."""
    step = max(1.0, (end - start) / _STEPS)
    others = [matcher for matcher in matchers if matcher.name != "__name__"]
    times = await client.query_range(source, f"timestamp({selector(Matcher('__name__', '=', UP), *others)})", start, end, step)
    if not times.series:
        raise CollectError(ErrorReason.SERIES_NOT_FOUND, f"{_told(source)} selects no `up`, without which the times are not known.")
    clocks = [(entry["metric"], {at: float(value) for at, value in entry["values"]}) for entry in times.series]
    answer = await client.query_range(source, selector(*matchers), start, end, step)
    series: list[Entry] = []
    for entry in answer.series:
        metric = entry["metric"]
        _, clock = max(clocks, key=lambda pair: sum(metric.get(key) == value for key, value in pair[0].items()))
        values = {clock[at]: value for at, value in entry.get("values", ()) if at in clock and clock[at] > start}
        series.append({"metric": metric, "values": list(values.items())})
    return Answer(series, (*times.warnings, *answer.warnings))


def interval_of(target: TargetHistory) -> float | None:
    """Seconds between two scrapes, failed ones included; None where fewer than two are known."""
    times = sorted([*(scrape.at for scrape in target.scrapes), *target.failed])
    steps = [later - earlier for earlier, later in pairwise(times)]
    return median(steps) if steps else None


def _starts(start: float, end: float) -> list[float]:
    return [start + index * CHUNK_SECONDS for index in range(math.ceil((end - start) / CHUNK_SECONDS))]


def _told(source: PrometheusSource) -> str:
    return f"{{{source.match.strip().strip('{}')}}} in {source.url}"
