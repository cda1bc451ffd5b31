"""The block pool against a naive model."""

from __future__ import annotations

from collections.abc import Hashable

from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.simulator.kv import BlockPool, Holding
from tests.support.examples import examples

chains = st.integers(0, 2).map(lambda c: tuple((c, i) for i in range(8)))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("start"), chains, st.integers(1, 8)),
        st.tuples(st.just("end"), st.just(()), st.integers(0, 20)),
    ),
    max_size=40,
)


@settings(max_examples=examples(80), deadline=None)
@given(ops=operations, caching=st.booleans())
def test_blocks_are_conserved_whatever_happens(ops: list[tuple[str, tuple[Hashable, ...], int]], caching: bool) -> None:
    pool = BlockPool(20, caching=caching)
    live: list[Holding] = []
    for kind, keys, n in ops:
        if kind == "end" and live:
            pool.release(live.pop(n % len(live)))
        elif kind == "start":
            holding = Holding()
            hits = min(pool.match(keys), n)
            assert caching or hits == 0
            fits = n - hits <= pool.free_after_match(keys, hits)
            pool.acquire(holding, keys[:hits])
            assert pool.grow(holding, n) == fits
            if fits:
                pool.register(holding, keys, n)
            live.append(holding)
        shared = {key for h in live for key in h.keys}
        assert pool.used == len(shared) + sum(h.anonymous for h in live)
        assert 0 <= pool.used <= 20
        assert pool.unused + len(pool._free) == pool.free
        assert pool.cached_free <= pool.free
    for holding in live:
        pool.release(holding)
    assert pool.used == 0


def filled(pool: BlockPool, keys: tuple[Hashable, ...]) -> Holding:
    holding = Holding()
    assert pool.grow(holding, len(keys))
    pool.register(holding, keys, len(keys))
    return holding


def test_a_freed_prefix_is_found_again_until_it_is_evicted() -> None:
    pool = BlockPool(4, caching=True)
    keys = ("a", "b")
    pool.release(filled(pool, keys))
    assert pool.match(keys) == 2
    assert pool.used == 0
    other = Holding()
    assert pool.grow(other, 3)  # two untouched blocks, then the tail of the prefix goes first
    assert pool.match(keys) == 1
    assert pool.evictions == 1
    assert not pool.grow(other, 5)
    assert other.blocks == 3


def test_the_same_content_computed_twice_is_shared_once() -> None:
    pool = BlockPool(6, caching=True)
    first, second = filled(pool, ("a",)), filled(pool, ("a",))
    assert (first.keys, first.anonymous) == (["a"], 0)
    assert (second.keys, second.anonymous) == ([], 1)
    pool.release(first)
    pool.release(second)
    assert (pool.used, pool.cached_free) == (0, 1)


def test_a_chain_is_matched_only_from_its_start() -> None:
    pool = BlockPool(6, caching=True)
    pool.release(filled(pool, ("a", "b", "c")))
    assert pool.match(("x", "b", "c")) == 0
    assert pool.match(("a", "x", "c")) == 1
