"""The analyzer's evidence as Prometheus rules: recording rules are the dialect, alerting rules are the causes."""

from perf_service.analysis.alerts.pack import alert_pack
from perf_service.analysis.alerts.rules import Alert, Group, PackOptions, Record

__all__ = ["Alert", "Group", "PackOptions", "Record", "alert_pack"]
