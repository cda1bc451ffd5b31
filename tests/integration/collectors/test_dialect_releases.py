"""Every name of every release, against the table of what is known of them: read from where it begins to where it ends."""

from __future__ import annotations

import pytest

from perf_service.collectors.dialects import dialect_of
from perf_service.collectors.exposition import ExpositionParser
from perf_service.models.metrics import Counter, Engine, Gauge, Hist
from tests.support.dialect_pages import TARGETS, VERSIONS, Name, names, order, page, read, series_of
from tests.support.pages import FIXTURES

NAMES = names()
NUMBERS = {name: number for number, name in enumerate(NAMES)}
RELEASES = [(engine, version) for engine, versions in VERSIONS.items() for version in versions]
KINDS = {"gauge": Gauge, "counter": Counter, "hist": Hist}
# Which of a name's series a target is made of: label and values.
PARTS: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("vllm", "gauge:waiting_capacity_requests"): ("reason", ("capacity",)),
    ("vllm", "gauge:waiting_deferred_requests"): ("reason", ("deferred",)),
    ("vllm", "gauge:engine_awake"): ("sleep_state", ("awake",)),
    ("vllm", "counter:requests_succeeded"): ("finished_reason", ("stop", "length", "repetition")),
    ("vllm", "counter:requests_aborted"): ("finished_reason", ("abort",)),
    ("vllm", "counter:requests_failed"): ("finished_reason", ("error",)),
    ("sglang", "counter:prefix_cache_hits_tokens"): ("mode", ("device_hit", "host_hit", "storage_hit")),
    ("sglang", "hist:prefill_seconds"): ("stage", ("prefill_forward",)),
    ("sglang", "counter:http_2xx_responses"): ("status_code", ("200",)),
    ("sglang", "counter:http_4xx_responses"): ("status_code", ("404",)),
    ("sglang", "counter:http_5xx_responses"): ("status_code", ("503",)),
    ("tgi", "counter:requests_failed"): ("err", ("validation", "generation")),
    ("tgi", "counter:requests_rejected"): ("err", ("overloaded",)),
    ("tgi", "hist:itl_seconds"): ("method", ("decode",)),
    ("tgi", "hist:prefill_seconds"): ("method", ("prefill",)),
}
SCALES = {"gauge:startup_available_gpu_memory_bytes": float(1 << 30)}


def newest(rows: list[Name]) -> Name:
    """Of several names for one thing on a page: the one that stays, else the one that came last."""
    return max(rows, key=lambda row: (not row.gone, order(row.since)))


def expected(row: Name, target: str) -> object:
    label, values = PARTS.get((row.engine, target), ("", ()))
    if label not in row.labels:
        label = ""
    numbers = [value for labels, value in series_of(row, NUMBERS[row]) if not label or labels[label] in values]
    if row.labels == ("cache_source",):
        numbers = numbers[:1]
    kind = target.partition(":")[0]
    if kind == "hist":
        return (sum(numbers), 3 * sum(numbers))
    if kind == "config":
        return 16 if row.type == "info" else int(numbers[0])
    if row.type == "histogram":
        return 3 * sum(numbers)
    return sum(numbers) * SCALES.get(target, 1.0)


PAGES = {release: page(*release) for release in RELEASES}


@pytest.mark.parametrize(("engine", "version"), RELEASES, ids=lambda value: value)
def test_a_release_reads_as_the_table_says(engine: str, version: str) -> None:
    found = read(dialect_of(Engine(engine)), PAGES[engine, version])
    for target in sorted(TARGETS[engine]):
        rows = [row for row in NAMES if row.engine == engine and target in row.targets and row.is_on(version)]
        value = expected(newest(rows), target) if rows else None
        assert found.get(target) == value, f"{target} from {[row.name for row in rows]}"


@pytest.mark.parametrize(("engine", "version"), RELEASES, ids=lambda value: value)
def test_every_name_of_a_release_is_known(engine: str, version: str) -> None:
    parser = ExpositionParser(dialect_of(Engine(engine)).bind)
    assert parser.parse(PAGES[engine, version]).unknown_names == []


@pytest.mark.parametrize("engine", list(VERSIONS))
@pytest.mark.parametrize("end", [0, -1])
def test_a_relays_spelling_reads_alike(engine: str, end: int) -> None:
    """A colon is not legal everywhere, and some relays take `_total` off a counter or put it on."""
    dialect = dialect_of(Engine(engine))
    text = PAGES[engine, VERSIONS[engine][end]]
    own = read(dialect, text)
    for alias in dialect.aliases:
        assert read(dialect, text.replace(dialect.prefix, alias)) == own
    counters = {row.exposed for row in NAMES if row.engine == engine and row.type == "counter"}
    lines = []
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        other = name.removesuffix("_total") if name.endswith("_total") else name + "_total"
        lines.append(line.replace(name, other, 1) if name in counters else line)
    assert read(dialect, "\n".join([*lines, ""])) == own


def test_the_table_is_sound() -> None:
    for row in NAMES:
        versions = VERSIONS[row.engine]
        assert row.source, row.name
        for version in filter(None, (row.since, row.absent, row.gone, row.hidden)):
            assert version in versions, f"{row.name}: {version} was not opened"
        if row.absent:
            # The release before the first one is the newest that has it not, so the boundary is tested on both sides.
            assert versions.index(row.absent) < versions.index(row.since)
            assert not row.is_on(row.absent)
        for target in row.targets:
            kind, _, name = target.partition(":")
            assert kind == "config" or KINDS[kind](name)
    assert len({(row.name, row.since) for row in NAMES}) == len(NAMES)


@pytest.mark.parametrize("path", sorted((FIXTURES / "dialects").glob("*.prom")), ids=lambda path: path.stem)
def test_a_page_of_a_release_has_no_name_of_another(path: object) -> None:
    """The pages made by hand agree with the table."""
    stem = str(path).rpartition("/")[2].removesuffix(".prom")
    engine, version = stem.split("-")[:2]
    family_of = {name: row for row in NAMES if row.engine == engine for name in _sample_names(row)}
    for line in (FIXTURES / "dialects" / f"{stem}.prom").read_text().splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if line.startswith("#") or not name.startswith(dialect_of(Engine(engine)).prefix):
            continue
        row = family_of.get(name) or family_of.get(name + "_total") or family_of[name.removesuffix("_created") + "_total"]
        assert order(row.since) <= order(version), f"{name} begins in {row.since}"
        assert not row.gone or order(version) < order(row.gone), f"{name} is gone in {row.gone}"


def _sample_names(row: Name) -> list[str]:
    if row.type in ("histogram", "summary", "gaugehistogram"):
        return [row.name, *(row.name + suffix for suffix in ("_bucket", "_sum", "_count"))]
    return [row.exposed]
