"""What is to be said about data that came through a Prometheus: failed scrapes, age, warnings, histograms that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from perf_service.collectors.prometheus.history import interval_of
from perf_service.collectors.prometheus.mapping import TargetHistory
from perf_service.models.metrics import DataIssue, IssueCode, IssueLevel

OLD_INTERVALS: Final = 3.0
"""Data older than this many scrape intervals is not the present any more; as a pause within the data that is told as a gap."""
_LISTED: Final = 5


def source_issues(target: TargetHistory, warnings: Sequence[str], *, until: float | None = None) -> list[DataIssue]:
    """The issues of one target's history. With `until` (unix seconds) data that ends long before is told as old."""
    issues = []
    scraped, failed = len(target.scrapes), len(target.failed)
    if failed:
        text = f"Prometheus could not scrape the engine {failed} of {scraped + failed} times: nothing is known of the time around them."
        issues.append(DataIssue(IssueCode.GAP, IssueLevel.WARNING, text))
    interval = interval_of(target)
    if until is not None and target.scrapes and interval is not None:
        age = until - target.scrapes[-1].at
        if age > OLD_INTERVALS * interval:
            text = (
                f"The newest scrape in Prometheus is {age:.0f} s older than the end of the range (usually one every {interval:.0f} s): "
                "what came later is not known."
            )
            issues.append(DataIssue(IssueCode.GAP, IssueLevel.WARNING, text))
    if warnings:
        text = f"Prometheus answered with a warning, so a part may be missing: {'; '.join(warnings)}"
        issues.append(DataIssue(IssueCode.TRUNCATED, IssueLevel.WARNING, text))
    if target.native:
        names = ", ".join(target.native[:_LISTED]) + (" and more" if len(target.native) > _LISTED else "")
        text = (
            f"{len(target.native)} histogram(s) are stored as native ones, whose buckets are not the engine's, and are left out ({names}): "
            "keep the classic ones too (always_scrape_classic_histograms)."
        )
        issues.append(DataIssue(IssueCode.MISSING_METRIC, IssueLevel.WARNING, text))
    return issues
