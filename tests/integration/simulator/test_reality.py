"""The simulator moves as the real engine moved between the captured pairs of runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "simulator_reality.py"


def test_every_real_pair_is_followed_in_direction_and_within_half_as_much_again() -> None:
    done = subprocess.run([sys.executable, str(BENCHMARK), "--json"], capture_output=True, text=True, timeout=120)
    result = json.loads(done.stdout)
    rows = {row["pair"][0] + row["pair"][-3:]: row for row in result["rows"]}
    assert len(rows) == 6
    for name, row in rows.items():
        ratio = row["throughput_simulated"] / row["throughput_real"]
        assert 1 / 1.5 <= ratio <= 1.5, (name, row)
        assert (row["ttft_real"] > 1) == (row["ttft_simulated"] > 1), (name, row)
        assert 0.8 < row["bad_simulated_req_s"] / row["bad_real_req_s"] < 1.4, (name, row)
    trade_off = next(r for r in result["rows"] if "trade-off" in r["pair"])
    assert trade_off["itl_simulated"] < 1 < trade_off["ttft_simulated"]
    assert done.returncode == 0
