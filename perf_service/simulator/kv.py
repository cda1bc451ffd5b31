"""KV blocks of a simulated engine: allocation, prefix cache by block keys, LRU of free blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence


class Holding:
    """The blocks that one sequence holds: cached ones by key, the rest only counted."""

    __slots__ = ("anonymous", "keys")

    def __init__(self) -> None:
        self.keys: list[Hashable] = []  # leading blocks whose content other sequences may share
        self.anonymous = 0

    @property
    def blocks(self) -> int:
        return len(self.keys) + self.anonymous


class BlockPool:
    """A pool of equal blocks, as vLLM's: a freed block stays reusable until the LRU evicts it.

    Invariant: in use + free == total, both never negative. Blocks that only hold reusable prefix
    cache count as free (that is what ``vllm:kv_cache_usage_perc`` means too).
    """

    __slots__ = ("_free", "_refs", "_serial", "caching", "evictions", "total", "unused", "used")

    def __init__(self, total: int, *, caching: bool) -> None:
        self.total = total
        self.caching = caching
        self.used = 0
        self.unused = total  # blocks that nobody has touched since start
        self.evictions = 0
        self._free: OrderedDict[Hashable, bool] = OrderedDict()  # key -> holds reusable content
        self._refs: dict[Hashable, int] = {}
        self._serial = 0

    @property
    def free(self) -> int:
        return self.total - self.used

    @property
    def cached_free(self) -> int:
        """Free blocks with reusable content. Walks the list: for reports, not for scheduling."""
        return sum(self._free.values())

    def match(self, keys: Sequence[Hashable]) -> int:
        """How many leading blocks of this chain are in the cache."""
        if not self.caching:
            return 0
        n = 0
        for key in keys:
            if key not in self._refs and not self._free.get(key):
                break
            n += 1
        return n

    def free_after_match(self, keys: Sequence[Hashable], hits: int) -> int:
        """Free blocks that remain once the ``hits`` leading blocks are taken out of the free list."""
        return self.free - sum(1 for key in keys[:hits] if key not in self._refs)

    def acquire(self, holding: Holding, keys: Sequence[Hashable]) -> None:
        """Takes references on cached blocks (all of ``keys`` must have matched)."""
        for key in keys:
            if key in self._refs:
                self._refs[key] += 1
            else:
                del self._free[key]
                self._refs[key] = 1
                self.used += 1
            holding.keys.append(key)

    def grow(self, holding: Holding, blocks: int) -> bool:
        """Brings the holding to ``blocks`` blocks; False, with nothing changed, if too few are free."""
        need = blocks - len(holding.keys) - holding.anonymous
        if need <= 0:
            return True
        if need > self.total - self.used:
            return False
        self.used += need
        holding.anonymous += need
        fresh = min(need, self.unused)
        self.unused -= fresh
        for _ in range(need - fresh):
            _, reusable = self._free.popitem(last=False)
            self.evictions += reusable
        return True

    def register(self, holding: Holding, keys: Sequence[Hashable], full_blocks: int) -> None:
        """Makes the content of the first ``full_blocks`` blocks findable by other sequences."""
        if not self.caching:
            return
        for index in range(len(holding.keys), min(full_blocks, len(keys))):
            key = keys[index]
            if key in self._refs or holding.anonymous == 0:
                return  # computed twice at the same time: the second copy stays private
            if key in self._free:
                # The same content sits in the free list: that copy loses its key, not its block.
                self._rename_free(key)
            self._refs[key] = 1
            holding.keys.append(key)
            holding.anonymous -= 1

    def release(self, holding: Holding) -> None:
        """Gives all blocks back, last block first so that the head of a prefix lives longest."""
        for _ in range(holding.anonymous):
            self._serial += 1
            self._free[("free", self._serial)] = False
        self.used -= holding.anonymous
        for key in reversed(holding.keys):
            left = self._refs[key] - 1
            if left:
                self._refs[key] = left
            else:
                del self._refs[key]
                self._free[key] = True
                self.used -= 1
        holding.keys.clear()
        holding.anonymous = 0

    def _rename_free(self, key: Hashable) -> None:
        del self._free[key]
        self._serial += 1
        self._free[("free", self._serial)] = False
        self._free.move_to_end(("free", self._serial), last=False)
