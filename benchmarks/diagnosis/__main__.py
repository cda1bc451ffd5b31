"""How often is the right cause named? On real runs, and on simulated situations labelled by intervention.

    python -m benchmarks.diagnosis                          # the saved real runs and the tuning set
    python -m benchmarks.diagnosis --set scoring --json result.json
    python -m benchmarks.diagnosis --captures FOLDER --labels FILE

The seeds of the scoring set follow from the hash of the rules (perf_service/{models,collectors,analysis}), which is printed: a set
cannot have been seen before its rules were frozen. ``--seed`` repeats the draw of an earlier hash.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter as Tally
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.diagnosis import captures, judging, peers, score
from benchmarks.diagnosis.judging import ROOT, Outcome, judge
from benchmarks.diagnosis.running import Page
from benchmarks.diagnosis.situations import FAULTS, MORE, schedule
from benchmarks.diagnosis.traps import TRAPS

CACHE = ROOT / ".bench_cache"
TUNING_SEED = 1_000_000
_TRAP_SHARE, _TRAP_SEEDS = 0.22, 500_000
_MORE_SHARE, _MORE_SEEDS = 0.12, 700_000
_MAKERS = {maker.__name__: maker for maker, _ in (*FAULTS, *TRAPS, *MORE)}
Job = tuple[int, str, bool]


def jobs(count: int, base: int, wide: bool) -> list[Job]:
    """(seed, maker, wide) of each situation: mostly faults and healthy engines, a fifth of traps, some fleets and rare faults."""
    faults, traps = schedule(FAULTS), schedule(TRAPS)
    more = schedule(MORE)
    n_traps, n_more = round(count * _TRAP_SHARE), round(count * _MORE_SHARE)
    parts = ((0, faults, count - n_traps - n_more), (_TRAP_SEEDS, traps, n_traps), (_MORE_SEEDS, more, n_more))
    return [(base + start + i, makers[i % len(makers)].__name__, wide) for start, makers, n in parts for i in range(n)]


def scoring_seed() -> int:
    """Drawn by the rules themselves; far from the tuning seeds."""
    return 10_000_000 + int(judging.rules_hash(), 16) % 400 * 1_000_000


def work(job: Job) -> tuple[Outcome, list[list[Page]]]:
    seed, name, wide = job
    outcome, pages = judge(seed, _MAKERS[name], wide, CACHE / "simulated")
    ends = [[some[0], some[-1]] for some in pages] if outcome.engine == "vllm" and outcome.group != "dropped" else []
    return outcome, ends


def simulated(options: argparse.Namespace) -> list[tuple[Outcome, list[list[Page]]]]:
    wide = options.set == "scoring"
    base = options.seed if options.seed is not None else scoring_seed() if wide else TUNING_SEED
    todo = [job for job in jobs(options.situations, base, wide) if options.only in job[1]]
    if options.show:
        todo = [job for job in todo if str(job[0]) == options.show]
    print(f"{options.set} set: seeds from {base}, {len(todo)} situations", flush=True)
    done = []
    with ProcessPoolExecutor(options.processes) as pool:
        for number, result in enumerate(pool.map(work, todo, chunksize=2), 1):
            done.append(result)
            if sys.stderr.isatty():
                print(f"\r{number}/{len(todo)}", end="", file=sys.stderr)
    return done


def real(folder: Path, labels: Path) -> list[tuple[Outcome, list[list[Page]]]]:
    with labels.open(encoding="utf-8") as file:
        told = captures.read_labels(file)
    found = {label.run: place for label in told if (place := captures.find(folder, label.run)) is not None}
    missing = [label.run for label in told if label.run not in found]
    if not found:
        raise captures.LabelError(f"{folder} has none of the {len(told)} labelled runs; is it the right folder?")
    if missing:
        print(f"labelled, but not in {folder}: {', '.join(missing)}")
    return [captures.judge_run(found[label.run], label) for label in told if label.run in found]


def with_doctor(results: list[tuple[Outcome, list[list[Page]]]], doctor: peers.Doctor | None) -> list[Outcome]:
    """The outcomes with vllm-doctor's answers beside ours, on vLLM's pages."""
    runs = {o.name: pages for o, pages in results if o.engine == "vllm" and o.group != "dropped" and pages}
    if doctor is None or not runs:
        return [o for o, _ in results]
    findings = doctor.diagnose(runs)
    outcomes = []
    for o, _ in results:
        if o.name in findings:
            found = findings[o.name]
            answer = peers.DOCTOR_SAYS.get(found[0][0], ()) if found else ()
            trap = o.kind.removeprefix("trap:") if o.group == "trap" else ""
            alarm = any(severity in ("warning", "critical") for _, severity, _ in found)
            o = replace(o, peers={"vllm-doctor": (judging.peer_grade(answer, o.label, trap), answer, alarm), **o.peers})
        outcomes.append(o)
    return outcomes


def failures(outcomes: list[Outcome]) -> str:
    """One line per wrong or abstained answer, for those who tune."""
    lines = []
    for o in outcomes:
        for mode, pick in score.MODES:
            t = pick(o)
            if t is not None and t.grade != judging.RIGHT:
                accepted = "|".join(c.value for c in o.label.accepted) or o.label.status
                lines.append(
                    f"{o.name} {o.kind:20} {o.engine:6} {mode:11} {t.grade:9} true={accepted} "
                    f"got={t.cause}/{t.verdict}/{t.severity} {t.confidence:.2f}"
                )
    return "\n".join(lines)


def plain(outcome: Outcome) -> dict[str, object]:
    return {**asdict(outcome), "label": {**asdict(outcome.label), "accepted": [c.value for c in outcome.label.accepted]}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("tuning", "scoring"), default="tuning")
    parser.add_argument("--situations", type=int, default=480)
    parser.add_argument("--seed", type=int, help="first seed, instead of the set's own")
    parser.add_argument("--only", default="", help="only kinds whose name contains this")
    parser.add_argument("--captures", type=Path, help="folder of real runs (then only those are scored)")
    parser.add_argument("--labels", type=Path, default=Path(__file__).with_name("labels.csv"), help="their labels; format: captures.py")
    parser.add_argument("--no-simulated", action="store_true")
    parser.add_argument("--no-real", action="store_true")
    parser.add_argument("--no-doctor", action="store_true", help="leave vllm-doctor out")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--failures", action="store_true", help="list every answer that was not right")
    parser.add_argument("--show", metavar="RUN", help="everything about one situation (its seed) or real run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome there")
    options = parser.parse_args()
    began = time.monotonic()
    print(f"rules {judging.rules_hash()} (perf_service/{{models,collectors,analysis}}), simulator {judging.simulation_hash()}")
    doctor = None
    if not options.no_doctor:
        try:
            doctor = peers.Doctor(CACHE / "vllm-doctor")
            print(f"vllm-doctor {doctor.version}")
        except (peers.DoctorMissingError, OSError) as error:
            print(f"vllm-doctor is left out: {error}")
    told: dict[str, list[Outcome]] = {}
    shows_simulated = (options.show or "").isdigit()
    if not options.no_real and not shows_simulated:
        try:
            told["Real runs"] = with_doctor(real(options.captures or ROOT / "tests" / "fixtures", options.labels), doctor)
        except (captures.LabelError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    if not options.no_simulated and not options.captures:
        told[f"Simulated situations, {options.set} set"] = with_doctor(simulated(options), doctor)
    for title, outcomes in told.items():
        if not shows_simulated:
            print(score.report(outcomes, title))
        if options.failures:
            print("\nNot right:\n" + failures(outcomes))
        for o in outcomes:
            if options.show == o.name:
                print(json.dumps(plain(o), indent=2))
    if options.json:
        result = {"rules": judging.rules_hash(), "simulator": judging.simulation_hash(), "set": options.set}
        result |= {title: [plain(o) for o in outcomes] for title, outcomes in told.items()}
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    kinds = Tally(o.group for outcomes in told.values() for o in outcomes)
    print(f"\n{dict(kinds)} in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
