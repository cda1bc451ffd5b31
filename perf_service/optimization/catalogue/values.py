"""Reading a value in a knob's type from text or from a near type. None: it is not one."""

from __future__ import annotations

from perf_service.models.config import KnobValue

_TRUTH = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}


def as_bool(value: KnobValue) -> bool | None:
    """true, on, yes, 1 and their opposites."""
    if isinstance(value, bool):
        return value
    return _TRUTH.get(str(value).strip().lower())


def as_int(value: KnobValue) -> int | None:
    """A whole number; `64.0` is one, `16k` is not."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    text = str(value).strip().lower().replace("_", "")
    # vLLM itself reads 16k (1000) and 16K (1024); the exact number is asked for here instead of guessing which was meant.
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number == number and abs(number) < 1e15 and number == int(number) else None


def as_float(value: KnobValue) -> float | None:
    """A finite number."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if number == number and abs(number) != float("inf") else None
