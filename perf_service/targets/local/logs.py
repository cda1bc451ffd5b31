"""The log files of one replica, one a generation of its config."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LINES: Final = 8
_KEPT: Final = 5


@dataclass(frozen=True, slots=True)
class ReplicaLogs:
    """`prefix` is their path without generation and ".log"."""

    prefix: Path

    def of(self, generation: int) -> Path:
        """The log of one generation, which need not be there."""
        return Path(f"{self.prefix}{generation}.log")

    def last_lines(self, generation: int) -> str:
        """The end of a generation's log, for a message."""
        try:
            with self.of(generation).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                text = file.read().decode(errors="replace")
        except OSError:
            return "It left no log."
        lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()][-_LINES:]
        return "Its last log lines: " + " | ".join(lines) if lines else f"Its log {self.of(generation)} is empty."

    def drop_old(self, generation: int) -> None:
        """Delete those before the last few: they would fill the disk in the long run."""
        for path in self.prefix.parent.glob(f"{self.prefix.name}*.log"):
            number = path.name.removeprefix(self.prefix.name).removesuffix(".log")
            if number.isdigit() and int(number) <= generation - _KEPT:
                path.unlink(missing_ok=True)
