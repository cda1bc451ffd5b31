"""Saved runs for the analyzer's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perf_service.models.metrics import Snapshot
from tests.support.real_runs import snapshots


@pytest.fixture(scope="session")
def run() -> Callable[[str], tuple[Snapshot, ...]]:
    """The snapshots of a saved run."""
    return snapshots
