"""The buddy heap of one NUMA node, as page_alloc.c keeps it. Pure and synchronous.

Free blocks hang in lists by (zone, order). A zone is the bit length of the mfn, so no block crosses
a power of two. Clean blocks go to the head of their list and dirty ones to the tail; allocation
takes the head. Splitting gives the lower half back and keeps the upper one, so consecutive extents
come at descending mfns (seen in every capture).

Bulk: n extents cost what the blocks they come from cost, and equal n single allocations exactly.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from protocols.frames import MAX_ORDER, FrameArray

_ORDERS = range(MAX_ORDER + 1)


class BuddyHeap:
    """Free memory among mfns [start, start + nr_frames); mfn 0 never belongs to the heap."""

    def __init__(self, node: int, start: int, nr_frames: int) -> None:
        self.node = node
        self.start = max(1, start)
        self.end = start + nr_frames
        self.total_frames = max(0, self.end - self.start)
        self.free_frames = 0
        # mfn -> dirty, in list order; one list per zone and order.
        self._lists: dict[int, list[OrderedDict[int, bool]]] = {}
        # Zones from the highest down, and for each a bit mask of the orders with blocks.
        self._zones: list[int] = []
        self._filled: dict[int, int] = {}
        self._order_of: dict[int, int] = {}
        if self.total_frames:
            low, high = self.start.bit_length(), (self.end - 1).bit_length()
            self._zones = list(range(high, low - 1, -1))
            for zone in self._zones:
                self._lists[zone] = [OrderedDict() for _ in _ORDERS]
                self._filled[zone] = 0
            self._insert_range(self.start, self.end, dirty=False)
            self.free_frames = self.total_frames

    # -- allocation --------------------------------------------------------------------------

    def alloc(self, order: int, nr: int, zone_hi: int = 63) -> FrameArray:
        """alloc_heap_pages ``nr`` times: bases in order of allocation, fewer when exhausted.

        Highest zone first, in it the smallest order that fits. A dirty head does not serve
        order > 0 until nothing clean is left anywhere.

        Args:
            order: of each extent; above MAX_ORDER nothing can be had.
            nr: extents wanted.
            zone_hi: highest zone allowed (address width minus 12).
        """
        parts: list[FrameArray] = []
        left = nr
        while left > 0 and order <= MAX_ORDER:
            found = self._find(order, zone_hi)
            if found is None:
                break
            mfn, block_order, dirty = found
            taken = min(left, 1 << (block_order - order))
            parts.append(self._carve(mfn, block_order, order, taken, dirty=dirty))
            left -= taken
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)

    def _find(self, order: int, zone_hi: int) -> tuple[int, int, bool] | None:
        """The block that serves the next extent: (mfn, order, dirty)."""
        for accept_dirty in (False, True):
            for zone in self._zones:
                if zone > zone_hi:
                    continue
                filled = self._filled[zone] >> order << order
                while filled:
                    block_order = (filled & -filled).bit_length() - 1
                    mfn, dirty = next(iter(self._lists[zone][block_order].items()))
                    if accept_dirty or not dirty or not order:
                        return mfn, block_order, dirty
                    filled &= filled - 1
        return None

    def _carve(
        self, mfn: int, block_order: int, order: int, taken: int, *, dirty: bool
    ) -> FrameArray:
        """Take ``taken`` extents off the top of a block; the rest is what halving leaves."""
        self._remove(mfn, block_order)
        end = mfn + (1 << block_order)
        rest_end = end - (taken << order)
        self.free_frames -= taken << order
        # Single allocations leave one block for each set bit of what remains, biggest lowest.
        left, base = rest_end - mfn, mfn
        for part in range(block_order, order - 1, -1):
            if left >> part & 1:
                self._insert(base, part, dirty=dirty)
                base += 1 << part
        step = 1 << order
        return np.arange(end - step, rest_end - 1, -step, dtype=np.int64).view(np.uint64)

    # -- freeing -----------------------------------------------------------------------------

    def free(self, start: int, nr_frames: int, *, dirty: bool = False) -> None:
        """free_heap_pages for a contiguous range, in maximal aligned blocks, ascending.

        Each block merges upwards with free buddies of its zone and node, up to MAX_ORDER; a merge
        with a dirty block is dirty.
        """
        end = start + nr_frames
        assert self.start <= start <= end <= self.end, (
            f"node {self.node}: frames [{start:#x}, {end:#x}) are not of this node"
        )
        for mfn, order in _blocks(start, end):
            self._free_block(mfn, order, dirty=dirty)
        self.free_frames += nr_frames

    def _free_block(self, mfn: int, order: int, *, dirty: bool) -> None:
        self._assert_not_free(mfn, order)
        while order < MAX_ORDER:
            buddy = mfn ^ (1 << order)
            if self._order_of.get(buddy) != order or buddy.bit_length() != mfn.bit_length():
                break
            dirty |= self._remove(buddy, order)
            mfn = min(mfn, buddy)
            order += 1
        self._insert(mfn, order, dirty=dirty)

    def _assert_not_free(self, mfn: int, order: int) -> None:
        """No free block holds ``mfn``.

        Blocks further inside are not searched for: the owners in FrameTable rule them out, and
        audit() finds them.
        """
        for above in _ORDERS:
            head = mfn >> above << above
            found = self._order_of.get(head)
            assert found is None or head + (1 << found) <= mfn, (
                f"node {self.node}: double free of mfn {mfn:#x} order {order}: "
                f"it lies in free block {head:#x} order {found}"
            )

    # -- lists -------------------------------------------------------------------------------

    def _insert_range(self, start: int, end: int, *, dirty: bool) -> None:
        for mfn, order in _blocks(start, end):
            self._insert(mfn, order, dirty=dirty)

    def _insert(self, mfn: int, order: int, *, dirty: bool) -> None:
        zone = mfn.bit_length()
        blocks = self._lists[zone][order]
        blocks[mfn] = dirty
        self._filled[zone] |= 1 << order
        if not dirty:
            blocks.move_to_end(mfn, last=False)
        self._order_of[mfn] = order

    def _remove(self, mfn: int, order: int) -> bool:
        del self._order_of[mfn]
        zone = mfn.bit_length()
        blocks = self._lists[zone][order]
        dirty = blocks.pop(mfn)
        if not blocks:
            self._filled[zone] &= ~(1 << order)
        return dirty

    # -- reports -----------------------------------------------------------------------------

    def blocks(self) -> tuple[FrameArray, npt.NDArray[np.uint8]]:
        """Every free block, ascending: (mfn, order)."""
        mfns = np.fromiter(self._order_of, dtype=np.uint64, count=len(self._order_of))
        orders = np.fromiter(self._order_of.values(), dtype=np.uint8, count=len(self._order_of))
        where = np.argsort(mfns)
        return mfns[where], orders[where]

    def audit(self) -> list[str]:
        """Broken rules, a line each: lists, alignment, overlap, unmerged buddies, the count."""
        problems = self._audit_lists()
        mfns, orders = self.blocks()
        sizes = np.uint64(1) << orders.astype(np.uint64)
        ends = mfns + sizes
        for mfn in mfns[(mfns & (sizes - np.uint64(1))) != 0].tolist():
            problems.append(f"node {self.node}: free block mfn {mfn:#x} is not aligned")
        for mfn in mfns[1:][mfns[1:] < ends[:-1]].tolist():
            problems.append(f"node {self.node}: free block mfn {mfn:#x} overlaps the one below")
        if mfns.size and (int(mfns[0]) < self.start or int(ends.max()) > self.end):
            problems.append(f"node {self.node}: a free block lies outside the node")
        for mfn, order in zip(mfns.tolist(), orders.tolist(), strict=True):
            buddy = mfn ^ (1 << order)
            same_zone = buddy.bit_length() == mfn.bit_length()
            both_free = same_zone and self._order_of.get(buddy) == order
            if order < MAX_ORDER and mfn < buddy and both_free:
                problems.append(
                    f"node {self.node}: free buddies mfn {mfn:#x} and {buddy:#x} "
                    f"order {order} are not merged"
                )
        if int(sizes.sum()) != self.free_frames:
            problems.append(
                f"node {self.node}: {int(sizes.sum())} frames in free blocks, "
                f"{self.free_frames} counted"
            )
        return problems

    def _audit_lists(self) -> list[str]:
        """Whether lists, index and masks say the same, and no dirty block is before a clean one."""
        problems: list[str] = []
        listed: dict[int, int] = {}
        for zone, lists in self._lists.items():
            for order, blocks in enumerate(lists):
                name = f"node {self.node}: list of zone {zone} order {order}"
                if bool(blocks) != bool(self._filled[zone] >> order & 1):
                    problems.append(f"{name}: its bit in the mask is wrong")
                for mfn in (mfn for mfn in blocks if mfn.bit_length() != zone):
                    problems.append(f"{name}: mfn {mfn:#x} is of another zone")
                if sorted(blocks.values()) != list(blocks.values()):
                    problems.append(f"{name}: a dirty block is before a clean one")
                listed.update(dict.fromkeys(blocks, order))
        for mfn in sorted(listed.keys() | self._order_of.keys()):
            if listed.get(mfn) != self._order_of.get(mfn):
                problems.append(
                    f"node {self.node}: mfn {mfn:#x} order {self._order_of.get(mfn)} "
                    f"is listed with order {listed.get(mfn)}"
                )
        return problems


def _blocks(start: int, end: int) -> list[tuple[int, int]]:
    """[start, end) as maximal aligned blocks of at most MAX_ORDER, none across a zone."""
    blocks: list[tuple[int, int]] = []
    while start < end:
        order = min(MAX_ORDER, (start & -start).bit_length() - 1, (end - start).bit_length() - 1)
        blocks.append((start, order))
        start += 1 << order
    return blocks
