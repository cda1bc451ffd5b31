"""The bookkeeping of the diagnosis benchmark: labels files, intervals, seeds, peers' words."""

import random
from dataclasses import replace

import pytest

from benchmarks.diagnosis import __main__ as program
from benchmarks.diagnosis import captures, judging, labels, peers, score
from benchmarks.diagnosis.drawing import Draw, Objective, accelerators, kv_flags, kv_tokens
from benchmarks.diagnosis.fit_physics import fit
from benchmarks.diagnosis.running import Seen
from benchmarks.diagnosis.situations import FAULTS, MORE, batch_limit, schedule
from benchmarks.diagnosis.traps import CHECKS, TRAPS, tampered
from perf_service.models.analysis import Cause
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram
from perf_service.models.window import GaugeStats, Window

HEADER = "run,causes,args_causes,flag,healthy,slos,args\n"


def test_a_labels_file_tells_causes_flag_objectives_and_args() -> None:
    lines = [
        "# a comment\n",
        HEADER,
        "one,kv_exhausted|batch_limit,batch_limit,max_num_seqs,no,ttft<1|itl<50ms,--max-num-seqs 4\n",
        "two,,,,,,\n",
    ]
    one, two = captures.read_labels(lines)
    assert one.causes == (Cause.KV_EXHAUSTED, Cause.BATCH_LIMIT)
    assert one.truth(args_known=True).accepted == (Cause.BATCH_LIMIT,)
    assert one.truth(args_known=False).accepted == one.causes
    assert [str(slo) for slo in one.slos] == ["ttft < 1", "itl < 0.05"]
    assert two.healthy == "yes"
    assert two.truth(args_known=True).status == "fine"


def test_labels_may_be_json_lines() -> None:
    (label,) = captures.read_labels(['{"run": "r", "causes": ["overload", "decode_bound"], "healthy": false}'])
    assert label.causes == (Cause.OVERLOAD, Cause.DECODE_BOUND)
    assert label.healthy == "no"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("r,gremlins,,,no,,", "gremlins"),
        ("r,,,,no,,", "contradict"),
        ("r,overload,,,yes,,", "contradict"),
        ("r,,,,perhaps,,", "write yes, no or calm"),
    ],
)
def test_a_wrong_label_is_told_with_its_run(line: str, told: str) -> None:
    with pytest.raises(captures.LabelError, match=told):
        captures.read_labels([HEADER, line])


def test_launch_arguments_come_typed() -> None:
    config = captures.launch_args("vllm serve m --max-num-seqs 8 --no-enable-prefix-caching --gpu-memory-utilization=0.9 --enforce-eager")
    assert config.values() == {"max_num_seqs": 8, "enable_prefix_caching": False, "gpu_memory_utilization": 0.9, "enforce_eager": True}


def test_the_wilson_interval_is_the_published_one() -> None:
    assert score.wilson(0, 60) == pytest.approx((0.0, 0.0602), abs=1e-4)
    assert score.wilson(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-4)
    assert score.wilson(0, 0) == (0.0, 1.0)


def test_tuning_and_scoring_seeds_are_disjoint_and_every_kind_is_drawn() -> None:
    tuning = program.jobs(400, program.TUNING_SEED, wide=False)
    scoring = program.jobs(1000, program.scoring_seed(), wide=True)
    assert not {seed for seed, _, _ in tuning} & {seed for seed, _, _ in scoring}
    assert len({seed for seed, _, _ in scoring}) == 1000
    assert {name for _, name, _ in tuning} == {maker.__name__ for maker, _ in (*FAULTS, *TRAPS, *MORE)}
    assert {name for _, name, _ in tuning} == set(program._MAKERS)


def test_the_schedule_keeps_the_shares_and_mixes_them() -> None:
    order = schedule(FAULTS)
    assert {maker: order.count(maker) for maker, _ in FAULTS} == dict(FAULTS)
    assert len(set(order[: len(FAULTS)])) > len(FAULTS) / 2


def test_a_seed_gives_one_situation_and_the_scoring_ranges_are_wider() -> None:
    assert batch_limit(Draw(7, wide=False)) == batch_limit(Draw(7, wide=False))
    narrow = [Draw(seed, wide=False).between(1, 10) for seed in range(300)]
    wide = [Draw(seed, wide=True).between(1, 10) for seed in range(300)]
    assert 1 <= min(narrow) <= max(narrow) <= 10
    assert min(wide) < 1
    assert max(wide) > 10


def test_the_pool_is_set_by_each_engines_own_knob() -> None:
    for engine in ("vllm", "sglang", "tgi"):
        flags = replace(batch_limit(Draw(1, wide=False), engine).flags, max_model_len=2048)
        assert kv_tokens(kv_flags(flags, 50_000)) == pytest.approx(50_000, rel=0.01)
        assert kv_tokens(kv_flags(flags, 1)) >= 2048


def test_the_committed_physics_are_plausible() -> None:
    times = accelerators()
    assert len(times) > 100
    assert all(1e-3 < t.base < 0.05 and 1e-6 < t.per_prefill_token < 2e-3 for t in times)


def test_physics_are_fitted_per_layout() -> None:
    layout = {"backend": "vllm", "system": "h100", "isl": "1000", "osl": "100", "silicon_ttft_ms": "110"}
    rows = [layout | {"batch_size": str(batch), "silicon_tpot_ms": str(10 + 0.2 * batch)} for batch in (4, 8, 16)]
    assert fit(rows) == [("vllm", "h100", 10.0, 0.2, 100.0)]
    assert fit(rows[:2]) == []


def test_badness_counts_what_is_missed_only_and_errors() -> None:
    goals = (Objective("ttft", "mean", 1.0), Objective("itl", "mean", 0.05))
    seen = Seen({"ttft_mean": 2.718281828, "itl_mean": 0.01}, 100, 0.0, 1.0)
    assert labels.badness(seen, goals) == pytest.approx(1.0)
    assert labels.badness(replace(seen, error_ratio=0.1), goals) > 2


def test_the_pace_of_answers_of_a_few_tokens_means_nothing() -> None:
    assert not labels.paced(Seen({"itl_n": 100.0}, 50, 0.0, 1.0))
    assert labels.paced(Seen({"itl_n": 500.0}, 50, 0.0, 1.0))


def _told(seen: dict[str, Seen]) -> labels.Label:
    """The label of a batch-limited situation whose variants were seen like this; what is not given equals the base."""
    s = replace(batch_limit(Draw(5, wide=False), "vllm"), wishes=())
    return labels.label(s, (Objective("ttft", "mean", 0.1),), lambda name, _: seen.get(name, seen["base"]))


def _seen(ttft: float, e2e: float = 2.0) -> Seen:
    return Seen({"ttft_mean": ttft, "e2e_mean": e2e, "itl_n": 5000.0}, 50, 0.0, 1.0)


def test_the_cause_is_the_one_whose_fix_cures() -> None:
    label = _told({"base": _seen(1.0), "more_seqs": _seen(0.08)})
    assert label.accepted == (Cause.BATCH_LIMIT,)
    assert not label.no_flag


def test_a_fix_that_only_moves_the_wait_cures_nothing() -> None:
    label = _told({"base": _seen(1.0), "more_seqs": _seen(0.08, e2e=3.0), "less_load": _seen(0.05)})
    assert label.no_flag
    assert label.accepted == (Cause.OVERLOAD,)


def test_what_cannot_be_told_is_dropped() -> None:
    assert _told({"base": _seen(1.0), "again": _seen(0.2), "more_seqs": _seen(0.5)}).why == "within the noise of an A/A pair"
    assert _told({"base": _seen(1.0)}).why == "nothing helps"
    assert _told({"base": _seen(0.11)}).why == "objectives hardly missed"
    assert _told({"base": _seen(0.095)}).why == "objectives hardly met"
    assert _told({"base": _seen(0.05)}).status == "fine"


def _window(**changes: object) -> Window:
    times = Histogram(100, 300, (1.0, 5.0), (0, 100))
    pace = Histogram(100, 1, (0.02, 0.1), (100, 100))
    full = {
        "gauges": {Gauge.WAITING_REQUESTS: GaugeStats(5, 0, 9, 5, 10)},
        "counters": {Counter.PROMPT_TOKENS: 100.0, Counter.GENERATION_TOKENS: 100.0, Counter.PREEMPTIONS: 0.0},
        "histograms": {Hist.TTFT_SECONDS: times, Hist.TPOT_SECONDS: pace, Hist.QUEUE_SECONDS: times},
    }
    return Window("i", Engine.VLLM, 0.0, 10.0, 10.0, 10, **(full | changes))  # type: ignore[arg-type]


def test_the_hand_rules_in_their_order() -> None:
    assert peers.hand_rules(_window(), []) == peers.HAND_QUEUE
    long = {Counter.PROMPT_TOKENS: 5000.0, Counter.GENERATION_TOKENS: 100.0}
    assert peers.hand_rules(_window(counters=long), []) == peers.HAND_PREFILL
    assert peers.hand_rules(_window(counters={**long, Counter.PREEMPTIONS: 3.0}), []) == peers.HAND_KV
    quick = Histogram(100, 10, (0.5, 5.0), (100, 100))
    assert peers.hand_rules(_window(histograms={Hist.TTFT_SECONDS: quick}), []) == ()


def test_every_word_of_a_peer_means_a_cause_we_know() -> None:
    known = {cause.value for cause in Cause}
    said = [*peers.DOCTOR_SAYS.values(), peers.HAND_KV, peers.HAND_PREFIX, peers.HAND_QUEUE, peers.HAND_PREFILL, peers.HAND_DECODE]
    assert {word for words in said for word in words} <= known


def test_a_peer_is_right_when_one_of_its_causes_is_true_or_its_silence_is() -> None:
    fault = labels.Label("fault", (Cause.KV_EXHAUSTED,))
    assert judging.peer_grade(("kv_exhausted", "reservation_limit"), fault, "") == judging.RIGHT
    assert judging.peer_grade((), fault, "") == judging.WRONG
    assert judging.peer_grade((), labels.Label("fine"), "restart") == judging.RIGHT
    assert judging.peer_grade(("batch_limit",), labels.Label("fine"), "hang") == judging.WRONG


def test_tampered_pages() -> None:
    s = batch_limit(Draw(random.Random(3).randrange(100), wide=False))
    pages = [(float(k), f"vllm:num_requests_waiting {k}", "") for k in range(5)]
    frozen = tampered(replace(s, trap="stale", trap_value=0.5), pages)
    assert [text for _, text, _ in frozen[2:]] == [pages[2][1]] * 3
    assert [when for when, _, _ in frozen] == [0.0, 1.0, 2.0, 3.0, 4.0]
    renamed = tampered(replace(s, trap="renamed", trap_value=0.0), pages)
    assert all("num_requests_waiting" not in text for _, text, _ in renamed)
    assert set(CHECKS) >= {maker.__name__ for maker, _ in TRAPS}
