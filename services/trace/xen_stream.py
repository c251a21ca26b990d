"""A real xentrace of any length in memory that does not grow with it: counts, leaves, hypercalls.

Each pcpu's windows are read by a cursor of their own, and the cursors are merged by the last TSC of
their pcpu, then by place in the file: the order of ``XenTrace.p2m_updates``. Memory events are
handed over in batches; all else is counted as it comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeVar

import numba  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from protocols.errno import BadInputError
from protocols.trace import MemEvent
from services.trace.frame import Column
from services.trace.report import RUN_EDGES
from services.trace.xentrace import (
    CPU_CHANGE,
    CPU_CHANGE_HEADER,
    EVENTS,
    LOST_RECORDS,
    RUNSTATE_CHANGE,
)

BATCH: Final = 1 << 18
"""Memory events of one batch."""
RECORDS: Final = 1 << 19
"""Records of one call of the compiled loop, after which pages are given back."""
WINDOWS: Final = 1 << 13
"""Windows that are looked for at a time."""
SLOTS: Final = 1 << 12
"""Event kinds, hypercalls and pairs of pcpu and domain that one trace may have."""

DONE: Final = 0
FULL: Final = 1
SHORT: Final = 2
CROSSES: Final = 3
CROWDED: Final = 4

F = TypeVar("F", bound=Callable[..., Any])
_numba: Any = numba
"""The package has no annotations."""


def _njit(function: F) -> F:
    """Compiled when first called, and kept on disk."""
    return _numba.njit(cache=True, _nrt=False, forceinline=True)(function)


Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]


class Batch(NamedTuple):
    """Memory events in order; all arrays of shape (n,)."""

    event: Column
    domid: Column
    order: Column
    type: Column
    gfn: Column
    mfn: Column


class Totals(NamedTuple):
    """What was counted by the way.

    ``hypercalls``: number to (count, updates, calls by class of RUN_EDGES). ``running``: ticks by
    (pcpu, domid). ``span``: first and last TSC.
    """

    records: int
    lost: int
    events: dict[str, int]
    hypercalls: dict[int, tuple[int, int, list[int]]]
    running: dict[tuple[int, int], int]
    span: tuple[int, int]
    cut: str


def keep(offset: int) -> None:
    """Give nothing back: what was handed over is in memory anyway."""
    del offset


class Stream:
    """One pass over a trace: ``batches`` once, then ``totals``.

    ``give_back`` is told of bytes from the start of the file that are not looked at for now.
    """

    def __init__(
        self, data: memoryview, source: str, give_back: Callable[[int], None] = keep
    ) -> None:
        self._source = source
        self._give_back = give_back
        self._words: Words = np.frombuffer(data, dtype="<u4", count=len(data) // 4)
        self._size = len(data)
        windows, self._cut = self._windows()
        self._start, self._end, cpu = windows
        self._cpus, cpu_of = np.unique(cpu, return_inverse=True)
        nr = len(self._cpus)
        # The windows of each pcpu, one after the other, and where each pcpu's begin.
        self._queue = np.argsort(cpu_of, kind="stable")
        self._first = np.searchsorted(cpu_of[self._queue], np.arange(nr + 1))
        # Of each pcpu: place, window in the queue, last TSC, domid, vcpu, since, hypercall, updates
        self._cursor: Ints = np.zeros((nr, 8), dtype=np.int64)
        self._cursor[:, 1] = self._first[:-1]
        self._cursor[:, 0] = self._start[self._queue[self._first[:-1]]]
        self._cursor[:, 3] = self._cursor[:, 6] = -1
        self._buffer: Ints = np.zeros((6, BATCH), dtype=np.int64)
        self._names: Ints = np.full((3, SLOTS), -1, dtype=np.int64)
        self._counts: Ints = np.zeros((3, SLOTS, 2 + len(RUN_EDGES) + 1), dtype=np.int64)
        # Records, lost, rows in the buffer, first TSC, last TSC, place of an error, word of it
        self._state: Ints = np.zeros(7, dtype=np.int64)
        self._state[3] = -1

    def batches(self) -> Iterator[Batch]:
        """All memory events, a part at a time.

        Raises:
            BadInputError: a record that is too short or leaves its window.
        """
        while True:
            code = _merge(
                self._words, self._start, self._end, self._queue, self._first, self._cursor,
                self._buffer, self._names, self._counts, self._state,
            )  # fmt: skip
            self._check(code)
            places = self._cursor[:, 0]
            self._give_back(4 * int(places.min(initial=self._words.size)))
            rows = int(self._state[2])
            if rows:
                event, domid, order, kind, gfn, mfn = (c[:rows].copy() for c in self._buffer)
                self._state[2] = 0
                yield Batch(event, domid, order, kind, gfn.view(np.uint64), mfn.view(np.uint64))
            if code == DONE:
                for cpu, row in enumerate(self._cursor.tolist()):
                    _end_call(self._cursor, cpu, self._names, self._counts)
                    _end_run(self._cursor, cpu, row[2], self._names, self._counts)
                return

    def totals(self) -> Totals:
        """Counts of the whole trace."""
        events: dict[str, int] = {}
        for number, count in self._table(0):
            name, _ = EVENTS.get(number, (f"0x{number:08x}", 0))
            events[name] = int(count[0])
        name, _ = EVENTS[CPU_CHANGE]
        events[name] = len(self._start)
        calls = {
            number: (int(count[0]), int(count[1]), count[2:].tolist())
            for number, count in self._table(1)
        }
        running = {
            (int(self._cpus[key >> 32]), key & 0xFFFF_FFFF): int(count[0])
            for key, count in self._table(2)
        }
        first = max(int(self._state[3]), 0)
        records = int(self._state[0]) + len(self._start)
        span = (first, max(int(self._state[4]), first))
        return Totals(records, int(self._state[1]), events, calls, running, span, self._cut)

    def _table(self, which: int) -> Iterator[tuple[int, Ints]]:
        used = np.flatnonzero(self._names[which] >= 0)
        for slot in used[np.argsort(self._names[which][used])].tolist():
            yield int(self._names[which, slot]), self._counts[which, slot]

    def _windows(self) -> tuple[tuple[Ints, Ints, Ints], str]:
        """(first word, end, pcpu) of each window, and why the last is cut, if it is."""
        words, source = self._words, self._source
        if not self._size:
            raise BadInputError(
                f"{source}: offset 0: expected an xentrace binary, got an empty file"
            )
        if not words.size or words[0] != CPU_CHANGE_HEADER:
            got = self._words[:1].tobytes().hex(" ")
            raise BadInputError(
                f"{source}: offset 0: expected a cpu_change record of an xentrace binary, got {got}"
            )
        parts: list[Ints] = []
        place, cut = 0, ""
        while place + 3 <= words.size:
            found: Ints = np.empty((WINDOWS, 3), dtype=np.int64)
            nr, after = _find(words, place, found)
            if not nr:
                raise BadInputError(
                    f"{source}: offset {4 * place}: expected the cpu_change record of a window"
                )
            parts.append(found[:nr])
            place = int(after)
            self._give_back(min(4 * place, self._size))
        if not parts:
            raise BadInputError(f"{source}: offset 0: truncated before the first whole record")
        rows = np.concatenate(parts)
        if place != words.size or self._size % 4:
            start, _, cpu = rows[-1].tolist()
            whole = self._whole_end(start)
            if whole == 3:
                raise BadInputError(f"{source}: offset 0: truncated before the first whole record")
            rows[-1, 1] = whole
            cut = (
                f"{source}: offset {4 * whole}: truncated: "
                f"{max(4 * place, self._size) - 4 * whole:,} bytes of pcpu {cpu}'s last window are "
                "missing"
            )
        return (rows[:, 0].copy(), rows[:, 1].copy(), rows[:, 2].copy()), cut

    def _whole_end(self, place: int) -> int:
        """Where the last whole record from ``place`` on ends."""
        words = self._words
        while place < words.size:
            header = int(words[place])
            after = place + 1 + (header >> 28 & 7) + 2 * (header >> 31)
            if after > words.size:
                break
            place = after
        return place

    def _check(self, code: int) -> None:
        offset, header = 4 * int(self._state[5]), int(self._state[6])
        if code == SHORT:
            name, need = EVENTS[_base(header & 0x0FFF_FFFF)]
            raise BadInputError(
                f"{self._source}: offset {offset}: {name} record has {header >> 28 & 7} payload "
                f"words, expected {need}"
            )
        if code == CROSSES:
            raise BadInputError(
                f"{self._source}: offset {offset}: inconsistent: the record leaves its window"
            )
        if code == CROWDED:
            raise BadInputError(
                f"{self._source}: offset {offset}: more than {SLOTS} kinds of events"
            )


def _base(event: int) -> int:
    """An event's number without the states of a runstate change."""
    return RUNSTATE_CHANGE if event & ~0xFFF == RUNSTATE_CHANGE else event


_P2M: Final = int(MemEvent.SET_P2M_ENTRY)
_NPF: Final = int(MemEvent.NPF)
_SPLINTER: Final = int(MemEvent.POD_SUPERPAGE_SPLINTER)
_NO_MFN: Final = (int(MemEvent.DECREASE_RESERVATION), _SPLINTER)
_POD: Final = (int(MemEvent.POD_POPULATE), int(MemEvent.POD_ZERO_RECLAIM))
_GRANTS: Final = (
    int(MemEvent.PAGE_GRANT_MAP), int(MemEvent.PAGE_GRANT_UNMAP), int(MemEvent.PAGE_GRANT_TRANSFER),
)  # fmt: skip
_LOST: Final = LOST_RECORDS
_RUNSTATE: Final = RUNSTATE_CHANGE
_VMMCALL: Final = 0x0008_2012
_CALLS: Final = (_VMMCALL, 0x0020_100D, 0x0020_200E)


@_njit
def _find(words: Any, place: Any, found: Any) -> Any:
    """(windows found, where the next begins): first word, end and pcpu of each, from ``place``."""
    nr = 0
    while nr < len(found) and place + 3 <= len(words) and words[place] == CPU_CHANGE_HEADER:
        end = place + 3 + np.int64(words[place + 2]) // 4
        found[nr, 0] = place + 3
        found[nr, 1] = min(end, len(words))
        found[nr, 2] = words[place + 1]
        nr += 1
        place = end
    return nr, place


@_njit
def _slot(names: Any, key: Any) -> Any:
    """The slot of a key in an open hash table, made if need be; -1 if the table is full."""
    at = (key * 2654435761) % SLOTS
    for _ in range(SLOTS):
        if names[at] == key:
            return at
        if names[at] < 0:
            names[at] = key
            return at
        at = (at + 1) % SLOTS
    return -1


@_njit
def _next(words: Any, starts: Any, ends: Any, queue: Any, firsts: Any, cursor: Any) -> Any:
    """(pcpu, time) of the record that comes next; pcpu -1 when all are read."""
    best = -1
    best_time = best_place = np.int64(0)
    for cpu in range(len(cursor)):
        window = cursor[cpu, 1]
        while window < firsts[cpu + 1] and cursor[cpu, 0] >= ends[queue[window]]:
            window += 1
            cursor[cpu, 1] = window
            if window < firsts[cpu + 1]:
                cursor[cpu, 0] = starts[queue[window]]
        if window >= firsts[cpu + 1]:
            continue
        place = cursor[cpu, 0]
        time = cursor[cpu, 2]
        if words[place] >> 31:
            time = np.int64(words[place + 1]) | np.int64(words[place + 2]) << 32
        if best < 0 or time < best_time or (time == best_time and place < best_place):
            best, best_time, best_place = cpu, time, place
    return best, best_time


@_njit
def _need(event: Any) -> int:
    """The fewest payload words of an event that is looked into."""
    if event in (_P2M, _NPF) or event in _POD:
        return 6
    if event in _NO_MFN or event == _LOST:
        return 4
    if event == _RUNSTATE or event in _CALLS or event in _GRANTS:
        return 1
    return 0


@_njit
def _keep(words: Any, payload: Any, event: Any, running: Any, buffer: Any, row: Any) -> None:
    """A memory event as a row of the buffer."""
    low = np.int64(words[payload])
    buffer[0, row] = event
    buffer[3, row] = 0
    buffer[5, row] = -1
    if event in _GRANTS:
        buffer[1, row], buffer[2, row], buffer[4, row] = low, -1, -1
        return
    gfn = low | np.int64(words[payload + 1]) << 32
    if event == _NPF:
        buffer[1, row], buffer[2, row], buffer[4, row] = running, -1, gfn >> 12
        return
    buffer[4, row] = gfn
    if event in _NO_MFN:
        tail = np.int64(words[payload + 2])
    else:
        buffer[5, row] = np.int64(words[payload + 2]) | np.int64(words[payload + 3]) << 32
        tail = np.int64(words[payload + 4])
    if event == _P2M:
        buffer[3, row] = tail
        tail = np.int64(words[payload + 5])
    buffer[1, row] = tail & 0xFFFF
    buffer[2, row] = 9 if event == _SPLINTER else tail >> 16


@_njit
def _end_call(cursor: Any, cpu: Any, names: Any, counts: Any) -> None:
    """The hypercall under way on a pcpu is over: count it and the updates that it made."""
    number, made = cursor[cpu, 6], cursor[cpu, 7]
    if number >= 0:
        slot = _slot(names[1], number)
        size = 0
        for edge in RUN_EDGES:
            if made > edge:
                size += 1
        counts[1, slot, 0] += 1
        counts[1, slot, 1] += made
        counts[1, slot, 2 + size] += 1
    cursor[cpu, 6], cursor[cpu, 7] = -1, 0


@_njit
def _end_run(cursor: Any, cpu: Any, time: Any, names: Any, counts: Any) -> None:
    """Another vcpu runs on a pcpu from now on: book the time of the one before."""
    if cursor[cpu, 3] >= 0:
        slot = _slot(names[2], np.int64(cpu) << 32 | cursor[cpu, 3])
        counts[2, slot, 0] += time - cursor[cpu, 5]
    cursor[cpu, 3], cursor[cpu, 5] = -1, time


@_njit
def _merge(
    words: Any,
    starts: Any,
    ends: Any,
    queue: Any,
    firsts: Any,
    cursor: Any,
    buffer: Any,
    names: Any,
    counts: Any,
    state: Any,
) -> int:
    """Records in order of time until the buffer is full or all are read."""
    for _ in range(RECORDS):
        cpu, time = _next(words, starts, ends, queue, firsts, cursor)
        if cpu < 0:
            return DONE
        if state[2] == buffer.shape[1]:
            return FULL
        place = cursor[cpu, 0]
        header = np.int64(words[place])
        extra, has_tsc = header >> 28 & 7, header >> 31
        payload = place + 1 + 2 * has_tsc
        event = header & 0x0FFF_FFFF
        if event & ~0xFFF == _RUNSTATE:
            event = _RUNSTATE
        slot = _slot(names[0], event)
        state[5], state[6] = place, header
        if payload + extra > ends[queue[cursor[cpu, 1]]] or event == CPU_CHANGE:
            return CROSSES
        if extra < _need(event):
            return SHORT
        if slot < 0:
            return CROWDED
        cursor[cpu, 0], cursor[cpu, 2] = payload + extra, time
        counts[0, slot, 0] += 1
        state[0] += 1
        if has_tsc:
            state[3] = time if state[3] < 0 else min(state[3], time)
            state[4] = max(state[4], time)
        if event == _RUNSTATE:
            if header >> 4 & 3 == 0:
                _end_call(cursor, cpu, names, counts)
                _end_run(cursor, cpu, time, names, counts)
                cursor[cpu, 3] = np.int64(words[payload]) >> 16
        elif event in _CALLS:
            _end_call(cursor, cpu, names, counts)
            number = np.int64(words[payload])
            cursor[cpu, 6] = number if event == _VMMCALL else number & 0xFFFFF
        elif event == _LOST:
            state[1] += np.int64(words[payload])
        elif _need(event):
            _keep(words, payload, event, cursor[cpu, 3], buffer, state[2])
            state[2] += 1
            if event == _P2M:
                cursor[cpu, 7] += 1
    return FULL
