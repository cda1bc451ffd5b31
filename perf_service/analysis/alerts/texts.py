"""Pieces of alert texts: Prometheus templates that put the numbers of the moment into a sentence."""

from __future__ import annotations

from perf_service.analysis.alerts.rules import PackOptions
from perf_service.analysis.alerts.signals import recorded

VALUE = '{{ $value | printf "%.1f" }}'
PERCENT = "{{ $value | humanizePercentage }}"
SECONDS = "{{ $value | humanizeDuration }}"


def replica(options: PackOptions) -> str:
    """Who: the replica, and its pod where the setup has pods."""
    pod = "{{ with $labels.pod }} ({{ . }}){{ end }}" if "pod" in options.target_labels else ""
    return "{{ $labels.instance }}" + pod


def service(options: PackOptions) -> str:
    """Who: the service, by its model or its job."""
    return "{{ with $labels.model_name }}{{ . }} {{ end }}({{ $labels.job }})"


def looked_up(options: PackOptions, metric: str, operation: str, form: str) -> str:
    """Another recorded series of the same replica. `form` is a template function or a printf format; "?" where it is absent."""
    shown = form if form.startswith("humanize") else f'printf "{form}"'
    # %q writes a label's value as PromQL reads it, with whatever quotes and backslashes there are in it.
    selector = f"{recorded(metric, operation)}{{pack='{options.pack}',job=%q,instance=%q}}"
    return (
        f'{{{{ with printf "{selector}" $labels.job $labels.instance | query }}}}'
        f"{{{{ . | first | value | {shown} }}}}{{{{ else }}}}?{{{{ end }}}}"
    )
