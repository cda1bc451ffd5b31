"""A fast parser for the Prometheus text format 0.0.4 and OpenMetrics 1.0.

A scrape target serves the same series on every scrape; only the values change. So the work that depends on the series
(splitting the name from the labels, unescaping, deciding whether anybody wants it) is done once per series and
remembered under the exact bytes that stand before the value. What is left per line is one split, one dictionary look-up
and one `float`. prometheus_client's parser is the oracle in the tests.

The parser never fails because of what a page says: a line that makes no sense is counted and reported. It fails only
when a page exceeds the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from perf_service.collectors.series_syntax import parse_series, split_series
from perf_service.models.errors import CollectError, ErrorReason

DEFAULT_MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""A vLLM page is about 50 kB and a 16-rank SGLang page below 2 MB; more than this is not a metrics page."""
DEFAULT_MAX_SERIES: Final = 200_000
DEFAULT_MAX_REMEMBERED: Final = 65_536
"""Spellings of series remembered from page to page; about a thousand per engine server of one make."""
REPORTED_LINES: Final = 5
"""How many malformed lines are reported with their number; the rest is only counted."""

_MAX_MEMO_KEY_BYTES: Final = 4_096

_FAMILY_SUFFIXES: Final = ("_bucket", "_sum", "_count", "_total", "_created", "_info")


class Series:
    """One time series as it is spelled on a page: compared by identity, made once per parser.

    `binding` is whatever the parser's `bind` function made of it (see `ExpositionParser`).
    """

    __slots__ = ("binding", "is_type_line", "labels", "name")

    def __init__(self, name: str, labels: Mapping[str, str], binding: object, is_type_line: bool = False) -> None:
        self.name = name
        self.labels = labels
        self.binding = binding
        self.is_type_line = is_type_line

    def __repr__(self) -> str:
        pairs = ",".join(f'{key}="{value}"' for key, value in self.labels.items())
        return f"{self.name}{{{pairs}}}" if pairs else self.name


@dataclass(frozen=True, slots=True)
class MalformedLine:
    """A line that is not a sample, a comment or blank. `number` counts from 1; `text` is shortened."""

    number: int
    text: str


@dataclass(slots=True)
class Page:
    """What one page said.

    `samples` holds the first value of each wanted series; `types` the declared type by family name;
    `unknown_names` the names that `bind` called unknown, in order of first appearance.
    """

    samples: dict[Series, float] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    timestamps: dict[Series, float] = field(default_factory=dict)
    unknown_names: list[str] = field(default_factory=list)
    duplicates: list[Series] = field(default_factory=list)
    malformed_count: int = 0
    malformed_lines: list[MalformedLine] = field(default_factory=list)
    size_bytes: int = 0
    has_eof: bool = False
    """`# EOF` was seen: the page is OpenMetrics and complete."""
    is_unterminated: bool = False
    """The last line has no line feed, as when a download or a file was cut."""
    is_truncated: bool = False
    """The last line has no line feed and makes no sense: the page was cut for certain."""

    def type_of(self, sample_name: str) -> str | None:
        """The declared type of the family this sample belongs to, or None when the page declares none."""
        declared = self.types.get(sample_name)
        if declared is not None:
            return declared
        for suffix in _FAMILY_SUFFIXES:
            if sample_name.endswith(suffix):
                return self.types.get(sample_name[: -len(suffix)])
        return None

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Name, labels and value of every sample, in page order."""
        return ((series.name, series.labels, value) for series, value in self.samples.items())


class _Unknown:
    """Marks a series of a known prefix that no dialect names."""

    __slots__ = ()


UNKNOWN: Final = _Unknown()
Bind = Callable[[str, Mapping[str, str]], object | None]
"""Decides about a series from its name and labels: None ignores it, `UNKNOWN` lists its name, anything else keeps it."""


def _keep_all(name: str, labels: Mapping[str, str]) -> object:
    return name


_IGNORED: Final = Series("", {}, None)


class ExpositionParser:
    """Parses pages of targets that look alike; keep one per engine so that its memory of series pays off.

    Not for use by several threads at once. The memory of series is dropped when a page begins and it holds more
    than `max_remembered` spellings.
    """

    def __init__(
        self,
        bind: Bind = _keep_all,
        *,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        max_series: int = DEFAULT_MAX_SERIES,
        max_remembered: int = DEFAULT_MAX_REMEMBERED,
    ) -> None:
        self._bind = bind
        self._max_remembered = max_remembered
        self._max_body_bytes = max_body_bytes
        self._max_series = max_series
        self._by_prefix: dict[bytes, Series] = {}
        self._by_identity: dict[tuple[str, tuple[tuple[str, str], ...]], Series] = {}

    def parse(self, body: bytes | str) -> Page:
        """Read one page.

        Raises:
            CollectError: BODY_TOO_LARGE or TOO_MANY_SERIES when the page exceeds the limits.
        """
        data = body.encode("utf-8", "replace") if isinstance(body, str) else body
        if len(data) > self._max_body_bytes:
            raise body_too_large(self._max_body_bytes)
        self._forget_if_full()
        page = Page(size_bytes=len(data))
        if not data:
            return page
        lines = data.split(b"\n")
        page.is_unterminated = bool(lines[-1].strip())
        remembered = self._by_prefix.get
        samples = page.samples
        ignored = _IGNORED
        for number, line in enumerate(lines, 1):
            prefix, _, text = line.rpartition(b" ")
            series = remembered(prefix)
            if series is None:
                self._read_new(page, number, line)
                continue
            if series is ignored:
                continue
            if series.is_type_line:
                page.types[series.name] = text.strip().decode("utf-8", "replace")
                continue
            try:
                value = float(text)
            except ValueError:
                _report(page, number, line)
                continue
            if series in samples:
                page.duplicates.append(series)
                continue
            samples[series] = value
        if len(samples) > self._max_series:
            raise _too_many_series(self._max_series)
        _finish(page, len(lines))
        return page

    def _read_new(self, page: Page, number: int, line: bytes) -> None:
        """Read a line whose prefix was not met before; remember the prefix when the value is all that follows it."""
        stripped = line.strip()
        if not stripped:
            return
        if stripped[:1] == b"#":
            self._read_comment(page, line, stripped)
            return
        split = split_series(stripped)
        if split is None:
            _report(page, number, line)
            return
        text, rest = split
        fields = rest.split(b" # ", 1)[0].split()
        if not 1 <= len(fields) <= 2:
            _report(page, number, line)
            return
        try:
            value = float(fields[0])
            timestamp = float(fields[1]) if len(fields) == 2 else None
        except ValueError:
            _report(page, number, line)
            return
        series = self._by_prefix.get(text)
        if series is None:
            series = self._intern(text)
            if series is None:
                _report(page, number, line)
                return
            self._remember(text, series)
        if len(fields) == 1 and rest.strip() == fields[0]:
            # Also under the spelling with its leading white space, so that an indented page is fast as well.
            self._remember(line.rpartition(b" ")[0], series)
        if series is _IGNORED:
            return
        if series in page.samples:
            page.duplicates.append(series)
            return
        if len(page.samples) >= self._max_series:
            raise _too_many_series(self._max_series)
        page.samples[series] = value
        if timestamp is not None:
            page.timestamps[series] = timestamp

    def _read_comment(self, page: Page, line: bytes, stripped: bytes) -> None:
        words = stripped.split(None, 3)
        if stripped == b"# EOF":
            page.has_eof = True
        elif len(words) == 4 and words[1] == b"TYPE":
            name = words[2].decode("utf-8", "replace").strip('"')
            page.types[name] = words[3].decode("utf-8", "replace")
            prefix = line.rpartition(b" ")[0]
            if prefix.endswith(words[2]):
                self._remember(prefix, Series(name, {}, None, is_type_line=True))
        elif len(words) > 2 and words[1] == b"HELP":
            self._remember(line.rpartition(b" ")[0], _IGNORED)

    def _intern(self, text: bytes) -> Series | None:
        parsed = parse_series(text)
        if parsed is None:
            return None
        name, labels = parsed
        identity = (name, tuple(sorted(labels.items())))
        series = self._by_identity.get(identity)
        if series is None:
            binding = self._bind(name, labels)
            series = _IGNORED if binding is None else Series(name, labels, binding)
            if series is not _IGNORED:
                self._by_identity[identity] = series
        return series

    def _remember(self, prefix: bytes, series: Series) -> None:
        if len(prefix) <= _MAX_MEMO_KEY_BYTES:
            self._by_prefix[prefix] = series

    def _forget_if_full(self) -> None:
        # Between pages only: within a page a duplicate must be noticed.
        if max(len(self._by_prefix), len(self._by_identity)) > self._max_remembered:
            self._by_prefix.clear()
            self._by_identity.clear()


def parse(body: bytes | str) -> Page:
    """Read one page, every series of it, with a parser made for the occasion."""
    return ExpositionParser().parse(body)


def body_too_large(limit_bytes: int) -> CollectError:
    """The error for a page beyond the size limit, whether it was noticed while downloading or afterwards."""
    return CollectError(
        ErrorReason.BODY_TOO_LARGE,
        f"The metrics page is larger than the limit of {limit_bytes} bytes. "
        "Check that the address is that of a metrics page, or raise the limit.",
        {"limit_bytes": str(limit_bytes)},
    )


def _too_many_series(limit: int) -> CollectError:
    return CollectError(
        ErrorReason.TOO_MANY_SERIES,
        f"The metrics page has more than {limit} series. Check that the address is that of one engine, or raise the limit.",
        {"limit_series": str(limit)},
    )


def _finish(page: Page, line_count: int) -> None:
    unknown = [series for series in page.samples if series.binding is UNKNOWN]
    for series in unknown:
        del page.samples[series]
    page.unknown_names = list(dict.fromkeys(series.name for series in unknown))
    last = page.malformed_lines[-1].number if page.malformed_lines else 0
    page.is_truncated = page.is_unterminated and last == line_count


def _report(page: Page, number: int, line: bytes) -> None:
    page.malformed_count += 1
    entry = MalformedLine(number, line[:80].decode("utf-8", "replace"))
    if len(page.malformed_lines) < REPORTED_LINES:
        page.malformed_lines.append(entry)
    else:
        # The last one is kept as well: it tells whether the page was cut.
        page.malformed_lines[REPORTED_LINES - 1] = entry
