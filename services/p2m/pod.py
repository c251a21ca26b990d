"""Populate-on-demand state of a domain: the cache of frames, and how many gfns wait for one.

Pure. Laws (p2m-pod.c): ``count`` frames are in the cache, ``entry_count`` frames lie under PoD
entries; the lists hold 2M-aligned superpages and single frames.
"""

from __future__ import annotations

import numpy as np

from protocols.frames import ORDER_2M, FrameArray, expand


class PodState:
    """The lists ``super`` and ``single`` of Xen, and the two counts."""

    def __init__(self) -> None:
        self.entry_count = 0
        self._super: list[int] = []
        self._single: list[int] = []

    @property
    def count(self) -> int:
        """Frames in the cache."""
        return (len(self._super) << ORDER_2M) + len(self._single)

    def add(self, mfns: FrameArray, order: int) -> None:
        """p2m_pod_cache_add: whole 2M multiples as superpages, anything smaller as singles."""
        if order >= ORDER_2M:
            bases = expand(mfns >> np.uint64(ORDER_2M), order - ORDER_2M) << np.uint64(ORDER_2M)
            self._super.extend(bases.tolist())
        else:
            self._single.extend(expand(mfns, order).tolist())

    def take(self, order: int) -> int | None:
        """p2m_pod_cache_get: a frame, or a 2M one; None when the cache cannot give that.

        Superpages leave from the front, as they came. A single frame comes out of a superpage
        when no single is left.
        """
        if order >= ORDER_2M:
            return self._super.pop(0) if self._super else None
        if not self._single and self._super:
            base = self._super.pop(0)
            self._single.extend(range(base, base + (1 << ORDER_2M)))
        return self._single.pop(0) if self._single else None

    def put_back(self, mfn: int, order: int) -> None:
        """A frame whose mapping failed, first in line again."""
        (self._super if order >= ORDER_2M else self._single).insert(0, mfn)

    def shrink_to_entries(self) -> tuple[FrameArray, FrameArray]:
        """What the cache holds beyond ``entry_count``: (2M bases, single frames) that leave it.

        As p2m_pod_decrease_reservation does at its end: superpages while they are wholly in
        excess, then singles.
        """
        big: list[int] = []
        while self._super and self.count - (1 << ORDER_2M) >= self.entry_count:
            big.append(self._super.pop())
        excess = max(0, self.count - self.entry_count)
        if excess > len(self._single) and self._super:
            base = self._super.pop()
            self._single.extend(range(base, base + (1 << ORDER_2M)))
        keep = len(self._single) - excess
        small, self._single = self._single[keep:], self._single[:keep]
        return np.array(big, dtype=np.uint64), np.array(small, dtype=np.uint64)

    def frames(self) -> FrameArray:
        """Every 4K frame in the cache, for the audit."""
        big = expand(np.array(self._super, dtype=np.uint64), ORDER_2M)
        return np.concatenate((big, np.array(self._single, dtype=np.uint64)))
