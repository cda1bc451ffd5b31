"""What the app does in the background."""

from __future__ import annotations

from typing import Any, cast

import pytest

from perf_service.app import App
from perf_service.models.errors import ErrorReason, StoreError
from perf_service.settings import load_settings


@pytest.mark.parametrize("trouble", [StoreError(ErrorReason.INTERNAL, "damaged"), RuntimeError("a defect")])
async def test_a_step_of_housekeeping_that_fails_does_not_keep_the_others_from_being_done(trouble: Exception) -> None:
    pruned: list[float] = []

    class Broken:
        async def tidy(self, _now: float) -> None:
            raise trouble

        async def prune_requests(self, *, before: float) -> int:
            pruned.append(before)
            return 0

    app = App(load_settings(), cast("Any", Broken()), cast("Any", None))
    app._history = cast("Any", Broken())
    await app._tidy_up(1_000_000.0)
    assert len(pruned) == 1
