"""The parser: right values, honest about what it could not read, and never an exception because of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_oracle

from perf_service.collectors.exposition import UNKNOWN, ExpositionParser, Page, parse
from perf_service.models.errors import CollectError, ErrorReason

Key = tuple[str, tuple[tuple[str, str], ...]]


def values(page: Page) -> dict[Key, float]:
    return {(name, tuple(sorted(labels.items()))): value for name, labels, value in page}


def one(text: str) -> tuple[str, Mapping[str, str], float]:
    page = parse(text)
    assert page.malformed_count == 0, page.malformed_lines
    (sample,) = page
    return sample


def test_types_are_read(vllm_page: bytes) -> None:
    page = parse(vllm_page)
    assert page.type_of("vllm:iteration_tokens_total_bucket") == "histogram"
    assert page.type_of("vllm:num_preemptions_total") == "counter"
    assert page.type_of("nothing") is None


def test_types_follow_the_page_not_the_memory() -> None:
    parser = ExpositionParser()
    assert parser.parse("# TYPE a counter\na 1\n").types == {"a": "counter"}
    assert parser.parse("# TYPE a gauge\na 1\n").types == {"a": "gauge"}
    assert parser.parse("a 1\n").types == {}


@pytest.mark.parametrize(
    ("line", "name", "labels", "value"),
    [
        ("a 5", "a", {}, 5.0),
        ("  a 5", "a", {}, 5.0),
        ("\ta\t5", "a", {}, 5.0),
        ("a 5 \r", "a", {}, 5.0),
        ("a{} 5", "a", {}, 5.0),
        ('a{b="c"}5', "a", {"b": "c"}, 5.0),
        ('a{b="c"}   5', "a", {"b": "c"}, 5.0),
        ('a { b = "c" , } 5', "a", {"b": "c"}, 5.0),
        ('a{b="x y # {1} z"} 5', "a", {"b": "x y # {1} z"}, 5.0),
        (r'a{b="\"}\\\n{"} 5', "a", {"b": '"}\\\n{'}, 5.0),
        (r'a{b="\d"} 5', "a", {"b": r"\d"}, 5.0),
        ('a{b="ü",c="="} 5', "a", {"b": "ü", "c": "="}, 5.0),
        ("a 5 1700000000000", "a", {}, 5.0),
        ('a_bucket{le="1"} 5 # {trace_id="x y"} 0.4 1700000000.1', "a_bucket", {"le": "1"}, 5.0),
        ("a_total 5 # {} 1", "a_total", {}, 5.0),
        ('{"a.b", c="d"} 5', "a.b", {"c": "d"}, 5.0),
        ("a +Inf", "a", {}, math.inf),
        ("a -Inf", "a", {}, -math.inf),
        ("a -1.5e-3", "a", {}, -0.0015),
    ],
)
def test_a_line_is_read(line: str, name: str, labels: dict[str, str], value: float) -> None:
    assert one(line) == (name, labels, value)


def test_not_a_number_is_read_as_such() -> None:
    assert math.isnan(one("a NaN")[2])


@pytest.mark.parametrize(
    "line",
    ["a", "a b", "a{ 5", 'a{b="c} 5', "a{b=c} 5", "1a 5", "a-b 5", 'a{"x"} 5', '{b="c"} 5', "a 5 6 7", "a 5 x", "<html>", 'a{b="c"} '],
)
def test_nonsense_is_counted_and_shown(line: str) -> None:
    page = parse(f"x 1\n{line}\ny 2\n")
    assert page.malformed_count == 1
    assert page.malformed_lines[0].number == 2
    assert [name for name, _, _ in page] == ["x", "y"]


def test_only_the_first_malformed_lines_are_shown() -> None:
    page = parse("x 1\n" + "?? ??\n" * 1000)
    assert page.malformed_count == 1000
    assert len(page.malformed_lines) == 5
    assert page.malformed_lines[0].number == 2


def test_the_first_of_two_equal_series_counts_however_it_is_spelled() -> None:
    page = parse('a{b="1",c="2"} 1\na{c="2",b="1"} 2\na{ b="1",c="2" } 3\n')
    assert [value for _, _, value in page] == [1.0]
    assert len(page.duplicates) == 2


def test_a_second_page_is_read_like_the_first(vllm_page: bytes) -> None:
    parser = ExpositionParser()
    assert values(parser.parse(vllm_page)) == values(parser.parse(vllm_page))


def test_a_known_series_may_come_back_wrong_or_twice() -> None:
    parser = ExpositionParser()
    parser.parse('a{b="c"} 1\n')
    page = parser.parse('a{b="c"} x\na{b="c"} 2\na{b="c"} 3\n')
    assert page.malformed_lines[0].number == 1
    assert [value for _, _, value in page] == [2.0]
    assert [repr(series) for series in page.duplicates] == ['a{b="c"}']


def test_timestamps_do_not_stay_in_memory() -> None:
    parser = ExpositionParser()
    for stamp in range(1000):
        page = parser.parse(f'a{{b="c"}} {stamp} {1700000000000 + stamp}\n')
        assert [(value, next(iter(page.timestamps.values()))) for _, _, value in page] == [(stamp, 1700000000000 + stamp)]
    assert len(parser._by_prefix) <= 2


def test_memory_is_bounded_when_series_never_come_back() -> None:
    parser = ExpositionParser(max_remembered=500)
    for page in range(10):
        parser.parse("".join(f'a{{id="{page}-{number}"}} 1\n' for number in range(200)))
        assert max(len(parser._by_prefix), len(parser._by_identity)) <= 500 + 200


def test_openmetrics_is_read_like_the_oracle_reads_it() -> None:
    text = (
        "# TYPE a_seconds counter\n# UNIT a_seconds seconds\n# HELP a_seconds Something.\n"
        'a_seconds_total{x="1"} 5.0 # {id="abc"} 1.0\na_seconds_created{x="1"} 1.7e9\n'
        "# TYPE h histogram\n"
        'h_bucket{le="1.0"} 1 # {id="q r"} 0.5 1.7e9\nh_bucket{le="+Inf"} 2\nh_sum 3\nh_count 2\n# EOF\n'
    )
    expected = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in openmetrics_oracle(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
    page = parse(text)
    assert values(page) == expected
    assert page.has_eof
    assert page.type_of("a_seconds_total") == "counter"


@pytest.mark.parametrize(
    ("text", "is_unterminated", "is_truncated"),
    [
        ("a 1\nb 2\n", False, False),
        ("a 1\nb 2", True, False),
        ("a 1\nb", True, True),
        ('a 1\nb{c="', True, True),
        ("a 1\n   ", False, False),
    ],
)
def test_a_cut_page_is_noticed(text: str, is_unterminated: bool, is_truncated: bool) -> None:
    page = parse(text)
    assert (page.is_unterminated, page.is_truncated) == (is_unterminated, is_truncated)


def test_only_wanted_series_are_kept_and_unknown_names_listed() -> None:
    def bind(name: str, labels: Mapping[str, str]) -> object | None:
        if name.startswith("my:"):
            return name if name == "my:a" else UNKNOWN
        return None

    parser = ExpositionParser(bind)
    for _ in range(2):
        page = parser.parse('my:a 1\nmy:b{x="1"} 2\nmy:b{x="2"} 2\nother 3\n# TYPE other gauge\n')
        assert [name for name, _, _ in page] == ["my:a"]
        assert page.unknown_names == ["my:b"]


def test_limits_are_errors() -> None:
    with pytest.raises(CollectError, match="larger than the limit of 10 bytes") as too_large:
        ExpositionParser(max_body_bytes=10).parse(b"a 1\n" * 3)
    assert too_large.value.reason is ErrorReason.BODY_TOO_LARGE
    with pytest.raises(CollectError, match="more than 2 series") as too_many:
        ExpositionParser(max_series=2).parse("a 1\nb 1\nc 1\n")
    assert too_many.value.reason is ErrorReason.TOO_MANY_SERIES


def test_empty_pages_are_empty() -> None:
    assert list(parse(b"")) == []
    assert list(parse("\n\n  \n")) == []
