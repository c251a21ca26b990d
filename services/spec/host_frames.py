"""Owners and M2P of a whole host: every node's part behind one set of questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocols.frames import DOMID_INVALID, DOMID_XEN, INVALID_FRAME, ORDER_2M, FrameArray, expand
from services.spec import runs
from services.spec.snapshots import BoolArray, NodeSnapshot, Runs

NO_NODE: Final = -1
"""Owner of a frame that is not in any node's memory."""
_BLOCKS: Final = 1 << 11
"""2M blocks read frame by frame at once."""


def owner_name(owner: int) -> str:
    """An owner as a message names it."""
    names = {NO_NODE: "of no node", DOMID_INVALID: "free", DOMID_XEN: "owned by Xen"}
    return names.get(owner, f"owned by d{owner}")


class _Owned(NamedTuple):
    """Runs of frames and the owner of each, parallel arrays."""

    starts: FrameArray
    lengths: FrameArray
    owners: npt.NDArray[np.uint16]


class HostFrames:
    """The frame tables of all nodes; extents are asked for by order, as arrays of base mfns."""

    def __init__(self, nodes: Sequence[NodeSnapshot]) -> None:
        self.nodes = nodes
        self._runs = {node.node: owner_runs(node) for node in nodes}

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

    def owned_runs(self, domid: int, node: int | None = None) -> Runs:
        """Every frame that the domain owns, on any node or on one: maximal runs in each."""
        parts = self._runs.values() if node is None else [self._runs[node]]
        return runs.together([part[domid] for part in parts if domid in part])

    def orphans(self, domid: int) -> Runs:
        """Every frame that the domain owns and whose M2P word is invalid."""
        return runs.together([node.m2p.orphans(domid) for node in self.nodes])


def owner_runs(node: NodeSnapshot) -> dict[int, Runs]:
    """All frames of a node by owner, as maximal runs.

    One sweep for all owners. It looks at the first frame of each 2M block and then asks whether
    the whole block is its owner's; only mixed blocks are read frame by frame.
    """
    end = node.start + node.nr_frames
    size = 1 << ORDER_2M
    low = min(end, -(-node.start // size) * size)
    high = max(low, end // size * size)
    blocks = np.arange(low, high, size, dtype=np.uint64)
    guesses = node.owner.owner(blocks)
    uniform = np.zeros(blocks.size, dtype=np.bool_)
    for domid, alike in _by_value(guesses):
        uniform[alike] = node.owner.owner_uniform(blocks[alike], ORDER_2M, domid)
    parts = [
        _Owned(blocks[uniform], np.full(int(uniform.sum()), size, np.uint64), guesses[uniform])
    ]
    mixed = blocks[~uniform]
    batches = [expand(some, ORDER_2M) for some in np.array_split(mixed, 1 + mixed.size // _BLOCKS)]
    edges = (np.arange(node.start, low), np.arange(high, end))
    for frames in (*batches, *(edge.astype(np.uint64) for edge in edges)):
        owners = node.owner.owner(frames)
        parts.append(_merge(_Owned(frames, np.ones(frames.size, np.uint64), owners)))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    where = np.argsort(columns[0], kind="stable")
    merged = _merge(_Owned(*(column[where] for column in columns)))
    return {
        domid: (merged.starts[alike], merged.lengths[alike])
        for domid, alike in _by_value(merged.owners)
    }


def _merge(owned: _Owned) -> _Owned:
    """Ascending runs, with those that touch and have one owner joined."""
    starts, lengths, owners = owned
    if not starts.size:
        return owned
    ends = starts + lengths
    breaks = np.flatnonzero((starts[1:] != ends[:-1]) | (owners[1:] != owners[:-1]))
    first = np.concatenate(([0], breaks + 1))
    last = np.append(breaks, starts.size - 1)
    return _Owned(starts[first], ends[last] - starts[first], owners[first])


def _by_value(owners: npt.NDArray[np.uint16]) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """Each owner with its positions, ascending."""
    where = np.argsort(owners, kind="stable")
    ordered = owners[where]
    breaks = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for alike in np.split(where, breaks):
        if alike.size:
            yield int(owners[alike[0]]), alike
