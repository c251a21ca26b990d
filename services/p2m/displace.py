"""What an update takes away: RAM that loses its mapping, stale entries, tables out of use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from protocols.frames import INVALID_FRAME, PAGE_SHIFT, FrameArray
from protocols.p2m_types import RAM_TYPES
from services.p2m.entry import (
    BoolArray,
    EntryArray,
    TypeArray,
    decode_leaves,
    decode_one,
    is_filled,
    is_leaf,
    is_present,
)
from services.p2m.lookup import leaves_of, scan

if TYPE_CHECKING:
    from services.p2m.decompose import Chunks
    from services.p2m.geometry import Geometry
    from services.p2m.ptp_pool import PtpPool
    from services.p2m.set_result import Tally

_IS_RAM: Final = np.zeros(128, dtype=np.bool_)
_IS_RAM[list(RAM_TYPES)] = True


def displace_leaf(
    geometry: Geometry, old: int, new: tuple[int, int, int], tally: Tally, level: int
) -> None:
    """Account for one filled leaf whose place a leaf of the same order takes.

    Args:
        geometry: the format.
        old: the entry that was there.
        new: (gfn, mfn, p2mt) of the new leaf.
        tally: where it is noted.
        level: level of both.
    """
    gfn, mfn, p2mt = new
    tally.stale = tally.stale or is_present(geometry, old)
    old_mfn, old_type = decode_one(geometry, old, level)
    if old_type not in RAM_TYPES or old_mfn == INVALID_FRAME:
        return
    if old_mfn != mfn or p2mt not in RAM_TYPES:
        tally.single.append((gfn, old_mfn, geometry.shifts[level - 1]))


def displace(
    pool: PtpPool,
    geometry: Geometry,
    old: EntryArray,
    chunks: Chunks,
    p2mt: int,
    tally: Tally,
) -> None:
    """Account for the entries ``old`` whose place ``chunks`` take; tables below are retired."""
    filled = is_filled(geometry, old)
    if not filled.any():
        return
    level = geometry.level_of(chunks.order)
    tally.stale = tally.stale or bool(is_present(geometry, old).any())
    if level > 1:
        for at in np.flatnonzero(filled & ~is_leaf(geometry, old, level)).tolist():
            filled[at] = False
            slot = pool.slot((int(old[at]) & geometry.frame_mask) >> PAGE_SHIFT)
            new = (int(chunks.gfns[at]), int(chunks.mfns[at]), p2mt)
            _retire(pool, geometry, slot, new, tally, level - 1)
    mfns, types = decode_leaves(geometry, old, level)
    gone = filled & _is_gone(mfns, types, chunks.mfns, p2mt)
    if gone.any():
        orders = np.full(np.count_nonzero(gone), chunks.order, dtype=np.uint64)
        tally.blocks.append((chunks.gfns[gone], mfns[gone], orders))


def _retire(
    pool: PtpPool,
    geometry: Geometry,
    slot: int,
    new: tuple[int, int, int],
    tally: Tally,
    level: int,
) -> None:
    """A leaf took the place of the table of ``level`` in ``slot``: all below waits for a flush."""
    base, mfn, p2mt = new
    scans = scan(pool, geometry, slot, level, base)
    below = leaves_of(geometry, scans)
    mfns = np.full(below.gfns.size, mfn, dtype=np.uint64)
    if mfn != INVALID_FRAME:
        mfns += below.gfns - np.uint64(base)
    gone = _is_gone(below.mfns, below.types, mfns, p2mt)
    orders = below.orders[gone].astype(np.uint64)
    tally.blocks.append((below.gfns[gone], below.mfns[gone], orders))
    for part in reversed(scans):
        pool.retire(part.table_mfns)
        tally.retired.append(part.table_mfns)


def _is_gone(mfns: FrameArray, types: TypeArray, new_mfns: FrameArray, p2mt: int) -> BoolArray:
    """Which old leaves were RAM whose frame the new mapping at the same gfn is not."""
    gone = (mfns != INVALID_FRAME) & _IS_RAM[types]
    if p2mt in RAM_TYPES:
        gone &= mfns != new_mfns
    return gone
