"""The benchmark programs work and their ratios are sane. No limit on wall time: other work on the machine must not fail a test."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as when it is run as a program
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


async def test_reading_the_last_event_does_not_cost_the_whole_history(tmp_path: Path) -> None:
    figures = await program("store").measure(f"sqlite:///{tmp_path / 'store.db'}", 120)
    assert all(value > 0 for value in figures.values())
    assert figures["the last event of a long history"] < 10 * figures["the first event of a long history"]


async def test_keeping_a_snapshot_costs_no_more_than_a_few_transitions(tmp_path: Path) -> None:
    figures = await program("store").measure(f"sqlite:///{tmp_path / 'store.db'}", 60)
    assert figures["keep a snapshot"] < 20 * figures["a transition with its event"]


def test_the_parser_benchmark_orders_best_and_median() -> None:
    best, middle = program("parser").measure(lambda: sum(range(200_000)), 1, 21)
    assert 0 < best <= middle


def test_the_parser_benchmark_runs_on_any_folder_of_pages() -> None:
    folder = ROOT / "tests/fixtures/captures/g_idle"
    command = [sys.executable, "benchmarks/parser.py", "--rounds", "1", "--pages", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    ratios = {line[:36].strip(): float(line.split()[-1].rstrip("x")) for line in run.stdout.splitlines()[1:]}
    assert ratios["prometheus_client.parser"] == 1.0
    # The order of what was measured, with room for a busy machine.
    assert ratios["typed snapshot, only values differ"] > 5 * ratios["typed snapshot, first page"]
    assert ratios["parser, only values differ"] > 20


def test_the_command_line_starts_without_what_it_does_not_need() -> None:
    code = "import sys, perf_service.cli.main; print([m for m in ('grpc', 'sqlalchemy', 'httpx', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
