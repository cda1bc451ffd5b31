"""The parser against prometheus_client: on every saved page, on generated ones, and in OpenMetrics."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary
from prometheus_client.core import GaugeHistogramMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from perf_service.collectors.exposition import ExpositionParser, parse
from perf_service.collectors.saved import unpacked
from perf_service.collectors.snapshot import SnapshotBuilder, snapshot_of
from perf_service.models.errors import CollectError
from perf_service.models.metrics import Engine, IssueCode
from tests.support.examples import examples
from tests.support.exposition_oracle import disagreement, equal, openmetrics_values, text_values, values_of
from tests.support.pages import PAGES, read_page


def test_values_are_those_of_prometheus_client_on_every_page() -> None:
    assert len(PAGES) > 20
    parser = ExpositionParser()
    # One page per scenario and bracket here; a parser that met other pages before must not be misled by them.
    for path in {path.parent.name + (path.name if path.suffix == ".prom" else ""): path for path in PAGES}.values():
        text = read_page(path).decode()
        expected = text_values(text)
        # Line by line, then remembered, then as a whole.
        for _ in range(3):
            page = parser.parse(text, path.parent.name)
            assert page.malformed_count == 0
            assert not page.duplicates
            assert equal(values_of(page), expected), path
        assert page.layout is not None, path


def test_a_page_that_comes_back_is_read_as_a_fresh_parser_reads_it() -> None:
    # The pages of every run in order, as a scheduler meets them: values change, series come and go, servers restart.
    builders = {engine: SnapshotBuilder(engine) for engine in Engine}
    for path in PAGES[::3]:
        body = read_page(path)
        fresh = snapshot_of(body, path.parent.name)
        assert builders[fresh.engine].build(body, path.parent.name, None) == fresh, path


NAMES = st.sampled_from(["a", "a_b:c", "vllm:x_total", "_", "b", '"a"', "1a", "a-b", "a b", ""])
BLANKS = st.sampled_from(["", "", "", " ", "  ", "\t"])
LABEL_NAMES = st.sampled_from(["a", "le", "b_c", "__name__", "c", '"x.y"', "a:b", "1", "", "é", "a b"])
LABEL_VALUES = st.one_of(
    st.sampled_from(
        ['"x"', '""', '"\\""', '"\\\\"', '"\\n"', '"\\d"', '"{"', '"}"', '","', '"="', '"é"', '" # "', "x", '"', '"x', '"x\\"']
    ),
    st.text('ab"\\\n{},= #é\u2028\x00', max_size=6).map(lambda text: f'"{text}"'),
)
NUMBERS = st.one_of(
    st.sampled_from(
        ["1", "1.5", "-1e-3", "+Inf", "-Inf", "Inf", "NaN", "1e400", "1_0", "0x1p3", "", "x", "+5", "1.", ".5", "infinity", "9" * 400]
    ),
    st.floats().map(repr),
    st.integers().map(str),
)
TAILS = st.sampled_from(
    ["", "", "", " 1", "  1700000000000", " 1.5", " x", " -1", " 1 2", ' # {a="b"} 1', " # {} 1 1.7e9", " #", "\t5", " 1_0", "\r"]
)


@st.composite
def lines(draw: st.DrawFn) -> str:
    text = draw(BLANKS) + draw(NAMES) + draw(BLANKS)
    if draw(st.booleans()):
        labels = [
            draw(BLANKS) + draw(LABEL_NAMES) + draw(st.sampled_from(["=", "=", "=", "= ", "", "=="])) + draw(LABEL_VALUES) + draw(BLANKS)
            for _ in range(draw(st.integers(0, 3)))
        ]
        closed = draw(st.sampled_from(["}", "}", "}", ",}", ", }", "", "}}"]))
        text += "{" + draw(st.sampled_from(["", "", " ", ","])) + ",".join(labels) + closed
    return text + draw(st.sampled_from([" ", " ", "  ", "\t", ""])) + draw(NUMBERS) + draw(TAILS)


@given(lines())
@settings(max_examples=examples(2000), deadline=None)
def test_a_line_is_read_or_refused_as_prometheus_client_does_but_for_the_listed_differences(line: str) -> None:
    assert disagreement(line.replace("\n", "\\n")) is None


GOOD_VALUES = st.text('ab"\\\n{},= #é', max_size=6)
SERIES = st.tuples(
    st.sampled_from(["a", "b_total", "c:d", "h_bucket", "h_sum", "h_count"]),
    st.dictionaries(st.sampled_from(["x", "le", "quantile", "y_z"]), GOOD_VALUES, max_size=3),
)
NOISE = st.sampled_from(
    [
        "",
        "  ",
        "# HELP a Anything at all.",
        "# TYPE a counter",
        "# TYPE h histogram",
        "# HELP h",
        "#",
        "# a comment",
        "# TYPE b_total gauge",
        "\t",
    ]
)


@given(
    st.lists(st.tuples(SERIES, st.one_of(st.floats(), st.integers()), NOISE, st.sampled_from(["\n", "\r\n"]), st.booleans()), max_size=12)
)
@settings(max_examples=examples(300), deadline=None)
def test_a_page_is_read_as_prometheus_client_reads_it(
    rows: list[tuple[tuple[str, dict[str, str]], float, str, str, bool]],
) -> None:
    def spelled(name: str, labels: dict[str, str], trailing_comma: bool) -> str:
        pairs = [
            f'{key}="{value}"'
            for key, value in ((k, v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for k, v in labels.items())
        ]
        return f"{name}{{{','.join(pairs)}{',' if trailing_comma and pairs else ''}}}"

    text = "".join(f"{noise}{end}{spelled(*series, comma)} {value!r}{end}" for series, value, noise, end, comma in rows)
    expected = text_values(text)
    parser = ExpositionParser()
    for _ in range(3):
        page = parser.parse(text)
        assert page.malformed_count == 0
        assert equal(values_of(page), expected)
        # The first of several equal series counts; prometheus_client gives all of them.
        assert len(page.duplicates) == len(rows) - len(expected)


class _Extra(Collector):
    def collect(self) -> list[GaugeHistogramMetricFamily]:
        return [GaugeHistogramMetricFamily("held_tokens", "d", buckets=[("1.0", 1.0), ("+Inf", 3.0)], gsum_value=7.5)]


def openmetrics_page(value: float) -> str:
    registry = CollectorRegistry()
    requests = Counter("vllm_request_success", "d", ["finished_reason"], registry=registry)
    requests.labels("stop").inc(abs(value), exemplar={"trace_id": "a b # c"})
    Gauge("vllm_num_requests_running", "With \\ and\nline feed", registry=registry).set(abs(value))
    ttft = Histogram("vllm_time_to_first_token", "d", unit="seconds", registry=registry, buckets=(0.1, 1.0))
    ttft.observe(abs(value), exemplar={"span": "é"})
    Summary("s", "d", registry=registry).observe(2.0)
    Info("build", "d", registry=registry).info({"version": "1"})
    Enum("mode", "d", registry=registry, states=["a", "b"]).state("b")
    registry.register(_Extra())
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()


@given(st.floats(0, 1e9))
@settings(max_examples=examples(30), deadline=None)
def test_openmetrics_is_read_as_prometheus_client_reads_it(value: float) -> None:
    text = openmetrics_page(value)
    page = parse(text)
    assert page.malformed_count == 0
    assert page.has_eof
    assert equal(values_of(page), openmetrics_values(text))
    assert page.type_of("held_tokens_gsum") == "gaugehistogram"
    assert page.type_of("mode") == "stateset"
    assert page.type_of("build_info") == "info"
    assert page.type_of("vllm_request_success_created") == "counter"


@pytest.mark.parametrize("content_type", ["application/openmetrics-text; version=1.0.0; charset=utf-8", "application/openmetrics-text"])
def test_an_openmetrics_page_without_its_end_is_cut(content_type: str) -> None:
    text = openmetrics_page(3.0)
    whole = snapshot_of(text, "i", content_type=content_type)
    assert not whole.quality.has(IssueCode.TRUNCATED)
    # Cut at a line's end, where nothing else tells it.
    cut = snapshot_of(text.partition("# TYPE s ")[0], "i", content_type=content_type)
    assert cut.quality.has(IssueCode.TRUNCATED)
    assert cut.gauges == whole.gauges


def test_gzip_is_unpacked_and_a_damaged_or_exploding_one_refused() -> None:
    body = read_page(PAGES[0])
    packed = gzip.compress(body)
    assert unpacked(packed, "page") == body
    for damaged in (packed[:-20], packed[:40], packed[:30] + b"\x00\xff" + packed[32:], packed[:2]):
        with pytest.raises(CollectError, match=r"damaged|too early"):
            unpacked(damaged, "page")
    with pytest.raises(CollectError, match="larger than"):
        unpacked(gzip.compress(bytes(50_000_000)), "page", limit=1_000_000)


@given(st.binary(max_size=400))
@settings(max_examples=examples(300), deadline=None)
def test_no_bytes_raise(body: bytes) -> None:
    page = parse(body)
    assert page.malformed_count <= body.count(b"\n") + 1
