"""What is different on the other side of a restart."""

from __future__ import annotations

from datetime import UTC, datetime

from perf_service.models.metrics import Snapshot

_CHANGES_TOLD = 4


_LAST_PLAUSIBLE = 4e9  # unix seconds, in the year 2096; what is larger is in milliseconds, or nothing


def _plausible(start: float | None) -> float | None:
    return start if start is not None and 0.0 < start < _LAST_PLAUSIBLE else None


def what_changed(before: Snapshot, after: Snapshot) -> str:
    """How two pages on both sides of a restart differ: another model or version is another run, perhaps of another server."""
    told = [
        f"the {name} ({old} -> {new})"
        for name, old, new in (
            ("model", before.model_name, after.model_name),
            ("engine version", before.engine_version, after.engine_version),
        )
        if old and new and old != new
    ]
    was, now = before.config.values(), after.config.values()
    flags = [f"{name} ({was[name]} -> {now[name]})" for name in was if name in now and was[name] != now[name]]
    told += flags[:_CHANGES_TOLD]
    if len(flags) > _CHANGES_TOLD:
        told.append(f"{len(flags) - _CHANGES_TOLD} more flags")
    started = [_plausible(page.process_start_time) for page in (before, after)]
    if started[0] is not None and started[1] is not None and started[0] != started[1]:
        old, new = (datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S") for t in started if t is not None)
        told.append(f"the start of the process ({old} -> {new} UTC)")
    return ", ".join(told)
