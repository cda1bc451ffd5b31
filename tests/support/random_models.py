"""Random models, for round trips: every field drawn from its type. Plain seeded randomness, since whole workflows are too large for
Hypothesis to draw and shrink quickly. Floats are multiples of 1/512, which a Timestamp holds exactly."""

from __future__ import annotations

import dataclasses
import random
import types
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from perf_service.models.metrics import Engine, Histogram
from perf_service.models.slo import Comparison, SLOTarget

_TEXTS = ("", "a", "max_num_seqs", "µs → 50 %", "two words", "\n\t", "0", "x" * 300)


def model(kind: Any, rng: random.Random) -> Any:
    """An instance of a dataclass of the models."""
    if kind is SLOTarget:
        metric = rng.choice(["ttft", "ttft_p95", "itl", "e2e_p99", "throughput_tokens_per_second", "error_ratio"])
        return SLOTarget(metric, abs(_number(rng)), rng.choice(list(Comparison)), rng.choice([None, 0.9]), rng.random() < 0.5)
    if kind is Histogram:
        counts = sorted(rng.randrange(100) for _ in range(rng.randrange(4)))
        return Histogram(counts[-1] if counts else 3, 1.5, tuple(float(i) for i in range(len(counts))), tuple(map(float, counts)))
    values = {name: value(hint, rng) for name, hint in _hints(kind).items()}
    if "instance_type" in values:
        values["instance_type"] = rng.choice([engine.value for engine in Engine])
    return kind(**values)


def value(hint: Any, rng: random.Random) -> Any:
    """A value of a type hint."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return value(rng.choice(arguments), rng)
    if hint is type(None):
        return None
    if origin is tuple:
        return tuple(value(arguments[0], rng) for _ in range(rng.randrange(3)))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {value(arguments[0], rng): value(arguments[1], rng) for _ in range(rng.randrange(3))}
    if dataclasses.is_dataclass(hint):
        return model(hint, rng)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return rng.choice(list(hint))
    return _PLAIN[hint](rng)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _number(rng: random.Random) -> float:
    return rng.choice([0.0, rng.randrange(-(2**30), 2**30) / 512])


_PLAIN: dict[Any, Callable[[random.Random], Any]] = {
    str: lambda rng: rng.choice(_TEXTS),
    bool: lambda rng: rng.random() < 0.5,
    int: lambda rng: rng.choice([0, -1, 2**31 - 1, rng.randrange(1000)]),
    float: _number,
}
