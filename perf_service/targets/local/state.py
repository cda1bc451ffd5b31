"""What the supervisor knows of one replica, on disk: written before an effect (the intent) and after it (the fact)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from perf_service.models.config import EngineConfig
from perf_service.models.errors import ErrorReason, TargetError
from perf_service.targets.files import config_from_document, config_to_document, locked, read_document, write_atomically
from perf_service.targets.local.processes import ProcessId

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Intent:
    """A change that was accepted and is not finished. It survives a crash and is then taken up again."""

    op_id: str
    config: EngineConfig
    generation: int
    accepted_at: float  # unix seconds


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """One replica. `config` is that of the process (`process_generation`), or of the last one where none runs."""

    config: EngineConfig
    generation: int = 0  # of `config`; 0: this target has never started the replica
    fence: int = 0
    wanted: bool = False  # whether a process should run
    intent: Intent | None = None
    process: ProcessId | None = None
    process_generation: int = 0
    proven: bool = False  # this process has answered a completion
    restarts: int = 0  # of this generation, that nobody asked for
    restart_at: float = 0.0  # unix seconds: not before
    last_op_id: str = ""  # of the last finished change
    failure: str = ""  # why the last change ended without a running engine; empty: it did not
    failure_reason: str = ""
    note: str = ""  # for people: the last thing that went wrong by itself


_PLAIN = (
    "generation", "fence", "wanted", "process_generation", "proven", "restarts", "restart_at", "last_op_id", "failure",
    "failure_reason", "note",
)  # fmt: skip


class StateFile:
    """The record of one replica. Every change is read-modify-write under a lock that excludes other processes."""

    def __init__(self, path: Path, initial: EngineConfig) -> None:
        self.path = path
        self._lock = path.with_suffix(".lock")
        self._initial = initial

    def read(self) -> ReplicaRecord:
        """The record as it is now; a first one with the replica's known config where there is no file. Raises TargetError."""
        document = read_document(self.path)
        if document is None:
            return ReplicaRecord(self._initial)
        try:
            if document["format"] != _FORMAT:
                raise ValueError(f"it has format {document['format']}, and this version knows {_FORMAT}")
            intent, process = document["intent"], document["process"]
            return ReplicaRecord(
                config=config_from_document(document["config"]),
                intent=Intent(**{**intent, "config": config_from_document(intent["config"])}) if intent else None,
                process=ProcessId(**process) if process else None,
                **{name: document[name] for name in _PLAIN if name in document},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TargetError(
                ErrorReason.TARGET_UNAVAILABLE,
                f"the state file {self.path} cannot be used: {error}. Was it written by a newer version? "
                "It may be removed once no engine of this replica runs.",
                {"path": str(self.path)},
                permanent=True,
            ) from error

    def update(self, change: Callable[[ReplicaRecord], ReplicaRecord]) -> ReplicaRecord:
        """Apply `change` to the present record and write it; what `change` raises leaves the file as it was. Blocks."""
        with locked(self._lock):
            before = self.read()
            after = change(before)
            if after != before:
                self._write(after)
            return after

    def _write(self, record: ReplicaRecord) -> None:
        intent = record.intent
        document: dict[str, Any] = {
            "format": _FORMAT,
            "config": config_to_document(record.config),
            "intent": {
                "op_id": intent.op_id,
                "config": config_to_document(intent.config),
                "generation": intent.generation,
                "accepted_at": intent.accepted_at,
            }
            if intent
            else None,
            "process": asdict(record.process) if record.process else None,
            **{name: getattr(record, name) for name in _PLAIN},
        }
        write_atomically(self.path, document)


def finished(record: ReplicaRecord, intent: Intent, **facts: Any) -> ReplicaRecord:
    """The record once an intent has come to its end, well or badly."""
    return replace(record, config=intent.config, generation=intent.generation, intent=None, last_op_id=intent.op_id, **facts)
