"""Saved pages as Prometheus would have seen them over a quarter of an hour: looped at their own pace, counters going on where they were.

A capture is 20 to 100 s long. Time is not stretched, because a second of queueing must stay a second: the run is repeated, each time
on top of what the counters had reached. Values between two pages are interpolated for counters and held for gauges, as an engine has them.
"""

from __future__ import annotations

import bisect
import gzip
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "fixtures"


@dataclass(frozen=True)
class SavedPage:
    """One page: seconds since the first, its series as they stand on it, and which of them only grow."""

    seconds: float
    values: Mapping[str, float]
    growing: frozenset[str]


def read_page(seconds: float, text: str) -> SavedPage:
    values: dict[str, float] = {}
    growing: set[str] = set()
    kind = ""
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            kind = line.split()[3]
        elif line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            values[series] = float(value)
            if kind in ("counter", "histogram", "summary") and "_created" not in series.partition("{")[0]:
                growing.add(series)
    return SavedPage(seconds, values, frozenset(growing))


def read_capture(folder: Path) -> list[SavedPage]:
    """The pages of a saved run, in order. Those that could not be scraped are not there."""
    rows = [json.loads(line) for line in (folder / "scrapes.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.get("file")]
    start = rows[0]["t_unix"]
    return [read_page(row["t_unix"] - start, gzip.decompress((folder / row["file"]).read_bytes()).decode()) for row in rows]


class Track:
    """A run as values at any moment."""

    def __init__(self, pages: Sequence[SavedPage], *, loop: bool = True) -> None:
        self.pages, self.loop = pages, loop
        self.times = [page.seconds - pages[0].seconds for page in pages]
        self.period = self.times[-1]
        first, last = pages[0], pages[-1]
        self.gain = {series: last.values[series] - first.values.get(series, 0.0) for series in last.growing if series in last.values}
        self.series = sorted({series for page in pages for series in page.values})

    def value(self, series: str, seconds: float) -> float | None:
        """The value that a scrape at this moment reads, None where the series is not on the page."""
        turn, at = divmod(seconds, self.period) if self.loop else (0.0, min(seconds, self.period))
        index = min(bisect.bisect_right(self.times, at) - 1, len(self.pages) - 1)
        page = self.pages[index]
        value = page.values.get(series)
        if value is None:
            # A family that appears with its first observation stays there from then on.
            return turn * self.gain[series] if turn and series in self.gain else None
        if series not in page.growing:
            return value
        if index + 1 < len(self.pages):
            after = self.pages[index + 1]
            share = (at - self.times[index]) / (self.times[index + 1] - self.times[index])
            value += share * (after.values.get(series, value) - value)
        return value + turn * self.gain.get(series, 0.0)


Values = dict[str, list[float | None]]


def samples(track: Track, duration: float, step: float, wanted: Collection[str], labels: str, start: float = 0.0) -> Values:
    """What a scraper with this interval stores of the wanted families, under the target's labels."""
    moments = [start + index * step for index in range(round((duration - start) / step))]
    found: Values = {}
    for series in track.series:
        name = series.partition("{")[0]
        if name in wanted:
            found[with_labels(series, labels)] = [track.value(series, moment - start) for moment in moments]
    found[f"up{{{labels}}}"] = [1.0] * len(moments)
    return found


def with_labels(series: str, labels: str) -> str:
    """The series with a target's labels, as Prometheus stores it."""
    name, brace, rest = series.partition("{")
    return f"{name}{{{labels},{rest}" if brace and rest != "}" else f"{name}{{{labels}}}"


def joined(*parts: Values) -> Values:
    """One after the other; where a series is not in a part, it has no samples there."""
    lengths = [len(next(iter(part.values()))) for part in parts]
    found: Values = {}
    for series in sorted({series for part in parts for series in part}):
        values: list[float | None] = []
        for part, length in zip(parts, lengths, strict=True):
            values += part.get(series, [None] * length)
        found[series] = values
    return found


def notation(values: Sequence[float | None]) -> str:
    """promtool's notation of a series; what does not move is written once. A series that ends is marked stale, as by a scrape."""
    if len(set(values)) == 1 and values[0] is not None:
        return f"{_number(values[0])}x{len(values) - 1}" if len(values) > 1 else _number(values[0])
    before: Iterable[float | None] = (None, *values[:-1])
    return " ".join(
        _number(value) if value is not None else "_" if last is None else "stale" for last, value in zip(before, values, strict=True)
    )


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(round(value, 6)) if math.isfinite(value) else ("Inf" if value > 0 else "-Inf")
