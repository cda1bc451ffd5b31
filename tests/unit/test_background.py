"""What runs for as long as the service does."""

from __future__ import annotations

from typing import Any, cast

import pytest

from perf_service.background import Housekeeping
from perf_service.models.errors import ErrorReason, StoreError


@pytest.mark.parametrize("trouble", [StoreError(ErrorReason.INTERNAL, "damaged"), RuntimeError("a defect")])
async def test_a_step_of_housekeeping_that_fails_does_not_keep_the_others_from_being_done(trouble: Exception) -> None:
    pruned: list[float] = []

    class Broken:
        async def tidy(self, _now: float) -> None:
            raise trouble

        async def prune_requests(self, *, before: float) -> int:
            pruned.append(before)
            return 0

    await Housekeeping(cast("Any", Broken()), cast("Any", Broken())).tidy_up(1_000_000.0)
    assert len(pruned) == 1
