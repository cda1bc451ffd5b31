"""Prometheus' own rule engine over given series: which alerts fire when."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.replay import Values, notation

_GOT = re.compile(r"time: (?P<time>\w+),\s*exp:\s*(?:nil|\S*)?\s*got:\s*(?P<got>.*)", re.DOTALL)
_SAMPLE = re.compile(r"\{(?P<labels>[^}]*)\}")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def promtool() -> str:
    """The program; skips the test where it is missing, fails where PERF_SERVICE_REQUIRE_PROMETHEUS=1 says that it must be there."""
    found = shutil.which("promtool")
    if found is None:
        message = "promtool is not installed (Debian: apt-get install --no-install-recommends prometheus)"
        if os.environ.get("PERF_SERVICE_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return found


def check_rules(*files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool(), "check", "rules", *map(str, files)], capture_output=True, text=True, timeout=60)


@dataclass(frozen=True)
class Firing:
    """An alert that fires, and the first minute at which it does."""

    name: str
    severity: str
    instance: str
    minute: int


def firing(rules: Path, cases: Mapping[str, Values], folder: Path, *, step: str, minutes: Sequence[int]) -> dict[str, list[Firing]]:
    """What fires in each case, earliest first, by `promtool test rules`.

    Every minute is asked for no alert at all; what promtool then reports as unexpected is what fires.
    """
    query = 'count by (alertname, severity, instance) (ALERTS{alertstate="firing"})'
    found: dict[str, list[Firing]] = {}
    for name, values in cases.items():
        test = {
            "interval": step,
            "input_series": [{"series": series, "values": notation(points)} for series, points in values.items()],
            "promql_expr_test": [{"expr": query, "eval_time": f"{minute}m", "exp_samples": []} for minute in minutes],
        }
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "30s", "tests": [test]}))
        result = subprocess.run([promtool(), "test", "rules", str(path)], capture_output=True, text=True, timeout=120)
        found[name] = _read(result.stdout + result.stderr, result.returncode)
    return found


def _read(output: str, code: int) -> list[Firing]:
    first: dict[tuple[str, str, str], int] = {}
    problems = re.split(r"\n\s*expr: ", output)[1:]
    if code and not problems:
        raise AssertionError(output)
    for problem in problems:
        match = _GOT.search(problem)
        assert match, problem
        minute = _minutes(match["time"])
        for sample in _SAMPLE.finditer(match["got"]):
            labels = dict(_LABEL.findall(sample["labels"]))
            if "alertname" not in labels:
                raise AssertionError(problem)
            key = (labels["alertname"], labels.get("severity", ""), labels.get("instance", ""))
            first[key] = min(first.get(key, minute), minute)
    return [Firing(*key, minute) for key, minute in sorted(first.items(), key=lambda item: (item[1], item[0]))]


def _minutes(text: str) -> int:
    hours, _, rest = text.rpartition("h")
    return 60 * int(hours or 0) + int(rest.partition("m")[0] or 0)
