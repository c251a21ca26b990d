"""Access streams: which gfns a guest touches, as a pure function of the request."""

from __future__ import annotations

import numpy as np

from protocols.frames import FrameArray
from protocols.toolstack import TouchDomain

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def splitmix64(counter: FrameArray) -> FrameArray:
    """Steele, Lea and Flood's generator at each counter value: the same in every process."""
    z = counter * np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def access_stream(m: TouchDomain, first: int, nr: int) -> FrameArray:
    """Accesses ``first .. first + nr`` of the request, gfns of shape (nr,).

    sequential: first_gfn, first_gfn + stride, ...; random: uniform over the same gfns.
    """
    index = np.arange(first, first + nr, dtype=np.uint64)
    if m.pattern == "random":
        start = np.uint64((1 + m.seed * _GOLDEN) & _WORD)
        index = splitmix64(index + start) % np.uint64(m.nr)
    return np.uint64(m.first_gfn) + index * np.uint64(m.stride)
