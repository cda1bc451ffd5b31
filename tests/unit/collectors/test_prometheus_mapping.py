"""From raw samples back to pages, whatever Prometheus, relabelling, rules and agents have added."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perf_service.collectors.prometheus.history import interval_of, only_target
from perf_service.collectors.prometheus.mapping import TargetHistory, label_of, merged, name_of, targets_of, thinned
from perf_service.collectors.prometheus.matrix import read_matrix
from perf_service.collectors.prometheus.quality import source_issues
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import PrometheusSource
from perf_service.models.metrics import Engine, IssueCode

TARGET = {"job": "vllm", "instance": "a:8000"}
RUNNING, WAITING, TOKENS = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:generation_tokens_total"


def entry(name: str, labels: dict[str, str], *values: tuple[float, str]) -> dict[str, Any]:
    return {"metric": {"__name__": name, **labels}, "values": [list(pair) for pair in values]}


def up(labels: dict[str, str], *values: tuple[float, str]) -> dict[str, Any]:
    return entry("up", labels, *values)


def lines(history: TargetHistory) -> list[list[str]]:
    return [scrape.body.decode().splitlines() for scrape in history.scrapes]


def test_the_samples_of_one_time_are_a_page_without_the_targets_labels() -> None:
    series = [
        up(TARGET, (10.123, "1"), (11.123, "1")),
        entry(RUNNING, {**TARGET, "engine": "0"}, (10.123, "2"), (11.123, "3")),
        entry(TOKENS, {**TARGET, "engine": "0", "x": 'q"\\\n'}, (11.123, "1e+06")),
        entry("process_cpu_seconds_total", TARGET, (10.123, "NaN")),
    ]
    (found,) = targets_of(series)
    assert [scrape.at for scrape in found.scrapes] == [10.123, 11.123]
    assert lines(found) == [
        [RUNNING + '{engine="0"} 2', "process_cpu_seconds_total NaN"],
        [RUNNING + '{engine="0"} 3', TOKENS + '{engine="0",x="q\\"\\\\\\n"} 1e+06'],
    ]
    assert found.labels == TARGET
    assert interval_of(found) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("target", "stored"),
    [
        ({"engine": "blue"}, {"engine": "blue", "exported_engine": "0"}),
        ({"engine": "0"}, {"engine": "0", "exported_engine": "0"}),
        ({"engine": "blue"}, {"engine": "0"}),  # honor_labels
        ({"engine": "x", "exported_engine": "y"}, {"engine": "x", "exported_engine": "y", "exported_exported_engine": "0"}),
        ({"pod": "p"}, {"pod": "p", "engine": "0"}),
        ({"app.io/name": "n"}, {"app.io/name": "n", "engine": "0"}),
    ],
)
def test_labels_of_the_target_make_no_ranks(target: dict[str, str], stored: dict[str, str]) -> None:
    series = [up({**TARGET, **target}, (1.0, "1")), entry(RUNNING, {**TARGET, **stored}, (1.0, "2"))]
    (found,) = targets_of(series)
    assert lines(found) == [[RUNNING + '{engine="0"} 2']]


def test_what_a_page_itself_calls_exported_stays() -> None:
    series = [up(TARGET, (1.0, "1")), entry(RUNNING, {**TARGET, "exported_thing": "1", "dotted.name": "2"}, (1.0, "2"))]
    assert lines(targets_of(series)[0]) == [[RUNNING + '{exported_thing="1","dotted.name"="2"} 2']]


def test_samples_of_rules_are_no_scrapes() -> None:
    series = [
        up(TARGET, (10.0, "1"), (20.0, "1")),
        entry(RUNNING, {**TARGET, "engine": "0"}, (10.0, "2"), (20.0, "3")),
        entry("vllm:busy", TARGET, (10.02, "1"), (24.5, "1")),
        entry("vllm:num_requests_waiting", {"job": "vllm"}, (14.5, "1")),
    ]
    (found,) = targets_of(series)
    assert lines(found) == [[RUNNING + '{engine="0"} 2'], [RUNNING + '{engine="0"} 3']]


def test_without_up_the_labels_in_common_are_the_targets() -> None:
    common = {"job": "vllm", "instance": "a", "pod": "p", "team": "x"}
    own = {"model_name": "m", "engine": "0"}
    series = [
        entry(RUNNING, {**common, **own}, (10.0, "2"), (20.0, "3")),
        entry(TOKENS, {**common, **own}, (10.004, "7"), (20.0, "8")),  # an agent that rounds
        entry(WAITING, {**common, **own}, (10.0, "0"), (20.0, "0")),
        entry("vllm:rule", {**common, **own}, (13.0, "2")),
    ]
    (found,) = targets_of(series)
    assert found.labels == common
    own_text = '{model_name="m",engine="0"}'
    assert lines(found) == [
        [f"{RUNNING}{own_text} 2", f"{TOKENS}{own_text} 7", f"{WAITING}{own_text} 0"],
        [f"{RUNNING}{own_text} 3", f"{TOKENS}{own_text} 8", f"{WAITING}{own_text} 0"],
    ]


def test_engines_are_told_apart_and_others_left_out() -> None:
    series = [
        *(up({"job": "j", "instance": name}, (1.0, "1")) for name in "abc"),
        entry(RUNNING, {"job": "j", "instance": "b"}, (1.0, "1")),
        entry(RUNNING, {"job": "j", "instance": "a"}, (1.0, "1")),
        entry("process_cpu_seconds_total", {"job": "j", "instance": "c"}, (1.0, "1")),
    ]
    found = targets_of(series)
    assert [history.labels["instance"] for history in found] == ["a", "b"]
    assert targets_of(series, Engine.SGLANG) == []
    with pytest.raises(CollectError) as error:
        only_target(found, PrometheusSource("http://p", 'job="j"'))
    assert error.value.reason is ErrorReason.SERIES_AMBIGUOUS
    assert error.value.metadata["instances"] == 'instance="a"; instance="b"'


def test_two_prometheus_that_scrape_one_engine_are_two_targets() -> None:
    both = [{**TARGET, "prometheus_replica": name} for name in "ab"]
    series = [*(up(labels, (1.0, "1")) for labels in both), *(entry(RUNNING, labels, (1.0, "1")) for labels in both)]
    assert [history.labels["prometheus_replica"] for history in targets_of(series)] == ["a", "b"]
    assert [history.scrapes[0].series for history in targets_of(series)] == [1, 1]


def test_pieces_of_a_range_are_put_together() -> None:
    series = [
        up(TARGET, *((float(at), "1" if at != 3 else "0") for at in range(6))),
        entry(RUNNING, TARGET, *((at, "1") for at in (0, 1, 2, 4, 5))),
    ]
    (whole,) = targets_of(series)
    first, second = ([{**e, "values": [v for v in e["values"] if low <= v[0] <= high]} for e in series] for low, high in ((0, 2), (2, 5)))
    assert merged([targets_of(first), targets_of(second)]) == [whole]
    assert [scrape.at for scrape in thinned(whole, 2.0).scrapes] == [0, 2, 4, 5]
    assert whole.failed == (3.0,)


def test_what_is_wrong_with_the_data_is_told() -> None:
    series = [
        up(TARGET, (0.0, "1"), (15.0, "0"), (30.0, "1")),
        entry(RUNNING, TARGET, (0.0, "1"), (30.0, "1")),
        {"metric": {"__name__": "vllm:e2e_request_latency_seconds", **TARGET}, "histograms": [[0.0, {}]]},
    ]
    (found,) = targets_of(series)
    issues = source_issues(found, ("a store is down",), until=100.0)
    assert [issue.code for issue in issues] == [IssueCode.GAP, IssueCode.GAP, IssueCode.TRUNCATED, IssueCode.MISSING_METRIC]
    text = " ".join(issue.message for issue in issues)
    assert "1 of 3 times" in text
    assert "70 s older" in text
    assert "a store is down" in text
    assert "vllm:e2e_request_latency_seconds" in text
    assert [issue.code for issue in source_issues(found, (), until=40.0)] == [IssueCode.GAP, IssueCode.MISSING_METRIC]


def test_text_of_a_large_answer_says_the_same_as_json() -> None:
    metrics = [
        {"__name__": "up", "instance": "a", "job": "j"},
        {"__name__": RUNNING, "engine": "0", "instance": "a", "job": "j"},
        {"__name__": TOKENS, "instance": "a", "job": "j", "note": 'a "quoted" \\ and {"metric": é \n'},
        {"__name__": WAITING, "exported_job": "mine", "instance": "a", "job": "j"},
        {"__name__": WAITING, "instance": "a", "job": "other"},
    ]
    series: list[dict[str, Any]] = [{"metric": metric, "values": [[10.5, "1"], [20, "NaN"], [30.25, "+Inf"]]} for metric in metrics]
    series[0]["values"] = [[10.5, "1"], [20, "1"], [30.25, "1"]]
    series += [{"metric": {"__name__": "vllm:native", "instance": "a", "job": "j"}, "histograms": [[10.5, {"count": "1"}]]}]
    series += [{"metric": {"__name__": "vllm:last", "instance": "a", "job": "j"}, "values": [[10.5, "2"]]}]
    whole = {"status": "success", "data": {"resultType": "matrix", "result": series}, "warnings": ["w"]}
    body = json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()
    read = read_matrix(body)
    found = read["data"]["result"]
    assert [{**entry} for entry in found] == series
    assert read["warnings"] == ["w"]
    assert [name_of(entry) for entry in found] == [entry["metric"]["__name__"] for entry in series]
    assert [label_of(entry, "job") for entry in found] == [entry["metric"]["job"] for entry in series]
    assert targets_of(found) == targets_of(series)
    assert lines(targets_of(found)[0])[0][2] == WAITING + '{job="mine"} 1'
    assert [s.at for s in targets_of(found, newest=2)[0].scrapes] == [20, 30.25]
    empty = b'{"status":"success","data":{"resultType":"matrix","result":[]}}'
    for other in (b"", b"{}", body[:-20], body.replace(b'"matrix"', b'"vector"'), empty):
        assert read_matrix(other) is None
