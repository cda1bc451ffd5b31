"""Facts of /proc."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perf_service.targets.local import processes
from perf_service.targets.local.processes import ProcessId

pytestmark = pytest.mark.skipif(not processes.supported(), reason="the local target needs /proc")


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[ProcessId]:
    """A process whose name is made to be misread."""
    program = tmp_path / "a) Z 1 (b"
    shutil.copy(shutil.which("sleep") or "", program)
    process = processes.spawn([str(program), "60"], log=tmp_path / "r.1.log", variables={"PERF_SERVICE_REPLICA": "mark"}, environment=None)
    yield process
    processes.send(process, signal.SIGKILL)
    while processes.alive(process):
        pass


def test_a_process_is_known_by_more_than_its_pid(sleeper: ProcessId) -> None:
    assert processes.alive(sleeper)
    assert processes.identify(sleeper.pid) == sleeper
    assert not processes.alive(replace(sleeper, start_ticks=sleeper.start_ticks - 1))
    assert not processes.alive(replace(sleeper, boot_id="another boot"))
    assert not processes.alive(None)


def test_a_signal_to_another_process_with_that_pid_is_not_sent(sleeper: ProcessId) -> None:
    processes.send(replace(sleeper, start_ticks=1), signal.SIGKILL)
    assert processes.alive(sleeper)


def test_an_ended_child_is_dead_at_once_and_tells_how_it_ended(sleeper: ProcessId) -> None:
    processes.send(sleeper, signal.SIGTERM)
    while processes.alive(sleeper):
        pass
    assert processes.reap(sleeper.pid) == -signal.SIGTERM
    assert processes.identify(sleeper.pid) is None


def test_it_is_found_by_leader_variable_and_log(sleeper: ProcessId, tmp_path: Path) -> None:
    nowhere = tmp_path / "x."
    assert processes.belonging("other", nowhere, sleeper) == [sleeper]
    while not processes.belonging("mark", nowhere, None):
        pass  # the variable shows once env(1) has become the program
    assert processes.belonging("mark", nowhere, None) == [sleeper]
    assert processes.belonging("other", tmp_path / "r.", None) == [sleeper]
    assert processes.belonging("other", nowhere, None) == []
    assert processes.belonging("mar", nowhere, None) == [], "a mark that another one begins with"


def test_who_listens_on_a_port() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert processes.listener_of(port) is None, "bound, but not listening"
        listener.listen()
        assert processes.listener_of(port) == os.getpid()
    assert "py" in processes.command_of(os.getpid())
