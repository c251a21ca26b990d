"""From extents to chunks: which leaf orders an update uses (``p2m_set_entry``)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from protocols.frames import INVALID_FRAME, FrameArray

if TYPE_CHECKING:
    from collections.abc import Sequence


_SMALL = 8
"""Up to this many extents ints are faster than arrays."""


class Chunks(NamedTuple):
    """Leaves to write, in order, all of one leaf order; mfns may be INVALID_FRAME."""

    gfns: FrameArray
    mfns: FrameArray
    order: int

    def head(self, nr: int) -> Chunks:
        """The first ``nr`` of them."""
        return Chunks(self.gfns[:nr], self.mfns[:nr], self.order)


def decompose(
    gfns: FrameArray,
    mfns: FrameArray,
    order: int,
    allowed: Sequence[int],
    force_4k: Sequence[tuple[int, int]],
) -> list[Chunks]:
    """Cut extents into the chunks that ``p2m_set_entry`` would write, in its order.

    A chunk gets the largest allowed order that gfn, mfn and the frames still to do are multiples
    of; INVALID_MFN takes no part. Since the frames to do count, an extent keeps one chunk order to
    its end: a misaligned one is 4K throughout, and orders 1 to 8 always are. On top of Xen's rule,
    a chunk that meets a ``force_4k`` range ``(gfn, nr)`` is cut to the next smaller order, down to
    4K.

    Args:
        gfns: first gfn of each extent, shape (n,), n > 0.
        mfns: first mfn of each extent, or INVALID_FRAME, shape (n,).
        order: order of every extent.
        allowed: leaf orders in use, ascending from 0.
        force_4k: half-open gfn ranges that must not be mapped by a superpage.
    """
    if order == 0:
        return [Chunks(gfns, mfns, 0)]
    chunks: list[Chunks] = []
    candidates = [chunk for chunk in allowed if chunk <= order]
    for lo, hi, chunk in _chunk_orders(gfns, mfns, candidates):
        part = _cut(gfns[lo:hi], mfns[lo:hi], order, chunk)
        if chunk and force_4k:
            _keep_small(part, candidates, force_4k, chunks)
        else:
            chunks.append(part)
    return chunks


def _chunk_orders(
    gfns: FrameArray, mfns: FrameArray, candidates: list[int]
) -> list[tuple[int, int, int]]:
    """Runs of extents with one chunk order: (first, end, chunk order)."""
    low = (1 << candidates[-1]) - 1
    if gfns.size <= _SMALL:
        union = 0
        for gfn, mfn in zip(gfns.tolist(), mfns.tolist(), strict=True):
            union |= gfn if mfn == INVALID_FRAME else gfn | mfn
        if union & low == 0:
            return [(0, gfns.size, candidates[-1])]
    bits = gfns | np.where(mfns == INVALID_FRAME, np.uint64(0), mfns)
    if int(np.bitwise_or.reduce(bits)) & low == 0:
        return [(0, gfns.size, candidates[-1])]
    chosen = np.zeros(gfns.size, dtype=np.uint8)
    for chunk in candidates:
        chosen[bits & ((1 << chunk) - 1) == 0] = chunk
    edges = [0, *(np.flatnonzero(chosen[1:] != chosen[:-1]) + 1).tolist(), gfns.size]
    return [(lo, hi, int(chosen[lo])) for lo, hi in pairwise(edges)]


def _cut(gfns: FrameArray, mfns: FrameArray, order: int, chunk: int) -> Chunks:
    """Extents of ``order`` as chunks of a smaller order."""
    if chunk == order:
        return Chunks(gfns, mfns, order)
    steps = np.arange(0, 1 << order, 1 << chunk, dtype=np.uint64)
    frames = np.where((mfns == INVALID_FRAME)[:, None], mfns[:, None], mfns[:, None] + steps)
    return Chunks((gfns[:, None] + steps).reshape(-1), frames.reshape(-1), chunk)


def _keep_small(
    part: Chunks, candidates: list[int], force_4k: Sequence[tuple[int, int]], out: list[Chunks]
) -> None:
    """Append ``part`` to ``out`` with every chunk that meets a forced range cut smaller."""
    meets = np.zeros(part.gfns.size, dtype=np.bool_)
    size = 1 << part.order
    for gfn, nr in force_4k:
        meets |= (part.gfns < gfn + nr) & (part.gfns + size > gfn)
    if part.order == 0 or not meets.any():
        out.append(part)
        return
    smaller = candidates[candidates.index(part.order) - 1]
    edges = [0, *(np.flatnonzero(meets[1:] != meets[:-1]) + 1).tolist(), meets.size]
    for lo, hi in pairwise(edges):
        run = Chunks(part.gfns[lo:hi], part.mfns[lo:hi], part.order)
        if meets[lo]:
            cut = _cut(run.gfns, run.mfns, run.order, smaller)
            _keep_small(cut, candidates, force_4k, out)
        else:
            out.append(run)
