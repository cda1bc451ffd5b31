"""`perf-service demo`: the whole product as a stranger sees it, and nothing left behind, not even after Ctrl-C."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

Start = Callable[..., "subprocess.Popen[str]"]


def left_over(marker: Path) -> list[str]:
    """Command lines of running processes that name the demo's folder or work below it."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and process.name != str(os.getpid()):
            try:
                text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:
                continue
            if str(marker).encode() in text:
                found.append(text[:200].decode(errors="replace"))
    return found


def test_the_short_demo_proves_the_change_and_leaves_nothing(start: Start, tmp_path: Path) -> None:
    demo = start("demo", "--replicas", "2", "--clients", "6", "--observe", "5", "--bake", "6", TMPDIR=str(tmp_path), COLUMNS="120")
    out, err = demo.communicate(timeout=400)
    assert demo.returncode == 0, out[-3000:] + err
    assert "batch limit" in out
    assert re.search(r"max_num_seqs: 2 -> \d+", out)
    assert "proven better" in out
    assert re.search(r"ttft mean .*x 0\.\d+", out)
    assert [path.name for path in tmp_path.glob("perf-service-demo-*")] == []
    assert left_over(tmp_path) == []


def test_ctrl_c_ends_everything(start: Start, tmp_path: Path) -> None:
    demo = start("demo", "--replicas", "2", TMPDIR=str(tmp_path), PYTHONUNBUFFERED="1")
    assert demo.stdout is not None
    for line in demo.stdout:
        if "load:" in line:  # engines and server are up
            break
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=90)
    assert demo.returncode == 130
    assert err.strip() == "perf-service: interrupted"
    assert [path.name for path in tmp_path.glob("perf-service-demo-*")] == []
    assert left_over(tmp_path) == []
