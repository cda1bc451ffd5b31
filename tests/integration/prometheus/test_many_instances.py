"""Many instances by few queries, and what is the present."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import pytest

from perf_service.collectors.prometheus.absence import Absences
from perf_service.collectors.prometheus.client import Answer, PrometheusClient
from perf_service.collectors.prometheus.source import EitherSource, PrometheusScrape
from perf_service.models.errors import CollectError, ErrorReason, InvalidArgumentError
from perf_service.models.fleet import Instance, PrometheusSource
from perf_service.models.metrics import Counter, Engine, Gauge, IssueCode, Snapshot


class FakePrometheus(PrometheusClient):
    """Scrapes `count` engines, each at its own moment of every interval; answers raw samples up to `now`."""

    def __init__(self, count: int, interval: float = 15.0) -> None:
        self.names = [f"10.0.{n // 250}.{n % 250}:8000" for n in range(count)]
        self.interval = interval
        self.now = 1000.0
        self.asked: list[str] = []
        self.under_way = self.most_at_once = 0
        self.down: set[str] = set()
        self.late: set[str] = set()  # the newest scrape of these is still being written
        self.error: CollectError | None = None
        self.most = 10_000
        self.longest = float("inf")  # seconds that one query may cover
        self.delay = 0.0
        self.warnings: tuple[str, ...] = ()

    async def query(self, source: PrometheusSource, expression: str, at: float | None) -> Answer:
        self.asked.append(expression)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        instance = re.search(r'instance=(~?)"([^"]*)"', expression)
        wanted = set(instance[2].replace("\\\\.", ".").split("|")) if instance else set(self.names)
        if len(wanted) > self.most:
            raise CollectError(ErrorReason.BODY_TOO_LARGE, "too large")
        span = re.search(r"\[(\d+)ms\]", expression)
        seconds = int(span[1]) / 1000 if span else 0.0
        if seconds > self.longest:
            raise CollectError(ErrorReason.TOO_MANY_SERIES, "too many samples")
        return Answer(list(self._series(wanted, seconds, self.now if at is None else at)) if span else [], self.warnings)

    def _series(self, wanted: set[str], seconds: float, now: float) -> Any:
        for index, name in enumerate(self.names):
            if name not in wanted:
                continue
            phase = self.interval * (index % 15) / 15
            first = int((now - seconds - phase) // self.interval) + 1
            times = [phase + self.interval * n for n in range(first, int((now - phase) // self.interval) + 1)]
            labels = {"job": "vllm", "instance": name}
            alive = times[:-1] if name in self.down else times
            yield {"metric": {"__name__": "up", **labels}, "values": [[at, "1" if at in alive else "0"] for at in times]}
            for metric in ("vllm:num_requests_running", "vllm:generation_tokens_total"):
                seen = alive[:-1] if name in self.late and metric.endswith("total") else alive
                yield {"metric": {"__name__": metric, "engine": "0", **labels}, "values": [[at, str(index)] for at in seen]}


def instances(prometheus: FakePrometheus, **more: Any) -> list[Instance]:
    return [
        Instance(f"i{n}", Engine.VLLM, "", prometheus=PrometheusSource("http://p", f'job="vllm",instance="{name}"', **more))
        for n, name in enumerate(prometheus.names)
    ]


async def read(source: PrometheusScrape, group: Sequence[Instance], now: float) -> list[Snapshot]:
    return list(await asyncio.gather(*(source.snapshot(instance, now) for instance in group)))


async def test_replicas_are_read_together() -> None:
    prometheus = FakePrometheus(90)
    source, group = PrometheusScrape(prometheus), instances(prometheus)
    counts = []
    for _ in range(3):
        prometheus.asked.clear()
        for slot in range(15):  # the scheduler spreads them over the interval
            prometheus.now += 1.0
            found = await read(source, group[slot::15], prometheus.now)
            assert [s.gauges[Gauge.RUNNING_REQUESTS] for s in found] == [float(n) for n in range(slot, 90, 15)]
            assert all(prometheus.now - 2 * prometheus.interval < (s.collected_at or 0) <= prometheus.now for s in found)
        counts.append(len(prometheus.asked))
    assert counts[0] <= 45  # nobody is known yet
    assert max(counts[1:]) <= 6  # 40 at a time, each twice an interval


async def test_queries_run_beside_each_other_where_enough_wait_to_fill_them() -> None:
    """A server that takes its time over each would otherwise keep a thousand replicas waiting for more than their interval."""
    prometheus = FakePrometheus(240)
    source, group = PrometheusScrape(prometheus), instances(prometheus)
    await read(source, group, prometheus.now)
    prometheus.now += prometheus.interval
    prometheus.asked.clear()
    prometheus.delay = 0.02
    await read(source, group, prometheus.now)
    assert prometheus.most_at_once == 3
    assert len(prometheus.asked) == 6  # 40 at a time, all the same


async def test_nobody_is_read_more_than_the_server_gives_at_a_time() -> None:
    prometheus = FakePrometheus(20)
    prometheus.most = 4
    source, group = PrometheusScrape(prometheus), instances(prometheus)
    assert len(await read(source, group, prometheus.now)) == 20


async def test_groups_do_not_mix_secrets_or_matchers() -> None:
    prometheus = FakePrometheus(2)
    source = PrometheusScrape(prometheus)
    first, second = instances(prometheus)[0], instances(prometheus, bearer_token="other")[1]
    await read(source, [first, second], prometheus.now)
    assert [("|" in expression.split("instance=")[1]) for expression in prometheus.asked] == [False] * len(prometheus.asked)


async def test_a_token_that_was_renewed_is_not_kept() -> None:
    prometheus = FakePrometheus(1)
    scrape = PrometheusScrape(prometheus)
    for token, later in (("old", 0.0), ("new", 600.0)):
        prometheus.now = 1000.0 + later
        await scrape.snapshot(instances(prometheus, bearer_token=token)[0], prometheus.now)
    assert [group.source.bearer_token for group in scrape._groups.values()] == ["new"]


async def test_why_there_is_nothing_is_asked_once_a_minute() -> None:
    prometheus = FakePrometheus(20)
    source, group = PrometheusScrape(prometheus), instances(prometheus)
    prometheus.names = []
    asked = []
    for step in range(5):
        prometheus.asked.clear()
        found = await asyncio.gather(*(source.snapshot(one, prometheus.now + 15 * step) for one in group), return_exceptions=True)
        assert all(isinstance(error, CollectError) and error.reason is ErrorReason.SERIES_NOT_FOUND for error in found)
        assert len(set(map(id, found))) == 20, "each caller raises an error of its own"
        asked.append([sum(text in query for query in prometheus.asked) for text in ('__name__="up"', "count by")])
    assert asked == [[20, 1], [0, 0], [0, 0], [0, 0], [20, 1]]


async def test_what_could_not_be_asked_is_not_told() -> None:
    prometheus = FakePrometheus(1)
    source = PrometheusSource("http://p", 'job="vllm"')
    prometheus.error = CollectError(ErrorReason.ENDPOINT_TIMEOUT, "too slow")
    error = await Absences(prometheus).error(source, "now", Engine.VLLM, 1.0)
    assert error.reason is ErrorReason.SERIES_NOT_FOUND
    assert error.message.endswith("selects no series of vllm now.")


async def test_the_present_is_the_newest_complete_scrape_that_worked() -> None:
    prometheus = FakePrometheus(3)
    prometheus.late.add(prometheus.names[0])
    prometheus.down.add(prometheus.names[1])
    source, group = PrometheusScrape(prometheus), instances(prometheus)
    prometheus.now = 995.0
    late = await source.snapshot(group[0], prometheus.now)
    assert late.collected_at == 975.0  # that of 990 is still being written
    assert Counter.GENERATION_TOKENS in late.counters
    with pytest.raises(CollectError) as error:
        await source.snapshot(group[1], prometheus.now)
    assert error.value.reason is ErrorReason.ENDPOINT_UNREACHABLE
    assert (await source.snapshot(group[2], prometheus.now)).collected_at == 992.0


async def test_old_data_is_not_the_present() -> None:
    prometheus = FakePrometheus(1)
    source, group = PrometheusScrape(prometheus), instances(prometheus)
    await read(source, group, prometheus.now)
    with pytest.raises(CollectError) as error:
        await source.snapshot(group[0], prometheus.now + 60)
    assert error.value.reason is ErrorReason.SERIES_NOT_FOUND
    assert "70 s old" in error.value.message


async def test_who_waits_for_a_server_that_does_not_answer_waits_once() -> None:
    prometheus = FakePrometheus(60)
    prometheus.error = CollectError(ErrorReason.ENDPOINT_TIMEOUT, "hung")
    prometheus.delay = 0.01
    source, group = PrometheusScrape(prometheus), instances(prometheus)
    found = await asyncio.gather(*(source.snapshot(instance, prometheus.now) for instance in group), return_exceptions=True)
    assert {type(error) for error in found} == {CollectError}
    assert len(prometheus.asked) == 1
    prometheus.error = None
    assert len(await read(source, group, prometheus.now + 10)) == 60  # it is asked anew


async def test_warnings_reach_the_quality() -> None:
    prometheus = FakePrometheus(1)
    prometheus.warnings = ("a store did not answer",)
    snapshot = await PrometheusScrape(prometheus).snapshot(instances(prometheus)[0], prometheus.now)
    assert snapshot.quality.has(IssueCode.TRUNCATED)


async def test_a_long_range_is_read_in_pieces_that_the_server_can_bear() -> None:
    prometheus = FakePrometheus(3)
    prometheus.longest = 500.0
    (_, instance, _) = instances(prometheus)
    groups = [list(group) async for group in PrometheusScrape(prometheus).history(instance, 10_000.0, 16_000.0)]
    times = [snapshot.collected_at for group in groups for snapshot in group]
    assert times == [1.0 + 15 * n for n in range(667, 1067)]
    assert len(groups) >= 12
    for start, end in ((5.0, 5.0), (0.0, 8 * 86_400.0), (float("nan"), 1.0)):
        with pytest.raises(InvalidArgumentError):
            await anext(PrometheusScrape(prometheus).history(instance, start, end))
    prometheus.names = []
    with pytest.raises(CollectError) as error:
        await anext(PrometheusScrape(prometheus).history(instance, 10_000.0, 16_000.0))
    assert error.value.reason is ErrorReason.SERIES_NOT_FOUND


async def test_each_instance_is_read_where_it_is_registered() -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        async def snapshot(self, instance: Instance, now: float) -> Snapshot:
            return Snapshot(self.name, Engine.VLLM, now)

    source = EitherSource(Named("direct"), Named("prometheus"), Named("both"))
    told = PrometheusSource("http://p", 'a="b"')
    cases = {
        "direct": Instance("i", Engine.VLLM, "http://h"),
        "prometheus": Instance("i", Engine.VLLM, "", prometheus=told),
        "both": Instance("i", Engine.VLLM, "http://h", prometheus=told),
    }
    for name, instance in cases.items():
        assert (await source.snapshot(instance, 0.0)).instance_id == name
