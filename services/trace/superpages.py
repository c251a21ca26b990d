"""The leaves of one domain, as its p2m updates make them: which update shattered what.

Xen traces updates and never shatters; those follow from what was mapped before. A map keeps a kind
and a type for every leaf, and nothing of page-table pages, so it is as large as its guest and not
as its trace. Semantics are those of ``P2mTable``: a smaller update inside a leaf shatters it level
by level, an update over a table replaces all of it, an emptied table stays one, nothing merges.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.p2m_types import INVALID_MFN_TYPES, P2mType
from services.trace.frame import Column

COMPILE_FROM: Final = 100_000
"""Updates of one call from which on compiling the loop is worth its seconds."""
TYPES: Final = 256
POD: Final = int(P2mType.POPULATE_ON_DEMAND)

EMPTY: Final = 0
LEAF: Final = 1
TABLE: Final = 2

LOW: Final = 1
"""Flag of an update: a leaf of the middle order (2M, or 4M) was shattered to 4K."""
HIGH: Final = 2
"""Flag of an update: a leaf of the top order (1G) was shattered."""
ALL_LOW: Final = 4
"""Flag of an update: every 2M of a shattered 1G leaf was shattered with it, as the EPT does."""

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.uint8]


class GfnMap:
    """One domain. ``leaf_orders`` ascending, as (0, 9, 18); ``ept``: shatters go all the way down.

    Rows of the upper arrays are regions of ``1 << top`` frames that some update named.
    """

    def __init__(self, leaf_orders: tuple[int, ...], *, ept: bool = False) -> None:
        self._mid = leaf_orders[1]
        self._top = 20 if self._mid == 10 else 18
        self._ept = ept
        self._has_top = len(leaf_orders) > 2
        self._rows: dict[int, int] = {}
        width = 1 << (self._top - self._mid)
        self._high: Bytes = np.zeros((0, 2), dtype=np.uint8)
        self._low: Bytes = np.zeros((0, width, 2), dtype=np.uint8)
        self._slots: npt.NDArray[np.int64] = np.full((0, width), -1, dtype=np.int64)
        self._pages: npt.NDArray[np.uint16] = np.zeros((0, 1 << self._mid), dtype=np.uint16)
        self._nr_pages: Counts = np.zeros(1, dtype=np.int64)
        self._counts: Counts = np.zeros((3, TYPES), dtype=np.int64)

    def apply(self, order: Column, kind: Column, gfn: Column, mfn: Column) -> Flags:
        """Updates in the order of execution; for each the flags LOW, HIGH and ALL_LOW."""
        nr = len(order)
        flags: Flags = np.zeros(nr, dtype=np.uint8)
        if not nr:
            return flags
        regions, row_of = np.unique(gfn >> np.uint64(self._top), return_inverse=True)
        rows = self._rows_of(regions.tolist())[row_of]
        filled = (mfn != np.uint64((1 << 64) - 1)) | np.isin(kind, list(INVALID_MFN_TYPES))
        self._room(order, gfn)
        loop = _compiled() if nr >= COMPILE_FROM else _apply
        loop(
            order.astype(np.int64), kind.astype(np.int64), gfn.astype(np.int64), filled, rows,
            self._mid, self._top, self._ept, self._high, self._low, self._slots, self._pages,
            self._nr_pages, self._counts, flags,
        )  # fmt: skip
        return flags

    def shatters(self, flags: Flags) -> dict[str, int]:
        """Shattered leaves behind some flags, by step: ``18->9``, ``9->0``."""
        low, high = f"{self._mid}->0", f"{self._top}->{self._mid}"
        fans = int(np.count_nonzero(flags & ALL_LOW)) << (self._top - self._mid)
        steps = {high: int(np.count_nonzero(flags & HIGH))} if self._has_top else {}
        steps[low] = int(np.count_nonzero(flags & LOW)) + fans
        return steps

    def leaves(self) -> dict[int, dict[int, int]]:
        """{order: {type: leaves}} now, absent ones left out."""
        found: dict[int, dict[int, int]] = {}
        for level, order in enumerate((0, self._mid, self._top)):
            kinds = {
                int(kind): int(self._counts[level, kind])
                for kind in np.flatnonzero(self._counts[level])
            }
            if kinds:
                found[order] = kinds
        return found

    def frames(self) -> dict[int, int]:
        """{order: frames} that leaves of each order map now; PoD entries map nothing yet."""
        return {
            order: sum(nr for kind, nr in kinds.items() if kind != POD) << order
            for order, kinds in self.leaves().items()
        }

    def _rows_of(self, regions: list[int]) -> npt.NDArray[np.int64]:
        """The rows of some regions, new ones at the end."""
        for region in regions:
            self._rows.setdefault(region, len(self._rows))
        new = len(self._rows) - len(self._high)
        if new:
            width = self._slots.shape[1]
            self._high = np.concatenate((self._high, np.zeros((new, 2), dtype=np.uint8)))
            self._low = np.concatenate((self._low, np.zeros((new, width, 2), dtype=np.uint8)))
            self._slots = np.concatenate((self._slots, np.full((new, width), -1, dtype=np.int64)))
            if not self._has_top:
                self._high[:, 0] = TABLE
        return np.array([self._rows[region] for region in regions], dtype=np.int64)

    def _room(self, order: Column, gfn: Column) -> None:
        """Pages for all tables of 4K entries that these updates can need."""
        small = gfn[order < self._mid]
        wanted = len(np.unique(small >> np.uint64(self._mid)))
        if self._ept:
            wanted += len(np.unique(small >> np.uint64(self._top))) << (self._top - self._mid)
        need = int(self._nr_pages[0]) + wanted
        if need > len(self._pages):
            more = np.zeros((max(need, 2 * len(self._pages)), 1 << self._mid), dtype=np.uint16)
            more[: len(self._pages)] = self._pages
            self._pages = more


def _apply(
    order: Any,
    kind: Any,
    gfn: Any,
    filled: Any,
    rows: Any,
    mid: int,
    top: int,
    ept: bool,
    high: Any,
    low: Any,
    slots: Any,
    pages: Any,
    nr_pages: Any,
    counts: Any,
    flags: Any,
) -> None:
    """The loop over updates: plain, and what numba compiles. Pages hold 0 or 1 + type."""
    width, entries = 1 << (top - mid), 1 << mid
    for at in range(len(order)):
        row, number, p2mt, has = rows[at], gfn[at], kind[at], filled[at]
        if order[at] >= top:
            if high[row, 0] == LEAF:
                counts[2, high[row, 1]] -= 1
            elif high[row, 0] == TABLE:
                for child in range(width):
                    if low[row, child, 0] == LEAF:
                        counts[1, low[row, child, 1]] -= 1
                    elif low[row, child, 0] == TABLE:
                        slot = slots[row, child]
                        for entry in range(entries):
                            if pages[slot, entry]:
                                counts[0, pages[slot, entry] - 1] -= 1
                    low[row, child, 0] = EMPTY
            high[row, 0] = LEAF if has else EMPTY
            high[row, 1] = p2mt
            if has:
                counts[2, p2mt] += 1
            continue
        first = (number >> mid) & (width - 1)
        if high[row, 0] == LEAF:
            flags[at] |= HIGH
            old = high[row, 1]
            counts[2, old] -= 1
            for child in range(width):
                low[row, child, 0] = LEAF
                low[row, child, 1] = old
            counts[1, old] += width
            if ept and order[at] < mid:
                # The EPT splits every descendant before it publishes the new tables.
                flags[at] |= ALL_LOW
                counts[1, old] -= width
                counts[0, old] += width * entries
                for child in range(width):
                    if slots[row, child] < 0:
                        slots[row, child] = nr_pages[0]
                        nr_pages[0] += 1
                    pages[slots[row, child], :] = old + 1
                    low[row, child, 0] = TABLE
        high[row, 0] = TABLE
        if order[at] >= mid:
            if low[row, first, 0] == LEAF:
                counts[1, low[row, first, 1]] -= 1
            elif low[row, first, 0] == TABLE:
                slot = slots[row, first]
                for entry in range(entries):
                    if pages[slot, entry]:
                        counts[0, pages[slot, entry] - 1] -= 1
            low[row, first, 0] = LEAF if has else EMPTY
            low[row, first, 1] = p2mt
            if has:
                counts[1, p2mt] += 1
            continue
        if low[row, first, 0] != TABLE:
            if slots[row, first] < 0:
                slots[row, first] = nr_pages[0]
                nr_pages[0] += 1
            slot = slots[row, first]
            if low[row, first, 0] == LEAF:
                flags[at] |= LOW
                old = low[row, first, 1]
                counts[1, old] -= 1
                counts[0, old] += entries
                pages[slot, :] = old + 1
            else:
                pages[slot, :] = 0
            low[row, first, 0] = TABLE
        slot = slots[row, first]
        start = number & (entries - 1)
        for entry in range(start, start + (1 << order[at])):
            if pages[slot, entry]:
                counts[0, pages[slot, entry] - 1] -= 1
            pages[slot, entry] = p2mt + 1 if has else 0
            if has:
                counts[0, p2mt] += 1


@cache
def _compiled() -> Callable[..., None]:
    """The loop, compiled; numba is imported when it is first needed."""
    import numba  # type: ignore[import-untyped]  # noqa: PLC0415

    module: Any = numba
    return module.njit(cache=True)(_apply)
