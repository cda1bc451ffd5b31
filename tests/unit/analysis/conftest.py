"""Pages and windows built by hand for the analyzer's tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from perf_service.collectors.snapshot import snapshot_of
from perf_service.models.config import EngineConfig, KnobValue
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram, Snapshot
from perf_service.models.window import GaugeStats, Window


@pytest.fixture(scope="session")
def page() -> Callable[..., Snapshot]:
    """A snapshot of a hand-written page."""

    def make(text: str, engine: Engine = Engine.VLLM) -> Snapshot:
        return snapshot_of(text, "hand", engine=engine)

    return make


def stats(*values: float) -> GaugeStats:
    return GaugeStats(
        sum(values) / len(values), min(values), max(values), values[-1], len(values), sum(v > 0 for v in values) / len(values)
    )


@pytest.fixture(scope="session")
def window() -> Callable[..., Window]:
    """A window from means: `means={Hist: value}` with `requests` observations each, gauges as sequences of scrapes."""

    def make(
        means: Mapping[Hist, float] | None = None,
        gauges: Mapping[Gauge, Sequence[float]] | None = None,
        counters: Mapping[Counter, float] | None = None,
        *,
        requests: float = 100.0,
        duration: float | None = 60.0,
        engine: Engine = Engine.VLLM,
        config: Mapping[str, KnobValue] | None = None,
        histograms: Mapping[Hist, Histogram] | None = None,
        ranks: Mapping[str, Mapping[Gauge, GaugeStats]] | None = None,
        lifetime: bool = False,
    ) -> Window:
        found = {hist: Histogram(requests, mean * requests) for hist, mean in (means or {}).items()}
        series = {gauge: stats(*values) for gauge, values in (gauges or {}).items()}
        scrapes = max((s.samples for s in series.values()), default=2)
        return Window(
            instance_id="w",
            engine=engine,
            start=1000.0,
            end=1000.0 + (duration or 0.0),
            duration_seconds=duration,
            scrapes=scrapes,
            gauges=series,
            counters=dict(counters or {}),
            histograms={**found, **(histograms or {})},
            config=EngineConfig.of(config or {}),
            ranks=dict(ranks or {}),
            lifetime=lifetime,
        )

    return make
