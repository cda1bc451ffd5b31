"""Saved pages as fixtures."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def captures() -> Path:
    return FIXTURES / "captures"


@pytest.fixture(scope="session")
def vllm_page(captures: Path) -> bytes:
    """A real vLLM 0.32 page under memory pressure."""
    return gzip.decompress((captures / "c_kv_bad_r2" / "010.prom.gz").read_bytes())
