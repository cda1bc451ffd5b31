"""Step times of real accelerators, fitted from measured operating points; makes ``physics.csv``.

The input is a CSV of measured aggregated serving (columns ``backend, system, isl, osl, batch_size, silicon_ttft_ms,
silicon_tpot_ms``
and the layout), as ai-dynamo/aiconfigurator publishes it (Apache-2.0, ``systems/silicon_sample.csv``). Only the fitted
coefficients are kept here.

    python -m benchmarks.diagnosis.fit_physics POINTS.csv > benchmarks/diagnosis/physics.csv

Per group of one layout with three batch sizes or more: TPOT = base + per_seq * batch by least squares on relative residuals; time
per prompt
token = (lowest TTFT of the group - base) / isl, an upper estimate since the fixed cost of serving a first token is in it.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

_NOT_LAYOUT = ("batch_size", "silicon_ttft_ms", "silicon_tpot_ms")
_ISL_MIN = 512  # below it the fixed cost of the first token hides the time per prompt token
_BATCH_MAX = 256  # no situation runs more at once
_ERROR_MAX = 0.15  # worst relative residual of a group that counts as linear


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(intercept, slope) with the least sum of squared relative residuals."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    x_mean = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    y_mean = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - x_mean) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    slope = sum(w * (x - x_mean) * (y - y_mean) for w, (x, y) in zip(weights, points, strict=True)) / spread
    return y_mean - slope * x_mean, slope


def fit(rows: Iterable[dict[str, str]]) -> list[tuple[str, str, float, float, float]]:
    """(backend, system, base ms, per sequence ms, per prompt token us) of every group that is linear in the batch size."""
    groups: dict[tuple[str, ...], list[tuple[int, float, float]]] = defaultdict(list)
    facts: dict[tuple[str, ...], tuple[str, str, int]] = {}
    for row in rows:
        key = tuple(value for name, value in row.items() if name not in _NOT_LAYOUT)
        groups[key].append((int(row["batch_size"]), float(row["silicon_ttft_ms"]), float(row["silicon_tpot_ms"])))
        facts[key] = (row["backend"], row["system"], int(row["isl"]))
    fitted = set()
    for key, points in groups.items():
        backend, system, isl = facts[key]
        by_batch: dict[int, list[float]] = defaultdict(list)
        for batch, _, tpot in points:
            if batch <= _BATCH_MAX:
                by_batch[batch].append(tpot)
        means = [(float(batch), fmean(values)) for batch, values in sorted(by_batch.items())]
        if len(means) < 3 or isl < _ISL_MIN:
            continue
        base, per_seq = line(means)
        per_token = (min(ttft for _, ttft, _ in points) - base) / isl
        error = max(abs((base + per_seq * x) / y - 1) for x, y in means)
        if base > 0 and per_seq > 0 and per_token > 0 and error <= _ERROR_MAX:
            fitted.add((backend, system, round(base, 3), round(per_seq, 4), round(1000 * per_token, 2)))
    return sorted(fitted)


def main() -> None:
    with open(sys.argv[1], newline="", encoding="utf-8") as file:
        rows = fit(csv.DictReader(file))
    print("# Fitted from measured operating points of ai-dynamo/aiconfigurator (Apache-2.0), see fit_physics.py")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("backend", "system", "base_ms", "per_seq_ms", "per_prefill_token_us"))
    writer.writerows(rows)


if __name__ == "__main__":
    main()
