"""What the hardware alone tells of step times: the prior of the fit, where model and accelerator are known."""

from __future__ import annotations

import re
from dataclasses import dataclass

from perf_service.models.config import EngineConfig, Source
from perf_service.models.fleet import Hardware
from perf_service.optimization.predictor.steptime import CPU_PRIOR, GPU_PRIOR, UNKNOWN_PRIOR, Prior


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Data-sheet figures: memory bandwidth in GB/s and dense 16-bit TFLOP/s."""

    bandwidth: float
    tflops: float


# NVIDIA data sheets (dense, without sparsity).
ACCELERATORS: dict[str, Accelerator] = {
    "A100": Accelerator(2039, 312),
    "A30": Accelerator(933, 165),
    "L40S": Accelerator(864, 362),
    "L4": Accelerator(300, 121),
    "H100": Accelerator(3350, 989),
    "H200": Accelerator(4800, 989),
    "B200": Accelerator(7700, 2250),
    "B300": Accelerator(7750, 2250),
    "GB200": Accelerator(8000, 2500),
    "RTX PRO 6000": Accelerator(1792, 468),
}


def accelerator(name: str) -> Accelerator | None:
    """An accelerator by its name (`H100-SXM`, `NVIDIA H100 80GB HBM3`), None where unknown."""
    words = re.sub(r"[-_]", " ", name.upper())
    for known in sorted(ACCELERATORS, key=len, reverse=True):
        if re.search(rf"\b{known}\b", words):
            return ACCELERATORS[known]
    return None


def break_even_tokens(found: Accelerator) -> float:
    """Tokens in a step at which computing takes as long as reading 16-bit weights: F * bytes / (2 * BW), e.g. 295 on an H100."""
    return found.tflops * 1e12 * 2 / (2 * found.bandwidth * 1e9)


def prior_of(hardware: Hardware | None, config: EngineConfig) -> Prior:
    """The prior of the step-time ratios for that hardware.

    Without a word on the hardware, vLLM's CPU backend gives itself away: it resolves blocks of 128 tokens and fixes the cache in
    bytes (vllm/platforms/cpu.py), which together no GPU default does.
    """
    name = hardware.accelerator if hardware else ""
    if re.search(r"\bcpu\b|xeon|epyc|x86|arm", name.lower()):
        return CPU_PRIOR
    found = accelerator(name)
    if found:
        # The base of a step is the weights' read plus launches: measured bases lie somewhat above the roofline's break-even.
        base = 1.3 * break_even_tokens(found)
        return Prior(base, 0.7, GPU_PRIOR.sequence_tokens, GPU_PRIOR.sequence_spread, f"step-time ratios from the data sheet of {name}")
    if name or (hardware and hardware.memory_bytes):
        return GPU_PRIOR
    cpu = config.get("block_size") == 128 and config.get("kv_cache_memory_bytes") and config.source("block_size") is Source.PAGE
    return CPU_PRIOR if cpu else UNKNOWN_PRIOR
