"""Nested walks as the hardware does them, over copies of table frames; and the RFC's flat reader.

A walk knows nothing but raw frames: it starts at the root, looks at P and PSE of every entry on its
way and stops at the first leaf or hole (AMD64 APM volume 2, 5.3, 15.25.5; Intel SDM volume 3,
28.3.2). All gfns of a stream go down level by level together. Where a frame is not at hand the walk
says which one it needs; the caller gets it and walks again.

The flat reader is ``p2m_gfn_to_mfn_current`` of 2008: the p2m's root sat in a slot of the monitor
table, so the L1 tables of the p2m appeared as one array by gfn, and their L2 tables, one step up,
as another. The L2 entry must be consulted first. Behind a superpage the flat L1 array shows guest
memory, not a table.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.frames import INVALID_FRAME, PAGE_SHIFT, FrameArray
from services.walker.few import FEW, columns, walk_few
from services.walker.format import WalkFormat, WalkStatus
from services.walker.frame_cache import NO_SLOT, FrameCache, SlotArray

BIT_PSE: Final = 1 << 7
"""PSE of the x86 formats above level 1, ``sp`` of the EPT: the entry is a leaf."""

_BLOCK: Final = 1 << 15
"""Gfns walked together: the temporaries of one block stay in the cache."""
_NO_TABLE: Final = NO_SLOT - 1
"""In a flat view: no L2 table covers this part, a walk from the root says what does."""


@dataclass(frozen=True, slots=True)
class WalkResult:
    """What the walks of n gfns gave; arrays of shape (n,).

    Attributes:
        mfns: u64, INVALID_FRAME unless DONE.
        orders: u8, of the leaf; 0 unless DONE.
        status: u8, a WalkStatus.
        refs: u8, table entries read.
        needed: The missing table frames, ascending and each once; empty if no gfn is NEED_FRAME.
    """

    mfns: FrameArray
    orders: npt.NDArray[np.uint8]
    status: npt.NDArray[np.uint8]
    refs: npt.NDArray[np.uint8]
    needed: FrameArray

    @property
    def nr_refs(self) -> int:
        """Memory references of the walks that came to an end; the others start again."""
        return int(self.refs[self.status != WalkStatus.NEED_FRAME].sum(dtype=np.int64))

    def first(self, nr: int) -> WalkResult:
        """Those of the first ``nr`` gfns."""
        return WalkResult(
            self.mfns[:nr], self.orders[:nr], self.status[:nr], self.refs[:nr], self.needed
        )


class _Walks:
    """The walks of one block of gfns, on their way: a result that is being filled."""

    __slots__ = ("fmt", "mfns", "needed", "orders", "refs", "status")

    def __init__(self, fmt: WalkFormat, nr: int) -> None:
        self.fmt = fmt
        self.mfns = np.full(nr, INVALID_FRAME, dtype=np.uint64)
        self.orders = np.zeros(nr, dtype=np.uint8)
        self.status = np.full(nr, WalkStatus.NOT_PRESENT, dtype=np.uint8)
        self.refs = np.zeros(nr, dtype=np.uint8)
        self.needed: list[FrameArray] = []

    def descend(
        self, cache: FrameCache, gfns: FrameArray, at: SlotArray, slots: SlotArray, top: int
    ) -> None:
        """Walk from the tables of level ``top`` in ``slots`` for the gfns at indices ``at``."""
        for level in range(top, 0, -1):
            entries = _read(self.fmt, cache, slots, gfns, level)
            self.refs[at] = top - level + 1
            present, leaf = _kinds(self.fmt, entries, level)
            if leaf.all():
                self._settle(at, gfns, entries, level)
                return
            if leaf.any():
                self._settle(at[leaf], gfns[leaf], entries[leaf], level)
            onward = present & ~leaf
            if not onward.all():
                at, gfns, entries = at[onward], gfns[onward], entries[onward]
            tables = _frames(self.fmt, entries)
            slots = cache.slots(tables)
            lost = slots == NO_SLOT
            if lost.any():
                self.status[at[lost]] = WalkStatus.NEED_FRAME
                self.needed.append(cache.missing(tables[lost]))
                at, gfns, slots = at[~lost], gfns[~lost], slots[~lost]
            if not at.size:
                return

    def _settle(
        self, at: SlotArray, gfns: FrameArray, entries: npt.NDArray[Any], level: int
    ) -> None:
        """Translate by leaves. Bits below a superpage's frame are no frame (PSE_PAT)."""
        order = self.fmt.shifts[level - 1]
        offset = (1 << order) - 1
        frames = _frames(self.fmt, entries)
        if offset:
            frames &= ~np.uint64(offset)
            frames |= gfns & offset
        self.mfns[at] = frames
        self.orders[at] = order
        self.status[at] = WalkStatus.DONE

    def result(self) -> WalkResult:
        """What there is now."""
        needed = np.unique(np.concatenate(self.needed)) if self.needed else _NOTHING
        return WalkResult(self.mfns, self.orders, self.status, self.refs, needed)


class FlatView:
    """The flat view of a domain's L2 tables: a slot of the frame cache for each part of the gfns.

    Good for one root and one generation of a cache; it starts again by itself when either changes.
    """

    def __init__(self, fmt: WalkFormat) -> None:
        """A view of nothing yet."""
        self.fmt = fmt
        self._shift = fmt.shifts[2]
        self._slots = np.full(1, NO_SLOT, dtype=np.intp)
        self._valid_for: tuple[int, int] | None = None

    def l2_slots(self, cache: FrameCache, root_mfn: int, gfns: FrameArray) -> SlotArray:
        """Slot of the L2 table of each gfn, shape (n,); negative where none is at hand.

        All gfns are below the format's limit.
        """
        if self._valid_for != (cache.generation, root_mfn):
            self._slots.fill(NO_SLOT)
            self._valid_for = (cache.generation, root_mfn)
        parts = (gfns >> self._shift).view(np.intp)
        nr_parts = int(parts.max(initial=0)) + 1
        if nr_parts > self._slots.size:
            grown = np.full(max(nr_parts, 2 * self._slots.size), NO_SLOT, dtype=np.intp)
            grown[: self._slots.size] = self._slots
            self._slots = grown
        slots = self._slots.take(parts)
        unknown = slots == NO_SLOT
        if unknown.any():
            self._learn(cache, root_mfn, np.unique(parts[unknown]))
            slots = self._slots.take(parts)
        return slots

    def _learn(self, cache: FrameCache, root_mfn: int, parts: SlotArray) -> None:
        """Follow the upper levels once for each part."""
        gfns = parts.view(np.uint64) << np.uint64(self._shift)
        slots = np.full(parts.size, cache.slot(root_mfn), dtype=np.intp)
        for level in range(self.fmt.levels, 2, -1):
            entries = _read(self.fmt, cache, np.maximum(slots, 0), gfns, level)
            present, leaf = _kinds(self.fmt, entries, level)
            below = cache.slots(_frames(self.fmt, entries))
            below[~present | leaf] = _NO_TABLE
            slots = np.where(slots < 0, slots, below)
        self._slots[parts] = slots


def walk(fmt: WalkFormat, cache: FrameCache, root_mfn: int, gfns: FrameArray) -> WalkResult:
    """Walk from the root for each gfn, with the frames that the cache has.

    Args:
        fmt: Of the tables; the cache was made for its ``entry_bits``.
        cache: Where the walk reads; not changed.
        root_mfn: The root table's frame.
        gfns: Shape (n,) u64. One that the format cannot map is NOT_PRESENT without a reference.
    """
    if gfns.size <= FEW:
        return _few(fmt, cache, root_mfn, gfns, flat=False)
    walks = [
        _walk_block(fmt, cache, root_mfn, gfns[low : low + _BLOCK])
        for low in range(0, gfns.size, _BLOCK)
    ]
    return _join(walks)


def walk_foreign(
    fmt: WalkFormat, root_mfn: int, gfns: FrameArray
) -> Generator[FrameArray, bytes, WalkResult]:
    """``gfn_to_mfn_foreign``: a walk of somebody else's tables with a cache thrown away after it.

    Yields the table frames it needs and is sent their contents, 4096 bytes each in that order;
    returns a result without NEED_FRAME.
    """
    cache = FrameCache(fmt.entry_bits)
    while (result := walk(fmt, cache, root_mfn, gfns)).needed.size:
        data = yield result.needed
        cache.put_many(result.needed, data)
    return result


def gfn_to_mfn_current(
    fmt: WalkFormat, cache: FrameCache, view: FlatView, root_mfn: int, gfns: FrameArray
) -> WalkResult:
    """``p2m_gfn_to_mfn_current``: the flat L2 entry first, then by its PSE a leaf or the L1 table.

    Translates as ``walk`` does, for one reference with a superpage and two with a 4K leaf. A gfn
    whose L2 table is not at hand, or that has none (a 1G leaf, a hole above), is walked from the
    root at the price of that.

    Args:
        fmt: As for ``walk``.
        cache: As for ``walk``.
        view: Of this domain; learns what it did not know.
        root_mfn: As for ``walk``.
        gfns: Shape (n,) u64.
    """
    if gfns.size <= FEW:
        return _few(fmt, cache, root_mfn, gfns, flat=True)
    walks: list[_Walks] = []
    for low in range(0, gfns.size, _BLOCK):
        part = gfns[low : low + _BLOCK]
        if int(part.max()) >= fmt.gfn_limit:
            walks.append(_walk_block(fmt, cache, root_mfn, part))
            continue
        slots = view.l2_slots(cache, root_mfn, part)
        block = _Walks(fmt, part.size)
        known = slots >= 0
        at = np.flatnonzero(known)
        if at.size < part.size:
            rest = np.flatnonzero(~known)
            _from_root(block, cache, root_mfn, part[rest], rest)
            part, slots = part[at], slots[at]
        if at.size:
            block.descend(cache, part, at, slots, 2)
        walks.append(block)
    return _join(walks)


def _few(
    fmt: WalkFormat, cache: FrameCache, root_mfn: int, gfns: FrameArray, *, flat: bool
) -> WalkResult:
    walked, needed = walk_few(fmt, cache, root_mfn, gfns.tolist(), flat=flat)
    frames = np.array(needed, dtype=np.uint64) if needed else _NOTHING
    return WalkResult(*columns(walked), frames)


def _walk_block(fmt: WalkFormat, cache: FrameCache, root_mfn: int, gfns: FrameArray) -> _Walks:
    walks = _Walks(fmt, gfns.size)
    at = np.arange(gfns.size, dtype=np.intp)
    if int(gfns.max()) >= fmt.gfn_limit:
        at = np.flatnonzero(gfns < fmt.gfn_limit)
        gfns = gfns[at]
    if at.size:
        _from_root(walks, cache, root_mfn, gfns, at)
    return walks


def _from_root(
    walks: _Walks, cache: FrameCache, root_mfn: int, gfns: FrameArray, at: SlotArray
) -> None:
    root = cache.slot(root_mfn)
    if root == NO_SLOT:
        walks.status[at] = WalkStatus.NEED_FRAME
        walks.needed.append(np.array([root_mfn], dtype=np.uint64))
    else:
        slots = np.full(at.size, root, dtype=np.intp)
        walks.descend(cache, gfns, at, slots, walks.fmt.levels)


def _join(walks: list[_Walks]) -> WalkResult:
    if len(walks) == 1:
        return walks[0].result()
    needed = [frames for block in walks for frames in block.needed]
    return WalkResult(
        np.concatenate([_NOTHING, *(block.mfns for block in walks)]),
        np.concatenate([_NO_BYTES, *(block.orders for block in walks)]),
        np.concatenate([_NO_BYTES, *(block.status for block in walks)]),
        np.concatenate([_NO_BYTES, *(block.refs for block in walks)]),
        np.unique(np.concatenate([_NOTHING, *needed])),
    )


def _read(
    fmt: WalkFormat, cache: FrameCache, slots: SlotArray, gfns: FrameArray, level: int
) -> npt.NDArray[Any]:
    """The entry of each gfn in its table of a level."""
    index = (gfns >> fmt.shifts[level - 1]) & ((1 << fmt.index_bits[level - 1]) - 1)
    return cache.words.take(slots * cache.nr_entries + index.view(np.intp))


def _kinds(
    fmt: WalkFormat, entries: npt.NDArray[Any], level: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """``(present, leaf)`` of entries; a PSE bit where it is reserved faults."""
    present = (entries & fmt.present_mask) != 0
    if level == 1:
        return present, present
    superpage = (entries & BIT_PSE) != 0
    if level > fmt.leaf_levels:
        return present & ~superpage, np.zeros_like(present)
    return present, present & superpage


def _frames(fmt: WalkFormat, entries: npt.NDArray[Any]) -> FrameArray:
    """The frame field of entries."""
    return ((entries & fmt.frame_mask) >> PAGE_SHIFT).astype(np.uint64, copy=False)


_NOTHING: Final = np.empty(0, dtype=np.uint64)
_NO_BYTES: Final = np.empty(0, dtype=np.uint8)
