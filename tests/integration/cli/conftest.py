"""The command as users run it: sub-processes, ended by their pid whatever happens."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = (sys.executable, "-m", "perf_service.cli")
Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `perf-service ...` in the background; ended after the test."""
    begun: list[subprocess.Popen[str]] = []

    def call(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
            # What a shell starts in the background ignores the interrupt, and so would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        begun.append(process)
        return process

    yield call
    for process in begun:
        if process.poll() is None:
            process.terminate()
    for process in begun:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `perf-service ...` to its end."""

    def call(*arguments: str, timeout: float = 60.0, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            cwd=tmp_path,
            env={**os.environ, **environment},
            check=False,
        )

    return call


@pytest.fixture
def event_line() -> Callable[["subprocess.Popen[str]", str], dict[str, Any]]:
    """The JSON line with an event on a process's stdout."""

    def call(process: "subprocess.Popen[str]", event: str) -> dict[str, Any]:
        assert process.stdout is not None
        for line in process.stdout:
            found: dict[str, Any] = json.loads(line)
            if found.get("event") == event:
                return found
        assert process.stderr is not None
        raise AssertionError(f"ended without {event!r}: {process.stderr.read()}")

    return call
