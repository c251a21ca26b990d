"""A real xentrace of any length in memory that does not grow with it: one pass over its records.

Memory events are handed over in batches, as places in the file; all else is counted as it comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from protocols.errno import BadInputError
from services.trace.loops import Runner, plain
from services.trace.xen_layout import (
    CPU_CHANGE,
    SHAPES,
    Ints,
    first_fault,
    keep,
    windows_of,
)
from services.trace.xen_merge import (
    BEGIN,
    CALLS_USED,
    COLUMNS,
    DONE,
    EVENTS_USED,
    FIRST_TSC,
    LAST,
    LOST_AT,
    MERGE,
    MOVE,
    PAIRS_USED,
    PLACE,
    SPAN,
    WRONG,
    Lanes,
    empty_books,
    end_call,
    end_run,
)
from services.trace.xentrace import EVENTS

BATCH: Final = 1 << 16
"""Memory events of one batch."""


class Batch(NamedTuple):
    """Memory events in order, shape (n,): what and where each is (see xen_merge), and its TSC.

    ``done``: bytes from the start of the file that nothing later looks at.
    """

    what: Ints
    when: Ints
    done: int


class Totals(NamedTuple):
    """What was counted by the way.

    ``cpus``: pcpus that have windows. ``hypercalls``: number to (count, updates, calls by class of
    RUN_EDGES). ``running``: ticks by (pcpu, domid). ``span``: first and last TSC.
    """

    records: int
    lost: int
    cpus: int
    events: dict[str, int]
    hypercalls: dict[int, tuple[int, int, list[int]]]
    running: dict[tuple[int, int], int]
    span: tuple[int, int]
    cut: str


class Stream:
    """One pass over a trace: ``batches`` once, then ``totals``.

    ``give_back`` is told of bytes from the start of the file that are not looked at for now.

    Raises:
        BadInputError: empty or foreign.
    """

    def __init__(
        self,
        data: memoryview,
        source: str,
        runner: Runner = plain,
        give_back: Callable[[int], None] = keep,
    ) -> None:
        self._source = source
        self._run = runner
        self.words, self._windows = windows_of(data, source, runner, give_back)
        start, end, cpu = self._windows[:3]
        self._cpus, cpu_of = np.unique(cpu, return_inverse=True)
        queue = np.argsort(cpu_of, kind="stable")
        self._lanes = Lanes(
            start=start[queue],
            end=end[queue],
            first=np.searchsorted(cpu_of[queue], np.arange(len(self._cpus) + 1)),
            cursor=np.zeros((len(self._cpus), COLUMNS), dtype=np.int64),
        )
        found = np.zeros(2, dtype=np.int64)
        self._run(SPAN)(self.words, self._lanes, found)
        first, last = found.tolist()
        self.span = first, max(last, first)
        """First and last TSC, if none is below one before on its pcpu; ``Totals.span`` knows."""
        self._books = empty_books()
        self._books.state[FIRST_TSC] = first

    def batches(self) -> Iterator[Batch]:
        """All memory events, a part at a time.

        Raises:
            BadInputError: damaged; the first fault of the file.
        """
        lanes = self._lanes
        merge = self._run(MERGE)
        self._run(BEGIN)(self.words, lanes)
        code = -1
        while code != DONE:
            what: Ints = np.empty(BATCH, dtype=np.int64)
            when: Ints = np.empty(BATCH, dtype=np.int64)
            rows: Ints = np.zeros(1, dtype=np.int64)
            code = merge(self.words, lanes, self._books, what, when, rows)
            if code == WRONG:
                raise BadInputError(first_fault(self.words, self._windows, self._source, self._run))
            self._make_room()
            nr = int(rows[0])
            done = 4 * int(lanes.cursor[:, PLACE].min(initial=self.words.size))
            yield Batch(what[:nr], when[:nr], done)
        if self._windows.broken:
            raise BadInputError(self._windows.broken)
        for cpu, last in enumerate(lanes.cursor[:, LAST].tolist()):
            there = end_call(self._books, lanes.cursor, cpu)
            if not (end_run(self._books, lanes.cursor, cpu, last) and there):
                self._make_room()

    def _make_room(self) -> None:
        """Tables of which half is used become four times as large."""
        books = self._books
        if 2 * int(books.state[EVENTS_USED]) >= len(books.events):
            events, (actions, counts) = self._wider(books.events, books.actions, books.nr_events)
            books = books._replace(events=events, actions=actions, nr_events=counts)
        if 2 * int(books.state[CALLS_USED]) >= len(books.calls):
            calls, (counts,) = self._wider(books.calls, books.nr_calls)
            books = books._replace(calls=calls, nr_calls=counts)
        if 2 * int(books.state[PAIRS_USED]) >= len(books.pairs):
            pairs, (ticks,) = self._wider(books.pairs, books.ticks)
            books = books._replace(pairs=pairs, ticks=ticks)
        self._books = books

    def _wider(self, keys: Ints, *columns: Ints) -> tuple[Ints, list[Ints]]:
        """A hash table four times as large, and what belongs to its keys."""
        wider: Ints = np.full(4 * len(keys), -1, dtype=np.int64)
        places: Ints = np.zeros(len(keys), dtype=np.int64)
        self._run(MOVE)(keys, wider, places)
        used = keys >= 0
        moved: list[Ints] = []
        for column in columns:
            made: Ints = np.zeros((len(wider), *column.shape[1:]), dtype=np.int64)
            made[places[used]] = column[used]
            moved.append(made)
        return wider, moved

    def totals(self) -> Totals:
        """Counts of the whole trace."""
        books = self._books
        events: dict[str, int] = {}
        for at in _ascending(books.events):
            count = int(books.nr_events[at])
            if count:
                number = int(books.events[at])
                name, _ = EVENTS.get(number, (f"0x{number:08x}", 0))
                events[name] = count
        records = sum(events.values()) + len(self._lanes.start)
        events[SHAPES[CPU_CHANGE].name] = len(self._lanes.start)
        calls: dict[int, tuple[int, int, list[int]]] = {}
        for at in _ascending(books.calls):
            count, updates, *classes = books.nr_calls[at].tolist()
            calls[int(books.calls[at])] = count, updates, classes
        running = {
            (int(self._cpus[int(key) >> 32]), int(key) & 0xFFFF_FFFF): int(books.ticks[at])
            for at in _ascending(books.pairs)
            for key in (books.pairs[at],)
        }
        state = books.state
        first = int(state[FIRST_TSC])
        span = first, max(first, int(self._lanes.cursor[:, LAST].max()))
        return Totals(
            records, int(state[LOST_AT]), len(self._cpus), events, calls, running, span,
            self._windows.cut,
        )  # fmt: skip


def _ascending(keys: Ints) -> list[int]:
    """The used places of a hash table, by key."""
    used = np.flatnonzero(keys >= 0)
    return used[np.argsort(keys[used])].tolist()
