"""Gzip bodies: all members, however they are cut, within the limit."""

from __future__ import annotations

import gzip
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf_service.collectors.gunzip import MAX_MEMBERS, DamagedGzipError, Gunzip, gunzip
from perf_service.collectors.http1 import decoded
from perf_service.models.errors import CollectError, ErrorReason

PARTS = (b"vllm:a 1\n" * 40, b"", b"vllm:b 2\n" * 40)
PACKED = b"".join(gzip.compress(part, mtime=0) for part in PARTS)
WHOLE = b"".join(PARTS)


def test_every_member_is_read_whoever_reads() -> None:
    assert gunzip(PACKED, len(WHOLE)) == WHOLE
    assert decoded(PACKED, "gzip", len(WHOLE)) == WHOLE


@given(cuts=st.lists(st.integers(0, len(PACKED)), max_size=8))
def test_however_it_is_cut(cuts: list[int]) -> None:
    unpacking = Gunzip(len(WHOLE))
    places = [0, *sorted(cuts), len(PACKED)]
    assert b"".join(unpacking.feed(PACKED[start:end]) for start, end in pairwise(places)) == WHOLE
    unpacking.finish()


def test_the_limit_holds_for_all_members_together() -> None:
    with pytest.raises(CollectError) as error:
        gunzip(PACKED, len(WHOLE) - 1)
    assert error.value.reason is ErrorReason.BODY_TOO_LARGE


def test_padding_is_passed_over_and_anything_else_behind_the_end_is_not() -> None:
    assert gunzip(PACKED + bytes(100_000), len(WHOLE)) == WHOLE
    for behind in (b"x", b"\0\0plain", PACKED[:-3]):
        with pytest.raises(DamagedGzipError):
            gunzip(PACKED + behind, 2 * len(WHOLE))


def test_a_body_of_endless_empty_members_is_refused_soon() -> None:
    empty = gzip.compress(b"", mtime=0)
    assert gunzip(empty * MAX_MEMBERS, 1) == b""
    with pytest.raises(DamagedGzipError, match="members"):
        gunzip(empty * 200_000, 1)  # 4 MB: to copy the rest at each member's end would take minutes


def test_nothing_is_complete() -> None:
    assert gunzip(b"", 10) == b""
