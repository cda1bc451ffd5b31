"""What optimizers are asked with, and what they answer."""

from __future__ import annotations

from typing import Any

from perf_service.models.config import ConfigChange, EngineConfig, Source
from perf_service.models.metrics import Engine
from perf_service.models.plan import Optimization
from perf_service.optimization.situation import Situation


def situation(config: dict[str, Any] | None = None, engine: Engine = Engine.VLLM, version: str = "0.32.0", **fields: Any) -> Situation:
    return Situation(engine, version, config=EngineConfig.of(config or {}, Source.LAUNCH_ARGS), **fields)


def change_of(found: list[Optimization], parameter: str) -> ConfigChange:
    return next(c for o in found for c in o.config_changes if c.parameter == parameter)
