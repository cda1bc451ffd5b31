"""What a parsed page is, and the errors of pages that are too large to be one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from perf_service.collectors.layout import Layout
from perf_service.collectors.series_syntax import Series
from perf_service.models.errors import CollectError, ErrorReason

_HTML: Final = re.compile(rb"\s*<(?:!doctype|html|head|body|\?xml)", re.IGNORECASE)
_FAMILY_SUFFIXES: Final = ("_bucket", "_sum", "_count", "_total", "_created", "_info", "_gsum", "_gcount")


@dataclass(frozen=True, slots=True)
class MalformedLine:
    """A line that is not a sample, a comment or blank. `number` counts from 1; `text` is shortened."""

    number: int
    text: str


@dataclass(slots=True)
class Page:
    """What one page said. Not to be changed: parts of it are shared with later pages.

    `series` are the wanted ones in page order and `values` their values (the first of each); `types` the declared type by family
    name; `timestamps` as written (milliseconds in the text format, seconds in OpenMetrics); `unknown_names` the names that `bind`
    called unknown, in order of first appearance; `layout` is set where the page looks like an earlier one.
    """

    series: Sequence[Series] = ()
    values: Sequence[float] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    timestamps: dict[Series, float] = field(default_factory=dict)
    unknown_names: Sequence[str] = ()
    duplicates: list[Series] = field(default_factory=list)
    malformed_count: int = 0
    malformed_lines: list[MalformedLine] = field(default_factory=list)
    size_bytes: int = 0
    has_eof: bool = False
    """`# EOF` is the last line: the page is OpenMetrics and complete."""
    is_unterminated: bool = False
    """The last line has no line feed, as when a download or a file was cut."""
    is_truncated: bool = False
    """The last line has no line feed and makes no sense: the page was cut for certain."""
    layout: Layout | None = None

    @property
    def samples(self) -> dict[Series, float]:
        """The values by series."""
        return dict(zip(self.series, self.values, strict=True))

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
        return ((series.name, series.labels, value) for series, value in zip(self.series, self.values, strict=True))


def body_too_large(limit_bytes: int) -> CollectError:
    """The error for a page beyond the size limit, whether it was noticed while downloading or afterwards."""
    return CollectError(
        ErrorReason.BODY_TOO_LARGE,
        f"The metrics page is larger than the limit of {limit_bytes} bytes. "
        "Check that the address is that of a metrics page, or raise the limit.",
        {"limit_bytes": str(limit_bytes)},
    )


def too_many_series(limit: int) -> CollectError:
    """The error for a page beyond the limit of series (or four lines a series)."""
    return CollectError(
        ErrorReason.TOO_MANY_SERIES,
        f"The metrics page has more than {limit} series. Check that the address is that of one engine, or raise the limit.",
        {"limit_series": str(limit)},
    )


def looks_like_html(body: bytes) -> bool:
    """Whether a body begins as an HTML or XML document does."""
    return _HTML.match(body) is not None
