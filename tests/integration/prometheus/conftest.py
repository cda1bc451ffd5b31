"""One real Prometheus with its engines for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.prometheus_rig import Rig, rig


@pytest.fixture(scope="package")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("prometheus")) as found:
        yield found
