"""Which of an engine's pages a prediction stands on."""

from __future__ import annotations

from collections.abc import Iterable

from perf_service.collectors.window import overall_span, windows_of
from perf_service.models.metrics import Snapshot
from perf_service.models.window import Window


def parts_of(pages: Iterable[Snapshot], judged: Window | None = None) -> list[Window]:
    """The windows between neighbouring pages of one engine, of one life of it: before a restart it was another.

    `judged`: what an analysis concluded from; only pages within it count, as the load was another before and after. Empty where it is
    of a lifetime or its times are unknown, and where there are no two pages: then the judged window stands for itself.
    """
    if judged is not None:
        start, end = judged.start, judged.end
        if judged.lifetime or start is None or end is None:
            return []
        pages = [page for page in pages if page.collected_at is not None and start <= page.collected_at <= end]
    found = overall_span(pages)
    return windows_of(found[1]) if found else []
