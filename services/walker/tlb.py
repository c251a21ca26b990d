"""A TLB of guest frames: one direct-mapped array for each leaf order, looked up a stream at a time.

Models what a CPU keeps of nested translations between two flushes (AMD64 APM volume 2, 15.16 and
15.25; Intel SDM volume 3, 28.4). Pure arrays.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from protocols.frames import INVALID_FRAME, FrameArray

_FEW = 4
"""Up to so many gfns are looked up one by one."""
_WORD = (1 << 64) - 1
_BLOCK = 1 << 15
"""Gfns handled at once: the temporaries of one block stay in the cache."""


class _Ways:
    """The entries of one order. Slot i of a valid entry holds a page number that ends in i's bits.

    ``deltas`` is mfn - gfn modulo 2**64: one addition translates, whatever the offset.
    """

    __slots__ = ("_invalid", "deltas", "is_empty", "mask", "order", "tags")

    def __init__(self, order: int, capacity: int) -> None:
        self.order = order
        self.mask = capacity - 1
        # No page number that belongs in slot i can equal ~i, since its low bits differ.
        self._invalid = ~np.arange(capacity, dtype=np.uint64)
        self.tags = self._invalid.copy()
        self.deltas = np.zeros(capacity, dtype=np.uint64)
        self.is_empty = True

    def lookup(self, gfns: FrameArray) -> tuple[FrameArray, npt.NDArray[np.bool_]]:
        """``(mfns, hit)``; the mfn of a miss means nothing."""
        pages = gfns >> self.order
        slots = (pages & self.mask).view(np.intp)
        return gfns + self.deltas.take(slots), self.tags.take(slots) == pages

    def insert(self, gfns: FrameArray, deltas: FrameArray) -> None:
        """Replace what is in the way; of two entries for a slot the later stays."""
        pages = gfns >> self.order
        slots = (pages & self.mask).view(np.intp)
        self.tags[slots] = pages
        self.deltas[slots] = deltas
        self.is_empty = self.is_empty and not gfns.size

    def valid(self) -> npt.NDArray[np.bool_]:
        """Which slots hold an entry."""
        return self.tags != self._invalid

    def clear(self) -> None:
        """Invalidate every slot."""
        np.copyto(self.tags, self._invalid)
        self.is_empty = True

    def drop(self, which: npt.NDArray[np.bool_]) -> None:
        """Invalidate slots."""
        self.tags[which] = self._invalid[which]
        self.is_empty = not self.valid().any()


class Tlb:
    """Cached translations of one vCPU, by leaf order.

    An entry of an order without an array of its own is cached in pieces of the next smaller order
    that has one, each as it is used: CPUs break 1G pages up in the same way. A gfn that more than
    one array knows is translated by the largest order.

    Attributes:
        hits: Gfns that ``lookup`` translated, since the start.
        misses: Gfns that it did not.
    """

    def __init__(self, capacities: Mapping[int, int]) -> None:
        """An empty TLB.

        Args:
            capacities: Number of entries by order, each a power of two from 2.

        Raises:
            ValueError: No order, or a capacity that is no power of two.
        """
        for order, capacity in capacities.items():
            if capacity < 2 or capacity & (capacity - 1):
                raise ValueError(f"order {order}: {capacity} entries, not a power of two from 2")
        if not capacities:
            raise ValueError("a TLB needs at least one order")
        self._ways = [_Ways(order, capacities[order]) for order in sorted(capacities, reverse=True)]
        self.hits = 0
        self.misses = 0

    def lookup(self, gfns: FrameArray) -> tuple[FrameArray, npt.NDArray[np.bool_]]:
        """Translate what is cached.

        Args:
            gfns: Shape (n,) u64.

        Returns:
            ``(mfns, hit)``, shapes (n,): u64 with INVALID_FRAME at each miss, and bool.
        """
        if gfns.size <= _FEW:
            return self._lookup_few(gfns.tolist())
        mfns = np.full(gfns.shape, INVALID_FRAME, dtype=np.uint64)
        hit = np.zeros(gfns.shape, dtype=np.bool_)
        used = [ways for ways in self._ways if not ways.is_empty]
        if used:
            for low in range(0, gfns.size, _BLOCK):
                block = slice(low, low + _BLOCK)
                _lookup_block(used, gfns[block], mfns[block], hit[block])
        nr_hits = int(np.count_nonzero(hit))
        self.hits += nr_hits
        self.misses += gfns.size - nr_hits
        return mfns, hit

    def _lookup_few(self, gfns: list[int]) -> tuple[FrameArray, npt.NDArray[np.bool_]]:
        """``lookup`` in ints."""
        mfns: list[int] = []
        for gfn in gfns:
            mfn = INVALID_FRAME
            for ways in self._ways:
                if not ways.is_empty:
                    page = gfn >> ways.order
                    if ways.tags.item(page & ways.mask) == page:
                        mfn = (gfn + ways.deltas.item(page & ways.mask)) & _WORD
                        break
            mfns.append(mfn)
        found = np.array(mfns, dtype=np.uint64)
        hit = found != INVALID_FRAME
        nr_hits = int(np.count_nonzero(hit))
        self.hits += nr_hits
        self.misses += found.size - nr_hits
        return found, hit

    def insert(self, gfns: FrameArray, mfns: FrameArray, order: int) -> None:
        """Cache leaves of one order; an entry in the same slot is replaced.

        Args:
            gfns: Shape (n,) u64, any gfn of each leaf.
            mfns: Shape (n,) u64, the mfn of just that gfn.
            order: Of the leaves.

        Raises:
            ValueError: Even the smallest entries of this TLB are larger than the leaf.
        """
        ways = next((ways for ways in self._ways if ways.order <= order), None)
        if ways is None:
            raise ValueError(f"no array for leaves of order {order}")
        deltas = mfns - gfns
        crooked = (deltas & ((1 << order) - 1)) != 0
        if crooked.any():
            at = int(crooked.argmax())
            gfn, mfn = int(gfns[at]), int(mfns[at])
            raise AssertionError(f"gfn {gfn:#x} order {order}: mfn {mfn:#x} is not of such a leaf")
        ways.insert(gfns, deltas)

    def flush(self) -> None:
        """Forget everything (a new ASID, INVEPT of the context)."""
        for ways in self._ways:
            if not ways.is_empty:
                ways.clear()

    def flush_range(self, gfn: int, nr: int) -> None:
        """Forget every entry that maps a gfn of ``[gfn, gfn + nr)``, whatever else it maps."""
        if nr <= 0:
            return
        for ways in self._ways:
            if not ways.is_empty:
                first, last = gfn >> ways.order, (gfn + nr - 1) >> ways.order
                ways.drop(ways.valid() & (ways.tags >= first) & (ways.tags <= last))

    def entries(self) -> tuple[FrameArray, FrameArray, npt.NDArray[np.uint8]]:
        """Every valid entry, for the audit.

        Returns:
            ``(gfns, mfns, orders)``: the first frame of each entry, u64, and its order, u8;
            ascending by order, then by gfn.
        """
        gfns: list[FrameArray] = []
        mfns: list[FrameArray] = []
        orders: list[npt.NDArray[np.uint8]] = []
        if all(ways.is_empty for ways in self._ways):
            nothing = np.empty(0, dtype=np.uint64)
            return nothing, nothing, np.empty(0, dtype=np.uint8)
        for ways in reversed(self._ways):
            if ways.is_empty:
                continue
            valid = ways.valid()
            bases = ways.tags[valid] << np.uint64(ways.order)
            by_gfn = np.argsort(bases)
            gfns.append(bases[by_gfn])
            mfns.append((bases + ways.deltas[valid])[by_gfn])
            orders.append(np.full(bases.size, ways.order, dtype=np.uint8))
        return np.concatenate(gfns), np.concatenate(mfns), np.concatenate(orders)


def _lookup_block(
    used: list[_Ways], gfns: FrameArray, mfns: FrameArray, hit: npt.NDArray[np.bool_]
) -> None:
    """Fill ``mfns`` and ``hit`` in place, the largest order first, only misses going on."""
    found, known = used[0].lookup(gfns)
    np.copyto(mfns, found, where=known)
    np.copyto(hit, known)
    for ways in used[1:]:
        left = np.flatnonzero(~hit)
        if not left.size:
            return
        found, known = ways.lookup(gfns[left])
        at = left[known]
        mfns[at] = found[known]
        hit[at] = True
