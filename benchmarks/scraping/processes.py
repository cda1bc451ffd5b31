"""Child processes that are talked to in JSON lines, and what the system knows of them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """One process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def line(self) -> Any:
        """Its next answer."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            raise RuntimeError(f"process {self.pid} ended with {self.process.wait()}")
        return json.loads(text)

    def ask(self, **command: object) -> Any:
        """Send a command and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.line()

    def cpu_seconds(self) -> float:
        """User and system time of all of its threads."""
        return cpu_seconds(self.pid)

    def rss_bytes(self) -> int:
        """Resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE


@contextlib.contextmanager
def running(command: Sequence[str], *, core: int | None = None, log: Path | None = None) -> Iterator[Child]:
    """A process, on one core where told so; ended with the block."""
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    output = log.open("w") if log else None
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output or subprocess.PIPE,
        stderr=subprocess.STDOUT if log else None,
        text=True,
        preexec_fn=pin,
    )
    try:
        yield Child(process)
    finally:
        if process.stdin:
            with contextlib.suppress(OSError):
                process.stdin.close()
        if log:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if output:
            output.close()


def python(name: str, *arguments: object) -> list[str]:
    """The command of one of the programs beside this file."""
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def cores() -> tuple[int, int]:
    """A core for what is measured and one for the rest (the same where there is only one)."""
    found = sorted(os.sched_getaffinity(0))
    return found[0], found[-1]
