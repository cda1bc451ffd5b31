"""Collects snapshots of Text Generation Inference servers."""

from __future__ import annotations

from typing import ClassVar

from perf_service.collectors.base import BaseCollector
from perf_service.models.metrics import Engine


class TGICollector(BaseCollector):
    """Collector of Text Generation Inference servers; see `BaseCollector`."""

    engine: ClassVar[Engine] = Engine.TGI
