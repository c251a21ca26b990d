"""The loops that read a xentrace once: where its windows are, when it ends, what comes next.

Each pcpu's windows are read by a cursor of their own. The cursors are merged by the last TSC of
their pcpu, then by place in the file, which is the order of ``XenTrace.p2m_updates``. The pcpu that
is next is read on until another is.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from services.trace.loops import HASH, Loop, place_of
from services.trace.report import RUN_EDGES
from services.trace.xen_layout import (
    ACTION,
    KEPT,
    LOST,
    NEED_SHIFT,
    NPF,
    P2M,
    RUNSTATE,
    RUNSTATE_CHANGE,
    SHAPES,
    STATES,
    TSC_BITS,
    VMMCALL,
    Ints,
    actions_of,
    is_strange,
    record_words,
)

RECORDS: Final = 1 << 19
"""Records of one call of the loop, after which pages are given back."""
NEVER: Final = (1 << 63) - 1
TSC_HIGH_MASK: Final = (1 << TSC_BITS - 32) - 1

DONE: Final = 0
MORE: Final = 1
WRONG: Final = 2

DOMID_SHIFT: Final = 8
PLACE_SHIFT: Final = 24
"""An event handed over is its action, who ran on its pcpu, and the word where its payload is."""


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
    """What is counted by the way: a hash table of numbers each, and what belongs to each number.

    At most half of each table is used; where more is, the loop stops after that record, and they
    are made larger.
    """

    events: Ints
    actions: Ints
    nr_events: Ints
    calls: Ints
    nr_calls: Ints
    """Of a hypercall: count, updates, calls by class of RUN_EDGES."""
    pairs: Ints
    ticks: Ints
    """By pcpu and domain."""
    state: Ints
    """Lost records, first TSC; numbers used of the three tables."""


LOST_AT: Final = 0
FIRST_TSC: Final = 1
EVENTS_USED: Final = 2
CALLS_USED: Final = 3
PAIRS_USED: Final = 4
CALLS: Final = 1 << 8
PAIRS: Final = 1 << 8
"""Room for hypercalls, and for pairs of pcpu and domain, to begin with."""


def empty_books() -> Books:
    """Nothing counted yet; what is done with which event is known."""
    events, actions = actions_of()
    books = Books(
        events=events,
        actions=actions,
        nr_events=np.zeros_like(actions),
        calls=np.full(CALLS, -1, dtype=np.int64),
        nr_calls=np.zeros((CALLS, 2 + len(RUN_EDGES) + 1), dtype=np.int64),
        pairs=np.full(PAIRS, -1, dtype=np.int64),
        ticks=np.zeros(PAIRS, dtype=np.int64),
        state=np.zeros(5, dtype=np.int64),
    )
    books.state[EVENTS_USED] = len(SHAPES)
    return books


def move(keys: Any, wider: Any, places: Any) -> Any:
    """Put the keys of a hash table into an empty one; ``places``: where each has come."""
    for at in range(len(keys)):
        if keys[at] >= 0:
            places[at] = place_of(wider, keys[at])
            wider[places[at]] = keys[at]
    return 0


def _tsc(words: Any, place: Any) -> Any:
    """The TSC of a record that has one; of one that is too large, which is refused, less of it."""
    return np.int64(words[place + 1]) | np.int64(words[place + 2] & TSC_HIGH_MASK) << 32


def _reach(words: Any, start: Any, end: Any, is_first: Any) -> Any:
    """The first TSC of a window, or the last; 0 if it has none."""
    found = 0
    while start < end:
        header = np.int64(words[start])
        after = start + record_words(header)
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
    span[0], span[1] = 0 if first == NEVER else first, last
    return 0


def end_call(books: Any, cursor: Any, cpu: Any) -> Any:
    """The hypercall under way on a pcpu is over: count it and the updates that it made.

    Whether there is room for another.
    """
    number, made = cursor[cpu, CALL], cursor[cpu, MADE]
    cursor[cpu, CALL], cursor[cpu, MADE] = -1, 0
    if number < 0:
        return True
    at = place_of(books.calls, number)
    if books.calls[at] < 0:
        books.calls[at] = number
        books.state[CALLS_USED] += 1
    size = 0
    for edge in RUN_EDGES:
        if made > edge:
            size += 1
    books.nr_calls[at, 0] += 1
    books.nr_calls[at, 1] += made
    books.nr_calls[at, 2 + size] += 1
    return 2 * books.state[CALLS_USED] < len(books.calls)


def end_run(books: Any, cursor: Any, cpu: Any, time: Any) -> Any:
    """Another vcpu runs on a pcpu from now on: book the time of the one before.

    Whether there is room for another pair.
    """
    domid, since = cursor[cpu, DOMID], cursor[cpu, SINCE]
    cursor[cpu, DOMID], cursor[cpu, SINCE] = -1, time
    if domid < 0:
        return True
    key = np.int64(cpu) << 32 | domid
    at = place_of(books.pairs, key)
    if books.pairs[at] < 0:
        books.pairs[at] = key
        books.state[PAIRS_USED] += 1
    # What is before the first TSC of a pcpu is at that of the trace.
    books.ticks[at] += max(time - max(since, books.state[FIRST_TSC]), 0)
    return 2 * books.state[PAIRS_USED] < len(books.pairs)


def _turn(words: Any, lanes: Any, books: Any, cpu: Any, action: Any, payload: Any, now: Any) -> Any:
    """A record that says who runs or what it wants; whether there is room for another."""
    cursor = lanes.cursor
    word = np.int64(words[payload])
    if action == LOST:
        books.state[LOST_AT] += word
        return True
    there = end_call(books, cursor, cpu)
    if action == RUNSTATE:
        there = end_run(books, cursor, cpu, now) and there
        cursor[cpu, DOMID] = word >> 16
    else:
        cursor[cpu, CALL] = word if action == VMMCALL else word & 0xFFFFF
    return there


def _kind(books: Any, event: Any) -> Any:
    """The slot of an event; it is put there if it is new."""
    at = place_of(books.events, event)
    if books.events[at] < 0:
        books.events[at] = event
        books.state[EVENTS_USED] += 1
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
        cursor[cpu, NEXT] = max(cursor[cpu, LAST], _tsc(words, place))
    return True


def _run(
    words: Any, lanes: Any, books: Any, what: Any, when: Any, rows: Any, cpu: Any, limit: Any,
    limit_place: Any, left: Any,
) -> Any:  # fmt: skip
    """Records of one pcpu until another is next, or the buffer is full, or ``left`` were read.

    How many are left; -1 at a record that is wrong.
    """
    cursor, state = lanes.cursor, books.state
    row = rows[0]
    place, end, now = cursor[cpu, PLACE], lanes.end[cursor[cpu, WINDOW]], cursor[cpu, NEXT]
    mask = len(books.events) - 1
    while left > 0 and row < len(when):
        header = np.int64(words[place])
        event = header & 0x0FFF_FFFF
        if event & ~STATES == RUNSTATE_CHANGE:
            event = RUNSTATE_CHANGE
        slot = (event & 0x7FFF_FFFF) * HASH >> 20 & mask
        if books.events[slot] != event:
            slot = _kind(books, event)
            if 2 * state[EVENTS_USED] >= len(books.events):
                left = 1
        does = books.actions[slot]
        payload = place + 1 + 2 * (header >> 31)
        extra = header >> 28 & 7
        if (
            payload + extra > end
            or extra < does >> NEED_SHIFT
            or (header >> 31 and words[place + 2] >> TSC_BITS - 32)
        ):
            left = -1
            break
        books.nr_events[slot] += 1
        place = payload + extra
        left -= 1
        shape = does
        does &= ACTION
        if does >= KEPT:
            if is_strange(words, payload, shape):
                left = -1
                break
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
            left = 0
        if place < end:
            if words[place] >> 31 and place + 3 <= end:
                now = max(now, _tsc(words, place))
        else:
            cursor[cpu, PLACE], cursor[cpu, LAST] = place, now
            if not _head(words, lanes, cpu):
                now = NEVER
                break
            place, end, now = cursor[cpu, PLACE], lanes.end[cursor[cpu, WINDOW]], cursor[cpu, NEXT]
        if now > limit or (now == limit and place > limit_place):
            break
    cursor[cpu, PLACE], cursor[cpu, NEXT] = place, now
    rows[0] = row
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
    return MORE if left >= 0 else WRONG


def _begin(words: Any, lanes: Any) -> Any:
    """Put each pcpu's cursor on its first record."""
    for cpu in range(len(lanes.cursor)):
        window = lanes.first[cpu]
        lanes.cursor[cpu, WINDOW] = window
        lanes.cursor[cpu, PLACE] = lanes.start[window]
        lanes.cursor[cpu, DOMID] = lanes.cursor[cpu, CALL] = -1
        _head(words, lanes, cpu)
    return 0


SPAN: Final = Loop(_span, (record_words, _tsc, _reach))
BEGIN: Final = Loop(_begin, (_tsc, _head))
MOVE: Final = Loop(move, (place_of,))
MERGE: Final = Loop(
    _merge, (place_of, is_strange, end_call, end_run, _turn, _kind, _tsc, _head, _run)
)
