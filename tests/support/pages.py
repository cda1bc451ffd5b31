"""The saved pages: real captures and one small page per bracket of engine versions."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Final

FIXTURES: Final = Path(__file__).parents[1] / "fixtures"
PAGES: Final = sorted(
    [
        *(FIXTURES / "captures").glob("*/*.prom.gz"),
        *(FIXTURES / "held_out").glob("*/*.prom.gz"),
        *(FIXTURES / "dialects").glob("*.prom"),
    ]
)


def read_page(path: Path) -> bytes:
    """The page, unpacked."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
