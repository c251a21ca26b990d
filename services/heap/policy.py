"""Pure decisions of the allocator: order limits, slices of a long call, opportunistic extents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from protocols.frames import MAX_ORDER, ORDER_2M, FrameArray

ORDER_MAX_DOMU: Final = ORDER_2M
"""memop-max-order of a domU; a control domain may ask for MAX_ORDER (max_order, memory.c)."""

SLICE_EXTENTS: Final = 1 << 16
SLICE_FRAMES: Final = 1 << MAX_ORDER
"""Work between two preemption points of a hypercall: at most so many extents or frames."""


def max_order(caller: int) -> int:
    """Largest order that the calling domain may ask for; domid 0 is the control domain."""
    return MAX_ORDER if caller == 0 else ORDER_MAX_DOMU


def slice_extents(order: int) -> int:
    """Extents of one slice; at least one, so that every slice makes progress."""
    return max(1, min(SLICE_EXTENTS, SLICE_FRAMES >> order))


def opportunistic_extents(
    gfns: FrameArray, orders: Sequence[int]
) -> Iterator[tuple[int, FrameArray]]:
    """Plain 4K gfns as the largest aligned extents that they contain: RFC, S1 and S4.

    Args:
        gfns: shape (n,), in the caller's order.
        orders: superpage orders to look for, largest first, ending in 0.

    Yields:
        (order, extent base gfns), together exactly ``gfns`` in the caller's order.
    """
    if not gfns.size:
        return
    breaks = np.flatnonzero(np.diff(gfns) != 1) + 1
    for run in np.split(gfns, breaks):
        yield from _split_run(int(run[0]), run.size, orders)


def _split_run(first: int, nr: int, orders: Sequence[int]) -> Iterator[tuple[int, FrameArray]]:
    order, rest = orders[0], orders[1:]
    size = 1 << order
    start = -(-first // size) * size
    end = (first + nr) // size * size
    if start >= end:
        if rest:
            yield from _split_run(first, nr, rest)
        return
    if start > first:
        yield from _split_run(first, start - first, rest)
    yield order, np.arange(start, end, size, dtype=np.uint64)
    if first + nr > end:
        yield from _split_run(end, first + nr - end, rest)
