"""CPU time of the exposition parser and of the typed snapshot against prometheus_client's parser, on real pages, in one process.

    python benchmarks/parser.py                     the saved captures of the tests
    python benchmarks/parser.py --pages DIR         another folder of pages, plain or .gz (.prom or .txt)
    python benchmarks/parser.py --rounds 3          shorter

Three kinds of page are told apart, because they cost differently: the first page that a parser ever meets (nothing is remembered), a
page that differs from the target's last one in more than its values (a series came or went), and the page of every other scrape, which
differs in the values alone.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from prometheus_client.parser import text_string_to_metric_families

from perf_service.collectors.dialects import detect_engine
from perf_service.collectors.exposition import ExpositionParser
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.metrics import Engine

FIXTURES = Path(__file__).parent.parent / "tests/fixtures"
SUFFIXES = (".prom", ".prom.gz", ".txt", ".txt.gz")
ORACLE_PAGES = 40
"""prometheus_client is so slow that every page of a large set would take minutes."""


def main() -> int:
    """Print one line per way to read the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, default=FIXTURES, help="folder of pages")
    parser.add_argument("--rounds", type=int, default=9, help="how often each is measured; the median and the best are shown")
    options = parser.parse_args()
    runs = _runs(options.pages)
    if not runs:
        print(f"{options.pages} has no pages of vLLM, SGLang or TGI.", file=sys.stderr)
        return 1
    pages = [(engine, page) for engine, run in runs.values() for page in run]
    count, size = len(pages), sum(len(page) for _, page in pages)
    sample = pages[:: max(1, count // ORACLE_PAGES)]
    texts = [page.decode() for _, page in sample]
    print(f"{count} pages of {len(runs)} runs, {size / count / 1000:.1f} kB; CPU milliseconds each, best and median of {options.rounds}")
    gc.disable()
    oracle = measure(lambda: [list(text_string_to_metric_families(text)) for text in texts], len(texts), min(3, options.rounds))
    rows = {"prometheus_client.parser": oracle}
    rows["parser, first page"] = measure(lambda: [ExpositionParser().parse(page) for _, page in sample], len(sample), options.rounds)
    # As a scheduler meets them: each run's pages in order, by one parser, which knows the make of engine.
    rows["parser, whole runs in order"] = measure(lambda: _read_runs(runs), count, options.rounds)
    rows["parser, another layout each time"] = measure(_alternating(runs), count, options.rounds)
    rows["parser, only values differ"] = measure(_steady(runs), count, options.rounds)
    rows["typed snapshot, first page"] = measure(
        lambda: [SnapshotBuilder(engine).build(page, "i", 0.0) for engine, page in sample], len(sample), options.rounds
    )
    rows["typed snapshot, whole runs in order"] = measure(lambda: _build_runs(runs), count, options.rounds)
    rows["typed snapshot, only values differ"] = measure(_steady_snapshots(runs), count, options.rounds)
    for name, (best, middle) in rows.items():
        print(f"{name:<36} {best:8.3f} {middle:8.3f}   {oracle[0] / best:6.1f}x {oracle[1] / middle:6.1f}x")
    return 0


def _runs(folder: Path) -> dict[str, tuple[Engine, list[bytes]]]:
    runs: dict[str, tuple[Engine, list[bytes]]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.name.endswith(SUFFIXES)):
        page = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        engine = detect_engine(page)
        if engine is not None:
            name = str(path) if path.parent.name == "dialects" else str(path.parent)
            runs.setdefault(name, (engine, []))[1].append(page)
    # A run of one page has no next scrape.
    return {name: run for name, run in runs.items() if len(run[1]) > 2}


def measure(run: Callable[[], object], pages: int, rounds: int) -> tuple[float, float]:
    """Best and median CPU time of `run` in milliseconds for each of `pages`."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append((time.process_time() - start) * 1e3 / pages)
    return min(times), median(times)


Runs = dict[str, tuple[Engine, list[bytes]]]


def _read_runs(runs: Runs) -> None:
    parser = ExpositionParser()
    for name, (_, pages) in runs.items():
        for page in pages:
            parser.parse(page, name)


def _build_runs(runs: Runs) -> None:
    builders = {engine: SnapshotBuilder(engine) for engine in Engine}
    for name, (engine, pages) in runs.items():
        for page in pages:
            builders[engine].build(page, name, 0.0)


def _alternating(runs: Runs) -> Callable[[], object]:
    parser = ExpositionParser()
    # A comment of another number each time: every other line is known, the page as a whole never.
    number = iter(range(1 << 60))

    def read() -> None:
        for name, (_, pages) in runs.items():
            for page in pages:
                parser.parse(page + b"# page %d\n" % next(number), name)

    read()
    return read


def _steady(runs: Runs) -> Callable[[], object]:
    parser = ExpositionParser()
    keyed = _keyed(runs)
    for _ in range(2):
        for key, page in keyed:
            parser.parse(page, key)
    return lambda: [parser.parse(page, key) for key, page in keyed]


def _steady_snapshots(runs: Runs) -> Callable[[], object]:
    keyed = [(SnapshotBuilder(engine), key, page) for engine, key, page in _keyed_engines(runs)]
    builders = {builder.engine: builder for builder, _, _ in keyed}
    for _ in range(3):
        for builder, key, page in keyed:
            builders[builder.engine].build(page, key, 0.0)
    return lambda: [builders[builder.engine].build(page, key, 0.0) for builder, key, page in keyed]


def _keyed(runs: Runs) -> Sequence[tuple[str, bytes]]:
    return [(key, page) for _, key, page in _keyed_engines(runs)]


def _keyed_engines(runs: Runs) -> Sequence[tuple[Engine, str, bytes]]:
    return [(engine, f"{name} {number}", page) for name, (engine, pages) in runs.items() for number, page in enumerate(pages)]


if __name__ == "__main__":
    sys.exit(main())
