"""Holds each package to its coverage: `coverage_gates.py .coverage.json`.

One overall figure hides an untested room behind a well tested one, so every room that decides something has a gate of its own.
Branches count like statements, as in coverage's own total.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

GATES: dict[str, float] = {
    "perf_service/collectors/": 80.0,
    "perf_service/analysis/": 90.0,
    "perf_service/optimization/": 80.0,
    "perf_service/workflows/": 85.0,
    "perf_service/rpc/": 85.0,
    "perf_service/": 85.0,
}


def coverage_of(files: dict[str, dict[str, dict[str, int]]], prefix: str) -> float | None:
    """Percent of statements and branches covered in the files under `prefix`, None where there are none."""
    summaries = [entry["summary"] for path, entry in files.items() if path.replace("\\", "/").startswith(prefix)]
    total = sum(s["num_statements"] + s.get("num_branches", 0) for s in summaries)
    covered = sum(s["covered_lines"] + s.get("covered_branches", 0) for s in summaries)
    return 100.0 * covered / total if total else None


def main(arguments: list[str]) -> int:
    """0 when every gate holds, 1 otherwise."""
    if len(arguments) != 1:
        print("usage: coverage_gates.py COVERAGE_JSON", file=sys.stderr)
        return 2
    files = json.loads(Path(arguments[0]).read_text())["files"]
    failed = False
    for prefix, gate in GATES.items():
        percent = coverage_of(files, prefix)
        ok = percent is not None and percent > gate
        failed |= not ok
        shown = "no files" if percent is None else f"{percent:.1f} %"
        print(f"coverage {prefix:<28} {shown:>9}  (must exceed {gate:.0f} %){'' if ok else '  <-- FAILS'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
