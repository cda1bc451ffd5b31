"""Do the committed alerts name what is planted? Situations drawn by `benchmarks.diagnosis`, each repeated for a quarter of an hour through
Prometheus' own rule engine (promtool). `python -m benchmarks.alerts --each 3 --seed 950000` prints the first cause alert by planted kind.

The packs' default objectives count, not a situation's own wishes: a fault that they do not notice is "silent", which is no error.
An overload grows while it runs; in its repetition those that were still running look like clients that left.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from benchmarks.diagnosis import drawing, situations
from benchmarks.diagnosis.running import run
from perf_service.models.metrics import Engine
from tests.support import alert_cases as cases
from tests.support.promtool import firing, wanted
from tests.support.replay import Track, Values, read_page, samples

STEP = 15.0
SYMPTOM = "BudgetBurn"
MAKERS = (*(maker for maker, _ in situations.FAULTS), situations.healthy_fleet)


def drawn(seed: int, each: int) -> dict[Engine, dict[str, Values]]:
    """Series of each situation, by engine and job (`kind#seed`)."""
    found: dict[Engine, dict[str, Values]] = {engine: {} for engine in Engine}
    for maker in MAKERS:
        for _ in range(each):
            seed += 1
            situation = replace(maker(drawing.Draw(seed, wide=True)), pages=15)
            if situation.kind.startswith("healthy"):  # repeating a short run adds a growth that is not there
                situation = replace(situation, pages=40, duration=4 * situation.duration)
            engine = Engine(situation.engine)
            names = wanted(cases.DEPLOYED / f"{engine.value}.rules.yaml")
            job = f"{situation.kind}#{seed}".replace(":", "_")
            values: Values = {}
            for index, pages in enumerate(run(situation).replicas):
                if len(pages) > 2:
                    track = Track([read_page(when - pages[0][0], text) for when, text, _ in pages])
                    values |= samples(track, cases.DURATION, STEP, names, cases.labels(job, f"r{index}:8000"))
            found[engine][job] = values
    return found


def main() -> None:
    """Print one line per planted kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=3, help="situations of each kind")
    parser.add_argument("--seed", type=int, default=950_000)
    options = parser.parse_args()
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for engine, jobs in drawn(options.seed, options.each).items():
        if not jobs:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rules = cases.DEPLOYED / f"{engine.value}.rules.yaml"
            fired = firing(rules, jobs, Path(folder), step=f"{STEP:.0f}s", minutes=range(4, cases.MINUTES, 2))
        for job, alerts in fired.items():
            causes = [alert.name for alert in alerts if SYMPTOM not in alert.name]
            rows[job.partition("#")[0]][causes[0] if causes else "budget only" if alerts else "silent"] += 1
    for kind in sorted(rows):
        print(f"{kind:20} " + ", ".join(f"{name} {count}" for name, count in rows[kind].most_common()))


if __name__ == "__main__":
    main()
