"""The loop that turns memory events of a xentrace into leaves, counts, curves and heat, in order.

What it keeps is as large as the guests, and not as the trace: time is cut into bins, gfns into
superpages.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocols.frames import ORDER_2M
from services.trace.loops import Loop, place_of
from services.trace.superpages import (
    EMPTY,
    PARTS,
    POD,
    TYPES,
    change,
    forget,
    has_room,
    region_key,
    row_of,
    slot_of,
)
from services.trace.xen_layout import (
    ACTION,
    DECREASE,
    DOM_ADD,
    DOM_REM,
    GRANT,
    NPF,
    ORDER_MAX,
    P2M,
    POPULATE,
    RECLAIM,
    SPLINTER,
    Ints,
)
from services.trace.xen_merge import DOMID_SHIFT, PLACE_SHIFT

UPDATES: Final = 0
SHATTERS: Final = 1
FAULTS: Final = 2
POPULATES: Final = 3
SPLINTERS: Final = 4
RECLAIMS: Final = 5
CURVES: Final = 6
"""Rows of ``Views.series`` of a domain."""
CHILDREN: Final = 512
"""2M superpages of a region."""
SHATTER: Final = 1 << 32
"""Numbers of updates and of those that shattered are one word: the former in its low half."""
COUNT_MASK: Final = SHATTER - 1
SLOT_SHIFT: Final = 32
ACTION_SHIFT: Final = 24
ORDER_SHIFT: Final = 8
BIN_BITS: Final = 8

BIN: Final = 0
TALLIES: Final = 1
CELLS: Final = 2
GRAIN: Final = 3
BASE: Final = 4
REGION: Final = 5
REGION_SLOT: Final = 6
REGION_ROW: Final = 7
TALLY: Final = 8
TALLY_AT: Final = 9
CELL: Final = 10
CELL_AT: Final = 11
CROWDED: Final = 12
MARKS: Final = 13


class Views(NamedTuple):
    """Everything that the loop adds to, besides the leaves.

    Domains go by their slot in the leaf map's State, regions by their row there. ``tally`` and
    ``cells`` are open hash tables, ``nr_tally`` and ``nr_cells`` what belongs to each key.
    """

    edges: Ints
    """Ticks since the first TSC."""
    series: Ints
    """By domain, curve and bin."""
    mapped: Ints
    """Frames by domain, level and bin, at the end of the bin."""
    reached: Ints
    """By domain: the bin from which on ``mapped`` is not known yet."""
    removed: npt.NDArray[np.uint8]
    """By domid: whether it was removed last."""
    hits: Ints
    """By region and superpage: updates and shatters."""
    tally: Ints
    """slot, action, order and type; of extents both words, the upper half of the first before."""
    nr_tally: Ints
    cells: Ints
    """region's row, superpage (the first of ``1 << GRAIN``) and bin."""
    nr_cells: Ints
    """Updates and shatters."""
    marks: Ints
    """BIN that is on, TALLIES and CELLS used, GRAIN, BASE: the first TSC; what was met last.

    CROWDED: that there was no room for one more domain.
    """


def _bin(views: Any, time: Any) -> Any:
    """The bin of a TSC; before the first one and after the last the nearest."""
    marks, edges = views.marks, views.edges
    at = marks[BIN]
    since = time - marks[BASE] if time else 0
    while at < len(edges) - 2 and since >= edges[at + 1]:
        at += 1
    while at > 0 and since < edges[at]:
        at -= 1
    marks[BIN] = at
    return at


def settle(counts: Any, views: Any, slot: Any, until: Any) -> Any:
    """A domain's memory was as it is now at the end of all bins before ``until``."""
    begun = views.reached[slot]
    for level in range(3):
        leaves = 0
        for kind in range(TYPES):
            leaves += counts[slot, level, kind]
        frames = (leaves - counts[slot, level, POD]) << (level * ORDER_2M)
        for at in range(begun, until):
            views.mapped[slot, level, at] = frames
    views.reached[slot] = until
    return 0


def _slot(state: Any, views: Any, domid: Any) -> Any:
    """A domain's slot, made if need be; -1 if there is no room."""
    if state.slots[domid] < 0 and state.used[1] == len(views.series):
        views.marks[CROWDED] = 1
        return -1
    return slot_of(state, domid)


def _count(keys: Any, numbers: Any, marks: Any, used: Any, last: Any, key: Any, more: Any) -> Any:
    """Add to what belongs to a key; the place of the one before is remembered."""
    if marks[last] != key:
        at = place_of(keys, key)
        if keys[at] < 0:
            keys[at] = key
            marks[used] += 1
        marks[last], marks[last + 1] = key, at
    numbers[marks[last + 1]] += more
    return 0


def _update(words: Any, place: Any, time: Any, state: Any, views: Any) -> Any:
    """A set_p2m_entry; whether there was room for it."""
    marks = views.marks
    tail = np.int64(words[place + 5])
    size, p2mt = tail >> 16 & 0xFF, np.int64(words[place + 4]) & (TYPES - 1)
    gfn = np.int64(words[place]) | np.int64(words[place + 1]) << 32
    key = region_key(state, tail & 0xFFFF, gfn)
    if key != marks[REGION]:
        slot = _slot(state, views, tail & 0xFFFF)
        row = row_of(state, key)
        if slot < 0 or row < 0:
            return False
        marks[REGION], marks[REGION_SLOT], marks[REGION_ROW] = key, slot, row
    if size < ORDER_2M and not has_room(state):
        return False
    slot, row = marks[REGION_SLOT], marks[REGION_ROW]
    at = _bin(views, time)
    if at > views.reached[slot]:
        settle(state.counts, views, slot, at)
    is_none = (words[place + 2] & words[place + 3]) == 0xFFFF_FFFF
    code = p2mt + 1 if not is_none or state.stores[p2mt] else EMPTY
    more = 1
    if change(state, row, slot, gfn, size, code):
        more += SHATTER
        views.series[slot, SHATTERS, at] += 1
    views.series[slot, UPDATES, at] += 1
    child = gfn >> ORDER_2M & (CHILDREN - 1)
    views.hits[row, child] += more
    its = np.int64(slot) << SLOT_SHIFT | P2M << ACTION_SHIFT | size << ORDER_SHIFT | p2mt
    _count(views.tally, views.nr_tally, marks, TALLIES, TALLY, its, 1)
    grain = marks[GRAIN]
    cell = (row * CHILDREN + (child >> grain << grain)) << BIN_BITS | at
    _count(views.cells, views.nr_cells, marks, CELLS, CELL, cell, more)
    return True


def _turnover(domid: Any, action: Any, time: Any, state: Any, views: Any) -> Any:
    """A domain came or went. One that comes after it went starts with nothing mapped.

    One that comes first does not: its updates may be sorted before the record that it came.
    """
    if action == DOM_REM:
        views.removed[domid] = 1
    elif views.removed[domid]:
        views.removed[domid] = 0
        slot, at = state.slots[domid], _bin(views, time)
        if slot >= 0:
            if at > views.reached[slot]:
                settle(state.counts, views, slot, at)
            forget(state, domid)
    return True


def _event(words: Any, what: Any, time: Any, state: Any, views: Any) -> Any:
    """Another event; whether there was room for it."""
    action, place = what & ACTION, what >> PLACE_SHIFT
    second = np.int64(0)
    if action == NPF:
        tail = what >> DOMID_SHIFT & 0xFFFF
    elif action in (GRANT, DOM_ADD, DOM_REM):
        tail = np.int64(words[place])
        if action != GRANT:
            return _turnover(tail, action, time, state, views)
    else:
        at = place + 2 if action in (DECREASE, SPLINTER) else place + 4
        tail, second = np.int64(words[at]), np.int64(words[at + 1])
        # What is no order is rubble of an older Xen: see xen_layout.EXTENTS.
        second = min(second, ORDER_MAX + 1)
        if action == SPLINTER and tail >> 16:
            tail, second = tail & 0xFFFF, np.int64(ORDER_MAX + 1)
    slot = _slot(state, views, tail & 0xFFFF)
    if slot < 0:
        return False
    curve = -1
    if action == NPF:
        curve = FAULTS
    elif action == POPULATE:
        curve = POPULATES
    elif action == SPLINTER:
        curve = SPLINTERS
    elif action == RECLAIM:
        curve = RECLAIMS
    if curve >= 0:
        views.series[slot, curve, _bin(views, time)] += 1
    its = np.int64(slot) << SLOT_SHIFT | action << ACTION_SHIFT | (tail >> 16) << ORDER_SHIFT
    its |= second
    _count(views.tally, views.nr_tally, views.marks, TALLIES, TALLY, its, 1)
    return True


def _consume(words: Any, what: Any, when: Any, state: Any, views: Any, at: Any) -> Any:
    """Events from ``at`` on; where it stopped for want of room, or their number."""
    marks = views.marks
    while at < len(what):
        if 2 * marks[TALLIES] >= len(views.tally) or 2 * marks[CELLS] >= len(views.cells):
            return at
        if what[at] & ACTION == P2M:
            there = _update(words, what[at] >> PLACE_SHIFT, when[at], state, views)
        else:
            there = _event(words, what[at], when[at], state, views)
        if not there:
            return at
        at += 1
    return at


CONSUME: Final = Loop(
    _consume, (place_of, *PARTS, _bin, settle, _slot, _count, _update, _turnover, _event)
)


def _rehash(keys: Any, numbers: Any, found: Any, sums: Any) -> Any:
    """Put the keys of a hash table and what belongs to them into an empty one; how many differ."""
    used = 0
    for at in range(len(keys)):
        if keys[at] >= 0:
            place = place_of(found, keys[at])
            if found[place] < 0:
                found[place] = keys[at]
                used += 1
            sums[place] += numbers[at]
    return used


REHASH: Final = Loop(_rehash, (place_of,))
