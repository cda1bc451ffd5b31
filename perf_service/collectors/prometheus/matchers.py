"""PromQL label matchers: `job="vllm",instance=~"10[.]0.*"`. Read here, so that what a person wrote can never become another query."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from perf_service.models.errors import InvalidArgumentError

MAX_MATCH_CHARS: Final = 4096
_MATCHER: Final = re.compile(
    r"\s*(?:(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)|(?P<quoted>\"(?:[^\"\\]|\\.)*\"))"
    r"\s*(?P<operator>=~|!~|!=|=)\s*"
    r"(?P<value>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)\s*(?P<end>,|\Z)",
    re.DOTALL,
)
_PLAIN_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_NAME_LABEL: Final = "__name__"


@dataclass(frozen=True, slots=True, order=True)
class Matcher:
    """One condition on a label: `=`, `!=`, `=~` or `!~`."""

    name: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{label_name(self.name)}{self.operator}{quoted(self.value)}"


def parse_matchers(text: str, *, field: str = "match") -> tuple[Matcher, ...]:
    """The matchers of `{a="b",c=~"d"}`, with or without the braces; none for an empty text.

    Raises:
        InvalidArgumentError: for anything else, and for a matcher on the metric's name, which is not the caller's to choose.
    """
    if len(text) > MAX_MATCH_CHARS:
        raise InvalidArgumentError(f"the matchers are longer than {MAX_MATCH_CHARS} characters", field=field)
    body = text.strip()
    if body.startswith("{") and body.endswith("}"):
        body = body[1:-1].strip()
    found: list[Matcher] = []
    position = 0
    while position < len(body):
        match = _MATCHER.match(body, position)
        if match is None:
            raise InvalidArgumentError(
                f"{text!r} are no label matchers from {body[position : position + 40]!r} on: "
                'write LABEL="VALUE" (or !=, =~, !~), separated by commas, e.g. job="vllm",instance="10.0.0.1:8000"',
                field=field,
            )
        name = match["name"] or _unquoted(match["quoted"])
        if name == _NAME_LABEL:
            raise InvalidArgumentError(
                f"{text!r} chooses metrics by name, which the engine's dialect does: match on labels of the target (job, instance, pod)",
                field=field,
            )
        found.append(Matcher(name, match["operator"], _unquoted(match["value"])))
        position = match.end()
    return tuple(dict.fromkeys(found))


def label_name(name: str) -> str:
    """A label's name as it is written: in quotes where it has characters that only Prometheus 3 allows."""
    return name if _PLAIN_NAME.match(name) else quoted(name)


def quoted(text: str) -> str:
    """A PromQL string with exactly this value."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def selector(*parts: str | Matcher) -> str:
    """A vector selector of these matchers."""
    return "{" + ",".join(map(str, parts)) + "}"


def selects(matchers: Iterable[Matcher], labels: Mapping[str, str]) -> bool:
    """Whether these labels satisfy all of them; a label that is absent is empty. False for a regular expression that cannot be read."""
    try:
        return all(_holds(matcher, labels.get(matcher.name, "")) for matcher in matchers)
    except re.error:
        return False


def _holds(matcher: Matcher, value: str) -> bool:
    same = value == matcher.value if "~" not in matcher.operator else re.fullmatch(matcher.value, value, re.DOTALL) is not None
    return same is not matcher.operator.startswith("!")


def any_of(values: list[str]) -> str:
    """A regular expression (RE2, as PromQL anchors it) that matches exactly these values."""
    return "|".join(re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", value) for value in values)


def _unquoted(text: str) -> str:
    """The value of a PromQL string; a backquoted one has no escapes."""
    inner = text[1:-1]
    return inner if text[0] == "`" else _ESCAPE.sub(_unescaped, inner)


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if len(code) == 1:
        return _ESCAPES.get(code, code)
    value = int(code, 8) if code[0] in "01234567" else int(code[1:], 16)
    return chr(value) if value < 0x110000 else "\ufffd"
