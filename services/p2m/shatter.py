"""Shattering: a superpage leaf becomes a table of smaller leaves that map the same.

The new table is filled while nothing points to it, and one store of the parent entry publishes it;
no translation changes. Where the pool has too few frames nothing changes at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from services.p2m.entry import encode_table, split_children
from services.p2m.ptp_pool import NO_SLOT, PtpPool

if TYPE_CHECKING:
    from services.p2m.geometry import Geometry
    from services.p2m.set_result import Tally


def shatter(
    pool: PtpPool,
    geometry: Geometry,
    slot: int,
    index: int,
    tally: Tally,
    *,
    level: int,
    target: int,
) -> int:
    """Replace the superpage leaf at ``rows[slot, index]`` of ``level`` by a table.

    The x86 formats shatter one level and leave the rest of the path to the next call
    (``p2m_next_level``): a 1G leaf costs two tables on the way to one 4K entry. The EPT shatters
    every descendant down to ``target`` before it publishes (``ept_split_super_page``): 513 tables.

    Args:
        pool: where the tables are.
        geometry: their format.
        slot: table that holds the leaf.
        index: its entry.
        tally: counts the shatters; a present leaf becomes stale.
        level: level of that table, at least 2.
        target: level that the caller wants to write at, below ``level``.

    Returns:
        Slot of the new table, or NO_SLOT (-ENOMEM).
    """
    entry: int = pool.rows.item(slot, index)
    child_level = level - 1
    subtrees = geometry.nr_entries if geometry.whole_subtree and child_level > target else 0
    assert child_level - target <= 1 or not subtrees, f"no EPT leaf at level {level}"
    if pool.nr_free < 1 + subtrees:
        return NO_SLOT
    child = pool.alloc()
    children = split_children(geometry, entry, level)
    if subtrees:
        grandchildren = split_children(geometry, children, child_level)
        slots = np.array([pool.alloc() for _ in range(subtrees)], dtype=np.intp)
        pool.rows[slots] = grandchildren
        tables = [encode_table(geometry, mfn, child_level) for mfn in pool.mfns(slots).tolist()]
        pool.rows[child] = tables
        tally.shattered(geometry.leaf_orders[child_level - 1], subtrees)
    else:
        pool.rows[child] = children
    pool.rows[slot, index] = encode_table(geometry, pool.mfn(child), level)
    tally.shattered(geometry.leaf_orders[level - 1])
    tally.stale = tally.stale or (entry & geometry.present_mask) != 0
    return child
