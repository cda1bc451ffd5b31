"""A real Prometheus (Debian's package) on a spare port, with a folder of its own, for tests. Ended by its process, whatever happens."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_ports

REQUIRE_VARIABLE = "PERF_SERVICE_REQUIRE_PROMETHEUS"


def prometheus_program(name: str = "prometheus") -> str:
    """Path of `prometheus` or `promtool`. Skips the test where it is missing; fails it where the variable says that it must be there."""
    found = shutil.which(name) or (f"/usr/bin/{name}" if Path(f"/usr/bin/{name}").exists() else None)
    if found is None:
        reason = f"{name} is not installed (Debian: apt-get install --no-install-recommends prometheus)"
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_VARIABLE}=1 says that it must be")
        pytest.skip(reason)
    return found


def end_with_parent() -> None:
    """For `preexec_fn`: the process ends with the test run, also where that is killed and can clean nothing up (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class PrometheusServer:
    """A running Prometheus.

    A target that is added while it runs is scraped up to five seconds later: its discovery gathers changes for that long.
    """

    def __init__(self, url: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self.folder = folder
        self.process = process

    def get(self, path: str, **parameters: str | float) -> Any:
        """The `data` of an API call. AssertionError with what it said where it refuses."""
        query = urllib.parse.urlencode({name: str(value) for name, value in parameters.items()})
        try:
            with urllib.request.urlopen(f"{self.url}{path}?{query}", timeout=10) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from error
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """The result of an instant query."""
        found = self.get("/api/v1/query", query=expression, **({} if at is None else {"time": at}))
        result: list[dict[str, Any]] = found["result"]
        return result

    def wait_until(self, expression: str, *, seconds: float = 60.0) -> list[dict[str, Any]]:
        """Wait until an instant query has a result; the result."""
        deadline = time.monotonic() + seconds
        while not (found := self.query(expression)):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"{expression} had no result in {seconds} s; {self.targets()}"
            time.sleep(0.1)
        return found

    def targets(self) -> list[tuple[str, str, str]]:
        """Scrape URL, health and last error of each target."""
        active = self.get("/api/v1/targets")["activeTargets"]
        return [(target["scrapeUrl"], target["health"], target["lastError"]) for target in active]

    def reload(self) -> None:
        """Read the configuration and the rule files again."""
        request = urllib.request.Request(f"{self.url}/-/reload", method="POST")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "prometheus.log").read_text(errors="replace")[-4000:]


@contextmanager
def running_prometheus(
    folder: Path,
    scrape_configs: Sequence[Mapping[str, Any]],
    *,
    rule_files: Sequence[Path] = (),
    scrape_interval: str = "1s",
    evaluation_interval: str = "1s",
    arguments: Sequence[str] = (),
) -> Iterator[PrometheusServer]:
    """A Prometheus that scrapes as told; ready to be asked. `scrape_configs` as in prometheus.yml."""
    program = prometheus_program()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "global": {"scrape_interval": scrape_interval, "scrape_timeout": scrape_interval, "evaluation_interval": evaluation_interval},
        "scrape_configs": list(scrape_configs),
        "rule_files": [str(path) for path in rule_files],
    }
    path = folder / "prometheus.yml"
    path.write_text(json.dumps(configuration))  # JSON is YAML
    (port,) = free_ports(1)
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--web.enable-lifecycle",
                "--log.level=warn",
                *arguments,
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            preexec_fn=end_with_parent,
        )
    server = PrometheusServer(f"http://127.0.0.1:{port}", folder, process)
    try:
        _wait_ready(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(server: PrometheusServer, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        assert server.process.poll() is None, f"prometheus ended: {server.log()}"
        try:
            with urllib.request.urlopen(f"{server.url}/-/ready", timeout=1):
                return
        except OSError:
            assert time.monotonic() < deadline, f"prometheus was not ready in {seconds} s: {server.log()}"
            time.sleep(0.05)
