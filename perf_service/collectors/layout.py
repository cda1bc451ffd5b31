"""A page's layout: everything on it but the values, so that the next page of the same target is read in a few bulk steps.

Between two scrapes of a server its page nearly always differs in the values alone. Comparing the rest with what was there before,
cutting the known text off each line and converting what is left are each one loop inside the interpreter's C code: about
five times the speed of looking up each line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

from perf_service.collectors.series_syntax import Series

MAX_LAYOUT_LINES: Final = 50_000
"""Longest page that is remembered whole: three times a 16-rank SGLang page."""


class Layout:
    """Where the values stand on a page without faults, and whose they are.

    `series` are the wanted series in page order, `types` the declared types by family name, `unknown_names` as on `Page`. `reading` is
    for the reader of pages to keep what it worked out about `series`.
    """

    __slots__ = (
        "__weakref__",
        "_comments",
        "_constant_bytes",
        "_pick_comments",
        "_pick_samples",
        "_pick_wanted",
        "_prefixes",
        "has_eof",
        "line_count",
        "reading",
        "series",
        "types",
        "unknown_names",
    )

    def __init__(
        self,
        lines: Sequence[bytes],
        spelled: Sequence[tuple[int, bytes]],
        wanted: Sequence[int],
        series: tuple[Series, ...],
        types: Mapping[str, str],
        unknown_names: Sequence[str],
        has_eof: bool,
    ) -> None:
        """`spelled` are the sample lines' indexes with the text before the value; `wanted` the positions in it of `series`."""
        self.series = series
        self.types = types
        self.unknown_names = unknown_names
        self.has_eof = has_eof
        self.reading: object = None
        self.line_count = len(lines)
        samples = [index for index, _ in spelled]
        among = set(samples)
        others = [index for index in range(len(lines)) if index not in among]
        self._prefixes = tuple(prefix for _, prefix in spelled)
        self._pick_samples = _picker(samples)
        self._pick_comments = _picker(others)
        self._pick_wanted = _picker(wanted)
        self._comments = self._pick_comments(lines)
        blanks = max(0, len(samples) - 1)
        line_feeds = len(lines) - 1
        self._constant_bytes = line_feeds + sum(map(len, self._prefixes)) + sum(map(len, self._comments)) - blanks

    def values(self, data: bytes) -> tuple[float, ...] | None:
        """The values of `series` on a page that has this layout; None where it does not, or where a value is not a number."""
        lines = data.split(b"\n")
        if len(lines) != self.line_count or self._pick_comments(lines) != self._comments:
            return None
        texts = tuple(map(bytes.removeprefix, self._pick_samples(lines), self._prefixes))
        joined = b" ".join(texts)
        # A line with another prefix stays whole, and so does not let the lengths add up. The underscore is Python's spelling of long
        # numbers, which neither text format has.
        if len(joined) + self._constant_bytes != len(data) or b"_" in joined:
            return None
        try:
            return self._pick_wanted(tuple(map(float, texts)))
        except ValueError:
            return None


def _picker(indexes: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """A function that takes the items at `indexes`, always as a tuple (`itemgetter` gives a lone item bare)."""
    if not indexes:
        return lambda items: ()
    if len(indexes) == 1:
        (only,) = indexes
        return lambda items: (items[only],)
    return itemgetter(*indexes)
