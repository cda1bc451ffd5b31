"""What no saved run shows: uneven replicas, failures, lost metrics, a slower version; objectives and packs of the operator's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from perf_service.analysis.alerts import Group, PackOptions, alert_pack
from perf_service.analysis.alerts.render import render, rule_file
from perf_service.models.metrics import Engine
from perf_service.models.slo import parse_slo
from tests.support import alert_cases as cases
from tests.support.promtool import asked, summaries, wanted
from tests.support.replay import Track, Values, notation, samples

RULES = cases.DEPLOYED / "vllm.rules.yaml"
STEP, MINUTES = 15.0, 25
NAMES = wanted(RULES)
FIRING = 'ALERTS{alertstate="firing"}'


def replica(capture: str, job: str, instance: str = "r0:8000", names: frozenset[str] = NAMES) -> Values:
    return samples(Track(cases.capture(capture)), 60.0 * MINUTES, STEP, names, cases.labels(job, instance))


def without(values: Values, mark: str) -> Values:
    return {series: points for series, points in values.items() if not series.startswith(mark)}


def cut(values: Values, seconds: float, mark: str = "") -> Values:
    """Series that begin with the mark end after so many seconds."""
    kept = round(seconds / STEP)
    return {
        series: [value if index < kept or not series.startswith(mark) else None for index, value in enumerate(points)]
        for series, points in values.items()
    }


def rising(job: str, name: str, labels: str, per_second: float) -> Values:
    series = f"{name}{{{cases.labels(job)},{labels}}}"
    return {series: [per_second * STEP * index for index in range(round(60.0 * MINUTES / STEP))]}


def uneven() -> Values:
    return replica("b_queue_bad_r2", "uneven") | replica("g_idle", "uneven", "r1:8000") | replica("a_healthy", "uneven", "r2:8000")


def even() -> Values:
    return replica("b_queue_fixed_r2", "even") | replica("b_queue_fixed_r2", "even", "r1:8000")


def down() -> Values:
    values = cut(replica("a_healthy", "down"), 480.0)
    values[f"up{{{cases.labels('down')}}}"] = [1.0 if STEP * index < 480.0 else 0.0 for index in range(round(60.0 * MINUTES / STEP))]
    return values


def failing(job: str, name: str, labels: str, per_second: float) -> Values:
    values = without(replica("a_healthy", job), "none")
    extra = rising(job, name, labels, per_second)
    return {series: points for series, points in values.items() if series not in extra} | extra


ERRORS = ("vllm:request_success_total", 'engine="0",finished_reason="error",model_name="tiny"')
# Job: its series, and the alerts expected of it with their severity.
INCIDENTS: dict[str, tuple[Callable[[], Values], set[tuple[str, str]]]] = {
    "uneven": (uneven, {("LLMReplicaImbalance", "warning"), ("LLMBatchLimit", "warning")}),
    "even": (even, set()),
    "down": (down, {("LLMTargetDown", "critical")}),
    "renamed": (lambda: without(replica("a_healthy", "renamed"), "vllm:kv_cache_usage_perc"), {("LLMMetricsMissing", "warning")}),
    "emptied": (lambda: cut(replica("a_healthy", "emptied"), 480.0, "vllm:"), {("LLMMetricsMissing", "warning")}),
    "some_errors": (lambda: failing("some_errors", *ERRORS, 0.05), {("LLMRequestErrors", "warning")}),
    "many_errors": (lambda: failing("many_errors", *ERRORS, 0.5), {("LLMRequestErrors", "critical")}),
    "http_5xx": (
        lambda: failing("http_5xx", "http_requests_total", 'handler="/v1/completions",method="POST",status="5xx"', 0.5),
        {("LLMRequestErrors", "critical")},
    ),
    "http_4xx": (
        lambda: failing("http_4xx", "http_requests_total", 'handler="/v1/completions",method="POST",status="4xx"', 0.5),
        {("LLMClientErrors", "info")},
    ),
}


@pytest.fixture(scope="module")
def fired(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """The labels of every alert of each job that ever fires within the last ten minutes."""
    series = [{"series": name, "values": notation(points)} for make, _ in INCIDENTS.values() for name, points in make().items()]
    # Another program's requests in the same Prometheus are nobody's business.
    alien = 'http_requests_total{job="web",instance="w0:80",method="POST",status="5xx"}'
    series.append({"series": alien, "values": f"0+10x{round(60.0 * MINUTES / STEP)}"})
    questions = [(FIRING, f"{minute}m") for minute in range(18, MINUTES)]
    found: dict[str, list[dict[str, str]]] = {name: [] for name in (*INCIDENTS, "web")}
    for _, labels in asked(RULES, series, questions, tmp_path_factory.mktemp("incidents"), "15s"):
        found[labels["job"]].append(labels)
    return found


@pytest.mark.parametrize("name", INCIDENTS)
def test_an_incident_is_told(fired: dict[str, list[dict[str, str]]], name: str) -> None:
    got = {(labels["alertname"], labels["severity"]) for labels in fired[name] if labels["role"] == "cause"}
    assert got == INCIDENTS[name][1]


def test_the_uneven_replica_is_named_and_only_it(fired: dict[str, list[dict[str, str]]]) -> None:
    assert {labels["instance"] for labels in fired["uneven"] if labels["role"] == "cause"} == {"r0:8000"}


def test_the_missing_metric_is_named(fired: dict[str, list[dict[str, str]]]) -> None:
    assert {labels["missing"] for labels in fired["renamed"]} == {"vllm:kv_cache_usage_perc"}
    assert {labels["missing"] for labels in fired["emptied"]} == {"every vllm:* metric"}


def test_other_programs_are_not_judged(fired: dict[str, list[dict[str, str]]]) -> None:
    assert fired["web"] == []


def test_a_pack_of_its_own_judges_what_it_selects_by_its_own_objective(tmp_path: Path) -> None:
    chosen, other = "prefill_budget64_open", "b_queue_bad_r2"
    options = PackOptions(Engine.VLLM, (parse_slo("ttft_p95<0.3"),), selector=f'job="{chosen}"', name="chat")
    rules = tmp_path / "chat.rules.yaml"
    rules.write_text(render(options))
    values = replica(chosen, chosen) | replica(other, other)
    series = [{"series": name, "values": notation(points)} for name, points in values.items()]
    got = [labels for _, labels in asked(rules, series, [(FIRING, "16m")], tmp_path, "15s")]
    assert {labels["job"] for labels in got} == {chosen}
    assert {labels["pack"] for labels in got} == {"chat"}
    assert ("LLMTTFTBudgetBurn", "critical") in {(labels["alertname"], labels["severity"]) for labels in got}


@pytest.mark.parametrize(("slowdown", "running", "told"), [(1.3, 8.0, True), (1.05, 8.0, False), (1.3, 16.0, False)])
def test_a_slower_version_is_told_at_the_same_load_only(tmp_path: Path, slowdown: float, running: float, told: bool) -> None:
    # One rule over a day and more; the whole pack would take minutes.
    options = PackOptions(Engine.VLLM)
    group = alert_pack(options)[0]
    alert = next(alert for alert in group.alerts if alert.name == "LLMUpgradeRegression")
    records = tuple(record for record in group.records if record.name.endswith(":by_version30m"))
    rules = tmp_path / "regression.rules.yaml"
    rules.write_text(rule_file(options, [Group("regression", records, (alert,))]))
    series = []
    for version, start, end, itl, load in (("1.0", 0, 25 * 60, 0.02, 8.0), ("1.1", 25 * 60, 27 * 60, 0.02 * slowdown, running)):
        where = f'{{job="llm",instance="r0:8000",version="{version}",engine="0",model_name="m"}}'
        gap = f"_x{start - 1} " if start else ""
        for name, step in (("sum", 6000 * itl), ("count", 6000.0)):
            values = f"{gap}0+{step:g}x{end - start}"
            series.append({"series": f"vllm:inter_token_latency_seconds_{name}{where}", "values": values})
        series.append({"series": f"vllm:num_requests_running{where}", "values": f"{gap}{load:g}x{end - start}"})
    got = [labels for _, labels in asked(rules, series, [(FIRING, "1610m")], tmp_path, "1m", evaluation_interval="5m")]
    assert [(labels["alertname"], labels["version"]) for labels in got] == ([("LLMUpgradeRegression", "1.1")] if told else [])


SENTENCES = {
    "b_queue_bad_r2": (
        "LLMBatchLimit",
        r"r0:8000 \(chat-0\): 2\d\.\d requests wait \(8\.\d+s each\) because running is held at 2 while the KV cache peaks at 0\.1\d*%\.",
    ),
    "c_kv_bad_r2": (
        "LLMKVCacheExhausted",
        r"r0:8000 \(chat-0\): the KV cache is exhausted \(peak 95\.65%, 0\.\d\d preemptions per second\).*",
    ),
    "client_aborts": ("LLMClientAborts", r"r0:8000 \(chat-0\): 6\d\.\d+% of the clients leave before their answer is complete\."),
}


@pytest.mark.parametrize("capture", SENTENCES)
def test_the_sentence_has_the_numbers_in_it(tmp_path: Path, capture: str) -> None:
    alert, sentence = SENTENCES[capture]
    values = samples(Track(cases.capture(capture)), 15 * 60.0, STEP, NAMES, cases.labels(capture) + ',pod="chat-0"')
    series = [{"series": name, "values": notation(points)} for name, points in values.items()]
    (text,) = summaries(RULES, series, alert, "14m", tmp_path)
    assert re.fullmatch(sentence, text), text
