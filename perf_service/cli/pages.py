"""The saved pages that `doctor` is given: files and directories in the order told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from perf_service.collectors.saved import SavedPage, read_saved
from perf_service.models.errors import InvalidArgumentError

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


def spaced(pages: Sequence[SavedPage], interval_seconds: float | None, *, now: float) -> list[SavedPage]:
    """The pages with `interval_seconds` between them, the last one at `now`; as they are where no interval is told."""
    if interval_seconds is None:
        return list(pages)
    last = len(pages) - 1
    return [replace(page, collected_at=now - (last - index) * interval_seconds) for index, page in enumerate(pages)]
