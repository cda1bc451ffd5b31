"""Puts a pack together and leaves out what nothing reads."""

from __future__ import annotations

from collections.abc import Sequence

from perf_service.analysis.alerts import incidents, objectives, signals, slowness, waiting
from perf_service.analysis.alerts.conditions import Conditions
from perf_service.analysis.alerts.rules import Alert, Group, PackOptions, Record


def alert_pack(options: PackOptions) -> tuple[Group, ...]:
    """The rule groups of one engine: its replicas, and its objectives."""
    conditions = Conditions(options)
    found = (*incidents.alerts(options), *waiting.alerts(conditions), *slowness.alerts(conditions))
    recording = (*signals.records(options), *conditions.records(), *incidents.records(options))
    return (
        Group(f"{options.pack}-replicas", _read(recording, found), found),
        Group(f"{options.pack}-objectives", objectives.records(options), objectives.alerts(options)),
    )


def _read(records: Sequence[Record], alerts: Sequence[Alert]) -> tuple[Record, ...]:
    """The records that an alert or a record that stays reads, in order."""
    texts = [alert.expr + alert.summary for alert in alerts]
    kept: list[Record] = []
    for record in reversed(records):
        if any(f"{record.name}{{" in text for text in texts):
            kept.append(record)
            texts.append(record.expr)
    return tuple(reversed(kept))
