"""Owners and M2P of a whole host: every node's part behind one set of questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from protocols.frames import (
    DOMID_INVALID,
    DOMID_XEN,
    INVALID_FRAME,
    FrameArray,
)
from services.spec import runs
from services.spec.snapshots import BoolArray, NodeSnapshot, Runs

NO_NODE = -1
"""Owner of a frame that is not in any node's memory."""


def owner_name(owner: int) -> str:
    """An owner as a message names it."""
    names = {NO_NODE: "of no node", DOMID_INVALID: "free", DOMID_XEN: "owned by Xen"}
    return names.get(owner, f"owned by d{owner}")


class HostFrames:
    """The frame tables of all nodes; extents are asked for by order, as arrays of base mfns."""

    def __init__(self, nodes: Sequence[NodeSnapshot]) -> None:
        self.nodes = nodes
        self._runs: dict[int, Runs] = {}

    def _by_node(
        self, mfns: FrameArray, order: int
    ) -> Iterator[tuple[NodeSnapshot, npt.NDArray[np.intp]]]:
        """Each node with the positions of the extents that lie wholly in it."""
        for node in self.nodes:
            last = node.start + node.nr_frames - (1 << order)
            where = np.flatnonzero((mfns >= node.start) & (mfns <= last))
            if where.size:
                yield node, where

    def owned(self, mfns: FrameArray, order: int, domid: int) -> BoolArray:
        """Whether the domain owns all of each extent, which is aligned; shape (n,)."""
        right = np.zeros(mfns.size, dtype=np.bool_)
        for node, where in self._by_node(mfns, order):
            right[where] = node.owner.owner_uniform(mfns[where], order, domid)
        return right

    def m2p_matches(self, mfns: FrameArray, gfns: FrameArray, order: int) -> BoolArray:
        """Whether m2p[mfn + i] = gfn + i in all of each extent, which is aligned; shape (n,)."""
        right = np.zeros(mfns.size, dtype=np.bool_)
        for node, where in self._by_node(mfns, order):
            right[where] = node.m2p.m2p_matches(mfns[where], gfns[where], order)
        return right

    def owners(self, mfns: FrameArray) -> npt.NDArray[np.int64]:
        """The owner of each frame, NO_NODE where there is no memory; shape (n,)."""
        owners = np.full(mfns.size, NO_NODE, dtype=np.int64)
        for node, where in self._by_node(mfns, 0):
            owners[where] = node.owner.owner(mfns[where])
        return owners

    def m2p(self, mfns: FrameArray) -> FrameArray:
        """The M2P word of each frame, INVALID_FRAME where there is no memory; shape (n,)."""
        words = np.full(mfns.size, INVALID_FRAME, dtype=np.uint64)
        for node, where in self._by_node(mfns, 0):
            words[where] = node.m2p.m2p(mfns[where])
        return words

    def owned_runs(self, domid: int) -> Runs:
        """Every frame that the domain owns, on any node."""
        if domid not in self._runs:
            self._runs[domid] = runs.together([node.owner.owned_runs(domid) for node in self.nodes])
        return self._runs[domid]

    def orphans(self, domid: int) -> Runs:
        """Every frame that the domain owns and whose M2P word is invalid."""
        return runs.together([node.m2p.orphans(domid) for node in self.nodes])
