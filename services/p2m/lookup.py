"""Readers of the tables: one gfn, many gfns, everything below a table."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from protocols.frames import INVALID_FRAME, PAGE_SHIFT, FrameArray
from protocols.p2m_types import P2mType
from services.p2m.entry import (
    EntryArray,
    TypeArray,
    is_filled,
    is_leaf,
    leaf_mfn,
    leaf_type,
)
from services.p2m.geometry import BIT_PSE

if TYPE_CHECKING:
    from services.p2m.geometry import Geometry
    from services.p2m.ptp_pool import PtpPool

LevelArray = npt.NDArray[np.uint8]

_GROUPS_MAX: Final = 16
"""Above this many table changes along the gfns, whole levels are gathered at once."""


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
    tables = gfns >> geometry.shift(2)
    edges = [0, gfns.size]
    if gfns.size > 1 and not (tables == tables[0]).all():
        edges = np.concatenate(([0], np.flatnonzero(tables[1:] != tables[:-1]) + 1, [gfns.size]))
        if edges.size > _GROUPS_MAX:
            return _read_by_level(pool, geometry, root, gfns)
        edges = edges.tolist()
    entries: EntryArray = np.empty(gfns.size, dtype=geometry.entry_dtype)
    levels = np.empty(gfns.size, dtype=np.uint8)
    for lo, hi in pairwise(edges):
        slot, level = locate(pool, geometry, root, int(gfns[lo]))
        index = (gfns[lo:hi] >> geometry.shift(level)) & ((1 << geometry.index_bits[level - 1]) - 1)
        entries[lo:hi] = pool.rows[slot, index]
        levels[lo:hi] = level
    return entries, levels


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
    shifts = [geometry.shift(level) for level in range(1, geometry.levels + 1)]
    entries, levels = read_entries(pool, geometry, root, gfns)
    types = leaf_type(geometry, entries)
    mfns = leaf_mfn(geometry, entries, levels)
    orders = np.array([0, *shifts], dtype=np.uint8)[levels]
    offset_masks = np.array([0, *((1 << shift) - 1 for shift in shifts)], dtype=np.uint64)
    mfns |= gfns & offset_masks[levels]
    hole = types == P2mType.INVALID
    types[hole] = P2mType.MMIO_DM
    above = gfns > max_mapped
    if above.any():
        types[above] = P2mType.MMIO_DM
        mfns[above] = INVALID_FRAME
        beyond = np.zeros(gfns.size, dtype=np.uint8)
        for shift in shifts:
            beyond[(gfns >> shift) << shift > max_mapped] = shift
        orders[above] = beyond[above]
    return mfns, types, orders


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
    shifts = [0] + [geometry.shift(level) for level in range(1, geometry.levels + 1)]
    return Leaves(
        gfns=gfns[by_gfn],
        orders=np.array(shifts, dtype=np.uint8)[levels],
        mfns=leaf_mfn(geometry, entries, levels),
        types=leaf_type(geometry, entries),
        entries=entries,
    )
