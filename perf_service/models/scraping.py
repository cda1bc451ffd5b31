"""Whether an instance can be scraped, as far as its pages and the last attempts tell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from perf_service.models.fleet import Instance

_SILENT_INTERVALS = 3.0
_SILENT_SECONDS = 30.0


class ScrapeState(StrEnum):
    """What is known of an instance's scrapes."""

    UP = "up"  # its newest page is of the last few intervals
    DOWN = "down"  # the last attempt failed
    STALE = "stale"  # its newest page is old, and nobody knows of an attempt since
    NEVER = "never"  # there is no page yet


@dataclass(frozen=True, slots=True)
class Outage:
    """Attempts in a row that failed. Times in unix seconds: of the first and of the last one."""

    since: float
    at: float
    reason: str  # an ErrorReason
    message: str


@dataclass(frozen=True, slots=True)
class ScrapeStatus:
    """The state of an instance's scrapes. Times in unix seconds."""

    state: ScrapeState
    last_page_at: float | None = None
    outage: Outage | None = None  # where it is down


def silent_after_seconds(instance: Instance) -> float:
    """An instance is silent after three intervals without a page (as a gap within a window), and not within half a minute."""
    return max(_SILENT_INTERVALS * instance.scrape_interval_seconds, _SILENT_SECONDS)


def scrape_status(instance: Instance, last_page_at: float | None, outage: Outage | None, now: float) -> ScrapeStatus:
    """The state at `now`: a page that came after the last failed attempt (pushed, or collected by another server) ends the outage.

    One that came since its first failed attempt begins it anew.
    """
    if outage is not None and (last_page_at is None or outage.at > last_page_at):
        # Between two failed attempts a page may have come by another way: it was not down all the time.
        since = outage.since if last_page_at is None else max(outage.since, last_page_at)
        return ScrapeStatus(ScrapeState.DOWN, last_page_at, replace(outage, since=since))
    if last_page_at is None:
        return ScrapeStatus(ScrapeState.NEVER)
    is_stale = now - last_page_at > silent_after_seconds(instance)
    return ScrapeStatus(ScrapeState.STALE if is_stale else ScrapeState.UP, last_page_at)


class Outages:
    """Which instances the last attempt of this process could not scrape."""

    def __init__(self) -> None:
        self._outages: dict[str, Outage] = {}

    def get(self, instance_id: str) -> Outage | None:
        """None where the last attempt went well, or there was none."""
        return self._outages.get(instance_id)

    def failed(self, instance_id: str, at: float, reason: str, message: str) -> None:
        """An attempt failed."""
        known = self._outages.get(instance_id)
        self._outages[instance_id] = Outage(known.since if known else at, at, reason, message)

    def ended(self, instance_id: str) -> None:
        """An attempt went well, or what was known of it holds no more."""
        self._outages.pop(instance_id, None)
