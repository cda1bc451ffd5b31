"""Engine processes on this host: started in a session of their own, found again after our restart, ended with all they left behind.

A process is known by its pid, its start time and the boot (a pid alone may have been given to somebody else). Linux only: all facts
are read from /proc.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
REPLICA_VARIABLE: Final = "PERF_SERVICE_REPLICA"  # set in every engine: names its state file

# Our own children, kept so that they are reaped; those of an earlier incarnation are init's.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for ever: `start_ticks` since boot (field 22 of /proc/PID/stat)."""

    pid: int
    start_ticks: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_ticks: int


def supported() -> bool:
    """Whether this host has what the supervisor needs."""
    return (_PROC / "self" / "stat").exists()


def boot_id() -> str:
    """Changes with every boot of the host."""
    with contextlib.suppress(OSError):
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return ""


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The command name stands in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def _all_stats() -> Iterator[_Stat]:
    for name in os.listdir(_PROC):
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            yield stat


def identify(pid: int) -> ProcessId | None:
    """The identity of a running process, None where it is gone (or only waits to be reaped)."""
    stat = _stat(pid)
    return ProcessId(pid, stat.start_ticks, boot_id()) if stat and stat.state not in "ZX" else None


def alive(process: ProcessId | None) -> bool:
    """Whether this very process still runs."""
    if process is None:
        return False
    reap(process.pid)
    return identify(process.pid) == process


def reap(pid: int) -> int | None:
    """The exit code of a child of ours that has ended (negative: the signal), None where it runs or is not ours."""
    child = _children.get(pid)
    if child is None:
        return None
    return child.poll()


def spawn(argv: Sequence[str], *, log: Path, variables: Mapping[str, str], environment: Mapping[str, str] | None) -> ProcessId:
    """Start a program in its own session, output appended to `log`. It outlives us. Raises OSError.

    `variables` come on top of `environment` (None: ours) by way of env(1), which becomes the program itself.
    """
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), *argv]
    with log.open("ab") as output:
        child = subprocess.Popen(  # noqa: S603 - the operator's own command, split without a shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=None if environment is None else dict(environment),
        )
    for pid in [pid for pid, earlier in _children.items() if earlier.poll() is not None]:
        del _children[pid]
    _children[child.pid] = child
    # It cannot have been replaced: a child of ours stays, at least as a zombie, until we reap it.
    stat = _stat(child.pid)
    return ProcessId(child.pid, stat.start_ticks if stat else 0, boot_id())


def belonging(replica: str, logs: Path, leader: ProcessId | None) -> list[ProcessId]:
    """Every process of a replica: its leader's session, group and descendants, and whatever carries its variable or writes to its logs.

    Engines leave children behind when their server is killed, and rename them (which overwrites the environment that /proc shows), so no
    single mark finds them all. `logs` is the path of the log files without their number.
    """
    stats = {stat.pid: stat for stat in _all_stats() if stat.state not in "ZX"}
    own = os.getpid()
    found: set[int] = set()
    if leader is not None:
        # Also after the leader's death: its children keep its session and group. A pid that was given out again leads a session of its own.
        reused = leader.pid in stats and stats[leader.pid].start_ticks != leader.start_ticks
        if leader.boot_id == boot_id() and not reused:
            found = {s.pid for s in stats.values() if leader.pid in (s.pid, s.group, s.session)}
    marker = f"{REPLICA_VARIABLE}={replica}".encode()
    for pid in stats.keys() - found:
        if _carries(pid, marker) or _writes_to(pid, str(logs)):
            found.add(pid)
    grown = True
    while grown:
        children = {s.pid for s in stats.values() if s.parent in found} - found
        grown = bool(children)
        found |= children
    boot = boot_id()
    return [ProcessId(pid, stats[pid].start_ticks, boot) for pid in sorted(found - {own})]


def _carries(pid: int, marker: bytes) -> bool:
    try:
        return marker in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _writes_to(pid: int, logs: str) -> bool:
    for descriptor in ("1", "2"):
        with contextlib.suppress(OSError):
            target = os.readlink(_PROC / str(pid) / "fd" / descriptor).removesuffix(" (deleted)")
            if target.startswith(logs) and target.removeprefix(logs).removesuffix(".log").isdigit():
                return True
    return False


def send(process: ProcessId, number: signal.Signals) -> None:
    """Signal a process unless it is gone."""
    if alive(process):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def command_of(pid: int) -> str:
    """A process's command line, for people; empty where it may not be read."""
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:120]
    return ""


def listener_of(port: int) -> int | None:
    """The pid that listens on a TCP port, None where nobody does or it is not visible to this user."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    if not sockets:
        return None
    for name in os.listdir(_PROC):
        if name.isdigit():
            with contextlib.suppress(OSError):
                for descriptor in os.listdir(f"/proc/{name}/fd"):
                    with contextlib.suppress(OSError):
                        if os.readlink(f"/proc/{name}/fd/{descriptor}") in sockets:
                            return int(name)
    return None
