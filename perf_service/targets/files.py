"""State files that survive a crash at any instruction: replaced as a whole, flushed to the disk, locked across processes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from perf_service.models.config import EngineConfig, Setting, Source
from perf_service.models.errors import ErrorReason, TargetError

_TICK_SECONDS = 0.05


def safe_name(name: str) -> str:
    """A file name for any id, one to one; never "." or "..", never with a slash."""
    return quote(name, safe="").replace(".", "%2E") or "%"


def write_atomically(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a JSON file: after a crash there is the old one or the new one. Raises TargetError TARGET_UNAVAILABLE."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise unusable(path, error) from error


def read_document(path: Path) -> dict[str, Any] | None:
    """A JSON file, None where there is none. Raises TargetError TARGET_UNAVAILABLE."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise unusable(path, error) from error
    if not isinstance(document, dict):
        raise unusable(path, ValueError("it holds no JSON object"))
    return document


@contextlib.contextmanager
def locked(path: Path, *, timeout_seconds: float = 5.0) -> Iterator[None]:
    """Hold an exclusive lock file; the kernel frees it when the holder dies. Blocks: not for the event loop."""
    deadline = time.monotonic() + timeout_seconds
    with _opened(path) as descriptor:
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise TargetError(
                    ErrorReason.TARGET_UNAVAILABLE,
                    f"{path} has been locked by another process for {timeout_seconds:g} s: does a second server use this state directory?",
                    {"path": str(path)},
                )
            time.sleep(0.01)
        yield


@contextlib.asynccontextmanager
async def hold(path: Path) -> AsyncIterator[None]:
    """As `locked`, for the event loop: waits for as long as another process, or another task, holds it."""
    with _opened(path) as descriptor:
        while not _try_lock(descriptor):  # noqa: ASYNC110 - other processes hold it too
            await asyncio.sleep(_TICK_SECONDS)
        yield


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise unusable(path, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Take the lock of an open file if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unusable(path: Path, error: Exception) -> TargetError:
    """A state file or directory that cannot be used."""
    return TargetError(
        ErrorReason.TARGET_UNAVAILABLE,
        f"the target's state at {path} cannot be used: {error}. Check the directory's permissions and free space; "
        "a damaged file may be removed once no engine of its replica runs.",
        {"path": str(path)},
    )


def config_to_document(config: EngineConfig) -> dict[str, Any]:
    """Knob -> [value, source]."""
    return {name: [setting.value, setting.source.value] for name, setting in config.settings.items()}


def config_from_document(document: Mapping[str, Any]) -> EngineConfig:
    """The inverse of `config_to_document`."""
    return EngineConfig({name: Setting(value, Source(source)) for name, (value, source) in document.items()})
