"""`perf-service alerts`: the analyzer's evidence as Prometheus rules. Needs no server."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perf_service.cli.console import Commands, out
from perf_service.models.metrics import Engine

if TYPE_CHECKING:
    from perf_service.analysis.alerts import PackOptions

__all__ = ["alerts"]

alerts = typer.Typer(cls=Commands, help="Prometheus alerts made from the same evidence as the diagnosis.", no_args_is_help=True)


class Format(StrEnum):
    """What the rules are written as."""

    PROMETHEUS = "prometheus"
    PROMETHEUSRULE = "prometheusrule"


EngineOption = Annotated[Engine, typer.Option("--engine", help="The engine whose metrics the rules read.")]
SloOption = Annotated[
    list[str] | None, typer.Option("--slo", help="An upper bound on ttft, itl, tpot or e2e, e.g. 'ttft_p95<0.5'. Repeatable.")
]


@alerts.command("render")
def render(
    engine: EngineOption,
    slo: SloOption = None,
    no_slo: Annotated[bool, typer.Option("--no-slo", help="No error-budget alerts.")] = False,
    selector: Annotated[str, typer.Option("--selector", help="Only series with these labels, e.g. 'namespace=\"x\"'.")] = "",
    pack: Annotated[str, typer.Option("--pack", help="A name, for packs with different objectives in one Prometheus.")] = "",
    target_labels: Annotated[str, typer.Option("--target-labels", help="Labels that tell one replica, comma-separated.")] = "",
    service_labels: Annotated[str, typer.Option("--service-labels", help="Labels that tell one service, comma-separated.")] = "",
    version_label: Annotated[str, typer.Option("--version-label", help="The target label that carries the engine's version.")] = "version",
    metric_prefix: Annotated[str, typer.Option("--metric-prefix", help="Where a relay has renamed the series, e.g. 'vllm_'.")] = "",
    runbook_url: Annotated[str, typer.Option("--runbook-url", help="Where the alerts' README is served; anchors are added.")] = "",
    form: Annotated[Format, typer.Option("--format", help="A rule file, or the prometheus-operator's resource.")] = Format.PROMETHEUS,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Write here instead of to standard output.")] = None,
) -> None:
    """Alerting and recording rules for one engine."""
    from perf_service.analysis.alerts.render import Form
    from perf_service.analysis.alerts.render import render as rendered

    options = _options(engine, slo, no_slo, selector, pack, target_labels, service_labels, version_label, metric_prefix, runbook_url)
    text = rendered(options, Form(form.value))
    if file is None:
        typer.echo(text, nl=False)
    else:
        _write(file, text)


@alerts.command("list")
def show(engine: EngineOption, slo: SloOption = None) -> None:
    """The alerts of an engine: what each means and what to do."""
    from perf_service.analysis.alerts import alert_pack
    from perf_service.cli.remote import listing

    options = _options(engine, slo, False, "", "", "", "", "version", "", "")
    rows = ((a.name, a.urgency.value, a.meaning, a.action) for group in alert_pack(options) for a in group.alerts)
    out().print(listing(("alert", "severity", "what it means", "what to do"), rows))


def _options(
    engine: Engine,
    slo: list[str] | None,
    no_slo: bool,
    selector: str,
    pack: str,
    target_labels: str,
    service_labels: str,
    version_label: str,
    metric_prefix: str,
    runbook_url: str,
) -> PackOptions:
    from perf_service.analysis.alerts import PackOptions
    from perf_service.analysis.alerts.rules import SERVICE_LABELS, TARGET_LABELS, default_objectives
    from perf_service.models.errors import InvalidArgumentError
    from perf_service.models.slo import parse_slo

    if slo and no_slo:
        raise InvalidArgumentError("--slo and --no-slo contradict each other", field="slo")
    return PackOptions(
        engine,
        objectives=() if no_slo else tuple(map(parse_slo, slo)) if slo else default_objectives(),
        selector=selector,
        name=pack,
        target_labels=_names(target_labels) or TARGET_LABELS,
        service_labels=_names(service_labels) or SERVICE_LABELS,
        version_label=version_label,
        metric_prefix=metric_prefix,
        runbook=runbook_url,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _write(file: Path, text: str) -> None:
    from perf_service.models.errors import InvalidArgumentError

    try:
        file.write_text(text)
    except OSError as error:
        raise InvalidArgumentError(f"cannot write {file}: {error.strerror or error}", field="file") from error
