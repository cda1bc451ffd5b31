"""Whole situations of the diagnosis benchmark: simulated, labelled by intervention, answered."""

from pathlib import Path

import pytest

from benchmarks.diagnosis.captures import find, judge_run, read_labels
from benchmarks.diagnosis.judging import RIGHT, judge
from benchmarks.diagnosis.situations import Maker, batch_limit, kv_small, prefix_off, rejections, reservation
from benchmarks.diagnosis.traps import hang, restart
from perf_service.models.analysis import Cause

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("maker", "seed", "cause"),
    [
        (batch_limit, 1_000_001, Cause.BATCH_LIMIT),
        (kv_small, 1_000_001, Cause.KV_EXHAUSTED),
        (prefix_off, 1_000_001, Cause.PREFIX_CACHE_OFF),
        (reservation, 1_000_001, Cause.RESERVATION_LIMIT),
        (rejections, 1_000_001, Cause.REJECTIONS),
    ],
)
def test_the_planted_fault_is_the_one_whose_fix_cures(maker: Maker, seed: int, cause: Cause, tmp_path: Path) -> None:
    outcome, pages = judge(seed, maker, False, tmp_path)
    assert outcome.label.accepted[0] is cause
    assert len(pages[0]) > 5
    again, _ = judge(seed, maker, False, tmp_path)
    assert again == outcome, "from the cache"


@pytest.mark.parametrize("maker", [restart, hang])
def test_a_trap_is_scored_by_its_own_answer(maker: Maker, tmp_path: Path) -> None:
    outcome, _ = judge(1_000_001, maker, False, tmp_path)
    assert outcome.group == "trap"
    assert outcome.with_args is not None
    assert outcome.with_args.grade == RIGHT


def test_every_real_run_of_the_fixtures_is_answered_rightly() -> None:
    labels = read_labels((ROOT / "benchmarks" / "diagnosis" / "labels.csv").read_text(encoding="utf-8").splitlines())
    root = ROOT / "tests" / "fixtures"
    wrong = []
    for label in labels:
        folder = find(root, label.run)
        assert folder is not None, label.run
        outcome, _ = judge_run(folder, label)
        wrong += [(label.run, told) for told in (outcome.with_args, outcome.without_args) if told is None or told.grade != RIGHT]
    assert not wrong
