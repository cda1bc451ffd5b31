"""`perf-service alerts`: options reach the rules, bad ones are one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf_service.analysis.alerts import PackOptions
from perf_service.analysis.alerts.render import render
from perf_service.cli.main import run
from perf_service.models.metrics import Engine


def test_the_default_pack_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["alerts", "render", "--engine", "sglang"]) == 0
    assert capsys.readouterr().out == render(PackOptions(Engine.SGLANG))


def test_options_reach_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--slo", "ttft_p99<750ms", "--selector", 'namespace="x"', "--pack", "chat", "--service-labels", "job, team"]
    assert run(["alerts", "render", "--engine", "vllm", *options, "--format", "prometheusrule", "--runbook-url", "https://w/a"]) == 0
    out = capsys.readouterr().out
    assert "kind: PrometheusRule" in out
    assert "> 0.75" in out
    assert 'vllm:num_requests_running{namespace="x"}' in out
    assert "pack: chat" in out
    assert "by (le, job, team)" in out
    assert '"https://w/a#llmenginehang"' in out
    assert "ITLBudgetBurn" not in out


def test_without_objectives_no_budget_burns(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["alerts", "render", "--engine", "tgi", "--no-slo"]) == 0
    assert "BudgetBurn" not in capsys.readouterr().out.replace("LLM.*BudgetBurn", "")


def test_a_file_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tgi.rules.yaml"
    assert run(["alerts", "render", "--engine", "tgi", "--file", str(file)]) == 0
    assert capsys.readouterr().out == ""
    assert file.read_text() == render(PackOptions(Engine.TGI))


def test_the_list_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["alerts", "list", "--engine", "vllm"]) == 0
    out = capsys.readouterr().out
    assert "LLMKVCacheExhausted" in out
    assert "Give the KV" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--slo", "ttft<1"], "percentile"),
        (["--slo", "nonsense"], "not an objective"),
        (["--slo", "ttft_p95<1", "--no-slo"], "contradict"),
        (["--selector", "x"], "label matchers"),
        (["--target-labels", "a-b"], "Prometheus label"),
        (["--file", "/nowhere/at/all.yaml"], "cannot write"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert run(["alerts", "render", "--engine", "vllm", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1
