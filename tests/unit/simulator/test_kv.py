"""The block pool against a naive model."""

from __future__ import annotations

from collections.abc import Hashable

from perf_service.simulator.kv import BlockPool, Holding


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
