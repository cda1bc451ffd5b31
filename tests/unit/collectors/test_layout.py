"""A page is read as a whole where it has the layout it had before, and only there."""

from __future__ import annotations

import math

import pytest

from perf_service.collectors.exposition import ExpositionParser
from tests.support.exposition_oracle import values_of

PAGE = '# HELP a Help.\n# TYPE a gauge\na{b="c"} 1\nb 2\n\nc_total 3\n'


def seen(text: str = PAGE) -> ExpositionParser:
    parser = ExpositionParser()
    assert parser.parse(text, "t").layout is None
    assert parser.parse(text, "t").layout is not None
    return parser


def test_only_the_values_change() -> None:
    page = seen().parse(PAGE.replace(" 1\n", " -Inf\n").replace(" 3\n", "  1.5e3\n"), "t")
    assert page.layout is not None
    assert values_of(page) == {("a", (("b", "c"),)): -math.inf, ("b", ()): 2.0, ("c_total", ()): 1500.0}
    assert (page.types, page.has_eof, page.malformed_count) == ({"a": "gauge"}, False, 0)


@pytest.mark.parametrize(
    "other",
    [
        PAGE.replace('b="c"', 'b="d"'),
        PAGE.replace('b="c"', 'b="cc"'),
        PAGE.replace("b 2\n", "bb 2\n"),
        PAGE.replace("b 2\n", "b2\n"),
        PAGE.replace("b 2\n", "b 2 1700000000000\n"),
        PAGE.replace("b 2\n", "b 2 # {} 1\n"),
        PAGE.replace("b 2\n", "b x\n"),
        PAGE.replace("b 2\n", "b 1_0\n"),
        PAGE.replace("b 2\n", "b \n"),
        PAGE.replace("b 2\n", "# b 2\n"),
        PAGE.replace("b 2\n", "\n"),
        PAGE.replace("gauge", "gaugehistogram"),
        PAGE.replace("Help.", "Help, another."),
        PAGE.replace("\n\n", "\nd 4\n"),
        PAGE + "d 4\n",
        PAGE.replace("b 2\n", ""),
        PAGE[:-1],
        PAGE[:-9],
        PAGE.replace("b 2\n\nc_total 3\n", "c_total 3\n\nb 2\n"),
        "",
    ],
)
def test_what_differs_in_more_is_read_line_by_line(other: str) -> None:
    parser = seen()
    known = parser.parse(PAGE, "t").layout
    found, fresh = parser.parse(other, "t"), ExpositionParser().parse(other)
    assert found.layout is not known
    assert values_of(found) == values_of(fresh)
    assert (found.types, found.malformed_lines, found.timestamps.keys() == set()) == (
        fresh.types,
        fresh.malformed_lines,
        not fresh.timestamps,
    )
    # And the page that was known is still known, after it was seen again.
    parser.parse(PAGE, "t")
    assert parser.parse(PAGE, "t").layout is not None


@pytest.mark.parametrize("text", ["a 1\na 2\n", "a 1 5\n", "a 1", "a 1\n?\n", "a 1 # {} 1\n", "a\t1\n"])
def test_a_page_with_anything_unusual_is_not_remembered_whole(text: str) -> None:
    parser = ExpositionParser()
    assert [parser.parse(text, "t").layout for _ in range(3)] == [None, None, None]


def test_another_target_of_the_same_make_is_recognised_at_once() -> None:
    parser = seen()
    assert parser.parse(PAGE, "another").layout is parser.parse(PAGE, "t").layout


def test_ignored_series_are_compared_too() -> None:
    parser = ExpositionParser(lambda name, labels: name if name == "a" else None)
    for _ in range(3):
        page = parser.parse("x 1\na 2\ny 3\n", "t")
        assert [name for name, _, _ in page] == ["a"]
    # In the place of an ignored line stands another.
    assert [value for _, _, value in parser.parse("x 1\na 2\na 3\n", "t")] == [2.0]
    assert parser.parse("x 1\na 2\ny 3\n", "t").layout is not None
