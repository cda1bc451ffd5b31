"""What must hold for any labels, values and answers."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perf_service.collectors.exposition import parse
from perf_service.collectors.prometheus.mapping import label_of, name_of, targets_of
from perf_service.collectors.prometheus.matchers import Matcher, parse_matchers, selector
from perf_service.collectors.prometheus.matrix import read_matrix
from perf_service.models.errors import InvalidArgumentError

LABEL = st.sampled_from(["engine", "pod", "exported_engine", "exported_exported_pod", "le", "dotted.name", "model_name", "x"])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ['{"metric":', '},"values":[[', '","job":"', "\\", '"', "\n", "histograms"]
)
VALUE = st.floats(allow_nan=True).map(repr) | st.sampled_from(["NaN", "+Inf", "-Inf", "1e+06", "0"])
SERIES = st.tuples(st.dictionaries(LABEL, TEXT.filter(bool), max_size=4), st.lists(VALUE, min_size=1, max_size=4))


@given(st.text(max_size=40))
def test_any_text_is_matchers_or_refused(text: str) -> None:
    try:
        matchers = parse_matchers(text)
    except InvalidArgumentError:
        return
    assert parse_matchers(selector(*matchers)) == matchers


@given(st.lists(st.builds(Matcher, LABEL, st.sampled_from(["=", "!=", "=~", "!~"]), TEXT), max_size=5))
def test_matchers_survive_being_written(matchers: list[Matcher]) -> None:
    assert parse_matchers(selector(*matchers)) == tuple(dict.fromkeys(matchers))


@given(st.lists(SERIES, min_size=1, max_size=6), st.dictionaries(st.sampled_from(["pod", "engine", "x"]), TEXT.filter(bool), max_size=2))
def test_a_page_comes_back_whatever_its_labels(rows: list[tuple[dict[str, str], list[str]]], extra: dict[str, str]) -> None:
    """Scraped as Prometheus does, read as text and as JSON: the same series with the same values as on the page."""
    target = {"job": "j", "instance": "i", **extra}
    distinct = {json.dumps(labels, sort_keys=True): (labels, values) for labels, values in rows}
    scraped: list[dict[str, Any]] = [{"metric": {"__name__": "up", **target}, "values": [[10.0 + n, "1"] for n in range(4)]}]
    for labels, values in distinct.values():
        stored = dict(target)
        for key, value in labels.items():
            while key in target or key in stored:
                key = f"exported_{key}"
            stored[key] = value
        scraped.append({"metric": {"__name__": "vllm:x", **stored}, "values": [[10.0 + n, value] for n, value in enumerate(values)]})
    body = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": scraped}}, separators=(",", ":"), ensure_ascii=False)
    read = read_matrix(body.encode())["data"]["result"]
    assert [dict(entry) for entry in read] == scraped
    assert [(name_of(entry), label_of(entry, "job")) for entry in read] == [(name_of(entry), "j") for entry in scraped]
    (found,) = targets_of(read)
    assert targets_of(scraped) == [found]
    for n, scrape in enumerate(found.scrapes):
        wanted = [values[n] for _, values in distinct.values() if n < len(values)]
        page = parse(scrape.body)
        assert page.malformed_count == 0
        assert scrape.series == len(wanted)
        told = [value for _, _, value in page] + [float("nan")] * len(page.duplicates)
        assert len(told) == len(wanted)
        if not page.duplicates:
            assert all(a == float(b) or (math.isnan(a) and math.isnan(float(b))) for a, b in zip(told, wanted, strict=True))


@given(st.binary(max_size=60))
def test_any_body_is_read_or_not_a_matrix(body: bytes) -> None:
    assert read_matrix(body) is None
    head = b'{"status":"success","data":{"resultType":"matrix","result":['
    assert read_matrix(head + body) is None or isinstance(read_matrix(head + body), dict)
