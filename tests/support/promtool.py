"""Prometheus' own rule engine over given series: which alerts fire when."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.prometheus_server import prometheus_program
from tests.support.replay import Values, notation

_GOT = re.compile(r"time: (?P<time>\w+),\s*exp:\s*(?:nil|\S*)?\s*got:\s*(?P<got>.*)", re.DOTALL)
_SAMPLE = re.compile(r"\{(?P<labels>[^}]*)\} (?P<value>[^,\s]+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def check_rules(*files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([prometheus_program("promtool"), "check", "rules", *map(str, files)], capture_output=True, text=True, timeout=60)


@dataclass(frozen=True)
class Firing:
    """An alert that fires, and the first minute at which it does."""

    name: str
    severity: str
    instance: str
    minute: int


def wanted(rules: Path) -> frozenset[str]:
    """Every name that the rules speak of."""
    return frozenset(re.findall(r"[a-zA-Z_][\w:]*", rules.read_text()))


def firing(rules: Path, cases: Mapping[str, Values], folder: Path, *, step: str, minutes: Sequence[int]) -> dict[str, list[Firing]]:
    """What fires for each job, earliest first, by one run of `promtool test rules` over all of them at once.

    Each case's series carry its name as `job`. Every minute is asked for no alert at all; what promtool then reports as unexpected is
    what fires.
    """
    query = 'count by (job, alertname, severity, instance) (ALERTS{alertstate="firing"})'
    series = [{"series": name, "values": notation(points)} for values in cases.values() for name, points in values.items()]
    output = asked(rules, series, [(query, f"{minute}m") for minute in minutes], folder, step)
    first: dict[tuple[str, str, str, str], int] = {}
    for minute, labels in output:
        key = (labels["job"], labels["alertname"], labels.get("severity", ""), labels.get("instance", ""))
        first[key] = min(first.get(key, minute), minute)
    found: dict[str, list[Firing]] = {name: [] for name in cases}
    for (job, name, severity, instance), minute in sorted(first.items(), key=lambda item: (item[1], item[0])):
        found[job].append(Firing(name, severity, instance, minute))
    return found


def asked(
    rules: Path,
    series: Sequence[Mapping[str, str]],
    questions: Sequence[tuple[str, str]],
    folder: Path,
    step: str,
    *,
    evaluation_interval: str = "30s",
) -> list[tuple[int, dict[str, str]]]:
    """The minute and the labels of every sample that the expressions yield at their times. `__value__` is the sample's value."""
    test = {
        "interval": step,
        "input_series": list(series),
        "promql_expr_test": [{"expr": expr, "eval_time": at, "exp_samples": []} for expr, at in questions],
    }
    output, failed = _run(rules, test, folder, evaluation_interval)
    problems = re.split(r"\n\s*expr: ", output)[1:]
    if failed and not problems:
        raise AssertionError(output)
    found = []
    for problem in problems:
        match = _GOT.search(problem)
        assert match, problem
        found += [
            (_minutes(match["time"]), dict(_LABEL.findall(sample["labels"])) | {"__value__": sample["value"]})
            for sample in _SAMPLE.finditer(match["got"])
        ]
    return found


def summaries(rules: Path, series: Sequence[Mapping[str, str]], alert: str, at: str, folder: Path) -> list[str]:
    """The sentences of an alert that fires at a time."""
    test = {
        "interval": "15s",
        "input_series": list(series),
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": []}],
    }
    output, _ = _run(rules, test, folder, "30s")
    return re.findall(r'summary="((?:[^"\\]|\\.)*)"', output)


def _run(rules: Path, test: Mapping[str, object], folder: Path, evaluation_interval: str) -> tuple[str, bool]:
    path = folder / "test.json"
    path.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": evaluation_interval, "tests": [test]}))
    command = [prometheus_program("promtool"), "test", "rules", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return result.stdout + result.stderr, result.returncode != 0


def _minutes(text: str) -> int:
    return sum(int(number) * {"d": 1440, "h": 60, "m": 1, "s": 0}[unit] for number, unit in re.findall(r"(\d+)([dhms])", text))
