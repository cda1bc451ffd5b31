"""How well two or more operating points predict the next: TPOT(batch) = a + b * batch on measured GPU serving points.

    python benchmarks/predictor.py --gpu-points FILE [--seed-points 2] [--json]

FILE is a CSV with the columns backend, backend_version, model_path, system, precision, isl, osl, tp_size, ..., batch_size,
silicon_ttft_ms, silicon_tpot_ms: one row per measured point; one group = all columns but batch size and the measurements.
In each group the batch sizes up to B are revealed and TPOT at 2 B is asked for, for every B that has such a successor.
Prints mean, median and 90th percentile of the absolute relative error, the share of truths inside the 90 % interval,
and go/no-go decisions on TPOT objectives. The intervals are calibrated across groups: the groups are split into five parts
and the error quantiles of four give the interval of the fifth.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

MEASURED = ("batch_size", "silicon_ttft_ms", "silicon_tpot_ms")
# What a power-law extrapolation in log-log achieves on the full data set, the figure to beat: mean, median, 90th percentile.
ANCHOR = {"mean": 0.086, "median": 0.044, "p90": 0.134}
OBJECTIVES_MS = (20.0, 30.0, 50.0)
Point = tuple[float, float]  # batch size, TPOT in milliseconds


@dataclass(frozen=True, slots=True)
class Case:
    """One question: the revealed points, the batch size asked for, the answer, and what was said."""

    group: int
    backend: str
    seen: tuple[Point, ...]
    batch: float
    truth: float
    said: float

    @property
    def log_error(self) -> float:
        """Natural log of said over truth."""
        return math.log(self.said / self.truth)


def read_groups(path: Path) -> list[tuple[str, list[Point]]]:
    """(backend, points by batch size) of each group; replicates of one batch size are averaged."""
    groups: dict[tuple[str, ...], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        names = rows.fieldnames or []
        missing = [m for m in MEASURED if m not in names]
        if missing:
            raise SystemExit(f"{path} has no column {', '.join(missing)}")
        keys = [n for n in names if n not in MEASURED]
        for row in rows:
            tpot = float(row["silicon_tpot_ms"] or 0)
            if tpot > 0:
                groups[tuple(row[k] for k in keys)][float(row["batch_size"])].append(tpot)
    return [(key[0], sorted((b, mean(v)) for b, v in points.items())) for key, points in groups.items()]


def linear(seen: Sequence[Point], batch: float) -> float:
    """a + b * batch with b >= 0, a >= 0, fitted to the logarithms' scale (relative errors count), nearer points more.

    Steps grow linearly while memory bandwidth is the limit and bend upwards where compute becomes it: what is revealed near the
    asked-for batch says more, so weights double with each doubling of the batch.
    """
    points = [(b, t, b / seen[-1][0] / t**2) for b, t in seen]
    total = sum(w for _, _, w in points)
    mb, mt = sum(w * b for b, _, w in points) / total, sum(w * t for _, t, w in points) / total
    spread = sum(w * (b - mb) ** 2 for b, _, w in points)
    slope = max(0.0, sum(w * (b - mb) * (t - mt) for b, t, w in points) / spread) if spread else 0.0
    base = mt - slope * mb
    if base < 0:
        base, slope = 0.0, sum(w * b * t for b, t, w in points) / sum(w * b * b for b, _, w in points)
    return base + slope * batch


def power(seen: Sequence[Point], batch: float) -> float:
    """Straight line through the last two points in log-log: the anchor's method."""
    (b1, t1), (b2, t2) = seen[-2], seen[-1]
    return t2 * (batch / b2) ** (math.log(t2 / t1) / math.log(b2 / b1))


def blend(seen: Sequence[Point], batch: float) -> float:
    """Geometric mean of the straight line (too low where compute begins to bind) and the power law through the last two points."""
    return math.sqrt(linear(seen, batch) * power(seen, batch))


def cases(groups: Iterable[tuple[str, list[Point]]], method: Callable[[Sequence[Point], float], float], seeds: int) -> list[Case]:
    """Every question that the groups allow: `seeds` or more points revealed, the next doubled batch size asked."""
    found = []
    for index, (backend, points) in enumerate(groups):
        truth = dict(points)
        for end in range(seeds, len(points) + 1):
            seen = tuple(points[:end])
            batch = 2 * seen[-1][0]
            if batch in truth:
                found.append(Case(index, backend, seen, batch, truth[batch], method(seen, batch)))
    return found


def quantile(values: Sequence[float], q: float) -> float:
    """The q quantile by rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))]


def intervals(found: Sequence[Case], folds: int = 5) -> list[tuple[float, float]]:
    """90 % interval of each case from the error quantiles of the other folds' groups (conformal, leave-fold-out)."""
    made = []
    for case in found:
        others = [c.log_error for c in found if c.group % folds != case.group % folds]
        made.append((case.said * math.exp(-quantile(others, 0.95)), case.said * math.exp(-quantile(others, 0.05))))
    return made


def report(found: Sequence[Case]) -> dict[str, float]:
    """Error, coverage and decision figures of a set of cases."""
    errors = [abs(c.said / c.truth - 1) for c in found]
    bounds = intervals(found)
    right = harmful = decisions = negatives = 0
    for case, (_, high) in zip(found, bounds, strict=True):
        for objective in OBJECTIVES_MS:
            decisions += 1
            go, good = high <= objective, case.truth <= objective
            right += (case.said <= objective) == good
            negatives += not good
            harmful += go and not good
    return {
        "n": len(found),
        "mean": mean(errors),
        "median": median(errors),
        "p90": quantile(errors, 0.9),
        "coverage": mean(low <= c.truth <= high for c, (low, high) in zip(found, bounds, strict=True)),
        "width": median(high / low for low, high in bounds),
        "decisions_right": right / decisions,
        "harmful_go": harmful / negatives if negatives else 0.0,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="TPOT at the next doubled batch size from revealed ones, on measured GPU points")
    parser.add_argument("--gpu-points", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seed-points", type=int, default=2, help="points revealed at least (default 2)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    if options.seed_points < 2:
        parser.error("--seed-points must be at least 2: one point shows no slope")
    groups = read_groups(options.gpu_points)
    results: dict[str, dict[str, float]] = {}
    for name, method in (("blend", blend), ("linear", linear), ("power", power)):
        found = cases(groups, method, options.seed_points)
        if not found:
            raise SystemExit("no group has a batch size and its double after the revealed ones")
        results[name] = report(found)
        if name == "blend":
            for backend in sorted({c.backend for c in found}):
                results[f"blend, {backend}"] = report([c for c in found if c.backend == backend])
    if options.json:
        print(json.dumps({"groups": len(groups), "anchor": ANCHOR, "results": results}, indent=2))
        return 0
    anchor = ", ".join(f"{k} {v:.1%}" for k, v in ANCHOR.items())
    print(f"{len(groups)} groups; anchor (power law, full data set): {anchor}")
    for name, r in results.items():
        print(
            f"{name:18} n {r['n']:5.0f}  error mean {r['mean']:6.1%} median {r['median']:6.1%} p90 {r['p90']:6.1%}  "
            f"90 % interval holds {r['coverage']:6.1%} (width x{r['width']:.2f})  decisions right {r['decisions_right']:6.1%} "
            f"harmful go {r['harmful_go']:5.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
