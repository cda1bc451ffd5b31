"""Every engine in turn."""

from __future__ import annotations

import pytest

from perf_service.models.metrics import Engine


@pytest.fixture(params=list(Engine))
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.param
    return found
