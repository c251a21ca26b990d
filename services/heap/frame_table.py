"""Owners and M2P of a node, for every 4K frame whatever the size of the mapping.

Pure and synchronous. All calls take extents: distinct base mfns, shape (n,) u64, and one order.
The owner of a free frame is DOMID_INVALID; the M2P word of a frame without gfn is INVALID_FRAME.
"""

from __future__ import annotations

from typing import Final, NoReturn, Self

import numpy as np
import numpy.typing as npt

from protocols.frames import DOMID_INVALID, INVALID_FRAME, FrameArray, bounds, expand
from services.heap.chunked import CHUNK, CHUNK_SHIFT, FEW, ChunkedWords, ChunkIds

_NO_FRAMES: Final = np.empty(0, dtype=np.uint64)
_NO_CHUNKS: Final = np.empty(0, dtype=np.intp)


class FrameTable:
    """page_info's owner and the machine-to-phys table, of mfns [start, start + nr_frames)."""

    def __init__(self, start: int, nr_frames: int) -> None:
        self.start = start
        self.end = start + nr_frames
        self._owner = ChunkedWords(start, nr_frames, np.uint16, DOMID_INVALID)
        self._m2p = ChunkedWords(start, nr_frames, np.uint64, INVALID_FRAME)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self._owner.nbytes + self._m2p.nbytes

    def contains(self, mfns: FrameArray) -> bool:
        """Whether all mfns are of this node."""
        if not mfns.size:
            return True
        low, high = bounds(mfns)
        return low >= self.start and high < self.end

    # -- owners ------------------------------------------------------------------------------

    def set_owner(self, mfns: FrameArray, order: int, domid: int, *, expected: int) -> None:
        """Give extents to ``domid``; every frame must be owned by ``expected`` now."""
        if not mfns.size:
            return
        assert self.contains(mfns), f"mfn {int(mfns.max()):#x} is not of this node"
        if order >= CHUNK_SHIFT and mfns.size << (order - CHUNK_SHIFT) <= FEW:
            # The hot path of a build: a few superpages that change hands as whole chunks.
            chunks = _few_chunks(mfns, order, self._owner.first_chunk)
            if self._owner.swap(chunks, expected, domid):
                return
        whole, edges = self._cover(mfns, order)
        as_expected = bool(self._owner.uniform(whole, expected).all())
        if not as_expected or not bool((self.owner(edges) == expected).all()):
            self._fail_owner(mfns, order, domid, expected)
        if whole.size:
            self._owner.write_chunks(whole, domid)
        if edges.size:
            self._owner.write(edges, domid)

    def _fail_owner(self, mfns: FrameArray, order: int, domid: int, expected: int) -> NoReturn:
        """Name the first frame whose owner is not the expected one."""
        base = mfns[~self.owner_uniform(mfns, order, expected)][:1]
        owners = self.owner(expand(base, order))
        bad = int(np.flatnonzero(owners != expected)[0])
        raise AssertionError(
            f"mfn {int(base[0]) + bad:#x} order {order}: owned by {int(owners[bad]):#x}, "
            f"expected {expected:#x}, wanted for domid {domid:#x}"
        )

    def owner(self, mfns: FrameArray) -> npt.NDArray[np.uint16]:
        """Owner of each frame."""
        return self._owner.read(mfns).astype(np.uint16, copy=False)

    def owner_uniform(self, mfns: FrameArray, order: int, domid: int) -> npt.NDArray[np.bool_]:
        """Whether all frames of each extent have this owner."""
        if order < CHUNK_SHIFT:
            return self._by_extent(self.owner(expand(mfns, order)) == domid, order)
        right = self._owner.uniform(_chunks(self._owner.chunks_of(mfns), order), domid)
        return self._by_extent(right, order - CHUNK_SHIFT)

    # -- M2P ---------------------------------------------------------------------------------

    def set_m2p(self, mfns: FrameArray, gfns: FrameArray, order: int) -> None:
        """m2p[mfn + i] = gfn + i for each extent."""
        if not mfns.size:
            return
        if order == CHUNK_SHIFT and mfns.size <= FEW:
            chunks = _few_chunks(mfns, order, self._m2p.first_chunk)
            self._m2p.write_few(chunks, gfns.tolist(), 1)
            return
        if order >= CHUNK_SHIFT:
            wide = _chunks(self._m2p.chunks_of(mfns), order)
            self._m2p.write_chunks(wide, _chunk_bases(gfns, order), 1)
            return
        frames, words = expand(mfns, order), expand(gfns, order)
        slope = _slope(frames, words) if frames.size >= CHUNK else 0
        if not slope:
            self._m2p.write(frames, words)
            return
        # A straight run of frames: its whole chunks need a rule each, only its ends single words.
        low = min(int(frames[0]), int(frames[-1]))
        word = int(words[0]) if int(frames[0]) == low else int(words[-1])
        whole, edges = self._cover(mfns, order)
        for part, by_chunk in ((whole, True), (edges, False)):
            if part.size:
                firsts = (part + self._m2p.first_chunk) << CHUNK_SHIFT if by_chunk else part
                values = word + slope * (firsts.astype(np.int64) - low)
                if by_chunk:
                    self._m2p.write_chunks(part.astype(np.intp), values.astype(np.uint64), slope)
                else:
                    self._m2p.write(part.astype(np.uint64), values.astype(np.uint64))

    def clear_m2p(self, mfns: FrameArray, order: int) -> None:
        """m2p[mfn + i] = INVALID for each extent."""
        if not mfns.size:
            return
        whole, edges = self._cover(mfns, order)
        if whole.size:
            self._m2p.write_chunks(whole, INVALID_FRAME)
        if edges.size:
            # Frames of a chunk that is wholly invalid need no page to say so once more.
            chunks = self._m2p.chunks_of(edges)
            ruled = (self._m2p.page[chunks] < 0) & (self._m2p.slope[chunks] == 0)
            edges = edges[~(ruled & (self._m2p.base[chunks] == INVALID_FRAME))]
            if edges.size:
                self._m2p.write(edges, INVALID_FRAME)

    def m2p(self, mfns: FrameArray) -> FrameArray:
        """The gfn of each frame."""
        return self._m2p.read(mfns).astype(np.uint64, copy=False)

    def m2p_matches(self, mfns: FrameArray, gfns: FrameArray, order: int) -> npt.NDArray[np.bool_]:
        """Whether m2p[mfn + i] == gfn + i for all i of each extent."""
        if order < CHUNK_SHIFT:
            right = self.m2p(expand(mfns, order)) == expand(gfns, order)
            return self._by_extent(right, order)
        chunks = _chunks(self._m2p.chunks_of(mfns), order)
        right = self._m2p.ascends(chunks, _chunk_bases(gfns, order))
        return self._by_extent(right, order - CHUNK_SHIFT)

    # -- who has what ------------------------------------------------------------------------

    def owned_runs(self, domid: int) -> tuple[FrameArray, FrameArray]:
        """Maximal runs of frames of an owner, ascending: (starts, lengths)."""
        return self._clip(*self._owner.runs(domid))

    def count_owned(self, domid: int) -> int:
        """Frames of an owner."""
        return int(self.owned_runs(domid)[1].sum())

    def orphans(self, domid: int) -> tuple[FrameArray, FrameArray]:
        """Runs of owned frames whose M2P word is invalid: (starts, lengths)."""
        owned = self.owned_runs(domid)
        among = self._owner.touched(*owned)
        return _common(owned, self._m2p.runs(INVALID_FRAME, among))

    # -- copies ------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The whole table in its compact form."""
        header = np.array([self.start, self.end - self.start], dtype="<u8").tobytes()
        return header + self._owner.to_bytes() + self._m2p.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """A read-only copy of a table from ``to_bytes``."""
        start, nr_frames = np.frombuffer(data, "<u8", 2).tolist()
        table = cls(start, nr_frames)
        end = table._m2p.load(data, table._owner.load(data, 16))
        assert end == len(data), f"{len(data) - end} bytes too many"
        return table

    # -- helpers -----------------------------------------------------------------------------

    def _cover(self, mfns: FrameArray, order: int) -> tuple[ChunkIds, FrameArray]:
        """Extents as whole chunks and the single frames beside them."""
        if order >= CHUNK_SHIFT:
            return _chunks(self._owner.chunks_of(mfns), order), _NO_FRAMES
        frames = expand(mfns, order)
        if frames.size < CHUNK:
            return _NO_CHUNKS, frames
        low, high = int(frames.min()), int(frames.max()) + 1
        if high - low != frames.size:
            return _NO_CHUNKS, frames
        first, last = -(-low // CHUNK) * CHUNK, high // CHUNK * CHUNK
        if first >= last:
            return _NO_CHUNKS, frames
        whole = np.arange(first >> CHUNK_SHIFT, last >> CHUNK_SHIFT, dtype=np.intp)
        edges = np.concatenate(
            (np.arange(low, first, dtype=np.uint64), np.arange(last, high, dtype=np.uint64))
        )
        return whole - self._owner.first_chunk, edges

    def _by_extent(self, right: npt.NDArray[np.bool_], order: int) -> npt.NDArray[np.bool_]:
        return right if order == 0 else np.all(right.reshape(-1, 1 << order), axis=1)

    def _clip(self, starts: FrameArray, lengths: FrameArray) -> tuple[FrameArray, FrameArray]:
        """Runs cut to the node: a uniform chunk at its edge may reach beyond it."""
        ends = np.minimum(starts + lengths, np.uint64(self.end))
        starts = np.maximum(starts, np.uint64(self.start))
        keep = ends > starts
        return starts[keep], (ends - starts)[keep]


def _slope(frames: FrameArray, words: FrameArray) -> int:
    """1 or -1 if words climb by one as frames go up or down by one, else 0."""
    steps = np.diff(frames)
    if not (np.diff(words) == 1).all():
        return 0
    if (steps == 1).all():
        return 1
    return -1 if (steps == np.uint64(INVALID_FRAME)).all() else 0


def _chunk_bases(gfns: FrameArray, order: int) -> FrameArray:
    """The first gfn of each chunk of extents of at least a chunk."""
    if order == CHUNK_SHIFT:
        return gfns
    return (gfns[:, None] + np.arange(0, 1 << order, CHUNK, dtype=np.uint64)).reshape(-1)


def _few_chunks(mfns: FrameArray, order: int, first_chunk: int) -> list[int]:
    """All chunks of a few extents of at least a chunk, as Python integers."""
    span = range(1 << (order - CHUNK_SHIFT))
    return [(mfn >> CHUNK_SHIFT) - first_chunk + step for mfn in mfns.tolist() for step in span]


def _chunks(first: npt.NDArray[np.intp], order: int) -> npt.NDArray[np.intp]:
    """All chunks of extents of at least a chunk."""
    if order == CHUNK_SHIFT:
        return first
    return (first[:, None] + np.arange(1 << (order - CHUNK_SHIFT), dtype=np.intp)).reshape(-1)


def _common(
    some: tuple[FrameArray, FrameArray], others: tuple[FrameArray, FrameArray]
) -> tuple[FrameArray, FrameArray]:
    """Frames that are in both of two lists of ascending disjoint runs, as such a list."""
    starts, other_starts = some[0], others[0]
    ends, other_ends = starts + some[1], other_starts + others[1]
    # Each run meets a range of the other list's runs, often an empty one.
    low = np.searchsorted(other_ends, starts, side="right")
    nr_met = np.searchsorted(other_starts, ends, side="left") - low
    mine = np.repeat(np.arange(starts.size), nr_met)
    nth = np.arange(mine.size) - np.repeat(nr_met.cumsum() - nr_met, nr_met)
    other = low[mine] + nth
    first = np.maximum(starts[mine], other_starts[other])
    return first, np.minimum(ends[mine], other_ends[other]) - first
