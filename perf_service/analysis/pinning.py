"""Whether the number of running requests is held at a limit while others wait, or wanders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perf_service.models.metrics import Gauge, Snapshot
from perf_service.models.window import GaugeStats

UNTELLING = 0.4
"""Tightness of a scatter that says nothing."""


@dataclass(frozen=True, slots=True)
class Pinning:
    """How constant the number of running requests was while others waited."""

    share: float  # of the scrapes with waiting requests, those with running at its maximum (or within 5 %)
    limit: float  # that maximum
    scrapes: int
    mean: float  # mean running at those scrapes
    tightness: float = 0.0  # 0..1: how well the scatter below the maximum is that of requests that have just finished
    counted: bool = True  # whether `share` was counted over scrapes, or only concluded from mean and maximum


def queued_share(running: GaugeStats | None, waiting: GaugeStats | None, occupancy: float | None) -> float:
    """Share of the busy time with a queue, when steps are full; at least a quarter."""
    estimate = min(1.0, occupancy / 1.5) if occupancy is not None else 1.0
    if running is not None and waiting is not None and waiting.samples >= 5 and running.nonzero_share > 0:
        estimate = max(min(1.0, waiting.nonzero_share / running.nonzero_share), min(estimate, 0.5))
    return max(0.25, estimate)


def pinning_of_pages(pages: Sequence[Snapshot], output: float | None) -> Pinning | None:
    """Running at the scrapes where others waited: constant at a sequence limit, wandering at any other one.

    The gauge is written after a step, so those that finished in it are missing: `limit / output` of them on average. More
    scatter than that (in standard errors) is wandering. The worst scrape of five or more is left out (ramp-up).
    """
    seen = [
        (page.gauges[Gauge.RUNNING_REQUESTS], page.gauges[Gauge.WAITING_REQUESTS])
        for page in pages
        if Gauge.RUNNING_REQUESTS in page.gauges and Gauge.WAITING_REQUESTS in page.gauges
    ]
    queued = [running for running, waiting in seen if waiting > 0 and running > 0]
    if len(queued) < 2:
        return None
    limit = max(running for running, _ in seen)
    near = 0.05 * limit
    share = sum(limit - running <= near for running in queued) / len(queued)
    deficits = sorted(limit - running for running in queued)
    if len(deficits) >= 5:
        deficits.pop()
    expected = limit / max(output or 100.0, 1.0) + 0.5 * near
    error = math.sqrt(max(expected, 0.05) / len(deficits))
    excess = (sum(deficits) / len(deficits) - expected) / error
    tight = 1.0 - min(1.0, max(0.0, (excess - 1.0) / 2.0))
    # Short answers leave in droves after every step: then scatter says nothing about a limit.
    telling = 1.0 - min(1.0, max(0.0, (1.0 / max(output or 100.0, 1.0) - 0.1) / 0.2))
    return Pinning(share, limit, len(queued), sum(queued) / len(queued), tight * telling + UNTELLING * (1.0 - telling))


def pinning_of_stats(running: GaugeStats | None, waiting: GaugeStats | None) -> Pinning | None:
    """The same from a window's gauge summary: coarser, as it does not say at which scrapes others waited."""
    if running is None or waiting is None or waiting.max <= 0 or running.max <= 0 or running.samples < 3:
        return None
    active = running.mean / running.nonzero_share if running.nonzero_share > 0 else 0.0
    constant = running.min == running.max or active >= 0.97 * running.max
    wandering = active < 0.85 * running.max
    share = 1.0 if constant else 0.0 if wandering else 0.6
    return Pinning(share, running.max, running.samples, active, share, counted=False)
