"""A mutation fuzzer for metrics pages, and what must hold for whatever bytes a server sends.

`check` raises AssertionError, or lets through what the collectors must never raise. It is shared by the test in the suite and by
`scripts/fuzz_exposition.py`, which runs it by hand for as long as one likes, also under atheris.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from perf_service.collectors.dialects import detect_engine
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.errors import CollectError
from perf_service.models.metrics import Engine, Snapshot
from tests.support.exposition_oracle import disagreement
from tests.support.pages import PAGES, read_page

MAX_REMEMBERED: Final = 4_000
MAX_BODY_BYTES: Final = 1 << 20
ORACLE_LINES: Final = 3
ORACLE_LINE_CHARS: Final = 200
FIXED_CPU_SECONDS: Final = 0.25
CPU_SECONDS_PER_BYTE: Final = 10e-6
"""About four times what the costliest known page needs, one of nothing but new series with the shortest names (`a1 1`)."""

TOKENS: Final = (
    b"{", b"}", b'"', b"\\", b"=", b",", b" ", b"\t", b"\n", b"\r", b"#", b" # ", b"\x00", b"\xff", b"\xc3\xa9", b"\x0b", b"_", b":",
    b"NaN", b"+Inf", b"-Inf", b"-1", b"0", b"1e400", b"1e308", b"-0", b"1_0", b"9" * 400, b"0x1p3", b".", b"1e", b"# EOF\n", b"# TYPE ",
    b"# HELP ", b"# UNIT ", b"_total", b"_bucket", b"_sum", b"_count", b"_created", b'le="', b'le="+Inf"', b'le="x"', b'le="NaN"',
    b'engine="0"', b'engine="1"', b'priority=""', b'priority="1"', b'pid="1"', b'dp_rank="1"', b"vllm:", b"vllm_", b"sglang:", b"tgi_",
    b"vllm:num_requests_running", b"vllm:cache_config_info{", b'num_gpu_blocks="1e999"', b"process_start_time_seconds ", b'{a="',
    b'vllm:shiny_new_seconds_bucket{le="1"} 5\n', b"sglang:max_total_num_tokens 1e300\n", b"\xef\xbb\xbf", b"\x1f\x8b", b'{"a.b"} 1\n',
)  # fmt: skip


class Checker:
    """Feeds pages to collectors that have seen all earlier ones, and holds them to what they promise."""

    def __init__(self) -> None:
        self.executions = 0
        self._builders = {
            engine: SnapshotBuilder(engine, max_body_bytes=MAX_BODY_BYTES, max_remembered=MAX_REMEMBERED) for engine in Engine
        }
        self._random = random.Random(0)

    def check(self, body: bytes) -> None:
        """Hold the collectors to their promises for one page. Raises AssertionError, and anything but CollectError."""
        self.executions += 1
        engine = detect_engine(body) or self._random.choice(list(Engine))
        builder = self._builders[engine]
        first = self._built(builder, body)
        # The second time the page is remembered as a whole, the third time it is read that way.
        again = [self._built(builder, body) for _ in range(2)]
        fresh = self._built(SnapshotBuilder(engine, max_body_bytes=MAX_BODY_BYTES), body)
        assert first == fresh, "a parser that knows other pages reads this one otherwise"
        assert again == [first, first], "a page is read otherwise when it comes back"
        if isinstance(first, Snapshot):
            _check_values(first)
        assert builder.remembered <= 2 * MAX_REMEMBERED, f"{builder.remembered} series are remembered"
        for line in self._some_lines(body):
            found = disagreement(line)
            assert found is None, found

    def _built(self, builder: SnapshotBuilder, body: bytes) -> Snapshot | str:
        started = time.process_time()
        try:
            return builder.build(body, "fuzz", 0.0)
        except CollectError as error:
            return f"{error.reason}: {error}"
        finally:
            spent = time.process_time() - started
            assert spent <= FIXED_CPU_SECONDS + len(body) * CPU_SECONDS_PER_BYTE, f"{spent:.2f} s CPU for {len(body)} bytes"

    def _some_lines(self, body: bytes) -> Iterator[str]:
        lines = body.split(b"\n")
        for line in self._random.sample(lines, min(ORACLE_LINES, len(lines))):
            if len(line) <= ORACLE_LINE_CHARS:
                try:
                    yield line.decode()
                except UnicodeDecodeError:
                    continue


def _check_values(snapshot: Snapshot) -> None:
    ranks = [item for values in snapshot.ranks.values() for item in values.items()]
    for name, value in (*snapshot.gauges.items(), *snapshot.counters.items(), *ranks):
        assert 0.0 <= value < math.inf, f"{name} is {value}"
    for hist, histogram in snapshot.histograms.items():
        rising = (0.0, *histogram.cumulative, histogram.count)
        assert list(rising) == sorted(rising), f"{hist} does not rise: {rising}"
        assert math.isfinite(histogram.count), f"{hist}: {histogram.count}"
        assert 0.0 <= histogram.sum < math.inf, f"{hist}: {histogram.sum}"
        assert len(histogram.bounds) == len(histogram.cumulative)
        assert list(histogram.bounds) == sorted(set(histogram.bounds))
        assert all(map(math.isfinite, histogram.bounds)), f"{hist}: {histogram.bounds}"
    # Bounded whatever the page says: issues are stored with every snapshot and shown to people.
    assert len(snapshot.quality.issues) < 500
    assert all(len(issue.message) < 8_000 for issue in snapshot.quality.issues)


class Mutator:
    """Makes pages of real ones: bytes flipped, parts cut, doubled, moved and mixed, tokens that matter put in."""

    def __init__(self, seed: int, corpus: Sequence[bytes] | None = None) -> None:
        self._random = random.Random(seed)
        self._corpus = list(corpus or seeds())

    def page(self) -> bytes:
        """One more page."""
        pick = self._random
        body = bytearray(pick.choice(self._corpus))
        if pick.random() < 0.95:
            # A piece of a page: many small ones find more than a few large ones in the same time.
            lines = bytes(body).split(b"\n")
            start = pick.randrange(len(lines))
            body = bytearray(b"\n".join(lines[start : start + pick.choice((1, 2, 5, 20, 60))]) + pick.choice((b"\n", b"\n", b"")))
        for _ in range(pick.choice((0, 1, 1, 2, 4, 16))):
            self._mutate(body)
        return bytes(body[:MAX_BODY_BYTES])

    def _mutate(self, body: bytearray) -> None:
        pick = self._random
        at = pick.randrange(len(body) + 1)
        end = min(len(body), at + pick.choice((1, 1, 4, 16, 64, 512)))
        match pick.randrange(8):
            case 0:
                body[at:at] = pick.choice(TOKENS)
            case 1:
                body[at:end] = pick.choice(TOKENS)
            case 2:
                del body[at:end]
            case 3 if at < len(body):
                body[at] = pick.randrange(256)
            case 4:
                body[at:at] = body[at:end] * pick.choice((1, 1, 2, 8, 200 if end - at < 64 else 1))
            case 5:
                other = pick.choice(self._corpus)
                start = pick.randrange(len(other))
                body[at:at] = other[start : start + pick.choice((10, 100, 1000))]
            case 6:
                # A whole line again, elsewhere, with another value.
                lines = bytes(body).split(b"\n")
                line = pick.choice(lines).rpartition(b" ")[0] + b" " + pick.choice((b"0", b"1", b"NaN", b"+Inf", b"-1", b"1e308", b"7.5"))
                body[:] = b"\n".join([*lines[: pick.randrange(len(lines) + 1)], line, *lines[pick.randrange(len(lines) + 1) :]])
            case 7:
                del body[at:]


def seeds() -> list[bytes]:
    """Real and hand-made pages, one of each kind, those of regressions included."""
    one_of_each = {path.parent.name + path.name.partition(".")[0] if path.suffix == ".prom" else path.parent.name: path for path in PAGES}
    return [read_page(path) for path in one_of_each.values()]


def corpus_files(folder: Path) -> list[bytes]:
    """The files of a folder."""
    return [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()]
