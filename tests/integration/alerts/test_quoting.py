"""Labels with quotes and backslashes in them: what an alert looks up is found all the same. Evaluated by Prometheus' own rule engine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from perf_service.analysis.alerts import PackOptions, texts
from perf_service.analysis.alerts.signals import recorded
from perf_service.models.metrics import Engine
from tests.support.prometheus_server import prometheus_program


@pytest.mark.parametrize(("job", "instance"), [("vllm", "10.0.0.1:8000"), ("it's", "pod/a'b"), ('a "b"', "c\\d"), ("café {x}", "%s")])
def test_a_series_is_looked_up_by_any_label_value(tmp_path: Path, job: str, instance: str) -> None:
    options = PackOptions(Engine.VLLM)
    rule = {
        "alert": "A",
        "expr": "up == 1",
        "annotations": {"summary": f"{texts.replica(options)}: {texts.looked_up(options, 'kv', 'max', '%.0f')} tokens"},
    }
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "g", "rules": [rule]}]}))
    labels = f"job={json.dumps(job, ensure_ascii=False)},instance={json.dumps(instance, ensure_ascii=False)}"
    series = [
        {"series": f"up{{{labels}}}", "values": "1x10"},
        {"series": f"{recorded('kv', 'max')}{{pack={json.dumps(options.pack)},{labels}}}", "values": "42x10"},
    ]
    expected = {"exp_labels": {"job": job, "instance": instance}, "exp_annotations": {"summary": f"{instance}: 42 tokens"}}
    question = {"eval_time": "5m", "alertname": "A", "exp_alerts": [expected]}
    test = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [{"input_series": series, "alert_rule_test": [question]}]}
    (tmp_path / "test.yaml").write_text(json.dumps(test))
    command = [prometheus_program("promtool"), "test", "rules", str(tmp_path / "test.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
