"""Collects snapshots of SGLang servers."""

from __future__ import annotations

from typing import ClassVar

from perf_service.collectors.base import BaseCollector
from perf_service.models.metrics import Engine


class SGLangCollector(BaseCollector):
    """Collector of SGLang servers; see `BaseCollector`."""

    engine: ClassVar[Engine] = Engine.SGLANG
