"""Frame numbers, orders and extents: the units of everything.

Frame numbers count 4 KiB frames. A gfn is a guest frame number, an mfn a machine frame number; an
extent of order k is 2**k frames, naturally aligned where it is mapped by a superpage. Ranges are
half-open, ``[gfn, gfn + nr)``. Frame numbers travel and are stored as little-endian u64 arrays.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

FrameArray: TypeAlias = npt.NDArray[np.uint64]

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT

ORDER_4K: Final = 0
ORDER_2M: Final = 9
ORDER_4M: Final = 10
ORDER_1G: Final = 18
MAX_ORDER: Final = 18
"""x86 MAX_ORDER, 2 * 9 (xen/include/asm-x86/config.h): the largest block of the buddy heap."""

ORDER_LIMIT: Final = 20
"""The largest order a request may name at all; above MAX_ORDER it is refused, not malformed."""

INVALID_FRAME: Final = (1 << 64) - 1
"""INVALID_MFN = INVALID_GFN = all ones; also INVALID_M2P_ENTRY."""

EXTENTS_MAX: Final = 1 << 20
"""Most extents in one message. Xen takes 2**26 - 1; ours stay far below a Ray object's cost."""

FRAME_MAX: Final = (1 << 40) - 1
"""Largest frame number that fits the 40-bit frame field of a 64-bit page-table entry."""

DOMID_FIRST_RESERVED: Final = 0x7FF0
DOMID_XEN: Final = 0x7FF2
"""Owner of frames that Xen itself holds: page-table pools."""
DOMID_INVALID: Final = 0x7FF4
"""Owner of a free frame (DOMID_INVALID of public/xen.h)."""

ORDER_NAMES: Final = {ORDER_4K: "4K", ORDER_2M: "2M", ORDER_4M: "4M", ORDER_1G: "1G"}


def pack(frames: npt.ArrayLike) -> bytes:
    """Frame numbers as the bytes that travel: packed little-endian u64."""
    return np.ascontiguousarray(frames, dtype="<u8").tobytes()


def unpack(data: bytes) -> FrameArray:
    """The read-only u64 array behind packed frame numbers; ``len(data)`` is a multiple of 8."""
    return np.frombuffer(data, dtype="<u8")


def is_aligned(frame: int, order: int) -> bool:
    """Whether a frame number starts a naturally aligned extent of the order."""
    return frame & ((1 << order) - 1) == 0


def expand(starts: FrameArray, order: int) -> FrameArray:
    """Every frame of the extents: shape (n,) of order k to shape (n << k,), ascending in each."""
    if order == 0:
        return starts
    steps = np.arange(1 << order, dtype=np.uint64)
    return (starts[:, None] + steps).reshape(-1)


FEW = 16
"""Arrays up to this size are cheaper to go through as Python integers than by numpy calls."""


def bounds(frames: FrameArray) -> tuple[int, int]:
    """(lowest, highest) of a non-empty array of frames."""
    if frames.size <= FEW:
        values: list[int] = frames.tolist()
        return min(values), max(values)
    return int(frames.min()), int(frames.max())


def runs_of(frames: FrameArray) -> tuple[FrameArray, FrameArray]:
    """Sorted distinct frames as maximal runs: (starts, lengths), both u64 and ascending."""
    if frames.size == 0:
        return frames, frames
    breaks = np.flatnonzero(np.diff(frames) != 1) + 1
    first = np.concatenate(([0], breaks))
    lengths = np.diff(np.concatenate((first, [frames.size])))
    return frames[first], lengths.astype(np.uint64)
