"""How well two or more operating points predict the next: TPOT(batch) = a + b * batch on measured GPU serving points.

    python benchmarks/predictor.py --gpu-points FILE [--seed-points 2] [--json]

FILE is a CSV with the columns backend, backend_version, model_path, system, precision, isl, osl, tp_size, ..., batch_size,
silicon_ttft_ms, silicon_tpot_ms: one row per measured point; one group = all columns but batch size and the measurements.
In each group the batch sizes up to B are revealed and TPOT at 2 B is asked for, for every B that has such a successor.

Methods: `service` is the fit that the service itself uses (perf_service.optimization.predictor), which knows lengths and a prior;
`linear` and `power` are straight lines in linear and in log-log scale; `calibrated` predicts the logarithm of TPOT's growth from the
last growths and the straight line, with weights learned on the other groups (five folds, none sees its own group).
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
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

from perf_service.optimization.predictor.steptime import GPU_PRIOR, Observation, fit

MEASURED = ("batch_size", "silicon_ttft_ms", "silicon_tpot_ms")
# What a power-law extrapolation in log-log achieves on the full data set, the figure to beat: mean, median, 90th percentile.
ANCHOR = {"mean": 0.086, "median": 0.044, "p90": 0.134}
OBJECTIVES_MS = (20.0, 30.0, 50.0)
Point = tuple[float, float]  # batch size, TPOT in milliseconds


@dataclass(frozen=True, slots=True)
class Group:
    """The points of one deployment, by batch size, and the lengths of its requests in tokens."""

    backend: str
    isl: float
    osl: float
    points: tuple[Point, ...]


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


def read_groups(path: Path) -> list[Group]:
    """The groups of a file; replicates of one batch size are averaged."""
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
    at = {name: keys.index(name) for name in ("backend", "isl", "osl")}
    return [
        Group(key[at["backend"]], float(key[at["isl"]]), float(key[at["osl"]]), tuple(sorted((b, mean(v)) for b, v in points.items())))
        for key, points in groups.items()
    ]


def service(group: Group, seen: Sequence[Point], batch: float) -> float:
    """The service's own step-time fit: a step with n decodes carries n * isl / osl prompt tokens in the steady state."""
    share = group.isl / group.osl
    # Points near the asked-for batch size say more: the step bends upwards where compute begins to bind.
    found = fit([Observation(t / 1000, 1.0, b, b * share, 0.02 * math.sqrt(seen[-1][0] / b)) for b, t in seen], GPU_PRIOR)
    if found is None:
        raise ValueError("no points")
    return 1000 * sum(p.weight * p.cost.seconds(batch, batch * share) for p in found.particles)


def linear(_: Group, seen: Sequence[Point], batch: float) -> float:
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


def power(_: Group, seen: Sequence[Point], batch: float) -> float:
    """Straight line through the last two points in log-log: the anchor's method."""
    (b1, t1), (b2, t2) = seen[-2], seen[-1]
    return t2 * (batch / b2) ** (math.log(t2 / t1) / math.log(b2 / b1))


def _features(case: Case, group: Group) -> list[float]:
    growths = [math.log(t2 / t1) / math.log2(b2 / b1) for (b1, t1), (b2, t2) in pairwise(case.seen[-3:])]
    return [1.0, math.log(linear(group, case.seen, case.batch) / case.seen[-1][1]), *reversed(growths)]


def calibrated(groups: Sequence[Group], asked: Sequence[Case], folds: int = 5) -> list[Case]:
    """The asked cases, answered with weights from the groups of the other folds (least absolute deviations, by reweighting)."""
    answered = []
    features = [_features(c, groups[c.group]) for c in asked]
    for fold in range(folds):
        for width in {len(f) for f in features}:
            inside = [(c, f) for c, f in zip(asked, features, strict=True) if len(f) == width]
            learned = _robust_weights([(f, math.log(c.truth / c.seen[-1][1])) for c, f in inside if c.group % folds != fold], width)
            for case, values in inside:
                if case.group % folds == fold:
                    growth = sum(w * v for w, v in zip(learned, values, strict=True))
                    answered.append(replace(case, said=case.seen[-1][1] * math.exp(growth)))
    return answered


def _robust_weights(rows: Sequence[tuple[list[float], float]], width: int) -> list[float]:
    learned, trust = [0.0] * width, [1.0] * len(rows)
    for _ in range(20):
        table = [
            [sum(t * f[i] * f[j] for (f, _), t in zip(rows, trust, strict=True)) + (1e-3 if i == j else 0.0) for j in range(width)]
            + [sum(t * f[i] * y for (f, y), t in zip(rows, trust, strict=True))]
            for i in range(width)
        ]
        for i in range(width):
            table[i] = [v / table[i][i] for v in table[i]]
            for k in range(width):
                if k != i:
                    table[k] = [a - table[k][i] * b for a, b in zip(table[k], table[i], strict=True)]
        learned = [row[-1] for row in table]
        trust = [1.0 / max(0.02, abs(sum(w * v for w, v in zip(learned, f, strict=True)) - y)) for f, y in rows]
    return learned


def cases(groups: Iterable[Group], method: Callable[[Group, Sequence[Point], float], float], seeds: int) -> list[Case]:
    """Every question that the groups allow: `seeds` or more points revealed, the next doubled batch size asked."""
    found = []
    for index, group in enumerate(groups):
        truth = dict(group.points)
        for end in range(seeds, len(group.points) + 1):
            seen = group.points[:end]
            batch = 2 * seen[-1][0]
            if batch in truth:
                found.append(Case(index, group.backend, seen, batch, truth[batch], method(group, seen, batch)))
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
    for name, method in (("service", service), ("linear", linear), ("power", power), ("calibrated", None)):
        found = cases(groups, method or power, options.seed_points)
        if not found:
            raise SystemExit("no group has a batch size and its double after the revealed ones")
        if method is None:
            found = calibrated(groups, found)
        results[name] = report(found)
        if name in ("service", "calibrated"):
            for backend in sorted({c.backend for c in found}):
                results[f"{name}, {backend}"] = report([c for c in found if c.backend == backend])
    if options.json:
        print(json.dumps({"groups": len(groups), "anchor": ANCHOR, "results": results}, indent=2))
        return 0
    anchor = ", ".join(f"{k} {v:.1%}" for k, v in ANCHOR.items())
    print(f"{len(groups)} groups; anchor (power law, full data set): {anchor}")
    for name, r in results.items():
        print(
            f"{name:20} n {r['n']:5.0f}  error mean {r['mean']:6.1%} median {r['median']:6.1%} p90 {r['p90']:6.1%}  "
            f"90 % interval holds {r['coverage']:6.1%} (width x{r['width']:.2f})  decisions right {r['decisions_right']:6.1%} "
            f"harmful go {r['harmful_go']:5.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
