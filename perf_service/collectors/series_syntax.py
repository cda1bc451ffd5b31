"""How a series is spelled in the text formats: name, labels, escapes; also the quoted names of Prometheus 3."""

from __future__ import annotations

import re

_NAME = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(
    rb'[ \t]*(?:([a-zA-Z_][a-zA-Z0-9_]*)|"((?:[^"\\]|\\.)*)")[ \t]*(?:=[ \t]*"((?:[^"\\]|\\.)*)")?[ \t]*(,|\Z)',
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\([\\n\"])")


def split_series(line: bytes) -> tuple[bytes, bytes] | None:
    """Split a line into the series and what follows it; None when the labels do not end."""
    brace = line.find(b"{")
    if brace < 0:
        head, _, rest = line.replace(b"\t", b" ").partition(b" ")
        return head, rest
    if len(line[:brace].split()) > 1:
        # `name 5 # {exemplar} 1`: the brace belongs to the exemplar.
        head, _, rest = line.partition(b" ")
        return head, rest
    end = line.find(b"}", brace)
    if end >= 0 and b"\\" not in line[brace:end] and line.count(b'"', brace, end) % 2 == 0:
        return line[: end + 1], line[end + 1 :]
    in_quotes = False
    position = brace + 1
    while position < len(line):
        byte = line[position]
        if in_quotes and byte == 0x5C:
            position += 1
        elif byte == 0x22:
            in_quotes = not in_quotes
        elif byte == 0x7D and not in_quotes:
            return line[: position + 1], line[position + 1 :]
        position += 1
    return None


def parse_series(text: bytes) -> tuple[str, dict[str, str]] | None:
    """Name and unescaped labels of a series; None where it makes no sense."""
    head, brace, tail = text.partition(b"{")
    name = head.strip()
    labels: dict[str, str] = {}
    if brace:
        body = tail[:-1]
        position = 0
        while body[position:].strip():
            match = _LABEL.match(body, position)
            if match is None or match.end() == position:
                return None
            bare, quoted, value, _ = match.groups()
            if value is None:
                # Prometheus 3 spells a name with unusual characters as the first, valueless entry.
                if quoted is None or name:
                    return (_decode(name), labels) if not body[position:].strip() else None
                name = quoted
            else:
                labels[_decode(bare if bare is not None else quoted)] = _decode(value)
            position = match.end()
        if not name:
            return None
        if _NAME.match(name) is None and head.strip():
            return None
    elif _NAME.match(name) is None:
        return None
    return _decode(name), labels


def _decode(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    return _ESCAPE.sub(_unescape, text) if "\\" in text else text


def _unescape(match: re.Match[str]) -> str:
    char = match.group(1)
    return "\n" if char == "n" else char
