"""How many examples a property test draws: few while developing, all of them in CI."""

from __future__ import annotations

import os

THOROUGH = os.environ.get("PERF_SERVICE_THOROUGH_TESTS", "") not in ("", "0")


def examples(thorough: int) -> int:
    """`thorough` examples with PERF_SERVICE_THOROUGH_TESTS=1 (as .ci/run sets it), a fifth of them otherwise."""
    return thorough if THOROUGH else max(5, thorough // 5)
