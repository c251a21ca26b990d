"""Walks of a handful of gfns in plain ints: what ``nested_walk`` does, without numpy's overhead.

A guest's single access is the common case of a stress run; the arrays of ``nested_walk`` pay only
for streams. Both give the same results, reference counts included (tested).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from protocols.frames import INVALID_FRAME, PAGE_SHIFT
from services.walker.format import WalkFormat, WalkStatus
from services.walker.frame_cache import NO_SLOT, FrameCache

FEW: Final = 4
"""Up to so many gfns are walked one by one."""

_PSE: Final = 1 << 7
DONE: Final[int] = WalkStatus.DONE.value
NOT_PRESENT: Final[int] = WalkStatus.NOT_PRESENT.value
NEED_FRAME: Final[int] = WalkStatus.NEED_FRAME.value

Walked = tuple[int, int, int, int]
"""(mfn, order, status, refs), or the missing frame in place of the mfn."""


def walk_one(fmt: WalkFormat, cache: FrameCache, root_mfn: int, gfn: int, *, flat: bool) -> Walked:
    """Walk from the root; ``flat``: read the L2 entry first where its table is at hand.

    The flat view needs the upper levels' frames to know where the L2 tables are; with all of them
    at hand only the references below count.
    """
    if gfn >= fmt.gfn_limit:
        return INVALID_FRAME, 0, NOT_PRESENT, 0
    slot = cache.slot(root_mfn)
    if slot == NO_SLOT:
        return root_mfn, 0, NEED_FRAME, 0
    words, nr_entries = cache.words, cache.nr_entries
    frame_mask = fmt.frame_mask
    refs = 0
    for level in range(fmt.levels, 0, -1):
        order = fmt.shifts[level - 1]
        refs = refs + 1 if not (flat and level == 2) else 1
        index = (gfn >> order) & ((1 << fmt.index_bits[level - 1]) - 1)
        entry: int = words.item(slot * nr_entries + index)
        if not entry & fmt.present_mask:
            return INVALID_FRAME, 0, NOT_PRESENT, refs
        frame = (entry & frame_mask) >> PAGE_SHIFT
        if level == 1:
            return frame, 0, DONE, refs
        if entry & _PSE:
            if level > fmt.leaf_levels:
                return INVALID_FRAME, 0, NOT_PRESENT, refs
            offset = (1 << order) - 1
            return frame & ~offset | gfn & offset, order, DONE, refs
        slot = cache.slot(frame)
        if slot == NO_SLOT:
            return frame, 0, NEED_FRAME, refs
    raise AssertionError(f"gfn {gfn:#x}: level 1 did not end the walk")


def walk_few(
    fmt: WalkFormat, cache: FrameCache, root_mfn: int, gfns: list[int], *, flat: bool
) -> tuple[list[Walked], list[int]]:
    """The walk of each gfn, and the frames that are missing, ascending and each once."""
    walked = [walk_one(fmt, cache, root_mfn, gfn, flat=flat) for gfn in gfns]
    needed = sorted({each[0] for each in walked if each[2] == NEED_FRAME})
    return walked, needed


def columns(walked: list[Walked]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mfns (u64), orders, status, refs (u8), as ``WalkResult`` holds them."""
    mfns = [each[0] if each[2] == DONE else INVALID_FRAME for each in walked]
    return (
        np.array(mfns, dtype=np.uint64),
        np.array([each[1] for each in walked], dtype=np.uint8),
        np.array([each[2] for each in walked], dtype=np.uint8),
        np.array([each[3] for each in walked], dtype=np.uint8),
    )
