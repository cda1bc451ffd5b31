"""How a series is spelled in the text formats: name, labels, escapes; also the quoted names of Prometheus 3.

Every pattern is written without backtracking (possessive repeats), so that the time is linear in the length of a line, whatever stands
on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_QUOTED: Final = rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
_NAME: Final = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*+\Z")
_LABELS: Final = re.compile(rb'[^{"]*+\{(?:[^"}]++|' + _QUOTED + rb")*+\}", re.DOTALL)
_LABEL: Final = re.compile(
    rb"[ \t]*+(?:([a-zA-Z_][a-zA-Z0-9_]*+)|" + _QUOTED + rb")[ \t]*+(?:=[ \t]*+" + _QUOTED + rb"[ \t]*+)?(,|\Z)",
    re.DOTALL,
)
_BLANK: Final = re.compile(rb"[ \t]*+\Z")
_ESCAPE: Final = re.compile(r"\\([\\n\"])")


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


def split_series(line: bytes) -> tuple[bytes, bytes] | None:
    """Split a stripped line into the series and what follows it; None when the labels do not end."""
    brace = line.find(b"{")
    if brace < 0 or len(line[:brace].split(None, 2)) > 1:
        # No labels; in `name 5 # {exemplar} 1` the brace belongs to the exemplar.
        parts = line.split(None, 1)
        return parts[0], parts[1] if len(parts) == 2 else b""
    match = _LABELS.match(line)
    return (line[: match.end()], line[match.end() :]) if match else None


def parse_series(text: bytes) -> tuple[str, dict[str, str]] | None:
    """Name and unescaped labels of a series; None where it makes no sense, a label that stands twice included."""
    head, brace, tail = text.partition(b"{")
    name = head.strip()
    if name and _NAME.match(name) is None:
        return None
    labels: dict[str, str] = {}
    if brace:
        body = tail[:-1]
        position = 0
        while _BLANK.match(body, position) is None:
            match = _LABEL.match(body, position)
            if match is None:
                return None
            bare, quoted, value, _ = match.groups()
            if value is None or bare == b"__name__":
                # Prometheus 3 spells a name with unusual characters as a valueless entry.
                if name or not (named := quoted if value is None else value):
                    return None
                name = named
            else:
                label = _decode(bare if bare is not None else quoted)
                if label in labels:
                    return None
                labels[label] = _decode(value)
            position = match.end()
    return (_decode(name), labels) if name else None


def _decode(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    return _ESCAPE.sub(_unescape, text) if "\\" in text else text


def _unescape(match: re.Match[str]) -> str:
    char = match.group(1)
    return "\n" if char == "n" else char
