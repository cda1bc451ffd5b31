"""Does the simulated engine move as the real one does?

Step times are fitted from the ``*_bad`` captures alone (and f_prefix_off); each pair's two flag sets are
then simulated under the load of command.txt and the ratios fixed/bad are held against the real ones.

    python benchmarks/simulator_reality.py [--captures DIR] [--json]

Exit code 1 when a direction is wrong or a throughput ratio is off by more than a factor of 1.5.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perf_service.simulator.args import flags_from_native
from perf_service.simulator.fit import FitWindow, StepFit, fit_step_times, speed_factor, windows_from_pages
from perf_service.simulator.flags import EngineFlags, StepTimes
from perf_service.simulator.virtual import simulate
from perf_service.simulator.workload import Lengths, LoadReport, Workload

DEFAULT_CAPTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "captures"
#: name, scenario to fit and start from, scenario after the change
PAIRS = (
    ("b max-num-seqs 2->64", "b_queue_bad_r2", "b_queue_fixed_r2"),
    ("c KV blocks 24->2048", "c_kv_bad_r2", "c_kv_fixed_r2"),
    ("d token budget 32->2048 (r2)", "d_prefill_bad_r2", "d_prefill_fixed_r2"),
    ("d token budget 32->2048 (r3)", "d_prefill_bad_r3", "d_prefill_fixed_r3"),
    ("e max-num-seqs 64->8 (trade-off)", "e_decode_bad", "e_decode_seqs8"),
    ("f prefix caching off->on", "f_prefix_off", "f_prefix_on"),
)
TOLERANCE = 1.5
#: Facts of the captured engine that its flags do not say: block size and the 1 GiB KV pool of its CPU build.
_REAL_BLOCKS, _REAL_BLOCK_SIZE = 2048, 128
_NOT_ENGINE_FLAGS = {"host", "port", "served-model-name", "dtype", "enforce-eager"}


@dataclass(frozen=True)
class Scenario:
    """One captured run."""

    flags: EngineFlags
    workload: Workload
    duration: float
    client: dict[str, Any]
    pages: list[tuple[float, bytes]]

    def windows(self) -> list[FitWindow]:
        return windows_from_pages(self.pages, max_num_batched_tokens=self.flags.max_num_batched_tokens)


def load(folder: Path) -> Scenario:
    text = (folder / "command.txt").read_text(encoding="utf-8")
    words = shlex.split(next(line for line in text.splitlines() if " serve " in line))
    native: dict[str, Any] = {"block_size": _REAL_BLOCK_SIZE, "num_gpu_blocks_override": _REAL_BLOCKS}
    at = words.index("serve") + 2
    while at < len(words):
        name = words[at].removeprefix("--")
        if at + 1 < len(words) and not words[at + 1].startswith("--"):
            value: Any = words[at + 1]
            at += 2
        else:
            value = True
            at += 1
        if name not in _NOT_ENGINE_FLAGS:
            native[name] = value
    client = json.loads((folder / "client.json").read_text(encoding="utf-8"))
    a = client["args"]
    workload = Workload(
        prompt=Lengths.uniform(a["prompt_min"], a["prompt_max"]),
        output=Lengths.uniform(a["out_min"], a["out_max"]),
        concurrency=a["conc"],
        shared_prefix_tokens=a["shared_prefix"],
    )
    rows = [json.loads(line) for line in (folder / "scrapes.jsonl").read_text(encoding="utf-8").splitlines()]
    pages = [(r["t_unix"], _read(folder / r["file"])) for r in rows if r["file"]]
    return Scenario(flags_from_native("vllm", native), workload, a["duration"], client, pages)


def _read(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw


@dataclass(frozen=True)
class Row:
    """One pair: fixed divided by bad, real and simulated."""

    pair: str
    throughput_real: float
    throughput_simulated: float
    ttft_real: float
    ttft_simulated: float
    itl_real: float | None
    itl_simulated: float | None
    bad_real_req_s: float
    bad_simulated_req_s: float

    @property
    def off_by(self) -> float:
        r = self.throughput_simulated / self.throughput_real
        return max(r, 1 / r)

    @property
    def direction_holds(self) -> bool:
        pairs = [(self.throughput_real, self.throughput_simulated), (self.ttft_real, self.ttft_simulated)]
        return all((real > 1) == (sim > 1) for real, sim in pairs)


def fit(scenarios: dict[str, Scenario]) -> StepFit:
    """Pooled over the captures to start from: only their different mixes separate the coefficients."""
    return fit_step_times([w for _, bad, _ in PAIRS for w in scenarios[bad].windows()])


def _run(scenario: Scenario, times: StepTimes, seed: int) -> LoadReport:
    return simulate(scenario.flags, times, scenario.workload, scenario.duration, seed, scrape_every_s=1e9, drain=True).report


def compare(captures: Path, seed: int = 1) -> tuple[StepFit, list[Row]]:
    """Fits, simulates and returns one row a pair."""
    names = {name for _, bad, fixed in PAIRS for name in (bad, fixed)}
    scenarios = {name: load(captures / name) for name in sorted(names)}
    fitted = fit(scenarios)
    rows = []
    for title, bad_name, fixed_name in PAIRS:
        bad, fixed = scenarios[bad_name], scenarios[fixed_name]
        # The machine was shared: each run's own bad half says how slow it was at the time.
        times = fitted.step_times.scaled(speed_factor(fitted.step_times, bad.windows()))
        sim_bad, sim_fixed = _run(bad, times, seed), _run(fixed, times, seed)
        real_itl = fixed.client["itl_s"] and bad.client["itl_s"]
        rows.append(
            Row(
                title,
                fixed.client["req_per_s"] / bad.client["req_per_s"],
                sim_fixed.requests_per_second / sim_bad.requests_per_second,
                fixed.client["ttft_s"]["p50"] / bad.client["ttft_s"]["p50"],
                sim_fixed.ttft_seconds.p50 / sim_bad.ttft_seconds.p50,
                fixed.client["itl_s"]["p50"] / bad.client["itl_s"]["p50"] if real_itl else None,
                sim_fixed.itl_seconds.p50 / sim_bad.itl_seconds.p50 if real_itl else None,
                bad.client["req_per_s"],
                sim_bad.requests_per_second,
            )
        )
    return fitted, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", type=Path, default=DEFAULT_CAPTURES)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    fitted, rows = compare(args.captures)
    good = all(r.direction_holds and r.off_by <= TOLERANCE for r in rows)
    if args.json:
        print(json.dumps({"fit": asdict(fitted), "rows": [asdict(r) for r in rows], "ok": good}))
        return 0 if good else 1
    t = fitted.step_times
    print(
        f"fit on {fitted.windows} windows: base {t.base * 1e3:.2f} ms, per sequence {t.per_seq * 1e3:.3f} ms, "
        f"per prompt token {t.per_prefill_token * 1e6:.0f} us; median error {fitted.median_error_ratio:.0%}\n"
    )
    print(f"{'pair':34}{'throughput':>18}{'off by':>8}{'TTFT p50':>18}{'ITL p50':>18}{'bad req/s':>16}")
    print(f"{'(real > simulated)':34}")
    for r in rows:
        itl = f"{r.itl_real:.2f} > {r.itl_simulated:.2f}" if r.itl_real and r.itl_simulated else "-"
        print(
            f"{r.pair:34}{f'{r.throughput_real:.2f} > {r.throughput_simulated:.2f}':>18}{r.off_by:>8.2f}"
            f"{f'{r.ttft_real:.3f} > {r.ttft_simulated:.3f}':>18}{itl:>18}"
            f"{f'{r.bad_real_req_s:.2f} > {r.bad_simulated_req_s:.2f}':>16}"
            f"{'' if r.direction_holds else '  WRONG DIRECTION'}"
        )
    print("\nreality check " + ("passed" if good else "FAILED"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
