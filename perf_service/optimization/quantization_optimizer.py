"""Precision of weights: which online method an engine version has, and what it needs. Never rolled out without a quality test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perf_service.models.analysis import Bottleneck, BottleneckType, Cause
from perf_service.models.metrics import Engine
from perf_service.models.plan import Optimization, OptimizerKind
from perf_service.optimization.configs import ConfigLike, QuantizationConfig
from perf_service.optimization.situation import Situation, optimization, relevant, tunable


@dataclass(frozen=True, slots=True)
class OnlineMethod:
    """A weight quantization that needs no prepared checkpoint."""

    value: str
    bits: int
    needs: str  # compute capability from which it also computes in that precision


# In order of preference; the first that the version takes is proposed.
ONLINE: dict[Engine, tuple[OnlineMethod, ...]] = {
    Engine.VLLM: (OnlineMethod("fp8_per_tensor", 8, "8.9"), OnlineMethod("fp8", 8, "8.9")),
    Engine.SGLANG: (OnlineMethod("fp8", 8, "8.9"),),
    Engine.TGI: (OnlineMethod("fp8", 8, "8.9"), OnlineMethod("eetq", 8, "7.5")),
}
_UNQUANTIZED = frozenset({"none", "auto", "float16", "bfloat16", "float32", "fp16", "bf16", "fp32", "half", "unquant", ""})
_TYPES = frozenset({BottleneckType.MEMORY_PRESSURE, BottleneckType.HIGH_LATENCY})
# Weight-bound or capacity-bound: where smaller weights can help at all.
_CAUSES = frozenset({Cause.DECODE_BOUND, Cause.PREFILL_COMPUTE, Cause.OVERLOAD})


class QuantizationOptimizer:
    """Proposes weight quantization where the evidence says memory- or compute-bound, always behind a quality test."""

    def generate_optimizations(
        self,
        bottlenecks: Sequence[Bottleneck],
        instance_type: Engine | str,
        current_config: ConfigLike = None,
        *,
        situation: Situation | None = None,
    ) -> tuple[list[Optimization], QuantizationConfig | None]:
        """Proposals, and the config with them; `([], None)` where there is none or the weights are quantized already.

        With a known cause it is advice that names the flag: a change of precision is the operator's decision.
        Raises InvalidArgumentError for an unknown engine.
        """
        at = situation or Situation.of(instance_type, current_config)
        present = at.config.get(at.knobs.quantization)
        if present is not None and str(present).lower() not in _UNQUANTIZED:
            return [], None
        for bottleneck in relevant(bottlenecks):
            bare = bottleneck.cause is Cause.UNKNOWN and bottleneck.type in _TYPES and tunable(bottleneck)
            if not bare and bottleneck.cause not in _CAUSES:
                continue
            for method in ONLINE[at.engine]:
                change = at.propose(at.knobs.quantization, method.value, f"{method.bits} bits per weight instead of 16")
                if change is None:
                    continue
                one = optimization(
                    OptimizerKind.QUANTIZATION, bottleneck, f"Weight quantization: {change.flag} {method.value}",
                    f"Quantization of the weights to {method.bits} bits at load ({change.flag} {method.value}): about half the weight "
                    "memory, the rest becomes KV cache, and small batches decode faster. Only behind a comparison of answers.",
                    *((change,) if bare else ()),
                    risks=("accuracy may fall: compare answers before and after", "no gain at large batches, which are compute-bound"),
                    prerequisites=(
                        "a quality test on real prompts has passed",
                        f"the accelerator has compute capability {method.needs} or more: "
                        + (f"it has {at.hardware.compute_capability}" if at.hardware.compute_capability else "not known here"),
                        "the checkpoint is not quantized already",
                    ),
                    quality_gate=True, confidence=0.3,
                )  # fmt: skip
                return [one], QuantizationConfig(method=method.value, target_bits=method.bits)
        return [], None
