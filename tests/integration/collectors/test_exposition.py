"""The parser against prometheus_client on every saved page, and against any page at all."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as oracle

from perf_service.collectors.exposition import ExpositionParser, Page, parse
from tests.support.examples import examples

PAGES = sorted(
    [
        *(Path(__file__).parents[2] / "fixtures/captures").glob("*/*.prom.gz"),
        *(Path(__file__).parents[2] / "fixtures/dialects").glob("*.prom"),
    ]
)
Key = tuple[str, tuple[tuple[str, str], ...]]


def read(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def values(page: Page) -> dict[Key, float]:
    return {(name, tuple(sorted(labels.items()))): value for name, labels, value in page}


def oracle_values(text: str) -> dict[Key, float]:
    # prometheus_client adds _total to every counter, even where the page has none.
    literal = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()}
    return {
        (
            sample.name if sample.name in literal else sample.name.removesuffix("_total"),
            tuple(sorted(sample.labels.items())),
        ): sample.value
        for family in oracle(text)
        for sample in family.samples
    }


def test_values_are_those_of_prometheus_client_on_every_page() -> None:
    assert len(PAGES) > 20
    parser = ExpositionParser()
    # One page per scenario and bracket here; a parser that met other pages before must not be misled by them.
    for path in {path.parent.name + path.suffix: path for path in PAGES}.values():
        text = read(path).decode()
        page = parser.parse(text)
        assert page.malformed_count == 0
        assert not page.duplicates
        found, expected = values(page), oracle_values(text)
        assert found.keys() == expected.keys()
        assert all(found[key] == expected[key] or math.isnan(expected[key]) for key in expected), path


@given(st.binary(max_size=400))
@settings(max_examples=examples(150), deadline=None)
def test_no_bytes_raise(body: bytes) -> None:
    page = parse(body)
    assert page.malformed_count <= body.count(b"\n") + 1


@given(
    st.lists(
        st.sampled_from(
            ['a{b="c"} 1', "a 1 2", "#", "# TYPE a", "# TYPE a b", "}", "{", '"', "\\", " ", "\t", "a", "1", "=", ",", "# EOF"]
        ),
        max_size=12,
    )
)
@settings(max_examples=examples(150), deadline=None)
def test_no_mixture_of_page_parts_raises(parts: list[str]) -> None:
    parser = ExpositionParser()
    for text in ("".join(parts), "\n".join(parts)):
        assert values(parser.parse(text)).keys() == values(parse(text)).keys()


names = st.text("abz_:", min_size=1, max_size=4)
label_sets = st.dictionaries(st.text("abz_", min_size=1, max_size=3), st.text('ab"\\\n{},= #ü', max_size=6), max_size=3)


@given(st.dictionaries(st.tuples(names, label_sets.map(lambda d: tuple(sorted(d.items())))), st.floats(allow_nan=False), max_size=4))
@settings(max_examples=examples(50), deadline=None)
def test_what_is_written_is_read(series: dict[Key, float]) -> None:
    def escaped(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    text = "".join(
        f"{name}{{{','.join(f'{key}={chr(34)}{escaped(value)}{chr(34)}' for key, value in labels)}}} {number}\n"
        for (name, labels), number in series.items()
    )
    page = parse(text)
    assert page.malformed_count == 0
    assert values(page) == series
