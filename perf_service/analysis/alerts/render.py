"""A pack as files: Prometheus rule files, the prometheus-operator's resource, the table for people."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from enum import StrEnum

from perf_service.analysis.alerts.pack import alert_pack
from perf_service.analysis.alerts.rules import Alert, Group, PackOptions
from perf_service.models.analysis import Cause
from perf_service.models.slo import SLOTarget

INTERVAL = "30s"
"""How often the rules are evaluated; the recorded series that others take means of need several values per range."""


class Form(StrEnum):
    """What a pack is written as."""

    PROMETHEUS = "prometheus"
    PROMETHEUSRULE = "prometheusrule"


def render(options: PackOptions, form: Form = Form.PROMETHEUS) -> str:
    """The pack as a file."""
    groups = alert_pack(options)
    return rule_file(options, groups) if form is Form.PROMETHEUS else prometheus_rule(options, groups)


def rule_file(options: PackOptions, groups: Sequence[Group]) -> str:
    """A file for Prometheus' `rule_files`."""
    return _header(options, Form.PROMETHEUS) + "\n".join(_groups(options, groups)) + "\n"


def prometheus_rule(options: PackOptions, groups: Sequence[Group]) -> str:
    """The same as a PrometheusRule of the prometheus-operator (monitoring.coreos.com/v1)."""
    resource = f"perf-service-{options.pack}".lower().replace("_", "-").replace(".", "-")
    head = [
        "apiVersion: monitoring.coreos.com/v1",
        "kind: PrometheusRule",
        "metadata:",
        f"  name: {resource}",
        "  labels:",
        "    app.kubernetes.io/name: perf-service",
        f"    app.kubernetes.io/component: {_text(options.pack)}",
        "spec:",
    ]
    return (
        _header(options, Form.PROMETHEUSRULE)
        + "\n".join([*head, *("  " + line if line else line for line in _groups(options, groups))])
        + "\n"
    )


def _header(options: PackOptions, form: Form) -> str:
    objectives = ", ".join(map(str, options.objectives)) or "none"
    return (
        f"# Alerts for {options.engine.value}, objectives: {objectives}.\n"
        f"# Made by: {command_of(options, form)}\n"
        "# Do not edit, render it again. What each alert means and what to do: README.md beside the committed packs.\n"
    )


def command_of(options: PackOptions, form: Form) -> str:
    """The command that renders this pack."""
    default = PackOptions(options.engine)
    words = ["perf-service", "alerts", "render", "--engine", options.engine.value]
    if options.objectives != default.objectives:
        words += [word for o in options.objectives for word in ("--slo", _told(o))] or ["--no-slo"]
    for flag, value, usual in (
        ("--selector", options.selector, ""),
        ("--pack", options.name, ""),
        ("--target-labels", ",".join(options.target_labels), ",".join(default.target_labels)),
        ("--service-labels", ",".join(options.service_labels), ",".join(default.service_labels)),
        ("--version-label", options.version_label, default.version_label),
        ("--metric-prefix", options.metric_prefix, ""),
        ("--runbook-url", options.runbook, ""),
        ("--format", form.value, Form.PROMETHEUS.value),
    ):
        words += [flag, value] if value != usual else []
    return shlex.join(words)


def _told(objective: SLOTarget) -> str:
    """As the command line takes it: from 100 s on a time needs its unit."""
    return f"{objective.metric_name}<{objective.target_value:g}{'s' if objective.target_value >= 100 else ''}"


def _groups(options: PackOptions, groups: Sequence[Group]) -> list[str]:
    lines = ["groups:"]
    for group in groups:
        if not group.records and not group.alerts:
            continue
        lines += [f"  - name: {_text(group.name)}", f"    interval: {INTERVAL}", "    rules:"]
        for record in group.records:
            lines += [f"      - record: {record.name}", *_expr(record.expr), "        labels:", f"          pack: {_text(options.pack)}"]
        for alert in group.alerts:
            lines += _alert(options, alert)
    return lines


def _alert(options: PackOptions, alert: Alert) -> list[str]:
    labels = {
        "severity": alert.urgency.value,
        "cause": cause_of(alert),
        "verdict": alert.verdict.value,
        "role": "symptom" if alert.symptom else "cause",
        "inference_engine": options.engine.value,
        "pack": options.pack,
    }
    runbook = (options.runbook or "README.md") + f"#{alert.name.lower()}"
    annotations = {"summary": alert.summary, "description": f"{alert.meaning}. What to do: {alert.action}", "runbook_url": runbook}
    return [
        f"      - alert: {alert.name}",
        *_expr(alert.expr),
        f"        for: {alert.hold}",
        "        labels:",
        *(f"          {key}: {_text(value)}" for key, value in labels.items()),
        "        annotations:",
        *(f"          {key}: {_text(value)}" for key, value in annotations.items()),
    ]


def cause_of(alert: Alert) -> str:
    """Value of the label `cause`."""
    return alert.cause.value if isinstance(alert.cause, Cause) else alert.cause


def _expr(expr: str) -> list[str]:
    return ["        expr: |-", *("          " + line for line in expr.split("\n"))]


_PLAIN = re.compile(r"[A-Za-z][\w.-]*")


def _text(value: str) -> str:
    """A YAML scalar: bare where that cannot be misread, else double-quoted as in JSON."""
    bare = _PLAIN.fullmatch(value) and value.lower() not in ("yes", "no", "true", "false", "on", "off", "null", "y", "n")
    return value if bare else json.dumps(value, ensure_ascii=False)


def table(packs: dict[str, Sequence[Group]]) -> str:
    """The alerts of several engines as one Markdown table and one section each."""
    rows: dict[str, tuple[Alert, list[str], list[str]]] = {}
    for engine, groups in packs.items():
        for alert in (alert for group in groups for alert in group.alerts):
            _, engines, urgencies = rows.setdefault(alert.name, (alert, [], []))
            engines += [engine] if engine not in engines else []
            urgencies += [alert.urgency.value] if alert.urgency.value not in urgencies else []
    lines = ["| alert | what it means | evidence | verdict | severity | engines |", "|---|---|---|---|---|---|"]
    for name, (alert, engines, urgencies) in rows.items():
        verdict = alert.verdict.value.replace("_", " ")
        lines.append(
            f"| [{name}](#{name.lower()}) | {_cell(alert.meaning)} | {_cell(alert.evidence)} | {verdict} | {' / '.join(urgencies)} "
            f"| {', '.join(engines)} |"
        )
    for name, (alert, _, _) in rows.items():
        lines += ["", f"### {name}", "", f"{alert.meaning}. Evidence: {alert.evidence}.", "", f"**What to do:** {alert.action}"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
