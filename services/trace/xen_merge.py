"""The loops that read a xentrace once: where its windows are, when it ends, what comes next.

Each pcpu's windows are read by a cursor of their own. The cursors are merged by the last TSC of
their pcpu, then by place in the file, which is the order of ``XenTrace.p2m_updates``. The pcpu that
is next is read on until another is.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocols.trace import MemEvent
from services.trace.loops import HASH, Loop, place_of
from services.trace.report import RUN_EDGES
from services.trace.xentrace import CPU_CHANGE, CPU_CHANGE_HEADER, LOST_RECORDS, RUNSTATE_CHANGE

RECORDS: Final = 1 << 19
"""Records of one call of the loop, after which pages are given back."""
SLOTS: Final = 1 << 12
"""Event kinds, and hypercalls, that one trace may have."""
PAIRS: Final = 1 << 17
"""Pairs of pcpu and domain that one trace may have."""
NEVER: Final = (1 << 63) - 1

DONE: Final = 0
MORE: Final = 1
SHORT: Final = 2
CROSSES: Final = 3
CROWDED: Final = 4

# What is done with an event: in the low byte; above it the fewest payload words that it has.
RUNSTATE: Final = 1
PV_CALL: Final = 2
VMMCALL: Final = 3
LOST: Final = 4
FOREIGN: Final = 5
KEPT: Final = 6
"""From here on events are handed over."""
P2M: Final = 6
NPF: Final = 7
POPULATE: Final = 8
RECLAIM: Final = 9
DECREASE: Final = 10
SPLINTER: Final = 11
GRANT: Final = 12
DOM_ADD: Final = 13
DOM_REM: Final = 14
ACTION: Final = 0xFF
NEED_SHIFT: Final = 8
DOMID_SHIFT: Final = 8
PLACE_SHIFT: Final = 24
"""An event handed over is its action, who ran on its pcpu, and the word where its payload is."""

DOM_ADD_EVENT: Final = 0x0004_1001
DOM_REM_EVENT: Final = 0x0004_1002
ACTIONS: Final = (
    (RUNSTATE_CHANGE, RUNSTATE | 1 << 8), (0x0020_100D, PV_CALL | 1 << 8),
    (0x0020_200E, PV_CALL | 1 << 8), (0x0008_2012, VMMCALL | 1 << 8),
    (LOST_RECORDS, LOST | 4 << 8), (CPU_CHANGE, FOREIGN),
    (DOM_ADD_EVENT, DOM_ADD | 1 << 8), (DOM_REM_EVENT, DOM_REM | 1 << 8),
    (int(MemEvent.SET_P2M_ENTRY), P2M | 6 << 8), (int(MemEvent.NPF), NPF | 6 << 8),
    (int(MemEvent.POD_POPULATE), POPULATE | 6 << 8),
    (int(MemEvent.POD_ZERO_RECLAIM), RECLAIM | 6 << 8),
    (int(MemEvent.DECREASE_RESERVATION), DECREASE | 4 << 8),
    (int(MemEvent.POD_SUPERPAGE_SPLINTER), SPLINTER | 4 << 8),
    (int(MemEvent.PAGE_GRANT_MAP), GRANT | 1 << 8),
    (int(MemEvent.PAGE_GRANT_UNMAP), GRANT | 1 << 8),
    (int(MemEvent.PAGE_GRANT_TRANSFER), GRANT | 1 << 8),
)  # fmt: skip

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]


class Lanes(NamedTuple):
    """The windows of each pcpu one after the other, and how far each pcpu was read.

    ``first``: where each pcpu's windows begin, and where the last one's end. ``cursor``, by pcpu:
    PLACE, WINDOW, LAST (TSC), and so on.
    """

    start: Ints
    end: Ints
    first: Ints
    cursor: Ints


PLACE: Final = 0
WINDOW: Final = 1
LAST: Final = 2
DOMID: Final = 3
SINCE: Final = 4
CALL: Final = 5
MADE: Final = 6
NEXT: Final = 7
"""The time of the record that is next on the pcpu: NEVER if there is none."""
COLUMNS: Final = 8


class Books(NamedTuple):
    """What is counted by the way: a hash table of numbers each, and what belongs to each number."""

    events: Ints
    actions: Ints
    nr_events: Ints
    calls: Ints
    nr_calls: Ints
    """Of a hypercall: count, updates, calls by class of RUN_EDGES."""
    pairs: Ints
    ticks: Ints
    state: Ints
    """Lost records, first TSC, last TSC, place of an error, word of it."""


LOST_AT: Final = 0
FIRST_TSC: Final = 1
LAST_TSC: Final = 2
WRONG_PLACE: Final = 3
WRONG_WORD: Final = 4


def empty_books() -> Books:
    """Nothing counted yet; what is done with which event is known."""
    books = Books(
        events=np.full(SLOTS, -1, dtype=np.int64),
        actions=np.zeros(SLOTS, dtype=np.int64),
        nr_events=np.zeros(SLOTS, dtype=np.int64),
        calls=np.full(SLOTS, -1, dtype=np.int64),
        nr_calls=np.zeros((SLOTS, 2 + len(RUN_EDGES) + 1), dtype=np.int64),
        pairs=np.full(PAIRS, -1, dtype=np.int64),
        ticks=np.zeros(PAIRS, dtype=np.int64),
        state=np.zeros(5, dtype=np.int64),
    )
    books.state[FIRST_TSC] = NEVER
    for event, action in ACTIONS:
        at = place_of(books.events, event)
        books.events[at], books.actions[at] = event, action
    return books


def _find(words: Any, place: Any, found: Any) -> Any:
    """How many windows lie from ``place`` on, as far as there is room: first word, end, pcpu."""
    nr = 0
    while nr < len(found) and place + 3 <= len(words) and words[place] == CPU_CHANGE_HEADER:
        found[nr, 0] = place + 3
        found[nr, 1] = place + 3 + np.int64(words[place + 2]) // 4
        found[nr, 2] = words[place + 1]
        place = found[nr, 1]
        nr += 1
    return nr


def _length(header: Any) -> Any:
    """Words of a record."""
    return 1 + (header >> 28 & 7) + 2 * (header >> 31)


def _tsc(words: Any, place: Any) -> Any:
    """The TSC of a record that has one."""
    return np.int64(words[place + 1]) | np.int64(words[place + 2]) << 32


def _reach(words: Any, start: Any, end: Any, is_first: Any) -> Any:
    """The first TSC of a window, or the last; 0 if it has none."""
    found = 0
    while start < end:
        header = np.int64(words[start])
        after = start + _length(header)
        if after > end:
            return found
        if header >> 31:
            found = _tsc(words, start)
            if is_first and found:
                return found
        start = after
    return found


def _span(words: Any, lanes: Any, span: Any) -> Any:
    """Put the first and the last TSC into ``span``, if TSCs never fall on their pcpu."""
    first, last = NEVER, 0
    for cpu in range(len(lanes.cursor)):
        low, high = lanes.first[cpu], lanes.first[cpu + 1]
        for window in range(low, high):
            found = _reach(words, lanes.start[window], lanes.end[window], 1)
            if found:
                first = min(first, found)
                break
        for window in range(high - 1, low - 1, -1):
            found = _reach(words, lanes.start[window], lanes.end[window], 0)
            if found:
                last = max(last, found)
                break
    span[0], span[1] = first, last
    return 0


def end_call(books: Any, cursor: Any, cpu: Any) -> Any:
    """The hypercall under way on a pcpu is over: count it and the updates that it made."""
    number, made = cursor[cpu, CALL], cursor[cpu, MADE]
    cursor[cpu, CALL], cursor[cpu, MADE] = -1, 0
    if number < 0:
        return True
    at = place_of(books.calls, number)
    if at < 0:
        return False
    books.calls[at] = number
    size = 0
    for edge in RUN_EDGES:
        if made > edge:
            size += 1
    books.nr_calls[at, 0] += 1
    books.nr_calls[at, 1] += made
    books.nr_calls[at, 2 + size] += 1
    return True


def end_run(books: Any, cursor: Any, cpu: Any, time: Any) -> Any:
    """Another vcpu runs on a pcpu from now on: book the time of the one before."""
    domid, since = cursor[cpu, DOMID], cursor[cpu, SINCE]
    cursor[cpu, DOMID], cursor[cpu, SINCE] = -1, time
    if domid < 0:
        return True
    key = np.int64(cpu) << 32 | domid
    at = place_of(books.pairs, key)
    if at < 0:
        return False
    books.pairs[at] = key
    books.ticks[at] += max(time - since, 0)
    return True


def _turn(words: Any, lanes: Any, books: Any, cpu: Any, action: Any, payload: Any, now: Any) -> Any:
    """A record that says who runs or what it wants; whether there was room to count it."""
    cursor = lanes.cursor
    word = np.int64(words[payload])
    if action == LOST:
        books.state[LOST_AT] += word
        return True
    there = end_call(books, cursor, cpu)
    if action == RUNSTATE:
        there = there and end_run(books, cursor, cpu, now)
        cursor[cpu, DOMID] = word >> 16
    else:
        cursor[cpu, CALL] = word if action == VMMCALL else word & 0xFFFFF
    return there


def _kind(books: Any, event: Any) -> Any:
    """The slot of an event, whatever the states of a runstate change; -1 if there is no room."""
    at = place_of(books.events, event)
    if at >= 0 and books.events[at] < 0:
        books.events[at] = event
    return at


def _head(words: Any, lanes: Any, cpu: Any) -> Any:
    """See which record is next on a pcpu; whether there is one."""
    cursor = lanes.cursor
    while cursor[cpu, PLACE] >= lanes.end[cursor[cpu, WINDOW]]:
        cursor[cpu, WINDOW] += 1
        if cursor[cpu, WINDOW] >= lanes.first[cpu + 1]:
            cursor[cpu, WINDOW] -= 1
            cursor[cpu, NEXT] = NEVER
            return False
        cursor[cpu, PLACE] = lanes.start[cursor[cpu, WINDOW]]
    place = cursor[cpu, PLACE]
    cursor[cpu, NEXT] = cursor[cpu, LAST]
    if words[place] >> 31 and place + 3 <= lanes.end[cursor[cpu, WINDOW]]:
        cursor[cpu, NEXT] = _tsc(words, place)
    return True


def _run(
    words: Any, lanes: Any, books: Any, what: Any, when: Any, rows: Any, cpu: Any, limit: Any,
    limit_place: Any, left: Any,
) -> Any:  # fmt: skip
    """Records of one pcpu until another is next, or the buffer is full, or ``left`` were read.

    How many are left; minus a code for a record that is wrong.
    """
    cursor, state = lanes.cursor, books.state
    row, first, last = rows[0], state[FIRST_TSC], state[LAST_TSC]
    place, end, now = cursor[cpu, PLACE], lanes.end[cursor[cpu, WINDOW]], cursor[cpu, NEXT]
    while left > 0 and row < len(when):
        header = np.int64(words[place])
        event = header & 0x0FFF_FFFF
        if event >> 12 == RUNSTATE_CHANGE >> 12:
            event = RUNSTATE_CHANGE
        slot = (event & 0x7FFF_FFFF) * HASH >> 20 & (SLOTS - 1)
        if books.events[slot] != event:
            slot = _kind(books, event)
            if slot < 0:
                left = -CROWDED
                break
        does = books.actions[slot]
        payload = place + 1 + 2 * (header >> 31)
        extra = header >> 28 & 7
        if payload + extra > end or does == FOREIGN or extra < does >> NEED_SHIFT:
            state[WRONG_PLACE], state[WRONG_WORD] = place, header
            left = -SHORT if payload + extra <= end and does != FOREIGN else -CROSSES
            break
        books.nr_events[slot] += 1
        if header >> 31 and now:
            first, last = min(first, now), max(last, now)
        place = payload + extra
        left -= 1
        does &= ACTION
        if does >= KEPT:
            if does == P2M:
                cursor[cpu, MADE] += 1
            if does != NPF or cursor[cpu, DOMID] >= 0:
                what[row] = payload << PLACE_SHIFT | (cursor[cpu, DOMID] & 0xFFFF) << 8 | does
                when[row] = now
                row += 1
        elif (
            does
            and (does != RUNSTATE or header >> 4 & 3 == 0)
            and not _turn(words, lanes, books, cpu, does, payload, now)
        ):
            left = -CROWDED
            break
        if place < end:
            if words[place] >> 31 and place + 3 <= end:
                now = _tsc(words, place)
        else:
            cursor[cpu, PLACE], cursor[cpu, LAST] = place, now
            if not _head(words, lanes, cpu):
                now = NEVER
                break
            place, end, now = cursor[cpu, PLACE], lanes.end[cursor[cpu, WINDOW]], cursor[cpu, NEXT]
        if now > limit or (now == limit and place > limit_place):
            break
    cursor[cpu, PLACE], cursor[cpu, NEXT] = place, now
    state[FIRST_TSC], state[LAST_TSC], rows[0] = first, last, row
    return left


def _merge(words: Any, lanes: Any, books: Any, what: Any, when: Any, rows: Any) -> Any:
    """Records in order of time until the buffer is full, RECORDS were read or all are."""
    cursor = lanes.cursor
    left = RECORDS
    while left > 0 and rows[0] < len(when):
        best = -1
        time = second = NEVER
        place = second_place = np.int64(0)
        for cpu in range(len(cursor)):
            its, at = cursor[cpu, NEXT], cursor[cpu, PLACE]
            if its == NEVER:
                continue
            if best < 0 or its < time or (its == time and at < place):
                best, second, second_place, time, place = cpu, time, place, its, at
            elif its < second or (its == second and at < second_place):
                second, second_place = its, at
        if best < 0:
            return DONE
        left = _run(words, lanes, books, what, when, rows, best, second, second_place, left)
    return MORE if left >= 0 else -left


def _begin(words: Any, lanes: Any) -> Any:
    """Put each pcpu's cursor on its first record."""
    for cpu in range(len(lanes.cursor)):
        window = lanes.first[cpu]
        lanes.cursor[cpu, WINDOW] = window
        lanes.cursor[cpu, PLACE] = lanes.start[window]
        lanes.cursor[cpu, DOMID] = lanes.cursor[cpu, CALL] = -1
        _head(words, lanes, cpu)
    return 0


FIND: Final = Loop(_find)
SPAN: Final = Loop(_span, (_length, _tsc, _reach))
BEGIN: Final = Loop(_begin, (_tsc, _head))
MERGE: Final = Loop(_merge, (place_of, end_call, end_run, _turn, _kind, _tsc, _head, _run))
