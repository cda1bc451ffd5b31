"""Precision of weights."""

from __future__ import annotations

import pytest

from perf_service.models.analysis import BottleneckType
from perf_service.models.metrics import Engine
from perf_service.optimization.configs import ConfigLike, QuantizationConfig
from perf_service.optimization.quantization_optimizer import QuantizationOptimizer
from tests.support.real_runs import finding

_PLAIN: tuple[ConfigLike, ...] = (None, {}, {"quantization": "none"}, {"quantization": None})


@pytest.mark.parametrize("kind", [BottleneckType.MEMORY_PRESSURE, BottleneckType.HIGH_LATENCY])
def test_quantization_is_proposed_for_plain_weights(engine: Engine, kind: BottleneckType) -> None:
    for current in _PLAIN:
        found, config = QuantizationOptimizer().generate_optimizations([finding(kind)], engine.value, current)
        assert found
        assert all("quantization" in o.description.lower() for o in found)
        assert all(o.needs_quality_gate for o in found)
        assert isinstance(config, QuantizationConfig)
        assert config.target_bits == 8


def test_quantized_weights_are_left_alone(engine: Engine) -> None:
    for method in ("int8", "int4", "fp8", "awq", "gptq"):
        named = {"quantize" if engine is Engine.TGI else "quantization": method}
        for current in ({"quantization": method}, QuantizationConfig(method=method), named):
            assert QuantizationOptimizer().generate_optimizations([finding(BottleneckType.MEMORY_PRESSURE)], engine, current) == ([], None)
