"""Readers of the tables: one gfn, many gfns, everything below a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from protocols.frames import INVALID_FRAME, PAGE_SHIFT, FrameArray
from protocols.p2m_types import P2mType
from services.p2m.entry import (
    EntryArray,
    TypeArray,
    decode_leaves,
    decode_one,
    is_filled,
    is_leaf,
    offset_masks,
)
from services.p2m.geometry import BIT_PSE

if TYPE_CHECKING:
    from services.p2m.geometry import Geometry
    from services.p2m.ptp_pool import PtpPool

LevelArray = npt.NDArray[np.uint8]

_FEW: Final = 4
"""Up to this many gfns are looked up one by one."""
_GROUPS_MAX: Final = 16
"""Above this many table changes along the gfns, whole levels are gathered at once."""


_INVALID: Final = int(P2mType.INVALID)
_MMIO_DM: Final = int(P2mType.MMIO_DM)


@lru_cache(maxsize=8)
def _orders_by_level(geometry: Geometry) -> TypeArray:
    return np.array([0, *geometry.shifts], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Leaves:
    """Every filled entry that is no table pointer, ascending gfn; parallel arrays.

    ``mfns`` is INVALID_FRAME where the leaf maps no frame (PoD); ``entries`` are the raw words.
    """

    gfns: FrameArray
    orders: TypeArray
    mfns: FrameArray
    types: TypeArray
    entries: EntryArray


@dataclass(frozen=True, slots=True)
class LevelScan:
    """One level of a scanned sub-tree: its leaves, and the frames of its tables."""

    level: int
    gfns: FrameArray
    entries: EntryArray
    table_gfns: FrameArray
    table_mfns: FrameArray


def locate(pool: PtpPool, geometry: Geometry, root: int, gfn: int) -> tuple[int, int]:
    """``(slot, level)`` of the table where the walk for a gfn ends, in a leaf or a hole."""
    slot, level, rows = root, geometry.levels, pool.rows
    shift = geometry.shift(level)
    present, frame = geometry.present_mask, geometry.frame_mask
    while level > 1:
        bits = geometry.index_bits[level - 1]
        entry: int = rows.item(slot, (gfn >> shift) & ((1 << bits) - 1))
        if entry & BIT_PSE or not entry & present:
            break
        slot = pool.slot((entry & frame) >> PAGE_SHIFT)
        level -= 1
        shift -= geometry.index_bits[level - 1]
    return slot, level


def read_entries(
    pool: PtpPool, geometry: Geometry, root: int, gfns: FrameArray
) -> tuple[EntryArray, LevelArray]:
    """The entry in which the walk for each gfn ends, and its level; shapes (n,)."""
    mask = (1 << geometry.index_bits[0]) - 1
    groups = table_groups(gfns, 0, mask)
    if len(groups) > _GROUPS_MAX:
        return _read_by_level(pool, geometry, root, gfns)
    entries: EntryArray = np.empty(gfns.size, dtype=geometry.entry_dtype)
    levels = np.empty(gfns.size, dtype=np.uint8)
    for lo, hi in groups:
        first = int(gfns[lo])
        slot, level = locate(pool, geometry, root, first)
        levels[lo:hi] = level
        if level > 1:
            index = first >> geometry.shifts[level - 1]
            entries[lo:hi] = pool.rows[slot, index & ((1 << geometry.index_bits[level - 1]) - 1)]
        elif int(gfns[hi - 1]) - first == hi - lo - 1:
            entries[lo:hi] = pool.rows[slot, first & mask : (first & mask) + hi - lo]
        else:
            entries[lo:hi] = pool.rows[slot, gfns[lo:hi] & mask]
    return entries, levels


def table_groups(gfns: FrameArray, shift: int, mask: int) -> list[tuple[int, int]]:
    """Runs of strictly ascending gfns in one table each: (first, end) positions.

    ``gfns`` (not empty) are multiples of ``1 << shift``, and the table's index is
    ``(gfn >> shift) & mask``.
    """
    size = gfns.size
    first, last = int(gfns[0]) >> shift, int(gfns[-1]) >> shift
    if last - first == size - 1 and (gfns[1:] > gfns[:-1]).all():
        begin = (first | mask) + 1 - first
        edges = [0, *range(begin, size, mask + 1), size]
    else:
        tables = gfns >> (shift + mask.bit_length())
        breaks = (tables[1:] != tables[:-1]) | (gfns[1:] <= gfns[:-1])
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), size]
    return list(pairwise(edges))


def _read_by_level(
    pool: PtpPool, geometry: Geometry, root: int, gfns: FrameArray
) -> tuple[EntryArray, LevelArray]:
    entries: EntryArray = np.empty(gfns.size, dtype=geometry.entry_dtype)
    levels = np.empty(gfns.size, dtype=np.uint8)
    active = np.arange(gfns.size)
    slots = np.full(gfns.size, root, dtype=np.intp)
    for level in range(geometry.levels, 0, -1):
        mask = (1 << geometry.index_bits[level - 1]) - 1
        found: EntryArray = pool.rows[slots, (gfns[active] >> geometry.shift(level)) & mask]
        entries[active] = found
        levels[active] = level
        deeper = (found & BIT_PSE == 0) & (found & geometry.present_mask != 0)
        if level == 1 or not deeper.any():
            break
        active = active[deeper]
        children = (found[deeper] & geometry.frame_mask) >> PAGE_SHIFT
        slots = pool.slots(children.astype(np.uint64, copy=False))
    return entries, levels


def get_entries(
    pool: PtpPool, geometry: Geometry, root: int, gfns: FrameArray, max_mapped: int
) -> tuple[FrameArray, TypeArray, TypeArray]:
    """``get_entry`` for each gfn, as ``P2mTable.get`` promises."""
    if gfns.size <= _FEW:
        return _get_few(pool, geometry, root, gfns, max_mapped)
    entries, levels = read_entries(pool, geometry, root, gfns)
    level = int(levels[0])
    if (levels == level).all():
        offsets = gfns & ((1 << geometry.shifts[level - 1]) - 1)
        orders = np.full(gfns.size, geometry.shifts[level - 1], dtype=np.uint8)
        mfns, types = decode_leaves(geometry, entries, level)
    else:
        offsets = gfns & offset_masks(geometry)[levels]
        orders = _orders_by_level(geometry)[levels]
        mfns, types = decode_leaves(geometry, entries, levels)
    mfns |= offsets
    types[types == _INVALID] = _MMIO_DM
    above = gfns > max_mapped
    if above.any():
        types[above] = _MMIO_DM
        mfns[above] = INVALID_FRAME
        beyond = np.zeros(gfns.size, dtype=np.uint8)
        for shift in geometry.shifts[:-1]:
            beyond[(gfns >> shift) << shift > max_mapped] = shift
        orders[above] = beyond[above]
    return mfns, types, orders


def _get_few(
    pool: PtpPool, geometry: Geometry, root: int, gfns: FrameArray, max_mapped: int
) -> tuple[FrameArray, TypeArray, TypeArray]:
    """``get_entries`` in ints."""
    mfns, types, orders = list[int](), list[int](), list[int]()
    for gfn in gfns.tolist():
        mfn, p2mt = INVALID_FRAME, _MMIO_DM
        if gfn > max_mapped:
            shifts = geometry.shifts[:-1]
            order = max((s for s in shifts if (gfn >> s) << s > max_mapped), default=0)
        else:
            slot, level = locate(pool, geometry, root, gfn)
            order = geometry.shifts[level - 1]
            mask = (1 << geometry.index_bits[level - 1]) - 1
            entry: int = pool.rows.item(slot, (gfn >> order) & mask)
            if entry & geometry.filled_mask:
                mfn, p2mt = decode_one(geometry, entry, level)
                mfn |= gfn & ((1 << order) - 1)
        mfns.append(mfn)
        types.append(p2mt)
        orders.append(order)
    return (
        np.array(mfns, dtype=np.uint64),
        np.array(types, dtype=np.uint8),
        np.array(orders, dtype=np.uint8),
    )


def scan(
    pool: PtpPool, geometry: Geometry, slot: int, level: int, base: int = 0
) -> list[LevelScan]:
    """Everything below the table in ``slot``, level by level, gathered a level at a time.

    Args:
        pool: where the tables are.
        geometry: their format.
        slot: table to begin with, itself the only one in the first LevelScan.
        level: its level.
        base: first gfn that it covers.
    """
    scans: list[LevelScan] = []
    slots = np.array([slot], dtype=np.intp)
    bases = np.array([base], dtype=np.uint64)
    while True:
        rows: EntryArray = pool.rows[slots]
        filled = is_filled(geometry, rows)
        leaf = is_leaf(geometry, rows, level) & filled
        row, index = np.nonzero(leaf)
        size = np.uint64(1 << geometry.shift(level))
        gfns = bases[row] + index.astype(np.uint64) * size
        scans.append(LevelScan(level, gfns, rows[row, index], bases, pool.mfns(slots)))
        row, index = np.nonzero(filled & ~leaf)
        if level == 1 or row.size == 0:
            return scans
        children = (rows[row, index] & geometry.frame_mask) >> PAGE_SHIFT
        slots = pool.slots(children.astype(np.uint64, copy=False))
        bases = bases[row] + index.astype(np.uint64) * size
        level -= 1


def leaves_of(geometry: Geometry, scans: list[LevelScan]) -> Leaves:
    """The leaves of a scan, decoded and in order of gfn."""
    gfns = np.concatenate([part.gfns for part in scans])
    entries: EntryArray = np.concatenate([part.entries for part in scans])
    levels = np.concatenate([np.full(part.gfns.size, part.level, np.uint8) for part in scans])
    by_gfn = np.argsort(gfns)
    entries, levels = entries[by_gfn], levels[by_gfn]
    mfns, types = decode_leaves(geometry, entries, levels)
    return Leaves(gfns[by_gfn], _orders_by_level(geometry)[levels], mfns, types, entries)
