"""`doctor` over every shared capture, and over a live engine; load for one."""

import asyncio
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perf_service.simulator.loadgen import run_load
from perf_service.simulator.workload import Lengths, Workload

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]
EventLine = Callable[["subprocess.Popen[str]", str], dict[str, Any]]
CAPTURES = Path(__file__).parents[2] / "fixtures" / "captures"

# scenario -> (first cause or None, knob of the first change or None); causes are those of each folder's truth.txt.
EXPECTED = {
    "b_queue_bad_r2": ("batch_limit", "max_num_seqs"),
    "c_kv_bad_r2": ("kv_exhausted", "num_gpu_blocks_override"),
    "d_prefill_bad_r2": ("token_budget_too_small", "max_num_batched_tokens"),
    "d_prefill_bad_r3": ("token_budget_too_small", "max_num_batched_tokens"),
    "e_decode_seqs8": ("batch_limit", "max_num_seqs"),
    "f_prefix_off": ("prefix_cache_off", "enable_prefix_caching"),
    "a_healthy": (None, None),
    "g_idle": (None, None),
    "h_restart": (None, None),
}


@pytest.mark.parametrize("scenario", sorted(EXPECTED))
def test_the_cause_and_the_change_of_real_captures(run: Run, scenario: str) -> None:
    done = run("doctor", str(CAPTURES / scenario), "--output", "json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    causes = [b["cause"] for b in result["analysis"]["bottlenecks"] if b["severity"] in ("medium", "high", "critical")]
    changes = [change["parameter"] for change in result["plan"]["changes"]]
    assert (causes[0] if causes else None, changes[0] if changes else None) == EXPECTED[scenario]


def test_a_live_engine_is_scraped_twice(start: Start, run: Run, event_line: EventLine) -> None:
    engine = start("simulate-engine", "--port", "0", "--max-num-seqs", "2", "--startup-seconds", "0")
    url = f"http://127.0.0.1:{event_line(engine, 'listening')['port']}"
    event_line(engine, "ready")
    workload = Workload(prompt=Lengths.uniform(32, 96), output=Lengths.uniform(16, 32), concurrency=12)

    async def loaded() -> str:
        load = asyncio.create_task(run_load([url], workload, 12.0, seed=3, drain_seconds=0.0))
        await asyncio.sleep(1.5)
        done = await asyncio.to_thread(run, "doctor", url, "--interval", "4", "--output", "json")
        load.cancel()
        assert done.returncode == 0, done.stderr
        return done.stdout

    result = json.loads(asyncio.run(loaded()))
    assert result["analysis"]["bottlenecks"][0]["cause"] == "batch_limit"
    assert result["analysis"]["window"]["duration_seconds"] > 3.5
    assert result["plan"]["changes"][0]["parameter"] == "max_num_seqs"


def test_load_says_what_its_clients_saw(start: Start, run: Run, event_line: EventLine) -> None:
    engine = start("simulate-engine", "--port", "0", "--startup-seconds", "0")
    url = f"http://127.0.0.1:{event_line(engine, 'listening')['port']}"
    event_line(engine, "ready")
    done = run("simulate-load", url, "--clients", "2", "--seconds", "1")
    assert done.returncode == 0, done.stderr
    assert re.match(rf"{url}  [1-9]\d* answers, first token after ", done.stdout)
    done = run("simulate-load", "http://127.0.0.1:9", "--seconds", "1")
    assert done.returncode == 1
    assert "no engine answered" in done.stderr


def test_a_port_where_nobody_listens_is_one_line_and_exit_1(run: Run) -> None:
    done = run("doctor", "http://127.0.0.1:9")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
