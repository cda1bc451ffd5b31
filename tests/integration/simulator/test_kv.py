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
