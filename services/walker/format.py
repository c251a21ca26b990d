"""What walkers know of the paging formats (AMD64 APM volume 2, 5.3; Intel SDM volume 3, 28.3.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate
from typing import Final

from protocols.frames import PAGE_SHIFT


class WalkStatus(IntEnum):
    """How a walk ended."""

    DONE = 0
    NOT_PRESENT = 1
    """A nested page fault: an entry that is not present or has reserved bits set."""
    NEED_FRAME = 2
    """The next table's frame is not in the cache."""


@dataclass(frozen=True, slots=True)
class WalkFormat:
    """What a walker knows of a paging format. Levels count from 1, the one of the 4K leaves.

    Attributes:
        name: As in a scenario.
        index_bits: Width of the index at each level, level 1 first.
        entry_bits: 64, or 32.
        present_mask: An entry with none of these bits is not present.
        frame_bits: Width of the frame field, which starts at bit 12.
        leaf_levels: Up to this level PSE makes a leaf; above it is reserved.
        shifts: Gfn bits below the index of each level, level 1 first: the leaf orders.
        gfn_limit: The first gfn that no table can map.
    """

    name: str
    index_bits: tuple[int, ...]
    entry_bits: int
    present_mask: int
    frame_bits: int
    leaf_levels: int
    shifts: tuple[int, ...] = field(init=False)
    gfn_limit: int = field(init=False)

    def __post_init__(self) -> None:
        """Compute what every walk uses."""
        object.__setattr__(self, "shifts", (0, *accumulate(self.index_bits)))
        object.__setattr__(self, "gfn_limit", 1 << sum(self.index_bits))

    @property
    def levels(self) -> int:
        """Levels of tables."""
        return len(self.index_bits)

    @property
    def frame_mask(self) -> int:
        """The frame field in its place."""
        return ((1 << self.frame_bits) - 1) << PAGE_SHIFT


FORMATS: Final = {
    fmt.name: fmt
    for fmt in (
        WalkFormat("npt", (9, 9, 9, 9), 64, 0b001, 40, 3),
        WalkFormat("ept", (9, 9, 9, 9), 64, 0b111, 40, 3),
        WalkFormat("pae", (9, 9, 2), 64, 0b001, 32, 2),
        WalkFormat("x86_32", (10, 10), 32, 0b001, 20, 2),
    )
}
"""The formats by name; a PAE root uses the first four entries of its frame."""
