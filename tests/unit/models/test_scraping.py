"""Up, down, stale or never."""

from __future__ import annotations

import pytest

from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine
from perf_service.models.scraping import Outage, Outages, ScrapeState, scrape_status, silent_after_seconds

NOW = 1000.0
DOWN = Outage(900.0, 990.0, "ENDPOINT_UNREACHABLE", "refused")


def instance(interval: float = 15.0) -> Instance:
    return Instance("i", Engine.VLLM, "http://h", scrape_interval_seconds=interval)


@pytest.mark.parametrize(
    ("last", "outage", "state"),
    [
        (None, None, ScrapeState.NEVER),
        (None, DOWN, ScrapeState.DOWN),
        (NOW - 45.0, None, ScrapeState.UP),
        (NOW - 46.0, None, ScrapeState.STALE),
        (NOW - 100.0, DOWN, ScrapeState.DOWN),
        (NOW - 5.0, DOWN, ScrapeState.UP),  # pushed since, or collected by another server
        (NOW + 5.0, None, ScrapeState.UP),
    ],
)
def test_states(last: float | None, outage: Outage | None, state: ScrapeState) -> None:
    status = scrape_status(instance(), last, outage, NOW)
    assert (status.state, status.last_page_at) == (state, last)
    assert (status.outage is not None) is (state is ScrapeState.DOWN)


@pytest.mark.parametrize(("last", "since"), [(None, 900.0), (850.0, 900.0), (950.0, 950.0)])
def test_nobody_was_down_before_its_last_page(last: float | None, since: float) -> None:
    outage = scrape_status(instance(), last, DOWN, NOW).outage
    assert outage is not None
    assert (outage.since, outage.at) == (since, DOWN.at)


def test_nobody_is_silent_within_half_a_minute() -> None:
    assert (silent_after_seconds(instance(1.0)), silent_after_seconds(instance(60.0))) == (30.0, 180.0)


def test_an_outage_lasts_from_its_first_failure_to_the_first_success() -> None:
    outages = Outages()
    for at, reason in ((10.0, "ENDPOINT_TIMEOUT"), (25.0, "ENDPOINT_UNREACHABLE")):
        outages.failed("i", at, reason, "gone")
    assert outages.get("i") == Outage(10.0, 25.0, "ENDPOINT_UNREACHABLE", "gone")
    assert outages.get("j") is None
    outages.ended("i")
    outages.ended("i")
    outages.failed("i", 99.0, "ENDPOINT_TIMEOUT", "gone")
    assert outages.get("i") == Outage(99.0, 99.0, "ENDPOINT_TIMEOUT", "gone")
