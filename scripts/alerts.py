"""The committed alert packs: `alerts.py generate` writes them, `alerts.py check` fails where they are not what the package renders.

The table and the sections in deploy/alerts/README.md stand between two markers and are made the same way.
"""

from __future__ import annotations

import sys
from pathlib import Path

from perf_service.analysis.alerts import PackOptions, alert_pack
from perf_service.analysis.alerts.render import render, table
from perf_service.models.metrics import Engine

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "alerts"
README = FOLDER / "README.md"
BEGIN, END = "<!-- made by scripts/alerts.py: begin -->\n", "<!-- made by scripts/alerts.py: end -->\n"


def contents() -> dict[Path, str]:
    """Every made file with its text."""
    files = {FOLDER / f"{engine.value}.rules.yaml": render(PackOptions(engine)) for engine in Engine}
    head, _, rest = README.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    made = table({engine.value: alert_pack(PackOptions(engine)) for engine in Engine})
    return files | {README: head + BEGIN + made + END + tail}


def main(arguments: list[str]) -> None:
    """Dispatch."""
    match arguments:
        case ["generate"]:
            for path, text in contents().items():
                path.write_text(text)
        case ["check"]:
            stale = [path.name for path, text in contents().items() if not path.exists() or path.read_text() != text]
            if stale:
                sys.exit(f"deploy/alerts: {', '.join(stale)} not as rendered: run scripts/alerts.py generate and commit the result")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
