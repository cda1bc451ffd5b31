"""Long histories on every kind of store: kept in groups, thinned, listed, and still right over restarts."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, func, select, update

from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.collectors.window import spans_of, window_over
from perf_service.models.errors import ErrorReason, StoreError
from perf_service.models.metrics import Counter, DataIssue, DataQuality, Engine, Hist, Histogram, IssueCode, IssueLevel, Snapshot
from perf_service.storage import SqlStore
from perf_service.storage.history import History, HistoryPolicy
from perf_service.storage.schema import migrate
from perf_service.storage.tables import alembic_version, snapshot_shapes, snapshots

CAPTURES = Path(__file__).parents[2] / "fixtures/captures"
Opener = Callable[..., SqlStore]


def page(at: float, count: float, *, started: float | None = None, instance_id: str = "i") -> Snapshot:
    return Snapshot(
        instance_id,
        Engine.VLLM,
        at,
        counters={Counter.PROMPT_TOKENS: 10 * count},
        histograms={Hist.TTFT_SECONDS: Histogram(count, count / 2, (0.1, 1.0), (count // 2, count))},
        process_start_time=started,
    )


def life(seed: int, *, tells_start: bool, steps: int = 400) -> list[Snapshot]:
    """An instance with traffic, pauses and restarts, a page about every 15 s."""
    rng = random.Random(seed)
    at, count, started, pages = 0.0, 0.0, 1.0, []
    for _ in range(steps):
        at += 15.0 + rng.uniform(-1, 1)
        count += rng.choice((0, 1, 5, 20))
        if rng.random() < 0.03:
            # Sometimes the new process has counted more by its first page than the old one ever did.
            count, started = (2 * count if tells_start and rng.random() < 0.5 else 0.0), at - 1.0
        pages.append(page(at, count, started=started if tells_start else None))
    return pages


def totals(pages: Sequence[Snapshot]) -> list[tuple[float | None, float | None, float, Histogram | None]]:
    """What was counted from the first to the last page of each process' life that has two of them or more."""
    windows = [window_over(span) for span in spans_of(pages) if len(span) > 1]
    return [(w.start, w.end, w.counters.get(Counter.PROMPT_TOKENS, 0.0), w.histograms.get(Hist.TTFT_SECONDS)) for w in windows]


@pytest.mark.parametrize("tells_start", [False, True])
async def test_thinning_changes_no_total(store: SqlStore, tells_start: bool) -> None:
    pages = life(1, tells_start=tells_start)
    await store.add_snapshots(pages)
    await store.add_snapshots([replace(p, instance_id="other") for p in pages[:7]])
    deleted = await store.thin_snapshots(before=1e6, keep_every_seconds=300.0)
    left = await store.snapshots_between("i", 0.0, 1e6)
    assert deleted > 0.7 * len(pages)
    assert [s.collected_at for s in await store.snapshots_between("other", 0.0, 1e6)] == [pages[0].collected_at, pages[6].collected_at]
    assert len(totals(pages)) > 5
    assert totals(left) == totals(pages)
    assert await store.thin_snapshots(before=1e6, keep_every_seconds=300.0) == 0


async def test_thinning_bit_by_bit_ends_where_thinning_at_once_does(store: SqlStore) -> None:
    pages = life(2, tells_start=True)
    await store.add_snapshots(pages)
    await store.add_snapshots([replace(p, instance_id="at once") for p in pages])
    after = None
    end = 6500.0
    for before in (*range(700, 6500, 130), end):
        await store.thin_snapshots(before=before, keep_every_seconds=300.0, after=after)
        after = before
    bit_by_bit = [s.collected_at for s in await store.snapshots_between("i", 0.0, end)]
    await store.thin_snapshots(before=end, keep_every_seconds=300.0)
    assert [s.collected_at for s in await store.snapshots_between("at once", 0.0, end)] == bit_by_bit


async def test_a_policy_over_days(store: SqlStore) -> None:
    """Everything of the last hour, one per minute for four, one per ten minutes for ten."""
    policy = HistoryPolicy(3600, 60, 4 * 3600, 600, 10 * 3600)
    history = History(store, policy)
    pages = [page(float(at), at / 15) for at in range(0, 12 * 3600, 15)]
    for begin in range(0, len(pages), 480):
        await store.add_snapshots(pages[begin : begin + 480])
        await history.tidy(pages[begin : begin + 480][-1].collected_at or 0.0)
    now = pages[-1].collected_at or 0.0
    counts = []
    for old, young in ((10, 4), (4, 1), (1, 0)):
        counts.append(len(await store.snapshots_between("i", now - old * 3600, now - young * 3600 - 0.1)))
    assert counts[2] == 240
    assert 180 <= counts[1] <= 184
    assert 36 <= counts[0] <= 40
    assert await store.snapshots_between("i", 0.0, now - 10 * 3600 - 1) == []


async def test_a_thinned_history_is_listed_in_pages(store: SqlStore) -> None:
    pages = [page(float(at), at) for at in range(0, 3000, 10)]
    await store.add_snapshots(pages)
    first = await store.list_snapshots("i", start=100.0, end=2900.0, page_size=7)
    # What goes between two pages of the listing neither repeats nor hides others.
    await store.thin_snapshots(before=2000.0, keep_every_seconds=100.0)
    found, token = list(first.items), first.next_page_token
    while token:
        more = await store.list_snapshots("i", start=100.0, end=2900.0, page_size=7, page_token=token)
        found += more.items
        token = more.next_page_token
    times = [s.collected_at or 0.0 for s in found]
    assert times == sorted(times, reverse=True)
    assert [t for t in times if t >= 2000.0] == [float(t) for t in range(2900, 1990, -10)]
    assert [t for t in times if t < 2000.0] == [float(t) for t in range(1900, 0, -100)]


async def test_a_group_is_stored_whole_and_once(store: SqlStore, build: Any) -> None:
    await store.create_instance(build.instance())
    await store.create_instance(build.instance("silent"))
    group = [replace(page(float(at), at), snapshot_id=f"s{at}") for at in range(5)]
    await store.add_snapshots(group)
    await store.add_snapshots([*group, replace(page(9.0, 9), snapshot_id="s9")])
    await store.add_snapshots([])
    assert [s.snapshot_id for s in await store.snapshots_between("i", 0.0, 99.0)] == ["s0", "s1", "s2", "s3", "s4", "s9"]
    assert await store.latest_times(["i", "silent", "unknown"]) == {"i": 9.0}
    assert (await store.add_snapshot(group[0])) == group[0]
    assert await store.count_snapshots("i", after=1.0, until=9.0) == 4


async def test_real_pages_come_back_exactly(store: SqlStore) -> None:
    for scenario, engine in (("c_kv_bad_r2", Engine.VLLM), ("sglang_kv_pressure_synthetic", Engine.SGLANG)):
        builder = SnapshotBuilder(engine)
        files = sorted((CAPTURES / scenario).glob("*.prom.gz"))
        read = [builder.build(gzip.decompress(file.read_bytes()), scenario, float(n), endpoint="http://h") for n, file in enumerate(files)]
        issue = DataIssue(IssueCode.MALFORMED_LINES, IssueLevel.WARNING, "line 3: 'é'")
        read[1] = replace(read[1], quality=DataQuality((issue,), read[1].quality.known_metrics))
        await store.add_snapshots(read)
        found = await store.snapshots_between(scenario, 0.0, 99.0)
        assert [replace(s, snapshot_id="") for s in found] == read


async def test_shapes_are_shared_by_processes_and_go_with_their_snapshots(shared_url: str, opened: Opener, clock: Any) -> None:
    clock.now = 1000.0
    one, two = opened(shared_url, clock=clock), opened(shared_url, clock=clock)
    await one.add_snapshots([page(1000.0, 1)])
    await two.add_snapshots([page(1010.0, 2)])
    engine = create_engine(shared_url)
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(snapshot_shapes)) == 1
    clock.now = 500_000.0
    assert await one.prune_snapshots(before=400_000.0) == 2
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(snapshot_shapes)) == 0
    for store in (two, one):
        await store.add_snapshots([page(clock.now, 3)])
        clock.now += 1
    assert [s.counters[Counter.PROMPT_TOKENS] for s in await two.snapshots_between("i", 0.0, 1e9)] == [30.0, 30.0]
    with engine.begin() as connection:
        connection.execute(snapshot_shapes.delete())
    engine.dispose()
    with pytest.raises(StoreError, match="damaged") as error:
        await opened(shared_url).latest_snapshot("i")
    assert error.value.reason is ErrorReason.INTERNAL


async def test_snapshots_of_an_earlier_version_are_read_and_thinned(shared_url: str, opened: Opener) -> None:
    from perf_service.storage.codec import pack

    engine = create_engine(shared_url)
    pages = [replace(p, snapshot_id=f"s{n:03}") for n, p in enumerate(life(3, tells_start=True, steps=60))]
    with engine.begin() as connection:
        migrate(connection, "0001")
        for p in pages:
            row = {"snapshot_id": p.snapshot_id, "instance_id": "i", "taken_at": p.collected_at, "document": pack(p)}
            connection.exec_driver_sql(
                "INSERT INTO snapshots (snapshot_id, instance_id, taken_at, document) VALUES "
                + ("(?, ?, ?, ?)" if engine.dialect.name == "sqlite" else "(%s, %s, %s, %s)"),
                tuple(row.values()),
            )
    store = opened(shared_url)
    assert await store.snapshots_between("i", 0.0, 1e6) == pages
    assert await store.thin_snapshots(before=1e6, keep_every_seconds=300.0) > 20
    assert totals(await store.snapshots_between("i", 0.0, 1e6)) == totals(pages)
    with engine.begin() as connection:
        assert connection.scalar(select(alembic_version.c.version_num)) == "0002"
        assert connection.execute(update(snapshots).values(progress=0.0).where(snapshots.c.progress.is_(None))).rowcount == 0
    engine.dispose()


async def test_an_old_snapshot_that_cannot_be_read_does_not_stop_the_thinning(
    shared_url: str, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr("perf_service.storage.snapshots._log.warning", lambda _, count, __: told.append(count))
    store = opened(shared_url)
    pages = [replace(page(float(at), at), snapshot_id=f"s{at:03}") for at in range(0, 600, 10)]
    await store.add_snapshots(pages)
    engine = create_engine(shared_url)
    damaged = snapshots.c.snapshot_id.in_(["s000", "s110", "s400"])
    with engine.begin() as connection:
        connection.execute(update(snapshots).values(progress=None, started_at=None))
        connection.execute(update(snapshots).where(damaged).values(document=b"damaged"))
    for expected in (50, 0):
        assert await store.thin_snapshots(before=1e6, keep_every_seconds=100.0) == expected
    with engine.connect() as connection:
        left = connection.scalars(select(snapshots.c.snapshot_id).order_by(snapshots.c.taken_at)).all()
    engine.dispose()
    # The first of each interval that can be read, the newest, and what is damaged.
    assert left == ["s000", "s010", "s100", "s110", "s200", "s300", "s400", "s410", "s500", "s590"]
    assert sum(told) == 3
    assert len(told) < 3
    assert await store.prune_snapshots(before=1e6) == len(left)
