"""Pages of a real engine that go on as the captured ones did: what grew goes on growing at its pace."""

from __future__ import annotations

import gzip
from pathlib import Path

CAPTURES = Path(__file__).parents[2] / "tests/fixtures/captures"
SCENARIOS = ("b_queue_bad_r2", "a_healthy", "c_kv_bad_r2", "d_prefill_bad_r2", "f_prefix_on")


def versions(scenario: str, count: int) -> list[bytes]:
    """`count` pages of one server in the order of time, from the first and the last page of a captured run."""
    files = sorted((CAPTURES / scenario).glob("*.prom.gz"))
    first, last = (gzip.decompress(files[index].read_bytes()) for index in (0, -1))
    ends = dict(line.rpartition(b" ")[::2] for line in last.splitlines())
    fixed: list[bytes | tuple[bytes, float, float, bool]] = []
    for line in first.splitlines():
        prefix, _, text = line.rpartition(b" ")
        end = ends.get(prefix)
        if line.startswith(b"#") or end is None or end == text:
            fixed.append(line)
            continue
        begin, growth = float(text), (float(end) - float(text)) / (len(files) - 1)
        fixed.append((prefix, begin, growth, begin.is_integer() and float(end).is_integer()))
    return [_page(fixed, index) for index in range(count)]


def _page(fixed: list[bytes | tuple[bytes, float, float, bool]], index: int) -> bytes:
    lines = []
    for entry in fixed:
        if isinstance(entry, bytes):
            lines.append(entry)
            continue
        prefix, begin, growth, is_whole = entry
        # What falls is a gauge: up and down between the two values that were seen.
        value = begin + growth * (index if growth > 0 else index % 2)
        lines.append(prefix + b" " + repr(float(round(value)) if is_whole else value).encode())
    return b"\n".join(lines) + b"\n"
