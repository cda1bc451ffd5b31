"""A fast parser for the Prometheus text format 0.0.4 and OpenMetrics 1.0.

A scrape target serves the same series on every scrape; only the values change. So the work that depends on the series
(splitting the name from the labels, unescaping, deciding whether anybody wants it) is done once per series and
remembered under the exact bytes that stand before the value. What is left per line is one split, one dictionary look-up
and one `float`; and a target whose page looks as it did twice before is read as a whole (see `Layout`).
prometheus_client's parsers are the oracles in the tests; where this one differs on purpose is listed there.

The parser never fails because of what a page says: a line that makes no sense is counted and reported. It fails only
when a page exceeds the limits. Time and memory are linear in the size of the page; what is remembered is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final
from weakref import WeakValueDictionary

from perf_service.collectors.layout import MAX_LAYOUT_LINES, Layout
from perf_service.collectors.page import MalformedLine, Page, body_too_large, too_many_series
from perf_service.collectors.series_syntax import Series, parse_series, split_series

__all__ = ["UNKNOWN", "Bind", "ExpositionParser", "MalformedLine", "Page", "Series", "body_too_large", "parse"]

DEFAULT_MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""A vLLM page is about 50 kB and a 16-rank SGLang page below 2 MB; more than this is not a metrics page."""
DEFAULT_MAX_SERIES: Final = 100_000
"""Wanted ones, and four times as many lines of any kind. An SGLang page of 64 ranks has about 40,000."""
DEFAULT_MAX_REMEMBERED: Final = 65_536
"""Spellings of series remembered from page to page; about a thousand per engine server of one make."""
MAX_LINE_BYTES: Final = 65_536
"""A longer line is malformed. The longest that an engine writes, vLLM's cache_config_info, has 2 kB."""
REPORTED_LINES: Final = 5
"""How many malformed lines are reported with their number; the rest is only counted."""

_MAX_MEMO_KEY_BYTES: Final = 4_096
_MAX_KEYS: Final = 65_536
_MAX_REMEMBERED_LAYOUT_LINES: Final = 2_000_000
"""About 3,000 vLLM servers whose pages have nothing in common."""


class _Unknown:
    """Marks a series of a known prefix that no dialect names."""

    __slots__ = ()


UNKNOWN: Final = _Unknown()
Bind = Callable[[str, Mapping[str, str]], object | None]
"""Decides about a series from its name and labels: None ignores it, `UNKNOWN` lists its name, anything else keeps it."""


def _keep_all(name: str, labels: Mapping[str, str]) -> object:
    return name


_IGNORED: Final = Series("", {}, None)
_COMMENT: Final = Series("#", {}, None)


class ExpositionParser:
    """Parses pages of targets that look alike; keep one per engine so that its memory of series pays off.

    Not for use by several threads at once. The memory of series is dropped after a page with which it holds more than
    `max_remembered` spellings, that of layouts when it exceeds about 200 MB.
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
        self._last: dict[str, tuple[int, Layout | None]] = {}
        self._layouts: WeakValueDictionary[int, Layout] = WeakValueDictionary()

    @property
    def remembered(self) -> int:
        """How many spellings of series are remembered, those on layouts included."""
        return len(self._by_prefix) + sum(len(layout.series) for layout in self._layouts.values())

    def parse(self, body: bytes | str, key: str = "") -> Page:
        """Read one page. `key` names the target whose page it is, so that the page is looked for where its last one was.

        Raises:
            CollectError: BODY_TOO_LARGE or TOO_MANY_SERIES when the page exceeds the limits.
        """
        data = body.encode("utf-8", "replace") if isinstance(body, str) else body
        if len(data) > self._max_body_bytes:
            raise body_too_large(self._max_body_bytes)
        signature, layout = self._last.get(key, (0, None))
        page = _reread(layout, data) if layout is not None else None
        if page is not None:
            return page
        try:
            return self._parse_lines(data, key, signature)
        finally:
            self._forget_if_full()

    def _parse_lines(self, data: bytes, key: str, signature: int) -> Page:
        # Comments and blank lines make up at most three lines of four, or somebody is playing with us.
        if data.count(b"\n") > 4 * self._max_series:
            raise too_many_series(self._max_series)
        page = Page(size_bytes=len(data))
        if not data:
            return page
        lines = data.split(b"\n")
        page.is_unterminated = bool(lines[-1].strip())
        remembered = self._by_prefix.get
        samples: dict[Series, float] = {}
        types: dict[str, str] = {}
        page.types = types
        prefixes = []
        ignored, comment = _IGNORED, _COMMENT
        for number, line in enumerate(lines, 1):
            prefix, _, text = line.rpartition(b" ")
            series = remembered(prefix)
            if series is None:
                prefixes.append(line if line[:1] == b"#" else prefix)
                self._read_new(page, samples, types, number, line)
                continue
            if series is comment or series.is_type_line:
                prefixes.append(line)
                if series is not comment and (kind := text.strip()):
                    types[series.name] = kind.decode("utf-8", "replace")
                continue
            prefixes.append(prefix)
            try:
                value = float(text)
            except ValueError:
                self._read_new(page, samples, types, number, line)
                continue
            if b"_" in text:
                # Python's spelling of long numbers, which neither text format has.
                _report(page, number, line)
                continue
            if series is ignored:
                continue
            if series in samples:
                page.duplicates.append(series)
                continue
            samples[series] = value
        if len(samples) > self._max_series:
            raise too_many_series(self._max_series)
        _finish(page, samples, lines)
        page.layout = self._recognised(page, data, lines, prefixes, key, signature)
        return page

    def _recognised(
        self, page: Page, data: bytes, lines: Sequence[bytes], prefixes: Sequence[bytes], key: str, last_signature: int
    ) -> Layout | None:
        """The page's layout where an earlier one had it: another target's, or this target's last page.

        A page is remembered whole only at its second appearance, so that pages that never come back cost nothing.
        """
        if page.malformed_count or page.duplicates or page.timestamps or page.is_unterminated or len(lines) > MAX_LAYOUT_LINES:
            return None
        signature = hash(tuple(prefixes))
        layout = self._layouts.get(signature)
        if layout is not None and layout.values(data) is None:
            layout = None
        if layout is None and signature == last_signature:
            layout = self._new_layout(page, lines)
            if layout is not None:
                self._layouts[signature] = layout
        self._last[key] = (signature, layout)
        return layout

    def _new_layout(self, page: Page, lines: Sequence[bytes]) -> Layout | None:
        """The layout of a page without faults; None where a value is not all that follows a series (an exemplar)."""
        spelled: list[tuple[int, bytes]] = []
        wanted: list[int] = []
        positions = {series: index for index, series in enumerate(page.series)}
        for index, line in enumerate(lines):
            if not line.strip() or line.lstrip()[:1] == b"#":
                continue
            prefix = line.rpartition(b" ")[0]
            series = self._by_prefix.get(prefix)
            if series is None:
                return None
            if series in positions:
                wanted.append(len(spelled))
            spelled.append((index, prefix + b" "))
        return Layout(lines, spelled, wanted, tuple(page.series), page.types, page.unknown_names, page.has_eof)

    def _read_new(self, page: Page, samples: dict[Series, float], types: dict[str, str], number: int, line: bytes) -> None:
        """Read a line that is not a remembered prefix and a number; remember the prefix when the value is all that follows it."""
        stripped = line.strip()
        if not stripped:
            return
        if stripped[:1] == b"#":
            self._read_comment(types, line, stripped)
            return
        split = split_series(stripped) if len(stripped) <= MAX_LINE_BYTES else None
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
        if any(b"_" in field for field in fields):
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
            spelled, _, value_text = line.rpartition(b" ")
            if value_text.strip() == fields[0]:
                self._remember(spelled, series)
        if series is _IGNORED:
            return
        if series in samples:
            page.duplicates.append(series)
            return
        if len(samples) >= self._max_series:
            raise too_many_series(self._max_series)
        samples[series] = value
        if timestamp is not None:
            page.timestamps[series] = timestamp

    def _read_comment(self, types: dict[str, str], line: bytes, stripped: bytes) -> None:
        words = stripped.split(None, 3)
        if len(words) == 4 and words[1] == b"TYPE":
            name = words[2].decode("utf-8", "replace").strip('"')
            types[name] = words[3].decode("utf-8", "replace")
            prefix = line.rpartition(b" ")[0]
            if prefix.split() == words[:3]:
                self._remember(prefix, Series(name, {}, None, is_type_line=True))
        elif len(words) > 3 and words[1] == b"HELP":
            self._remember(line.rpartition(b" ")[0], _COMMENT)

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
        if len(self._last) > _MAX_KEYS or sum(layout.line_count for layout in self._layouts.values()) > _MAX_REMEMBERED_LAYOUT_LINES:
            self._last.clear()


def parse(body: bytes | str) -> Page:
    """Read one page, every series of it, with a parser made for the occasion."""
    return ExpositionParser().parse(body)


def _reread(layout: Layout, data: bytes) -> Page | None:
    values = layout.values(data)
    if values is None:
        return None
    return Page(
        series=layout.series,
        values=values,
        types=layout.types,
        unknown_names=layout.unknown_names,
        size_bytes=len(data),
        has_eof=layout.has_eof,
        layout=layout,
    )


def _finish(page: Page, samples: dict[Series, float], lines: Sequence[bytes]) -> None:
    unknown = [series for series in samples if series.binding is UNKNOWN]
    for series in unknown:
        del samples[series]
    page.series, page.values = tuple(samples), list(samples.values())
    page.unknown_names = list(dict.fromkeys(series.name for series in unknown))
    last = page.malformed_lines[-1].number if page.malformed_lines else 0
    page.is_truncated = page.is_unterminated and last == len(lines)
    page.has_eof = b"# EOF" in (lines[-1].strip(), lines[-2].strip() if len(lines) > 1 else b"")


def _report(page: Page, number: int, line: bytes) -> None:
    page.malformed_count += 1
    entry = MalformedLine(number, line[:80].decode("utf-8", "replace"))
    if len(page.malformed_lines) < REPORTED_LINES:
        page.malformed_lines.append(entry)
    else:
        # The last one is kept as well: it tells whether the page was cut.
        page.malformed_lines[REPORTED_LINES - 1] = entry
