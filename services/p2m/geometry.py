"""The paging formats: one row of numbers for each, from which every walk and entry is computed.

Levels count from 1 (the tables that hold 4K leaves) up to the root. A leaf written at level k maps
``1 << shifts[k - 1]`` frames. Sources: AMD64 Architecture Programmer's Manual volume 2, 5.3 and
15.25 (long mode, PAE and 32-bit tables, nested paging); Intel SDM volume 3, 28.3 (EPT); Xen's
``p2m-pt.c`` and ``p2m-ept.c``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.frames import ORDER_1G, ORDER_2M, ORDER_4K, ORDER_4M, PAGE_SHIFT

BIT_PRESENT: Final = 1 << 0
BIT_PSE: Final = 1 << 7
"""PSE of the x86 formats above level 1, ``sp`` of the EPT: the entry is a leaf."""
BIT_NX: Final = 1 << 63
BIT_SUPPRESS_VE: Final = 1 << 63


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """One paging format.

    ``index_bits[k - 1]`` is the width of the table index at level k; ``leaf_orders`` ascend and
    ``leaf_orders[k - 1]`` is what a leaf of level k maps. ``gfn_limit`` and ``mfn_limit`` (what
    the frame field can hold) are exclusive. ``present_mask``: an entry with none of these bits is
    not present. ``filled_mask``: an entry with none of these bits is empty, and ``empty`` is how an
    empty one is written.
    ``whole_subtree``: a shatter builds the complete sub-tree down to its target before it is
    published (``ept_split_super_page``), not only the path (``p2m_next_level``).

    Derived: ``nr_entries`` of a 4 KiB table frame (a PAE root uses the first four), ``frame_mask``
    the frame field in place, from bit 12, and ``shifts``, the gfn bits below each level's index.
    """

    name: str
    levels: int
    index_bits: tuple[int, ...]
    entry_bits: int
    leaf_orders: tuple[int, ...]
    gfn_limit: int
    frame_bits: int
    type_shift: int
    type_bits: int
    present_mask: int
    filled_mask: int
    empty: int
    whole_subtree: bool

    nr_entries: int = field(init=False)
    mfn_limit: int = field(init=False)
    frame_mask: int = field(init=False)
    shifts: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Compute what the walks use all the time."""
        derive = object.__setattr__
        derive(self, "nr_entries", (8 << PAGE_SHIFT) // self.entry_bits)
        derive(self, "mfn_limit", 1 << self.frame_bits)
        derive(self, "frame_mask", (self.mfn_limit - 1) << PAGE_SHIFT)
        derive(self, "shifts", (0, *accumulate(self.index_bits)))

    @property
    def is_ept(self) -> bool:
        """Whether entries have the EPT layout; the other formats share the x86 PTE's low bits."""
        return self.whole_subtree

    @property
    def entry_dtype(self) -> npt.DTypeLike:
        """u64, or u32 for the 2-level format."""
        return np.uint32 if self.entry_bits == 32 else np.uint64

    @property
    def type_mask(self) -> int:
        """The p2m type field, shifted down to bit 0."""
        return (1 << self.type_bits) - 1

    def shift(self, level: int) -> int:
        """Gfn bits below the index of a level: the order of the block that one entry covers."""
        return self.shifts[level - 1]

    def level_of(self, order: int) -> int:
        """The level at which a leaf of this order lives.

        Raises:
            ValueError: the format has no leaf of the order.
        """
        return self.leaf_orders.index(order) + 1


GEOMETRIES: Final[dict[str, Geometry]] = {
    geometry.name: geometry
    for geometry in (
        Geometry(
            name="npt",
            levels=4,
            index_bits=(9, 9, 9, 9),
            entry_bits=64,
            leaf_orders=(ORDER_4K, ORDER_2M, ORDER_1G),
            gfn_limit=1 << 36,
            frame_bits=40,
            type_shift=52,
            type_bits=7,
            present_mask=BIT_PRESENT,
            filled_mask=(1 << 64) - 1,
            empty=0,
            whole_subtree=False,
        ),
        Geometry(
            name="ept",
            levels=4,
            index_bits=(9, 9, 9, 9),
            entry_bits=64,
            leaf_orders=(ORDER_4K, ORDER_2M, ORDER_1G),
            gfn_limit=1 << 36,
            frame_bits=40,
            type_shift=52,
            type_bits=6,
            present_mask=0b111,
            filled_mask=(1 << 63) - 1,
            empty=BIT_SUPPRESS_VE,
            whole_subtree=True,
        ),
        Geometry(
            name="pae",
            levels=3,
            index_bits=(9, 9, 2),
            entry_bits=64,
            leaf_orders=(ORDER_4K, ORDER_2M),
            gfn_limit=0x100000,
            frame_bits=32,
            type_shift=44,
            type_bits=7,
            present_mask=BIT_PRESENT,
            filled_mask=(1 << 64) - 1,
            empty=0,
            whole_subtree=False,
        ),
        Geometry(
            name="x86_32",
            levels=2,
            index_bits=(10, 10),
            entry_bits=32,
            leaf_orders=(ORDER_4K, ORDER_4M),
            gfn_limit=1 << 20,
            frame_bits=20,
            type_shift=9,
            type_bits=3,
            present_mask=BIT_PRESENT,
            filled_mask=(1 << 32) - 1,
            empty=0,
            whole_subtree=False,
        ),
    )
}
"""The formats by the name that a scenario uses."""
