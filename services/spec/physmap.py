"""What a guest's memory map means, frame by frame: a dict that knows nothing of superpages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from protocols.frames import INVALID_FRAME
from protocols.p2m_types import INVALID_MFN_TYPES, P2mType

if TYPE_CHECKING:
    from collections.abc import Iterable

HOLE: Final = (INVALID_FRAME, P2mType.MMIO_DM)
"""How a gfn that nothing maps reads."""

_NO_FRAME: Final = frozenset({P2mType.POPULATE_ON_DEMAND, P2mType.RAM_PAGED, P2mType.RAM_PAGING_IN})


class Physmap:
    """gfn to (mfn, type) for every 4K frame that something was set for."""

    __slots__ = ("frames",)

    def __init__(self) -> None:
        """A guest without memory."""
        self.frames: dict[int, tuple[int, P2mType]] = {}

    def set_entry(self, gfn: int, mfn: int, nr: int, p2mt: int) -> None:
        """Map ``nr`` frames from ``gfn`` to those from ``mfn`` (all to none if INVALID_FRAME).

        invalid and mmio_dm make a hole, and so does INVALID_FRAME under a type that needs a frame.
        Populate-on-demand and paged entries have no frame, whatever is given.
        """
        kind = P2mType(p2mt)
        hole = kind in {P2mType.INVALID, P2mType.MMIO_DM}
        hole = hole or (mfn == INVALID_FRAME and kind not in INVALID_MFN_TYPES)
        for offset in range(nr):
            if hole:
                self.frames.pop(gfn + offset, None)
            elif mfn == INVALID_FRAME or kind in _NO_FRAME:
                self.frames[gfn + offset] = (INVALID_FRAME, kind)
            else:
                self.frames[gfn + offset] = (mfn + offset, kind)

    def get(self, gfn: int) -> tuple[int, P2mType]:
        """``(mfn, type)`` of a gfn; HOLE where nothing is mapped."""
        return self.frames.get(gfn, HOLE)

    def get_many(self, gfns: Iterable[int]) -> tuple[list[int], list[int]]:
        """The mfns and the types of several gfns."""
        pairs = [self.get(gfn) for gfn in gfns]
        return [mfn for mfn, _ in pairs], [int(kind) for _, kind in pairs]
