"""The saved pages that `doctor` is given: files and directories in the order told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from perf_service.collectors.saved import SavedPage, failed_scrapes, read_saved
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import DataIssue, IssueCode, IssueLevel

_HOST_AND_PORT = re.compile(r"[\w.-]+:\d{1,5}(/|$)")


def is_url(page: str) -> bool:
    """Whether PAGE is to be fetched, not read."""
    return "://" in page


def read_pages(arguments: Sequence[str]) -> list[SavedPage]:
    """Pages of files and directories in the order given; a directory's as `read_saved` has them.

    Raises InvalidArgumentError for a path that is not there, CollectError for one that cannot be a page.
    """
    pages: list[SavedPage] = []
    for argument in arguments:
        if not Path(argument).exists():
            hint = f"; for a URL write http://{argument}" if _HOST_AND_PORT.match(argument) else ""
            raise InvalidArgumentError(f"there is no file or directory {argument!r}{hint}", field="PAGE")
        pages += read_saved(Path(argument))
    return pages


def failures(arguments: Sequence[str]) -> list[DataIssue]:
    """What the indexes of directories tell of scrapes that failed. An engine that has died leaves only its past."""
    found = []
    for argument in arguments:
        failed = failed_scrapes(Path(argument))
        if failed is not None:
            last = f", the last {failed.at_the_end} of them in a row: it may be down, and what is told of it is of before"
            text = f"{failed.failed} of {failed.scrapes} scrapes in {argument} failed{last if failed.at_the_end else ''}."
            found.append(DataIssue(IssueCode.GAP, IssueLevel.WARNING, text))
    return found


def spaced(pages: Sequence[SavedPage], interval_seconds: float | None, *, now: float) -> list[SavedPage]:
    """The pages with `interval_seconds` between them, the last one at `now`; as they are where no interval is told."""
    if interval_seconds is None:
        return list(pages)
    last = len(pages) - 1
    return [replace(page, collected_at=now - (last - index) * interval_seconds) for index, page in enumerate(pages)]
