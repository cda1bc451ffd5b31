"""prometheus_client's parsers as the oracle for ours, and the list of what ours reads otherwise on purpose.

Stricter than prometheus_client's text parser (which calls itself "a laxer parser than the main Go parser"); each is refused by
Prometheus as well:

* a name or label name that is not `[a-zA-Z_:][a-zA-Z0-9_:]*` (label: without the colon) and not in quotes;
* a comma before the first label;
* anything after the timestamp but an exemplar;
* a line that has no value (`NaN` alone, of which prometheus_client makes a metric `Na`);
* digits that are not ASCII, and white space that is neither space nor tab, but for a carriage return at the line's end.

More lenient:

* one line that makes no sense does not lose the page: it is counted, shown, and left out;
* what stands behind ` # ` (an exemplar) is not looked at;
* label names that begin with two underscores, which are reserved, are labels like others;
* comments are never refused, and metadata may come in any order, more than once or not at all;
* a counter without `_total` keeps its name;
* OpenMetrics' order of groups, uniqueness of names and canonical numbers are not required. A missing `# EOF` is told (`Page.has_eof`).

Other values: an integer too large for a float is infinite (prometheus_client makes a Python int of it).
"""

from __future__ import annotations

import math
import re
from typing import Final

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from perf_service.collectors.exposition import Page, parse

Key = tuple[str, tuple[tuple[str, str], ...]]
Values = dict[Key, float]

_QUOTED: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*|")
_LABEL: Final = re.compile(r'[ \t]*(?:([a-zA-Z_][a-zA-Z0-9_]*|"")[ \t]*(=[ \t]*""[ \t]*)?)?')


def values_of(page: Page) -> Values:
    """The values of a page by name and sorted labels."""
    return {(name, tuple(sorted(labels.items()))): value for name, labels, value in page}


def text_values(text: str) -> Values:
    """What prometheus_client's text parser reads. Raises ValueError where it refuses the page."""
    # It adds _total to every counter, even where the page has none.
    literal = {line.strip().partition("{")[0].split()[0] for line in text.splitlines() if line.strip().partition("{")[0].strip()}
    found: Values = {}
    for family in text_families(text):
        for sample in family.samples:
            name = sample.name if sample.name in literal else sample.name.removesuffix("_total")
            found.setdefault((name, tuple(sorted(sample.labels.items()))), as_float(sample.value))
    return found


def openmetrics_values(text: str) -> Values:
    """What prometheus_client's OpenMetrics parser reads. Raises ValueError where it refuses the page."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): as_float(sample.value)
        for family in openmetrics_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def as_float(value: float) -> float:
    """prometheus_client makes a Python int of a whole number, however long."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def equal(found: Values, expected: Values) -> bool:
    """Whether both have the same series with the same values, NaN equal to NaN."""
    return found.keys() == expected.keys() and all(
        value == expected[key] or (math.isnan(value) and math.isnan(expected[key])) for key, value in found.items()
    )


def stricter(line: str) -> bool:
    """Whether a line has one of the faults that only we refuse."""
    bare = _QUOTED.sub('""', line.strip(" \t\r"))
    if not bare.isascii() or re.search(r"[\x00-\x08\x0a-\x1f]", bare):
        return True
    bare = bare.split(" # ")[0]
    head, brace, tail = bare.partition("{")
    if brace:
        labels, _, rest = tail.partition("}")
    else:
        labels, (head, _, rest) = "", bare.replace("\t", " ").partition(" ")
    if _NAME.fullmatch(head.strip()) is None:
        return True
    if labels.lstrip(" \t").startswith(",") or any(_LABEL.fullmatch(part) is None for part in labels.split(",")):
        return True
    return not 1 <= len(rest.split()) <= 2


def disagreement(line: str) -> str | None:
    """What is wrong with how we read one line, against prometheus_client and the list above; None when nothing is."""
    if line.strip().startswith("#"):
        return None
    page = parse(line + "\n")
    found = values_of(page)
    try:
        expected = text_values(line + "\n")
    except (ValueError, IndexError) as error:
        odd_space = any(char.isspace() and char not in " \t" for char in line.strip())
        reserved = re.search(r"[{,]\s*__", line)
        if page.malformed_count or " # " in line or odd_space or reserved or not line.strip(" \t\r"):
            return None
        return f"{line!r} is read as {found}, prometheus_client refuses it: {error}"
    if equal(found, expected):
        return None
    if page.malformed_count and not found and stricter(line):
        return None
    if " # " in line and stricter(line.partition(" # ")[0]):
        return None
    return f"{line!r} is read as {found}, by prometheus_client as {expected}"
