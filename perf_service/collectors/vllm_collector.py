"""Collects snapshots of vLLM servers."""

from __future__ import annotations

from typing import ClassVar

from perf_service.collectors.base import BaseCollector
from perf_service.models.metrics import Engine


class VLLMCollector(BaseCollector):
    """Collector of vLLM servers; see `BaseCollector`."""

    engine: ClassVar[Engine] = Engine.VLLM
