"""One table per engine from engine-neutral names to the spellings of every version."""

from __future__ import annotations

import re
from typing import Final

from perf_service.collectors.dialects.base import Binding, Dialect, Merge, Part, Rule, Slot
from perf_service.collectors.dialects.sglang import SGLANG
from perf_service.collectors.dialects.tgi import TGI
from perf_service.collectors.dialects.vllm import VLLM
from perf_service.models.metrics import Engine

DIALECTS: Final = {dialect.engine: dialect for dialect in (VLLM, SGLANG, TGI)}
_PREFIXES: Final = {
    dialect.engine: re.compile(
        rb"^[ \t]*(?:" + b"|".join(re.escape(p.encode()) for p in (dialect.prefix, *dialect.aliases)) + rb")", re.MULTILINE
    )
    for dialect in DIALECTS.values()
}


def dialect_of(engine: Engine) -> Dialect:
    """The engine's tables."""
    return DIALECTS[engine]


def detect_engine(body: bytes | str) -> Engine | None:
    """Which engine wrote the page: the one whose prefix stands on most lines; None when none does."""
    data = body.encode("utf-8", "replace") if isinstance(body, str) else body
    counts = {engine: len(pattern.findall(data)) for engine, pattern in _PREFIXES.items()}
    engine = max(counts, key=lambda candidate: counts[candidate])
    return engine if counts[engine] else None


__all__ = ["DIALECTS", "Binding", "Dialect", "Merge", "Part", "Rule", "Slot", "detect_engine", "dialect_of"]
