"""Small things that the P2M's handlers share: classes of types as masks, frames as arrays. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.frames import INVALID_FRAME, FrameArray
from protocols.p2m_types import HOLE_TYPES, RAM_TYPES, SPECIAL_TYPES

IS_RAM: Final = np.isin(np.arange(256), [int(t) for t in RAM_TYPES])
IS_HOLE: Final = np.isin(np.arange(256), [int(t) for t in HOLE_TYPES])
IS_SPECIAL: Final = np.isin(np.arange(256), [int(t) for t in SPECIAL_TYPES])
NO_FRAMES: Final = np.empty(0, dtype=np.uint64)


def invalid(nr: int) -> FrameArray:
    """``nr`` times INVALID_MFN."""
    return np.full(nr, INVALID_FRAME, dtype=np.uint64)


def one(frame: int) -> FrameArray:
    """A single frame number as an array."""
    return np.array([frame], dtype=np.uint64)


def repeated(frames: FrameArray) -> npt.NDArray[np.bool_]:
    """Which frames stood earlier in the same array."""
    again = np.zeros(frames.size, dtype=np.bool_)
    if frames.size > 1 and not bool((frames[1:] > frames[:-1]).all()):
        again[:] = True
        again[np.unique(frames, return_index=True)[1]] = False
    return again
