"""The table's own audit: the shape of the tree and the books of the paging pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from protocols.frames import INVALID_FRAME, PAGE_SHIFT
from services.p2m.entry import EntryArray, is_filled, is_leaf, is_present, leaf_mfn
from services.p2m.ptp_pool import NO_SLOT, PtpPool

if TYPE_CHECKING:
    from services.p2m.geometry import Geometry


def audit_table(pool: PtpPool, geometry: Geometry, root: int, domid: int) -> list[str]:
    """Check that every table in use is reached exactly once, and every superpage is aligned.

    Trusts nothing: entries that point nowhere are reported, not followed. A retired table is a
    flush that somebody still owes.
    """
    problems: list[str] = []
    reached = set[int]()
    todo = [] if root == NO_SLOT else [(root, geometry.levels, 0)]
    while todo:
        slot, level, base = todo.pop()
        mfn = pool.mfn(slot)
        if mfn in reached:
            problems.append(f"d{domid}: table mfn {mfn:#x} is reached twice, at gfn {base:#x}")
            continue
        reached.add(mfn)
        row: EntryArray = pool.rows[slot]
        problems.extend(_audit_leaves(geometry, row, level, base, domid))
        if level == 1:
            continue
        table = is_filled(geometry, row) & ~is_leaf(geometry, row, level)
        for index in np.flatnonzero(table).tolist():
            child = (row.item(index) & geometry.frame_mask) >> PAGE_SHIFT
            gfn = base + (index << geometry.shift(level))
            child_slot = pool.slot(child)
            if child_slot == NO_SLOT or not is_present(geometry, int(row.item(index))):
                where = f"gfn {gfn:#x} level {level}"
                problems.append(f"d{domid}: {where} points to mfn {child:#x}, which is no table")
            else:
                todo.append((child_slot, level - 1, gfn))
    retired = pool.retired
    used: set[int] = set(pool.table_frames().tolist())
    for mfn in sorted(reached & retired):
        problems.append(f"d{domid}: retired table mfn {mfn:#x} is still reached")
    for mfn in sorted(used - reached - retired):
        problems.append(f"d{domid}: table mfn {mfn:#x} is used but not reached")
    if retired:
        problems.append(f"d{domid}: {len(retired)} retired tables wait for a flush")
    if np.unique(pool.frames()).size != pool.nr_used + pool.nr_free:
        problems.append(f"d{domid}: a frame is in the paging pool twice")
    return problems


def _audit_leaves(
    geometry: Geometry, row: EntryArray, level: int, base: int, domid: int
) -> list[str]:
    """Leaves in places that the format has none, and superpages of misaligned frames."""
    where = np.flatnonzero(is_leaf(geometry, row, level) & is_filled(geometry, row))
    if level == 1 or where.size == 0:
        return []
    if level > len(geometry.leaf_orders):
        gfn = base + (int(where[0]) << geometry.shift(level))
        return [f"d{domid}: gfn {gfn:#x} has a leaf at level {level}"]
    leaves: EntryArray = row[where]
    offset = (1 << geometry.shift(level)) - 1
    # Bit 0 of an x86 superpage's frame field is its PAT bit.
    ignored = 0 if geometry.is_ept else 1
    low = (leaves >> PAGE_SHIFT) & (offset & ~ignored)
    bad = (low != 0) & (leaf_mfn(geometry, leaves, level) != INVALID_FRAME)
    return [
        f"d{domid}: gfn {base + (int(index) << geometry.shift(level)):#x} order "
        f"{geometry.shift(level)} maps a misaligned mfn"
        for index in where[bad].tolist()
    ]
