"""A real xentrace of any length in memory that does not grow with it: one pass over its records.

Memory events are handed over in batches, as places in the file; all else is counted as it comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from protocols.errno import BadInputError
from services.trace.loops import Runner, plain
from services.trace.xen_merge import (
    BEGIN,
    COLUMNS,
    CROSSES,
    CROWDED,
    DONE,
    FIND,
    FIRST_TSC,
    LAST,
    LAST_TSC,
    LOST_AT,
    MERGE,
    NEVER,
    PLACE,
    SHORT,
    SLOTS,
    SPAN,
    WRONG_PLACE,
    WRONG_WORD,
    Ints,
    Lanes,
    Words,
    empty_books,
    end_call,
    end_run,
)
from services.trace.xentrace import CPU_CHANGE, CPU_CHANGE_HEADER, EVENTS, RUNSTATE_CHANGE

BATCH: Final = 1 << 16
"""Memory events of one batch."""
WINDOWS: Final = 1 << 13
"""Windows that are looked for at a time."""


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


def keep(offset: int) -> None:
    """Give nothing back: what was handed over is in memory anyway."""
    del offset


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
        self._give_back = give_back
        self.words: Words = np.frombuffer(data, dtype="<u4", count=len(data) // 4)
        self._size = len(data)
        (start, end, cpu), self._cut = self._windows()
        self._cpus, cpu_of = np.unique(cpu, return_inverse=True)
        queue = np.argsort(cpu_of, kind="stable")
        self._lanes = Lanes(
            start=start[queue],
            end=end[queue],
            first=np.searchsorted(cpu_of[queue], np.arange(len(self._cpus) + 1)),
            cursor=np.zeros((len(self._cpus), COLUMNS), dtype=np.int64),
        )
        self._books = empty_books()

    def span(self) -> tuple[int, int]:
        """First and last TSC, as long as none falls on its pcpu; ``Totals.span`` knows for sure."""
        found = np.zeros(2, dtype=np.int64)
        self._run(SPAN)(self.words, self._lanes, found)
        return _span(int(found[0]), int(found[1]))

    def batches(self) -> Iterator[Batch]:
        """All memory events, a part at a time.

        Raises:
            BadInputError: a record that is too short or leaves its window.
        """
        lanes, books = self._lanes, self._books
        merge = self._run(MERGE)
        self._run(BEGIN)(self.words, lanes)
        code = -1
        while code != DONE:
            what: Ints = np.empty(BATCH, dtype=np.int64)
            when: Ints = np.empty(BATCH, dtype=np.int64)
            rows: Ints = np.zeros(1, dtype=np.int64)
            code = merge(self.words, lanes, books, what, when, rows)
            self._check(code)
            nr = int(rows[0])
            done = 4 * int(lanes.cursor[:, PLACE].min(initial=self.words.size))
            yield Batch(what[:nr], when[:nr], done)
        for cpu, last in enumerate(lanes.cursor[:, LAST].tolist()):
            if not end_call(books, lanes.cursor, cpu) or not end_run(
                books, lanes.cursor, cpu, last
            ):
                self._check(CROWDED)

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
        events[EVENTS[CPU_CHANGE][0]] = len(self._lanes.start)
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
        span = _span(int(state[FIRST_TSC]), int(state[LAST_TSC]))
        return Totals(
            records, int(state[LOST_AT]), len(self._cpus), events, calls, running, span, self._cut
        )

    def _windows(self) -> tuple[tuple[Ints, Ints, Ints], str]:
        """(first word, end, pcpu) of each window, and why the last is cut, if it is."""
        words, source = self.words, self._source
        if not self._size:
            raise BadInputError(
                f"{source}: offset 0: expected an xentrace binary, got an empty file"
            )
        if not words.size or words[0] != CPU_CHANGE_HEADER:
            got = words[:1].tobytes().hex(" ")
            raise BadInputError(
                f"{source}: offset 0: expected a cpu_change record of an xentrace binary, got {got}"
            )
        parts: list[Ints] = []
        place, cut = 0, ""
        find = self._run(FIND)
        while place + 3 <= words.size:
            found: Ints = np.empty((WINDOWS, 3), dtype=np.int64)
            nr = find(words, place, found)
            if not nr:
                raise BadInputError(
                    f"{source}: offset {4 * place}: expected the cpu_change record of a window"
                )
            parts.append(found[:nr])
            place = int(found[nr - 1, 1])
            self._give_back(min(4 * place, self._size))
        if not parts:
            raise BadInputError(f"{source}: offset 0: truncated before the first whole record")
        rows = np.concatenate(parts)
        rows[-1, 1] = min(place, words.size)
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
        words = self.words
        while place < words.size:
            header = int(words[place])
            after = place + 1 + (header >> 28 & 7) + 2 * (header >> 31)
            if after > words.size:
                break
            place = after
        return place

    def _check(self, code: int) -> None:
        state = self._books.state
        offset, header = 4 * int(state[WRONG_PLACE]), int(state[WRONG_WORD])
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
                f"{self._source}: more than {SLOTS} kinds of events or of hypercalls, or too many "
                "domains on too many pcpus"
            )


def _span(first: int, last: int) -> tuple[int, int]:
    first = 0 if first == NEVER else first
    return first, max(last, first)


def _ascending(keys: Ints) -> list[int]:
    """The used places of a hash table, by key."""
    used = np.flatnonzero(keys >= 0)
    return used[np.argsort(keys[used])].tolist()


def _base(event: int) -> int:
    """An event's number without the states of a runstate change."""
    return RUNSTATE_CHANGE if event & ~0xFFF == RUNSTATE_CHANGE else event
