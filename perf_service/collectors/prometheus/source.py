"""A source of snapshots that reads them from a Prometheus: the present of many engines by few queries, or a range of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from perf_service.collectors.exposition import DEFAULT_MAX_BODY_BYTES
from perf_service.collectors.prometheus.absence import Absences
from perf_service.collectors.prometheus.client import PrometheusClient
from perf_service.collectors.prometheus.history import (
    TOO_MUCH,
    interval_of,
    nothing_found,
    only_target,
    read_pieces,
    read_raw,
    unreachable,
)
from perf_service.collectors.prometheus.mapping import Entry, Scrape, TargetHistory, targets_of
from perf_service.collectors.prometheus.matchers import Matcher, any_of, parse_matchers
from perf_service.collectors.prometheus.quality import OLD_INTERVALS, source_issues
from perf_service.collectors.prometheus.selecting import name_matchers
from perf_service.collectors.snapshot import SnapshotBuilder, require_engine
from perf_service.collectors.source import MetricsSource
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import Instance, PrometheusSource
from perf_service.models.metrics import DataIssue, Engine, Snapshot

ENGINES_PER_QUERY: Final = 40
"""About 4 MB of JSON; reading it holds the process for some 40 ms."""
QUERIES_AT_ONCE: Final = 3
"""One after the other a thousand replicas are not read in 15 s where a query takes a second, as beside other work it does."""
LOOKBACK_SECONDS: Final = 300.0
"""Prometheus' own: what is older than this is gone."""
_FIRST_RANGE_SECONDS: Final = 60.0
_RANGE_INTERVALS: Final = 2.5
_SETTLING_SECONDS: Final = 10.0
"""A scrape that is younger than this and smaller than the one before may still be arriving (remote write has no transactions)."""
_NO_ANSWER: Final = (ErrorReason.ENDPOINT_TIMEOUT, ErrorReason.ENDPOINT_UNREACHABLE, ErrorReason.ENDPOINT_HTTP_STATUS)
_NEWEST: Final = 2
"""The one before shows whether the newest is complete."""
_ALIVE_INTERVALS: Final = 4.0
_FRESH_RATIO: Final = 0.5


@dataclass(slots=True)
class _Reading:
    """What a query said of one engine, at `at` of our clock."""

    at: float
    target: TargetHistory | None = None
    warnings: tuple[str, ...] = ()
    error: CollectError | None = None


@dataclass(slots=True)
class _Group:
    """Engines of one Prometheus whose matchers differ in the value of one label only, so that one query serves them together."""

    source: PrometheusSource
    engine: Engine
    common: tuple[Matcher, ...]
    label: str
    members: dict[str, tuple[float, float]] = field(default_factory=dict)  # value -> when it was last asked for, how often it is
    readings: dict[str, _Reading] = field(default_factory=dict)
    queries: dict[asyncio.Task[None], frozenset[str]] = field(default_factory=dict)  # under way -> whom they ask for
    has_answered: bool = False  # the last query: one that may hang is asked once
    waiting: int = 0  # who waits for a query that nobody has begun
    range_seconds: float = _FIRST_RANGE_SECONDS
    most: int = ENGINES_PER_QUERY
    failure: _Reading | None = None  # why the server could not be asked at all


class PrometheusScrape:
    """The newest scrape that a Prometheus has of an instance. Strict like `DirectScrape`; its time is that of the scrape, not of the query.

    Instances of one Prometheus are read together: a query takes along those others of its group that will be asked for soon, and while
    one is under way, who comes waits for the next; where enough wait to fill another, up to `QUERIES_AT_ONCE` are. So a thousand replicas
    cost some dozens of queries per interval.
    """

    def __init__(
        self, client: PrometheusClient, *, max_body_bytes: int = DEFAULT_MAX_BODY_BYTES, engines_per_query: int = ENGINES_PER_QUERY
    ) -> None:
        self._client = client
        self._builders = {engine: SnapshotBuilder(engine, max_body_bytes=max_body_bytes) for engine in Engine}
        self._engines_per_query = engines_per_query
        self._groups: dict[object, _Group] = {}
        self._absences = Absences(client)

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        """The newest scrape of the instance. `now` is unix seconds.

        Raises:
            CollectError: as `PrometheusClient.query`; SERIES_NOT_FOUND, SERIES_AMBIGUOUS; ENDPOINT_UNREACHABLE where Prometheus cannot
                scrape the engine; ENGINE_MISMATCH, BODY_NOT_METRICS for another engine's series.
            InvalidArgumentError: for matchers that are none.
        """
        source = _source_of(instance)
        group, value = self._group(instance, source, now)
        group.members[value] = (now, instance.scrape_interval_seconds)
        reading = await self._reading(group, value, now, instance.scrape_interval_seconds * _FRESH_RATIO)
        if reading.error is not None:
            raise reading.error
        if reading.target is None:
            raise await self._absences.error(source, f"in the last {LOOKBACK_SECONDS:.0f} s", instance.engine, now)
        target = reading.target
        scrape = _newest(target, now)
        interval = interval_of(target) or instance.scrape_interval_seconds
        if target.failed and (scrape is None or target.failed[-1] > scrape.at):
            raise unreachable(source)
        if scrape is None or now - scrape.at > max(OLD_INTERVALS * interval, _SETTLING_SECONDS):
            age = f"{now - scrape.at:.0f} s old" if scrape else "missing"
            raise CollectError(
                ErrorReason.SERIES_NOT_FOUND,
                f"The newest scrape of {target.name} in {source.url} is {age}, although there was one every {interval:.0f} s: the target "
                "has gone, Prometheus does not scrape it any more, or the clocks differ.",
                {"url": source.url, "match": source.match},
                retry_after_seconds=interval,
            )
        return self._built(instance, scrape, source_issues(replace(target, failed=()), reading.warnings))

    async def history(self, instance: Instance, start: float, end: float) -> AsyncIterator[Sequence[Snapshot]]:
        """Every scrape of the instance in (start, end] (unix seconds), oldest first, in groups as they are read.

        What is wrong with a group is told in its last snapshot.

        Raises:
            CollectError: as `snapshot`, and where there is nothing in the range.
            InvalidArgumentError: for a range that is empty or too long.
        """
        source = _source_of(instance)
        newest = start
        async for targets, warnings in read_pieces(self._client, source, start, end, engine=instance.engine):
            if not targets:
                continue
            target = only_target(targets, source)
            # Pieces meet in a point, and a server may take it for a part of both.
            target = replace(target, scrapes=tuple(scrape for scrape in target.scrapes if scrape.at > newest))
            if target.scrapes:
                newest = target.scrapes[-1].at
                yield await asyncio.to_thread(_all_built, instance, target, source_issues(target, warnings))
        if newest == start:
            raise await nothing_found(self._client, source, f"between {start:.0f} and {end:.0f}", instance.engine)

    def _built(self, instance: Instance, scrape: Scrape, issues: Sequence[DataIssue]) -> Snapshot:
        return _snapshot(self._builders[instance.engine], instance, scrape, issues)

    # --- many engines at a time ---

    def _group(self, instance: Instance, source: PrometheusSource, now: float) -> tuple[_Group, str]:
        matchers = parse_matchers(source.match)
        exact = [matcher for matcher in matchers if matcher.operator == "="]
        chosen = next((m for name in ("instance", "pod") for m in exact if m.name == name), exact[-1] if exact else None)
        common = tuple(sorted(matcher for matcher in matchers if matcher != chosen))
        label, value = (chosen.name, chosen.value) if chosen else ("", "")
        key = (source.url, source.bearer_token, tuple(sorted(source.headers.items())), instance.engine, common, label)
        group = self._groups.get(key)
        if group is None:
            self._forget_groups(now)
            group = self._groups[key] = _Group(source, instance.engine, common, label, most=self._engines_per_query)
        return group, value

    def _forget_groups(self, now: float) -> None:
        """Those that nobody asks for any more, with their tokens: of instances that are gone, or from before a token was renewed."""
        for key, group in list(self._groups.items()):
            is_asked_for = any(now - asked <= _ALIVE_INTERVALS * every for asked, every in group.members.values())
            if not is_asked_for and not group.queries:
                del self._groups[key]

    async def _reading(self, group: _Group, value: str, now: float, oldest: float) -> _Reading:
        """What a query said of this member at most `oldest` seconds ago, or says now."""
        while True:
            known = group.readings.get(value)
            if known is not None and now - known.at <= oldest:
                return known
            if group.failure is not None and now - group.failure.at <= oldest:
                return group.failure  # who waited for a server that hangs does not wait again, each in its turn
            query = next((task for task, names in group.queries.items() if value in names), None)
            is_free = not group.queries or (group.has_answered and group.waiting >= group.most and len(group.queries) < QUERIES_AT_ONCE)
            if query is None and is_free:
                names = self._together(group, value, now)
                query = asyncio.create_task(self._query(group, names, now))
                group.queries[query] = frozenset(names)
            if query is None:
                group.waiting += 1
                try:
                    await asyncio.wait(group.queries, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    group.waiting -= 1
            else:
                # Shielded: one caller's cancellation is not the others'.
                await asyncio.shield(query)
            if (known := group.readings.get(value)) is not None and known.at >= now:
                return known

    def _together(self, group: _Group, value: str, now: float) -> list[str]:
        """This member, and those others whose turn is next and that no query asks for yet. Members asked for no more are forgotten."""
        for name in [name for name, (asked, every) in group.members.items() if now - asked > _ALIVE_INTERVALS * every]:
            del group.members[name]
            group.readings.pop(name, None)
        group.members.setdefault(value, (now, 1.0))

        def age(name: str) -> float:
            reading = group.readings.get(name)
            return now - reading.at if reading else float("inf")

        asked_for = {value}.union(*group.queries.values())
        others = [name for name, (_, every) in group.members.items() if name not in asked_for and age(name) > _FRESH_RATIO * every]
        return [value, *sorted(others, key=age, reverse=True)[: group.most - 1]]

    async def _query(self, group: _Group, values: Sequence[str], now: float) -> None:
        """`_read`, as a task of `group.queries`, which it leaves itself: a callback comes a turn of the loop after the end, and who looks
        in between finds a query that is over and waits for it without ever giving up its turn."""
        try:
            await self._read(group, values, now)
        finally:
            group.queries.pop(asyncio.current_task(), None)  # type: ignore[arg-type]

    async def _read(self, group: _Group, values: Sequence[str], now: float) -> None:
        """Ask for these members and keep what is said of each; an error is what is said of all of them."""
        try:
            found, warnings = await self._ask(group, values, group.range_seconds, now)
            # Without two scrapes the interval is not known, and so not whether the one is old.
            missing = [value for value in values if not any(map(interval_of, found.get(value, ())))]
            if missing and group.range_seconds < LOOKBACK_SECONDS:
                more, others = await self._ask(group, missing, LOOKBACK_SECONDS, now)
                found, warnings = {**found, **more}, tuple(dict.fromkeys((*warnings, *others)))
            group.failure, group.has_answered = None, True
        except CollectError as error:
            if error.reason in TOO_MUCH and len(values) > 1:
                group.most = len(values) // 2
                await self._read(group, values[: group.most], now)
                await self._read(group, values[group.most :], now)
                return
            group.has_answered = False
            for value in values:
                group.readings[value] = _Reading(now, error=error)
            if error.reason in _NO_ANSWER:
                group.failure = _Reading(now, error=error)
            return
        except Exception as error:
            for value in values:
                text = f"the answer of {group.source.url} could not be read: {type(error).__name__}"
                group.readings[value] = _Reading(now, error=CollectError(ErrorReason.BODY_NOT_METRICS, text))
            raise
        for value in values:
            targets = found.get(value, [])
            try:
                target = only_target(targets, replace(group.source, match=_match(group, [value]))) if targets else None
                group.readings[value] = _Reading(now, target, warnings)
            except CollectError as error:
                group.readings[value] = _Reading(now, error=error)
        intervals = [interval for targets in found.values() for target in targets if (interval := interval_of(target))]
        if intervals:
            group.range_seconds = min(LOOKBACK_SECONDS, max(5.0, _RANGE_INTERVALS * max(intervals)))

    async def _ask(
        self, group: _Group, values: Sequence[str], seconds: float, now: float
    ) -> tuple[Mapping[str, list[TargetHistory]], tuple[str, ...]]:
        matchers = (*name_matchers(group.engine), *parse_matchers(_match(group, values)))
        answer = await read_raw(self._client, group.source, matchers, seconds, None, now=now)
        targets = await asyncio.to_thread(_by_value, answer.series, group.engine, group.label)
        return targets, answer.warnings


def _all_built(instance: Instance, target: TargetHistory, issues: Sequence[DataIssue]) -> list[Snapshot]:
    """The snapshots of a history; with a builder of its own, as it runs beside the others."""
    builder = SnapshotBuilder(instance.engine)
    last = len(target.scrapes) - 1
    return [_snapshot(builder, instance, scrape, issues if index == last else ()) for index, scrape in enumerate(target.scrapes)]


def _snapshot(builder: SnapshotBuilder, instance: Instance, scrape: Scrape, issues: Sequence[DataIssue]) -> Snapshot:
    snapshot = builder.build(
        scrape.body,
        instance.instance_id,
        scrape.at,
        endpoint=instance.endpoint or _source_of(instance).url,
        config=instance.config,
        engine_version=instance.engine_version,
    )
    require_engine(snapshot)
    return replace(snapshot, quality=snapshot.quality.plus(*issues)) if issues else snapshot


class EitherSource:
    """Reads an instance where it is registered to be read: from its own page, or from a Prometheus.

    `discovering` completes what comes from a Prometheus with what the engine itself tells, where its endpoint is known too.
    """

    def __init__(self, direct: MetricsSource, prometheus: MetricsSource, discovering: MetricsSource | None = None) -> None:
        self._direct = direct
        self._prometheus = prometheus
        self._discovering = discovering or prometheus

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        """As the source does that the instance has."""
        if instance.prometheus is None:
            return await self._direct.snapshot(instance, now)
        return await (self._discovering if instance.endpoint else self._prometheus).snapshot(instance, now)


def _by_value(series: Sequence[Entry], engine: Engine, label: str) -> dict[str, list[TargetHistory]]:
    """The targets by the value of the label that the members differ in."""
    groups: dict[str, list[TargetHistory]] = {}
    for target in targets_of(series, engine, newest=_NEWEST):
        groups.setdefault(target.labels.get(label, ""), []).append(target)
    return groups


def _match(group: _Group, values: Sequence[str]) -> str:
    if not group.label:
        return ",".join(map(str, group.common))
    own = Matcher(group.label, "=", values[0]) if len(values) == 1 else Matcher(group.label, "=~", any_of(list(values)))
    return ",".join(map(str, (*group.common, own)))


def _newest(target: TargetHistory, now: float) -> Scrape | None:
    """The newest scrape that is complete."""
    if not target.scrapes:
        return None
    last = target.scrapes[-1]
    if len(target.scrapes) > 1 and last.series < target.scrapes[-2].series and now - last.at < _SETTLING_SECONDS:
        return target.scrapes[-2]
    return last


def _source_of(instance: Instance) -> PrometheusSource:
    if instance.prometheus is None:
        raise CollectError(ErrorReason.INVALID_ARGUMENT, f"{instance.instance_id} is registered without a Prometheus to read it from.")
    return instance.prometheus
