"""The leaves of domains, as their p2m updates make them: which update shattered what.

Xen traces updates and never shatters; those follow from what was mapped before. A map keeps one
code for every entry of a table that an update made, and nothing of page-table pages, so it is as
large as its guests and not as its trace. Semantics are those of ``P2mTable``: a smaller update
inside a leaf shatters it level by level, an update over a table replaces all of it, an emptied
table stays one, nothing merges.

The functions below the classes are plain Python, and what numba compiles for long runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocols.p2m_types import INVALID_MFN_TYPES, P2mType
from services.trace.frame import Column
from services.trace.loops import HASH

COMPILE_FROM: Final = 100_000
"""Updates of one map from which on compiling the loop is worth its seconds."""
TYPES: Final = 256
DOMIDS: Final = 1 << 16
POD: Final = int(P2mType.POPULATE_ON_DEMAND)

EMPTY: Final = 0
TABLE: Final = 1 + TYPES
"""Codes of entries: EMPTY, 1 + type of a leaf, TABLE + page of a table."""
REGION_BITS: Final = 46

LOW: Final = 1
"""Flag of an update: a leaf of the middle order (2M, or 4M) was shattered to 4K."""
HIGH: Final = 2
"""Flag of an update: a leaf of the top order (1G) was shattered."""
ALL_LOW: Final = 4
"""Flag of an update: every 2M of a shattered 1G leaf was shattered with it, as the EPT does."""

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Flags = npt.NDArray[np.uint8]
Leaves = dict[int, dict[int, int]]


class State(NamedTuple):
    """Everything that the loop works on.

    A row is a region of ``1 << top`` frames of one domain that some update named: ``high`` is its
    entry of the top level, ``low`` those below it. ``regions`` is a hash table, region to row;
    ``free`` a stack of pages. ``used``: rows, domains and pages ever taken, pages on the stack.
    """

    mid: int
    top: int
    is_ept: bool
    has_top: bool
    stores: npt.NDArray[np.bool_]
    """By type: whether an entry without a frame is stored."""
    regions: Ints
    high: Codes
    low: Codes
    pages: npt.NDArray[np.uint16]
    free: Codes
    slots: Codes
    """By domid: where its counts are; -1 is nowhere yet."""
    counts: Ints
    """Leaves by domain, level and type."""
    steps: Ints
    """Shatters by domain: of 1G, of 2M."""
    used: Ints


class GfnMaps:
    """Many domains. ``leaf_orders`` ascending, as (0, 9, 18); ``ept``: shatters go all the way.

    ``nr_domids`` is a power of two; domids are taken modulo it. ``compiled``: the loop is compiled
    from the first update on.
    """

    def __init__(
        self,
        leaf_orders: tuple[int, ...],
        *,
        ept: bool = False,
        nr_domids: int = DOMIDS,
        compiled: bool = False,
    ) -> None:
        mid = leaf_orders[1]
        top = 20 if mid == 10 else 18
        stores = np.zeros(TYPES, dtype=np.bool_)
        stores[[int(kind) for kind in INVALID_MFN_TYPES]] = True
        self._seen = COMPILE_FROM if compiled else 0
        self._state = State(
            mid=mid,
            top=top,
            is_ept=ept,
            has_top=len(leaf_orders) > 2,
            stores=stores,
            regions=np.full((16, 2), -1, dtype=np.int64),
            high=np.zeros(4, dtype=np.int32),
            low=np.zeros((4, 1 << (top - mid)), dtype=np.int32),
            pages=np.zeros((8, 1 << mid), dtype=np.uint16),
            free=np.zeros(8, dtype=np.int32),
            slots=np.full(nr_domids, -1, dtype=np.int32),
            counts=np.zeros((1, 3, TYPES), dtype=np.int64),
            steps=np.zeros((1, 2), dtype=np.int64),
            used=np.zeros(4, dtype=np.int64),
        )

    def apply(self, domid: Column, order: Column, kind: Column, gfn: Column, mfn: Column) -> Flags:
        """Updates in the order of execution; for each the flags LOW, HIGH and ALL_LOW."""
        nr = len(order)
        self._seen += nr
        flags: Flags = np.zeros(nr, dtype=np.uint8)
        loop: Callable[..., int] = _compiled() if self._seen >= COMPILE_FROM else _apply
        rows = [np.ascontiguousarray(each, dtype=np.int64) for each in (domid, order, kind)]
        rows += [np.ascontiguousarray(each, dtype=np.uint64).view(np.int64) for each in (gfn, mfn)]
        done = 0
        columns: list[Any] = rows
        if loop is _apply:
            # Python reads numbers of its own faster than those of an array.
            columns = [row.tolist() for row in rows]
        while (done := loop(self._state, *columns, flags, done)) < nr:
            self.grow()
        return flags

    def domids(self) -> list[int]:
        """The domains that some update named."""
        return np.flatnonzero(self._state.slots >= 0).tolist()

    def leaves(self, domid: int) -> Leaves:
        """{order: {type: leaves}} of a domain now, absent ones left out."""
        found: Leaves = {}
        state, slot = self._state, int(self._state.slots[domid])
        for level, order in enumerate((0, state.mid, state.top) if slot >= 0 else ()):
            counts = state.counts[slot, level]
            kinds = {kind: int(counts[kind]) for kind in np.flatnonzero(counts).tolist()}
            if kinds:
                found[order] = kinds
        return found

    def shatters(self, domid: int) -> dict[str, int]:
        """Leaves of a domain shattered so far, by step: ``18->9``, ``9->0``."""
        slot = int(self._state.slots[domid])
        high, low = self._state.steps[slot].tolist() if slot >= 0 else (0, 0)
        return self.named(high, low)

    def named(self, high: int, low: int) -> dict[str, int]:
        """Numbers of shatters by what the steps are called."""
        state = self._state
        steps = {f"{state.top}->{state.mid}": high} if state.has_top else {}
        return {**steps, f"{state.mid}->0": low}

    def shattered(self, flags: Flags) -> dict[str, int]:
        """Leaves shattered by the updates behind some flags, by step."""
        fans = int(np.count_nonzero(flags & ALL_LOW)) * self._state.low.shape[1]
        low = int(np.count_nonzero(flags & LOW)) + fans
        return self.named(int(np.count_nonzero(flags & HIGH)), low)

    @property
    def state(self) -> State:
        """What a loop of one's own works on; not the same after ``grow``."""
        return self._state

    def grow(self) -> None:
        """More of whatever the loop stopped for."""
        state = self._state
        nr_rows, nr_domains, nr_pages, nr_free = state.used.tolist()
        if nr_rows == len(state.high):
            high, low = _doubled(state.high), _doubled(state.low)
            index = np.full((4 * len(high), 2), -1, dtype=np.int64)
            for key, row in state.regions[state.regions[:, 0] >= 0].tolist():
                index[_place(index, key)] = key, row
            state = state._replace(high=high, low=low, regions=index)
        if nr_domains == len(state.counts):
            state = state._replace(counts=_doubled(state.counts), steps=_doubled(state.steps))
        while len(state.pages) - nr_pages + nr_free < (state.low.shape[1] if state.is_ept else 1):
            state = state._replace(pages=_doubled(state.pages), free=_doubled(state.free))
        self._state = state


class GfnMap:
    """One domain; as GfnMaps."""

    def __init__(self, leaf_orders: tuple[int, ...], *, ept: bool = False) -> None:
        self._maps = GfnMaps(leaf_orders, ept=ept, nr_domids=1)

    def apply(self, order: Column, kind: Column, gfn: Column, mfn: Column) -> Flags:
        """Updates in the order of execution; for each the flags LOW, HIGH and ALL_LOW."""
        return self._maps.apply(np.zeros(len(order), dtype=np.int64), order, kind, gfn, mfn)

    def shatters(self, flags: Flags) -> dict[str, int]:
        """Shattered leaves behind some flags, by step: ``18->9``, ``9->0``."""
        return self._maps.shattered(flags)

    def leaves(self) -> Leaves:
        """{order: {type: leaves}} now, absent ones left out."""
        return self._maps.leaves(0)

    def frames(self) -> dict[int, int]:
        """{order: frames} that leaves of each order map now; PoD entries map nothing yet."""
        return {
            order: sum(nr for kind, nr in kinds.items() if kind != POD) << order
            for order, kinds in self.leaves().items()
        }


def _doubled(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate((array, np.zeros_like(array)))


def _apply(
    state: Any, domid: Any, order: Any, kind: Any, gfn: Any, mfn: Any, flags: Any, at: Any
) -> Any:
    """Updates from ``at`` on; where it stopped for want of room, or their number."""
    domain, region, row, slot = -1, -1, 0, 0
    mid, top, stores, used = state.mid, state.top, state.stores, state.used
    need = state.low.shape[1] if state.is_ept else 1
    while at < len(order):
        number, size, p2mt = gfn[at], order[at], kind[at] & (TYPES - 1)
        if number >> top != region or domid[at] != domain:
            domain, region = domid[at], number >> top
            key = region_key(state, domain, number)
            slot = slot_of(state, key >> REGION_BITS)
            row = row_of(state, key)
            if slot < 0 or row < 0:
                return at
        if size < mid and len(state.pages) - used[2] + used[3] < need:
            return at
        code = p2mt + 1 if mfn[at] != -1 or stores[p2mt] else EMPTY
        flags[at] = change(state, row, slot, number, size, code)
        at += 1
    return at


def region_key(state: Any, domid: Any, gfn: Any) -> Any:
    """The key of the region of a domain that a gfn lies in."""
    mine = (domid & (len(state.slots) - 1)) << REGION_BITS
    return mine | gfn >> state.top & ((1 << REGION_BITS) - 1)


def slot_of(state: Any, domid: Any) -> Any:
    """Where a domain's counts are, made if need be; -1 if there is no room."""
    slots, used = state.slots, state.used
    if slots[domid] < 0:
        if used[1] == len(state.counts):
            return -1
        slots[domid] = used[1]
        used[1] += 1
    return slots[domid]


def _place(index: Any, key: Any) -> Any:
    """Where a key is in the hash table, or would be."""
    mask = len(index) - 1
    # Both factors are so short that the product is the same in Python and in a machine word.
    at = ((key ^ key >> 31) & 0x7FFF_FFFF) * HASH >> 20 & mask
    while index[at, 0] != key and index[at, 0] >= 0:
        at = at + 1 & mask
    return at


def row_of(state: Any, key: Any) -> Any:
    """The row of a region, made with a top-level entry if need be; -1 if there is no room."""
    index, used = state.regions, state.used
    at = _place(index, key)
    if index[at, 0] < 0:
        if used[0] == len(state.high):
            return -1
        index[at, 0], index[at, 1] = key, used[0]
        state.high[used[0]] = EMPTY if state.has_top else TABLE
        used[0] += 1
    return index[at, 1]


def has_room(state: Any) -> Any:
    """Whether there are pages for whatever one small update may split."""
    used = state.used
    need = state.low.shape[1] if state.is_ept else 1
    return len(state.pages) - used[2] + used[3] >= need


def change(state: Any, row: Any, slot: Any, gfn: Any, size: Any, code: Any) -> Any:
    """One update of a region that has room; its flags."""
    mid, high, low, counts = state.mid, state.high, state.low, state.counts
    if size >= state.top:
        _clear_top(state, row, slot)
        high[row] = code
        if code != EMPTY:
            counts[slot, 2, code - 1] += 1
        return 0
    flag = 0
    child = gfn >> mid & (low.shape[1] - 1)
    if high[row] != TABLE or (size < mid and low[row, child] < TABLE):
        flag = _split(state, row, child, size < mid, slot)
    if size >= mid:
        _clear_mid(state, low[row, child], slot)
        low[row, child] = code
        if code != EMPTY:
            counts[slot, 1, code - 1] += 1
        return flag
    pages = state.pages
    page = low[row, child] - TABLE
    first = (gfn >> size << size) & (pages.shape[1] - 1)
    for entry in range(first, first + (1 << size)):
        old = pages[page, entry]
        if old != EMPTY:
            counts[slot, 0, old - 1] -= 1
        pages[page, entry] = code
    if code != EMPTY:
        counts[slot, 0, code - 1] += 1 << size
    return flag


def forget(state: Any, domid: Any) -> None:
    """A domain's tables are gone, with all that they mapped; what was counted stays."""
    slot = state.slots[domid]
    if slot < 0:
        return
    index = state.regions
    for at in range(len(index)):
        if index[at, 0] >= 0 and index[at, 0] >> REGION_BITS == domid:
            row = index[at, 1]
            _clear_top(state, row, slot)
            state.high[row] = EMPTY


def _take_page(state: Any, code: Any) -> Any:
    """A page of entries that all have one code; the code of a table of it."""
    used, pages = state.used, state.pages
    if used[3] > 0:
        used[3] -= 1
        page = np.int64(state.free[used[3]])
    else:
        page = used[2]
        used[2] += 1
    for entry in range(pages.shape[1]):
        pages[page, entry] = code
    return TABLE + page


def _clear_mid(state: Any, code: Any, slot: Any) -> None:
    """An entry of the middle level goes, with the table under it."""
    counts = state.counts
    if code >= TABLE:
        pages, used = state.pages, state.used
        page = code - TABLE
        for entry in range(pages.shape[1]):
            old = pages[page, entry]
            if old != EMPTY:
                counts[slot, 0, old - 1] -= 1
        state.free[used[3]] = page
        used[3] += 1
    elif code != EMPTY:
        counts[slot, 1, code - 1] -= 1


def _clear_top(state: Any, row: Any, slot: Any) -> None:
    """A top-level entry goes, with all tables under it."""
    code = state.high[row]
    if code == TABLE:
        for child in range(state.low.shape[1]):
            _clear_mid(state, state.low[row, child], slot)
    elif code != EMPTY:
        state.counts[slot, 2, code - 1] -= 1


def _split(state: Any, row: Any, child: Any, is_small: Any, slot: Any) -> Any:
    """Tables down to where an update goes; flags of the leaves that were shattered for them."""
    high, low, counts, steps = state.high, state.low, state.counts, state.steps
    flag, width, entries = 0, low.shape[1], state.pages.shape[1]
    code = high[row]
    if code != TABLE:
        high[row] = TABLE
        for each in range(width):
            low[row, each] = code
        if code != EMPTY:
            flag = HIGH
            steps[slot, 0] += 1
            counts[slot, 2, code - 1] -= 1
            counts[slot, 1, code - 1] += width
            if state.is_ept and is_small:
                # The EPT splits every descendant before it publishes the new tables.
                flag |= ALL_LOW
                steps[slot, 1] += width
                counts[slot, 1, code - 1] -= width
                counts[slot, 0, code - 1] += width * entries
                for each in range(width):
                    low[row, each] = _take_page(state, code)
    code = low[row, child]
    if is_small and code < TABLE:
        low[row, child] = _take_page(state, code)
        if code != EMPTY:
            flag |= LOW
            steps[slot, 1] += 1
            counts[slot, 1, code - 1] -= 1
            counts[slot, 0, code - 1] += entries
    return flag


PARTS: Final = (
    region_key, slot_of, _place, row_of, has_room, _take_page, _clear_mid, _clear_top, _split,
    change, forget,
)  # fmt: skip
"""What the loop calls, those called before those that call them."""


@cache
def _compiled() -> Callable[..., int]:
    """The loop compiled, in a scope where what it calls is too; numba is imported when needed."""
    import numba  # type: ignore[import-untyped]  # noqa: PLC0415

    module: Any = numba
    scope = dict(globals())
    for part in PARTS:
        scope[part.__name__] = module.njit(FunctionType(part.__code__, scope))
    return module.njit(cache=True)(FunctionType(_apply.__code__, scope))
