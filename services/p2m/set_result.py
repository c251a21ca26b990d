"""What one ``set_range`` did: how far it came, what it displaced, and what must be flushed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from protocols.frames import FrameArray

if TYPE_CHECKING:
    from protocols.errno import Errno

EMPTY_FRAMES: Final[FrameArray] = np.empty(0, dtype=np.uint64)
EMPTY_FRAMES.setflags(write=False)


Update: TypeAlias = tuple[FrameArray, FrameArray, int, int]
"""(gfns, mfns, order, type): consecutive chunks, each a ``set_p2m_entry`` trace event, in order."""


@dataclass(slots=True)
class SetResult:
    """Outcome of ``P2mTable.set_range``.

    ``nr_done`` leading extents stand completely, ``nr_frames`` leading 4K frames (more than
    ``nr_done`` extents' worth when an extent of several chunks stopped inside). ``errno`` is 0,
    EINVAL (nothing changed) or ENOMEM (no page-table frame for the next chunk).

    ``displaced_*``: runs of RAM that were mapped and are not any more, ``1 << order`` frames from
    (gfn, mfn) each; frames that the update maps at the same gfn as before are not among them.
    ``stale``: a present entry was overwritten, so walkers must flush; also on failure.
    ``retired``: page-table frames to hand to ``pool_return`` after that flush.
    ``nr_shatters``: superpage leaves shattered, by their order. ``nr_updates``: leaf entries
    written. ``updates``: with ``record``, what Xen would trace; the chunk that failed is the last.
    """

    nr_done: int
    nr_frames: int
    errno: Errno
    displaced_gfns: FrameArray
    displaced_mfns: FrameArray
    displaced_orders: FrameArray
    stale: bool
    retired: FrameArray
    nr_shatters: dict[int, int]
    nr_updates: int
    updates: list[Update]


@dataclass(slots=True)
class Tally:
    """A SetResult in the making."""

    stale: bool = False
    nr_updates: int = 0
    nr_frames: int = 0
    single: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    blocks: list[tuple[FrameArray, FrameArray, FrameArray]] = field(
        default_factory=list[tuple[FrameArray, FrameArray, FrameArray]]
    )
    retired: list[FrameArray] = field(default_factory=list[FrameArray])
    nr_shatters: dict[int, int] = field(default_factory=dict[int, int])
    updates: list[Update] = field(default_factory=list[Update])

    def shattered(self, order: int, nr: int = 1) -> None:
        """Count superpages of one order that became tables."""
        self.nr_shatters[order] = self.nr_shatters.get(order, 0) + nr

    def result(self, order: int, errno: Errno) -> SetResult:
        """The frozen outcome; ``order`` is that of the extents asked for."""
        if self.single:
            single = np.array(self.single, dtype=np.uint64).T
            self.blocks.append((single[0], single[1], single[2]))
        gfns, mfns, orders = EMPTY_FRAMES, EMPTY_FRAMES, EMPTY_FRAMES
        if self.blocks:
            gfns, mfns, orders = (
                np.concatenate(column) for column in zip(*self.blocks, strict=True)
            )
        return SetResult(
            nr_done=self.nr_frames >> order,
            nr_frames=self.nr_frames,
            errno=errno,
            displaced_gfns=gfns,
            displaced_mfns=mfns,
            displaced_orders=orders,
            stale=self.stale,
            retired=np.concatenate(self.retired) if self.retired else EMPTY_FRAMES,
            nr_shatters=self.nr_shatters,
            nr_updates=self.nr_updates,
            updates=self.updates,
        )
