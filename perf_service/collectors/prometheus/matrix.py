"""The raw samples of a large answer, taken from its text without making objects of them first.

An answer about 40 engines has 4 MB and 14,000 series, whose labels repeat. As JSON it takes 5 ms of CPU for each engine and holds the
interpreter for 0.1 s and longer; cut up as text, a fifth of that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

_HEAD: Final = b'{"status":"success","data":{"resultType":"matrix","result":['
_SERIES: Final = '{"metric":'
_VALUES: Final = ',"values":[['
_NAME: Final = '{"__name__":"'


class TextSeries(Mapping[str, Any]):
    """One series of a matrix as it stands in the answer; what is asked of it is read when it is asked for.

    `is_plain` is set where no label needs unescaping and there are plain values, so that `label` and `samples` may be used.
    """

    __slots__ = ("_read", "_values", "is_plain", "labels_text", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.labels_text, found, self._values = text[len(_SERIES) :].partition(_VALUES)
        is_plain = bool(found) and self.labels_text.startswith(_NAME) and "\\" not in self.labels_text
        self.is_plain = is_plain and '"histograms"' not in self._values
        self._read: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.labels_text[len(_NAME) : self.labels_text.index('"', len(_NAME))]

    def label(self, name: str) -> str | None:
        """The value of a label, None where the series has none of this name."""
        _, found, rest = self.labels_text.partition(f',"{name}":"')
        return rest[: rest.index('"')] if found else None

    def samples(self, newest: int = 0) -> list[list[str]]:
        """Time and value of each sample as they are written, of the `newest` ones only where that is not 0."""
        pairs = self._values[: self._values.rindex('"')].rsplit('"],[', newest or -1)
        return [pair.split(',"', 1) for pair in pairs[-newest:]]

    def __getitem__(self, key: str) -> Any:
        if self._read is None:
            self._read = json.loads(self.text)
        return self._read[key]

    def __iter__(self) -> Iterator[str]:
        self.get("metric")
        return iter(self._read or ())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def read_matrix(body: bytes) -> Any:
    """The answer with a `TextSeries` for each series; None where it is not a matrix laid out as Prometheus does."""
    if not body.startswith(_HEAD):
        return None
    # Within a string quotes are escaped, so this stands at the beginning of a series only.
    _, *parts = body.decode("utf-8", "replace").split(_SERIES)
    if not parts:
        return None
    try:
        # The last series is followed by the end of the answer.
        last, end = json.JSONDecoder().raw_decode(_SERIES + parts[-1])
        content = json.loads(_HEAD.decode() + parts[-1][end - len(_SERIES) :])
    except ValueError:
        return None
    content["data"]["result"] = [*(TextSeries(_SERIES + part[:-1]) for part in parts[:-1]), last]
    return content
