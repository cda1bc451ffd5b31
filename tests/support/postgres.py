"""A PostgreSQL of one's own for a while, from the programs that Debian's package installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def program(name: str) -> str | None:
    """Where one of PostgreSQL's programs is; None where it is not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(installed[-1]) if installed else shutil.which(name)


def is_installed() -> bool:
    """Whether `cluster` can start one."""
    return program("initdb") is not None and program("pg_ctl") is not None


@contextmanager
def cluster() -> Iterator[str]:
    """URL, with {database} to fill in, of a cluster on a unix socket in a directory of its own, removed at the end."""
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    if initdb is None or pg_ctl is None:
        raise RuntimeError("initdb and pg_ctl are not installed (apt-get install postgresql)")
    home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        if os.geteuid() == 0:
            shutil.chown(home, "postgres")
        data = home / "data"
        _run([initdb, "-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"])
        settings = f"-c listen_addresses='' -c unix_socket_directories={home} -c fsync=off -c max_connections=60"
        _run([pg_ctl, "-D", str(data), "-l", str(home / "log"), "-w", "-o", settings, "start"])
        try:
            yield f"postgresql+psycopg://postgres@/{{database}}?host={home}"
        finally:
            _run([pg_ctl, "-D", str(data), "-m", "immediate", "-w", "stop"])
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _run(command: Sequence[str]) -> None:
    """As a user who may run a PostgreSQL server: it refuses to be root."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, cwd="/", timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")
