"""The buddy heap one allocation at a time: plain lists, halved and merged a step at a time.

It says what page_alloc.c does in the fewest words. Slow on purpose: the heap that works in bulk is
compared with it, block by block and list by list.
"""

from __future__ import annotations

from typing import Final

from protocols.frames import MAX_ORDER

Block = tuple[int, bool]
"""A free block of a list: (mfn, dirty)."""

ZONE_MAX: Final = 40
"""Highest zone: bit length of the largest mfn (MEMZONE_XEN + 40 of page_alloc.c)."""


class HeapModel:
    """Free blocks of mfns [start, start + nr_frames); zone z holds mfns of bit length z."""

    __slots__ = ("end", "lists", "start")

    def __init__(self, start: int, nr_frames: int) -> None:
        """A heap where every frame but mfn 0 is free and clean."""
        self.start = max(1, start)
        self.end = start + nr_frames
        self.lists: dict[tuple[int, int], list[Block]] = {}
        if self.start < self.end:
            self.free(self.start, self.end - self.start)

    def alloc(self, order: int, nr: int, zone_hi: int = ZONE_MAX) -> list[int]:
        """``nr`` extents one by one, in order of allocation; fewer when nothing fits any more."""
        mfns: list[int] = []
        while len(mfns) < nr:
            mfn = self.alloc_one(order, zone_hi)
            if mfn is None:
                break
            mfns.append(mfn)
        return mfns

    def alloc_one(self, order: int, zone_hi: int = ZONE_MAX) -> int | None:
        """alloc_heap_pages: halve the first block that fits, keep the upper half each time."""
        found = self._first_fit(order, zone_hi)
        if found is None:
            return None
        zone, fits = found
        mfn, dirty = self.lists[zone, fits].pop(0)
        while fits > order:
            fits -= 1
            self._put(mfn, fits, dirty=dirty)
            mfn += 1 << fits
        return mfn

    def free(self, start: int, nr_frames: int, *, dirty: bool = False) -> None:
        """free_heap_pages for [start, start + nr_frames): from the lowest frame upwards.

        Each time the largest block goes that is aligned, within the range and within one zone.
        """
        end = start + nr_frames
        assert self.start <= start <= end <= self.end, (
            f"mfns [{start:#x}, {end:#x}) are not within [{self.start:#x}, {self.end:#x})"
        )
        mfn = start
        while mfn < end:
            order = 0
            while order < MAX_ORDER and _is_block(mfn, order + 1, end):
                order += 1
            self._free_block(mfn, order, dirty=dirty)
            mfn += 1 << order

    def blocks(self) -> dict[tuple[int, int], bool]:
        """Every free block: (mfn, order) to whether it is dirty."""
        return {
            (mfn, order): dirty
            for (_, order), blocks in self.lists.items()
            for mfn, dirty in blocks
        }

    def free_frames(self) -> int:
        """Frames in free blocks."""
        return sum(len(blocks) << order for (_, order), blocks in self.lists.items())

    def _first_fit(self, order: int, zone_hi: int) -> tuple[int, int] | None:
        """(zone, order) of the list whose head serves: clean ones first, unless order is 0."""
        for accept_dirty in (order == 0, True):
            for zone in range(min(zone_hi, ZONE_MAX), 0, -1):
                for fits in range(order, MAX_ORDER + 1):
                    blocks = self.lists.get((zone, fits))
                    if blocks and (accept_dirty or not blocks[0][1]):
                        return zone, fits
        return None

    def _free_block(self, mfn: int, order: int, *, dirty: bool) -> None:
        end = mfn + (1 << order)
        for other, other_order in self.blocks():
            assert other >= end or other + (1 << other_order) <= mfn, (
                f"mfn {mfn:#x} order {order}: double free, block {other:#x} "
                f"order {other_order} is free"
            )
        while order < MAX_ORDER:
            buddy = mfn ^ (1 << order)
            blocks = self.lists.get((mfn.bit_length(), order), [])
            found = [block for block in blocks if block[0] == buddy]
            if not found:
                break
            blocks.remove(found[0])
            dirty = dirty or found[0][1]
            mfn = min(mfn, buddy)
            order += 1
        self._put(mfn, order, dirty=dirty)

    def _put(self, mfn: int, order: int, *, dirty: bool) -> None:
        """Into its list: at the head if clean, at the tail if dirty."""
        blocks = self.lists.setdefault((mfn.bit_length(), order), [])
        blocks.insert(len(blocks) if dirty else 0, (mfn, dirty))


def _is_block(mfn: int, order: int, end: int) -> bool:
    """Whether an aligned block of this order fits below ``end`` and into the zone of its mfn."""
    last = mfn + (1 << order) - 1
    return mfn % (1 << order) == 0 and last < end and last.bit_length() == mfn.bit_length()
