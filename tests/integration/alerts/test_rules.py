"""The alert packs as text: nothing dangling, nothing unknown, the operator's choices everywhere. What fires is tests/integration/alerts."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from perf_service.analysis.alerts import Alert, Group, PackOptions, Record, alert_pack
from perf_service.analysis.alerts.objectives import bad_share
from perf_service.analysis.alerts.render import Form, command_of, render, table
from perf_service.collectors.dialects import dialect_of
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Engine
from perf_service.models.slo import SLOTarget, parse_slo

ROOT = Path(__file__).parents[3]
COMMON = {"up", "process_start_time_seconds"}
RECORDED = re.compile(r"\bllm:[\w:]+")
engines = pytest.mark.parametrize("engine", list(Engine))


def records_of(groups: tuple[Group, ...]) -> list[Record]:
    return [record for group in groups for record in group.records]


def alerts_of(groups: tuple[Group, ...]) -> list[Alert]:
    return [alert for group in groups for alert in group.alerts]


@pytest.fixture(scope="module")
def packs() -> dict[Engine, tuple[Group, ...]]:
    return {engine: alert_pack(PackOptions(engine)) for engine in Engine}


@engines
def test_every_series_that_is_read_is_recorded_before(packs: dict[Engine, tuple[Group, ...]], engine: Engine) -> None:
    for group in packs[engine]:
        known: set[str] = set()
        for record in group.records:
            assert set(RECORDED.findall(record.expr)) <= known, record.name
            assert record.name not in known
            known.add(record.name)
        for alert in group.alerts:
            assert set(RECORDED.findall(alert.expr + alert.summary)) <= known, alert.name


@engines
def test_nothing_is_recorded_for_nobody(packs: dict[Engine, tuple[Group, ...]], engine: Engine) -> None:
    groups = packs[engine]
    texts = [record.expr for record in records_of(groups)] + [alert.expr + alert.summary for alert in alerts_of(groups)]
    read = {name for text in texts for name in RECORDED.findall(text)}
    assert {record.name for record in records_of(groups)} == read


@engines
def test_only_names_of_the_dialect_are_read(packs: dict[Engine, tuple[Group, ...]], engine: Engine) -> None:
    dialect = dialect_of(engine)
    known = {name + suffix for rule in dialect.rules for name in rule.names for suffix in ("", "_sum", "_count", "_bucket")}
    for record in records_of(packs[engine]):
        raw = set(re.findall(r"(?<![:\w])(?:vllm:|sglang:|tgi_|process_|http_)\w+", record.expr))
        assert raw <= known | COMMON | set(dialect.info_metrics), record.name


@engines
def test_a_selector_restricts_every_series(engine: Engine) -> None:
    chosen = 'namespace="x",job=~"a|b"'
    for group in alert_pack(PackOptions(engine, selector=chosen)):
        for expr in (*(record.expr for record in group.records), *(alert.expr for alert in group.alerts)):
            for name, _, inside in re.findall(r"(?<![:\w])((?:vllm:|sglang:|tgi_|process_|http_)\w+|up)(\{([^}]*)\})?(?=[\[\s)]|$)", expr):
                assert inside.endswith(chosen) or f'"{name}"' in expr, (name, expr)


@pytest.mark.parametrize("written", ["{ a='x' , b=~\"[.]\", }", "a=`x`,b=~`[.]`"])
def test_a_selector_is_read_as_promql_has_it(written: str) -> None:
    """As instances are registered with the matchers of their Prometheus: whoever copies one finds it understood here too."""
    assert PackOptions(Engine.VLLM, selector=written).selector == 'a="x",b=~"[.]"'


@engines
def test_two_packs_do_not_share_a_series(engine: Engine) -> None:
    for group in alert_pack(PackOptions(engine, name="chat")):
        for expr in (*(record.expr for record in group.records), *(alert.expr for alert in group.alerts)):
            for match in RECORDED.finditer(expr):
                assert expr[match.end() :].startswith('{pack="chat"'), expr


@engines
def test_alerts_have_all_that_a_person_needs(packs: dict[Engine, tuple[Group, ...]], engine: Engine) -> None:
    for alert in alerts_of(packs[engine]):
        assert alert.summary.endswith(".")
        assert alert.summary.count("{{") == alert.summary.count("}}") > 0
        assert "$labels" in alert.summary
        for text in (alert.meaning, alert.evidence, alert.action):
            assert text
            assert "{{" not in text


def test_every_alert_has_a_section_where_its_runbook_points(packs: dict[Engine, tuple[Group, ...]]) -> None:
    text = table({engine.value: groups for engine, groups in packs.items()})
    sections = {line[4:].lower() for line in text.splitlines() if line.startswith("### ")}
    for engine in Engine:
        linked = set(re.findall(r"runbook_url: \"?README\.md#(\w+)", render(PackOptions(engine))))
        assert linked
        assert linked <= sections


def test_the_operators_resource_has_the_same_rules() -> None:
    options = PackOptions(Engine.TGI, runbook="https://wiki.example.org/alerts")
    plain, resource = render(options), render(options, Form.PROMETHEUSRULE)
    groups = plain[plain.index("groups:") :]
    assert "kind: PrometheusRule\n" in resource
    assert "\n".join(f"  {line}" if line else line for line in groups.splitlines()) in resource
    assert 'runbook_url: "https://wiki.example.org/alerts#llmenginehang"' in resource


def test_renamed_series_are_read_under_their_relays_names() -> None:
    text = render(PackOptions(Engine.VLLM, metric_prefix="vllm_"))
    assert "vllm_num_requests_running" in text
    assert not re.search(r"(?<![\w\"])vllm:\w", text.replace('\\"vllm:', ""))


def test_the_file_says_how_it_was_made() -> None:
    options = PackOptions(Engine.VLLM, (parse_slo("ttft_p99<0.5"),), selector='job="x"', name="chat", service_labels=("job",))
    expected = "perf-service alerts render --engine vllm --slo 'ttft_p99<0.5' --selector 'job=\"x\"' --pack chat --service-labels job"
    assert command_of(options, Form.PROMETHEUS) == expected
    assert expected in render(options)
    assert command_of(PackOptions(Engine.TGI), Form.PROMETHEUS) == "perf-service alerts render --engine tgi"
    long = command_of(PackOptions(Engine.VLLM, (parse_slo("e2e_p95<120s"),)), Form.PROMETHEUS)
    assert parse_slo(long.split("'")[1]) == parse_slo("e2e_p95<120s")


@pytest.mark.parametrize(
    ("objective", "rate", "share"),
    [("ttft_p95<1", 14.4, 0.72), ("ttft_p99<1", 14.4, 0.144), ("ttft_p99<1", 6.0, 0.06), ("ttft_p99.9<1", 14.4, 0.0144)],
)
def test_the_share_of_slow_requests_that_burns_a_budget(objective: str, rate: float, share: float) -> None:
    assert bad_share(parse_slo(objective), rate, 0.75) == pytest.approx(share)


@pytest.mark.parametrize("objective", ["ttft_p50<1", "ttft_p75<1", "ttft_p90<1"])
def test_a_budget_that_cannot_burn_so_fast_is_asked_for_less(objective: str) -> None:
    slo = parse_slo(objective)
    allowed = 1.0 - (slo.quantile or 0.0)
    fast, slow = bad_share(slo, 14.4, 0.75), bad_share(slo, 6.0, 0.5)
    assert allowed < slow < fast < 1.0


def test_the_burn_rate_is_a_quantile_of_the_buckets() -> None:
    pack = alert_pack(PackOptions(Engine.VLLM, (parse_slo("ttft_p95<0.5"),)))
    fast = next(alert for alert in alerts_of(pack) if alert.name == "LLMTTFTBudgetBurn")
    assert "histogram_quantile(0.28, avg_over_time(llm:ttft_seconds_bucket:rate5m" in fast.expr
    assert "> 0.5" in fast.expr


def test_tgi_is_held_to_its_queue_where_it_has_no_first_token() -> None:
    pack = alert_pack(PackOptions(Engine.TGI, (parse_slo("ttft_p95<0.5"),)))
    assert any("tgi_request_queue_duration_bucket" in record.expr for record in records_of(pack))


def test_own_objectives_move_the_limits_of_the_causes() -> None:
    def queued(*slo: str) -> str:
        options = PackOptions(Engine.VLLM, tuple(map(parse_slo, slo))) if slo else PackOptions(Engine.VLLM)
        return next(record.expr for record in records_of(alert_pack(options)) if record.name == "llm:queued")

    assert 'llm:ttft_seconds:mean5m{pack="vllm"} >= 1\n' in queued()
    assert 'llm:ttft_seconds:mean5m{pack="vllm"} >= 0.3\n' in queued("ttft_p95<0.3")
    assert 'llm:ttft_seconds:mean5m{pack="vllm"} >= 1\n' in queued("ttft_p95<9")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"selector": "namespace=x"}, "label matchers"),
        ({"selector": 'a="b" or vector(1)'}, "label matchers"),
        ({"selector": 'a="b\n"'}, "label matchers"),
        ({"selector": '__name__="up"'}, "by name"),
        ({"name": "a b"}, "pack's name"),
        ({"metric_prefix": "a-"}, "begin the name"),
        ({"target_labels": ("in-stance",)}, "name of a Prometheus label"),
        ({"objectives": (parse_slo("ttft<0.5"),)}, "percentile"),
        ({"objectives": (parse_slo("ttft_p20<0.5"),)}, "percentile"),
        ({"objectives": (parse_slo("throughput>10"),)}, "upper bound"),
        ({"objectives": (SLOTarget("ttft_p95", 0.5, "greater_than"),)}, "upper bound"),
        ({"objectives": (parse_slo("ttft_p95<0"),)}, "above 0"),
    ],
)
def test_what_can_never_be_a_rule_is_refused(change: dict[str, object], part: str) -> None:
    with pytest.raises(InvalidArgumentError, match=part):
        PackOptions(Engine.VLLM, **change)  # type: ignore[arg-type]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("alerts_script", ROOT / "scripts" / "alerts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_packs_are_as_rendered() -> None:
    for path, text in _script().contents().items():
        assert path.read_text() == text, f"{path.name}: run scripts/alerts.py generate"
