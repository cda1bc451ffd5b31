"""What a pack records of a page is what the analyzer reads on it, for every version's spelling."""

from __future__ import annotations

import pytest

from perf_service.collectors.snapshot import snapshot_of
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Snapshot
from tests.support import alert_cases as cases
from tests.support.promtool import asked, wanted
from tests.support.replay import FIXTURES, Values, notation, read_page, with_labels

GROWTH_SECONDS = 600.0
VERSIONS = {engine: sorted(path.stem for path in (FIXTURES / "dialects").glob(f"{engine.value}-*.prom")) for engine in Engine}
DECLARED_GAUGES = ("sglang:total_retracted_reqs",)
"""They only grow, and the engine calls them gauges."""
GAUGES = (Gauge.RUNNING_REQUESTS, Gauge.WAITING_REQUESTS, Gauge.WAITING_DEFERRED_REQUESTS, Gauge.GRAMMAR_QUEUE_REQUESTS)
HISTOGRAMS = (Hist.TTFT_SECONDS, Hist.ITL_SECONDS, Hist.QUEUE_SECONDS, Hist.PREFILL_SECONDS, Hist.INFERENCE_SECONDS, Hist.PROMPT_TOKENS)
Recorded = dict[str, float]


def page_of(version: str) -> str:
    return (FIXTURES / "dialects" / f"{version}.prom").read_text()


def grown(version: str, names: frozenset[str]) -> Values:
    """Ten minutes in which each counter rises from nothing to what the page says, and each gauge stands still."""
    page = read_page(0.0, page_of(version))
    moments = [15.0 * index for index in range(41)]
    growing = {*page.growing, *(series for series in page.values if series.startswith(DECLARED_GAUGES))}
    return {
        with_labels(series, cases.labels(version)): [value * at / GROWTH_SECONDS if series in growing else value for at in moments]
        for series, value in page.values.items()
        if series.partition("{")[0] in names
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recorded]:
    """What the committed packs have recorded of each version after eight minutes."""
    found: dict[str, Recorded] = {version: {} for versions in VERSIONS.values() for version in versions}
    for engine, versions in VERSIONS.items():
        rules = cases.DEPLOYED / f"{engine.value}.rules.yaml"
        values = [item for version in versions for item in grown(version, wanted(rules)).items()]
        series = [{"series": name, "values": notation(points)} for name, points in values]
        question = ('{__name__=~"llm:.*", __name__!~".*_bucket.*"}', "8m")
        for _, labels in asked(rules, series, [question], tmp_path_factory.mktemp(engine.value), "15s"):
            name = labels["__name__"].removeprefix("llm:")
            assert name not in found[labels["job"]], f"two values of {name} for one replica: {labels}"
            found[labels["job"]][name] = float(labels["__value__"])
    return found


def expected(snapshot: Snapshot) -> Recorded:
    """The same quantities by the project's own reader."""
    found: Recorded = {f"{gauge.value}:avg5m": snapshot.gauges[gauge] for gauge in GAUGES if gauge in snapshot.gauges}
    found |= {f"{counter.value}:rate5m": total / GROWTH_SECONDS for counter, total in snapshot.counters.items()}
    found |= {f"{hist.value}:mean5m": h.mean for hist in HISTOGRAMS if (h := snapshot.histograms.get(hist)) and h.mean is not None}
    if Gauge.KV_CACHE_USAGE_RATIO in snapshot.gauges:
        found["kv_cache_usage_ratio:max5m"] = snapshot.gauges[Gauge.KV_CACHE_USAGE_RATIO]
    hits, queries = (snapshot.counters.get(c) for c in (Counter.PREFIX_CACHE_HITS_TOKENS, Counter.PREFIX_CACHE_QUERIES_TOKENS))
    if hits is not None and queries:
        found["prefix_cache_hit_ratio:mean5m"] = hits / queries
    return found


@pytest.mark.parametrize("version", [version for versions in VERSIONS.values() for version in versions])
def test_a_version_is_recorded_as_it_is_read(recorded: dict[str, Recorded], version: str) -> None:
    wants = expected(snapshot_of(page_of(version).encode(), "i"))
    got = recorded[version]
    compared = {name: value for name, value in wants.items() if name in got}
    assert {name: got[name] for name in compared} == {name: pytest.approx(value, rel=1e-3) for name, value in compared.items()}
    assert compared.keys() >= {"running_requests:avg5m", "waiting_requests:avg5m"} & wants.keys()
    assert len(compared) >= 5, sorted(got)
