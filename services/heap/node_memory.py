"""A NUMA node's memory: heap, owners and M2P in step, by calls that cannot half-happen.

Pure and synchronous. A frame is either owned, or free in the heap and without M2P word.
"""

from __future__ import annotations

import numpy as np

from protocols.frames import DOMID_INVALID, FrameArray, bounds, expand, runs_of
from services.heap.buddy import BuddyHeap
from services.heap.frame_table import FrameTable


class NodeMemory:
    """Frames [start, start + nr_frames) of one node."""

    def __init__(self, node: int, start: int, nr_frames: int) -> None:
        self.node = node
        self.start = start
        self.end = start + nr_frames
        self.heap = BuddyHeap(node, start, nr_frames)
        self.frames = FrameTable(start, nr_frames)

    def alloc(self, order: int, nr: int, owner: int) -> FrameArray:
        """alloc_domheap_pages: up to ``nr`` extents, assigned to ``owner``; extent bases."""
        mfns = self.heap.alloc(order, nr)
        if mfns.size:
            self.frames.set_owner(mfns, order, owner, expected=DOMID_INVALID)
        return mfns

    def free(self, mfns: FrameArray, order: int, owner: int, *, dirty: bool) -> int:
        """free_domheap_pages: the extents go back to the heap; frames freed.

        Owner and M2P are cleared first, as mark_page_free does, so that no free frame is ever
        found through the M2P.
        """
        if not mfns.size:
            return 0
        self.frames.set_owner(mfns, order, DOMID_INVALID, expected=owner)
        self.frames.clear_m2p(mfns, order)
        starts, lengths = runs_of(np.sort(mfns) if order == 0 else np.sort(expand(mfns, order)))
        self._free_runs(starts, lengths, dirty=dirty)
        return int(mfns.size) << order

    def free_owned(self, owner: int, limit: int) -> int:
        """Free at most about ``limit`` frames of an owner, whole runs first come; frames freed.

        A run longer than what is left of the limit is freed in part. Frames of a dying domain
        need scrubbing, so they are dirty (free_domheap_pages).
        """
        starts, lengths = self.frames.owned_runs(owner)
        freed = 0
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            nr = min(length, limit - freed)
            frames = np.arange(start, start + nr, dtype=np.uint64)
            self.frames.set_owner(frames, 0, DOMID_INVALID, expected=owner)
            self.frames.clear_m2p(frames, 0)
            self.heap.free(start, nr, dirty=True)
            freed += nr
            if freed >= limit:
                break
        return freed

    def local(self, mfns: FrameArray) -> bool:
        """Whether all the mfns are of this node."""
        if not mfns.size:
            return True
        low, high = bounds(mfns)
        return low >= self.start and high < self.end

    def _free_runs(self, starts: FrameArray, lengths: FrameArray, *, dirty: bool) -> None:
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            self.heap.free(start, length, dirty=dirty)
