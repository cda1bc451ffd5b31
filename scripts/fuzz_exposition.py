"""Fuzz the collectors' reading of metrics pages: no crash, no hang, no growing memory, the same values as prometheus_client.

    python scripts/fuzz_exposition.py --seconds 60            mutations of the saved pages
    python scripts/fuzz_exposition.py --seconds 600 --atheris  guided by coverage (pip install atheris)

A page that breaks a promise is written to --crashes and the run ends with 1. What is checked: tests/support/exposition_fuzz.py.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> int:
    """Fuzz until the time is over or something breaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0 takes the time")
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--corpus", type=Path, help="folder where atheris keeps the pages that reached something new")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"))
    options = parser.parse_args()
    return _guided(options) if options.atheris else _mutated(options)


def _mutated(options: argparse.Namespace) -> int:
    from tests.support.exposition_fuzz import Checker, Mutator

    seed = options.seed or int(time.time())
    checker, mutator = Checker(), Mutator(seed)
    end = time.monotonic() + options.seconds
    shown = time.monotonic() + 10.0
    before = 0.0
    while time.monotonic() < end:
        page = mutator.page()
        try:
            checker.check(page)
        except Exception as error:
            print(f"seed {seed}, execution {checker.executions}: {type(error).__name__}: {error}\n{_kept(options.crashes, page)}")
            return 1
        if checker.executions == 300:
            before = _megabytes()
        if time.monotonic() > shown:
            shown += 10.0
            print(f"{checker.executions} executions, peak {_megabytes():.0f} MB", flush=True)
    print(f"seed {seed}: {checker.executions} executions, none broke a promise; peak memory {before:.0f} -> {_megabytes():.0f} MB")
    return 0


def _guided(options: argparse.Namespace) -> int:
    import atheris

    with atheris.instrument_imports(include=["perf_service.collectors"]):
        from tests.support.exposition_fuzz import MAX_BODY_BYTES, TOKENS, Checker, seeds

    checker = Checker()

    def one(data: bytes) -> None:
        try:
            checker.check(data)
        except Exception:
            print(_kept(options.crashes, data))
            raise

    with tempfile.TemporaryDirectory() as scratch:
        corpus = options.corpus or Path(scratch) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for page in seeds():
            # Small pieces: a whole page takes too long to be mutated often.
            lines = page.split(b"\n")
            for start in range(0, len(lines), 40):
                piece = b"\n".join(lines[start : start + 40])
                (corpus / hashlib.sha256(piece).hexdigest()[:16]).write_bytes(piece)
        words = Path(scratch) / "words"
        words.write_text("".join(f'"{_escaped(token)}"\n' for token in TOKENS if len(token) < 60))
        limits = [f"-max_total_time={options.seconds:.0f}", f"-max_len={min(MAX_BODY_BYTES, 65536)}", "-rss_limit_mb=2048", "-timeout=30"]
        atheris.Setup([sys.argv[0], *limits, f"-dict={words}", f"-artifact_prefix={scratch}/", str(corpus)], one)
        atheris.Fuzz()
    return 0


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def _kept(folder: Path, page: bytes) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(page).hexdigest()[:16]}.prom"
    path.write_bytes(page)
    return f"The page is in {path}."


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    raise SystemExit(main())
