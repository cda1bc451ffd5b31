"""What must hold for whatever a server sends: a short run of the fuzzer, pages that once broke something, pages made to be slow.

`scripts/fuzz_exposition.py` runs the same checks for as long as one likes.
"""

from __future__ import annotations

import time
import tracemalloc

import pytest

from perf_service.collectors.exposition import MAX_LINE_BYTES, ExpositionParser
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.errors import CollectError
from perf_service.models.metrics import Engine, Gauge, IssueCode
from tests.support.exposition_fuzz import Checker, Mutator
from tests.support.pages import FIXTURES, PAGES, read_page

FUZZ_CPU_SECONDS = 2.0

CRASHERS = {
    "the memory took a tab-separated series for the empty line": b"a\t1\n\nb\t2\n",
    "the memory took an indented tab-separated series for the empty line": b" vllm:a\t1\r\n\n \n",
    "a known series with a value of two numbers": b"process_virtual_memory_bytes 2.\x0c1116032e+09\n",
    "an ignored series with a broken value was let through when it was known": b'vllm:x_created{a="b"} 1\nvllm:x_created{a="b"} x\n',
    "a type of the same words as the name": b"# TYPE vPE vPE vPE vPE vPE vPE\n# TYPE vPE vPE vPE vPE vPE \n",
    "a known type line without a type": b"# TYPE http_request_duration_seconds histogram\n# TYPE http_request_duration_seconds ",
    "values whose sum is infinite": b'vllm:num_requests_running{engine="0"} 1e308\nvllm:num_requests_running{engine="1"} 1e308\n',
    "a value that becomes infinite in our unit": b"sglang:startup_available_gpu_memory_gb 1e308\n",
    "a lowest bucket of minus infinity": b'vllm:time_to_first_token_seconds_bucket{le="-Inf"} 1\nvllm:time_to_first_token_seconds_count 1\n'
    b"vllm:time_to_first_token_seconds_sum 1\n",
    "a configuration value of 300 digits": b"sglang:max_total_num_tokens 1e300\nsglang:num_running_reqs 1\n",
    "each odd value was an issue of its own": b"".join(b'vllm:num_requests_running{x="%d"} -%d\n' % (n, n + 1) for n in range(2000)),
    "a name of 60,000 characters in a message": b"vllm:" + b"x" * 60_000 + b" 1\n",
    "a duplicated label": b'vllm:num_requests_running{engine="0",engine="1"} 1\n',
}


@pytest.mark.parametrize("body", CRASHERS.values(), ids=CRASHERS)
def test_what_once_broke_a_promise(body: bytes) -> None:
    checker = Checker()
    for page in (body, body + b"\n", b"a 1\n" + body, body + body):
        checker.check(page)


def test_mutated_pages_break_no_promise() -> None:
    checker, mutator = Checker(), Mutator(seed=20)
    end = time.process_time() + FUZZ_CPU_SECONDS
    while time.process_time() < end:
        page = mutator.page()
        try:
            checker.check(page)
        except Exception as error:
            raise AssertionError(f"execution {checker.executions}: {error!r} for {page[:2000]!r}") from error
    assert checker.executions > 20


def hostile(size: int) -> dict[str, bytes]:
    """Pages of about `size` bytes that are dear to read for what they are."""
    line = min(size, MAX_LINE_BYTES - 100)

    def filled(text: bytes) -> bytes:
        return text * (size // len(text) + 1)

    def numbered(text: bytes) -> bytes:
        return b"".join(text % number for number in range(size // (len(text) + 3)))

    return {
        "new series": numbered(b'vllm:request_success_total{finished_reason="%d"} 1\n'),
        "new buckets": numbered(b'vllm:time_to_first_token_seconds_bucket{le="%d"} 1\n'),
        "new ranks": numbered(b'vllm:num_requests_running{engine="%d"} 1\n'),
        "unknown names": numbered(b"vllm:foo%d 1\n"),
        "unwanted names": numbered(b"f%d 1\n"),
        "types": numbered(b"# TYPE f%d gauge\n"),
        "braces": filled(b"{" * line + b"\n"),
        "one long line": b'a{b="' + b"x" * size + b'"} 1\n',
        "quotes": filled(b'a{"' + b'"' * line + b"\n"),
        "escapes": filled(b'a{b="' + b"\\\\" * (line // 2) + b'"} 1\n'),
        "open escapes": filled(b'a{b="' + b'\\"' * (line // 2) + b"\n"),
        "labels": filled(b"a{" + b",".join(b'l%d="x"' % number for number in range(line // 12)) + b"} 1\n"),
        "blanks in labels": filled(b"a{b" + b" " * line + b"x} 1\n"),
        "commas": filled(b"a{" + b"," * line + b"} 1\n"),
        "digits": filled(b"a " + b"9" * line + b"\n"),
        "duplicates": filled(b"vllm:num_requests_running 1\n"),
        "hashes": filled(b"a 1" + b" # " * (line // 3) + b"\n"),
    }


@pytest.mark.parametrize("kind", hostile(10))
def test_time_is_linear_in_the_size_of_a_page(kind: str) -> None:
    def cpu_seconds(page: bytes) -> float:
        spent = []
        for _ in range(2):
            started = time.process_time()
            SnapshotBuilder(Engine.VLLM).build(page, "i", 0.0)
            spent.append(time.process_time() - started)
        return min(spent)

    # Eight times the page; quadratic work would take sixty-four times as long. The constant is for what is too quick to be timed.
    assert cpu_seconds(hostile(160_000)[kind]) < 20 * cpu_seconds(hostile(20_000)[kind]) + 0.02


def test_pages_beyond_the_limits_are_refused_at_once() -> None:
    for page in (b"\n" * (8 << 20), b"a 1\n" * (2 << 20), b"#\n" * (4 << 20), b"a 1\n" * (5 << 20)):
        started = time.process_time()
        with pytest.raises(CollectError, match=r"limit of|more than"):
            SnapshotBuilder(Engine.VLLM).build(page, "i", 0.0)
        assert time.process_time() - started < 0.5


def test_labels_that_never_come_back_do_not_fill_the_memory() -> None:
    """Request ids in labels, among the series that every page has."""
    page = (FIXTURES / "dialects/vllm-0.32.0.prom").read_bytes()
    builder = SnapshotBuilder(Engine.VLLM, max_remembered=2_000)
    reference = builder.build(page, "i", 0.0)

    def scrape(start: int) -> None:
        churn = b"".join(
            b'http_requests_total{handler="/v1/%d",method="POST",status="2xx"} 1\n' % number for number in range(start, start + 100)
        )
        snapshot = builder.build(page + churn, "i", 0.0)
        assert snapshot.gauges == reference.gauges
        assert builder.remembered <= 2_000

    tracemalloc.start()
    try:
        for number in range(40):
            scrape(number * 100)
        before, _ = tracemalloc.get_traced_memory()
        for number in range(40, 80):
            scrape(number * 100)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 4,000 series more were met; between two droppings of the memory it holds up to 2,000 more or fewer.
    assert after - before < 1_500_000


def test_many_targets_of_one_make_share_what_is_remembered() -> None:
    parser = ExpositionParser()
    page = read_page(PAGES[0])
    for target in range(50):
        for _ in range(3):
            assert parser.parse(page, f"target {target}").layout is not None or target == 0
    assert len({id(parser.parse(page, f"target {target}").layout) for target in range(50)}) == 1


def test_many_odd_values_are_told_once() -> None:
    body = b"".join(b'vllm:num_requests_running{x="%d"} %s\n' % (n, (b"NaN", b"-1", b"+Inf")[n % 3]) for n in range(3000))
    snapshot = SnapshotBuilder(Engine.VLLM).build(body, "i", 0.0)
    assert Gauge.RUNNING_REQUESTS not in snapshot.gauges
    odd = [
        issue.code
        for issue in snapshot.quality.issues
        if issue.metric == Gauge.RUNNING_REQUESTS and issue.code is not IssueCode.MISSING_METRIC
    ]
    assert sorted(odd) == [IssueCode.NEGATIVE_COUNTER, IssueCode.NOT_FINITE]
