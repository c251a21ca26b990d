"""Real ``xentrace`` binaries as numpy arrays: which leaf Xen wrote, when, for whom.

The format is in ``services.trace.xen_layout``. Only where records start has to be found one after
the other. That loop reads one byte a record from a table of record lengths; everything after it
works on whole arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from protocols.errno import BadInputError
from protocols.frames import INVALID_FRAME, ORDER_2M, PAGE_SHIFT
from protocols.trace import MemEvent
from services.trace.loops import plain
from services.trace.xen_events import NAMES
from services.trace.xen_layout import (
    CPU_CHANGE,
    EXTENTS,
    HEADER_WORDS,
    LOST_RECORDS,
    ORDER_MAX,
    RUNSTATE_CHANGE,
    SHAPES,
    STATES,
    TSC_BITS,
    Windows,
    fault_at,
    keep,
    windows_of,
)

if TYPE_CHECKING:
    from protocols.frames import FrameArray

Words: TypeAlias = npt.NDArray[np.uint32]
Indices: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

EVENT_MASK: Final = np.uint32(0x0FFF_FFFF)
EXTRA_SHIFT: Final = np.uint32(28)
EXTRA_MASK: Final = np.uint32(7)
TSC_SHIFT: Final = np.uint32(31)
LOW_HALF: Final = np.uint32(0xFFFF)
HIGH_HALF_SHIFT: Final = np.uint32(16)
TSC_WORDS: Final = 2

EVENTS: Final[dict[int, tuple[str, int]]] = dict(
    sorted(
        {
            **{number: (name, 0) for number, name in NAMES.items()},
            **{number: (shape.name, shape.words) for number, shape in SHAPES.items()},
        }.items()
    )
)
"""Name and fewest payload words of every event that has a name, ascending."""
KNOWN: Final = np.array(list(EVENTS), dtype=np.uint32)
NEED: Final = np.array([nr_words for _, nr_words in EVENTS.values()], dtype=np.uint32)


@dataclass(frozen=True, slots=True)
class P2mUpdates:
    """TRC_MEM_SET_P2M_ENTRY, one row a leaf that Xen set out to write; all arrays of shape (n,).

    Xen emits the record on entry to ``p2m_pt_set_entry``, so a row says what was attempted. Rows
    are in order of ``tsc``, the last TSC of the pcpu that wrote them, then of ``record``, the
    place in the file.
    """

    gfn: FrameArray
    mfn: FrameArray
    """INVALID_FRAME where the leaf maps nothing."""
    p2mt: Words
    """``p2m_type_t`` as recorded; see ``protocols.p2m_types.P2mType``."""
    domid: Words
    order: Words
    tsc: FrameArray
    record: Indices


@dataclass(frozen=True, slots=True)
class ExtentEvents:
    """One kind of extent event (decrease_reservation, pod_*), shape (n,), in P2mUpdates's order.

    ``gfn`` is the faulting one of a pod_populate or splinter, not aligned. ``mfn`` is
    INVALID_FRAME where the event has none; a zero reclaim of order 9 carries its last frame's.
    """

    gfn: FrameArray
    mfn: FrameArray
    domid: Words
    order: Words
    tsc: FrameArray
    record: Indices


@dataclass(frozen=True, slots=True)
class NestedFaults:
    """Nested page faults (SVM), shape (n,), in P2mUpdates's order.

    ``mfn`` and ``p2mt`` are what the p2m said after the fault was handled.
    """

    gfn: FrameArray
    mfn: FrameArray
    p2mt: Words
    tsc: FrameArray
    record: Indices


@dataclass(frozen=True, slots=True)
class XenTrace:
    """A decoded trace. ``records`` counts every record, cpu_change included.

    ``events`` counts by name, an event without a name under its number in hex, and ``unknown``
    sums the latter. ``lost`` is how many records Xen says it dropped: replay of a trace that lost
    some proves nothing. ``cut``: why the file ends before its last window does, if so. The arrays
    behind are one entry a record, in file order.
    """

    source: str
    records: int
    lost: int
    unknown: int
    events: dict[str, int]
    cut: str
    words: Words
    header: Words
    payload: Indices
    """Where each record's payload starts, in words."""
    event: Words
    """Numbers without the states of runstate changes."""
    cpu: Words
    tsc: FrameArray
    """Highest TSC seen on the record's pcpu up to and including it; 0 before the first."""

    def p2m_updates(self) -> P2mUpdates:
        """Every set_p2m_entry in the order in which Xen executed them."""
        rows = self._rows(MemEvent.SET_P2M_ENTRY)
        place = self.payload[rows]
        tail = self.words[place + 5]
        return P2mUpdates(
            gfn=_u64(self.words, place),
            mfn=_u64(self.words, place + 2),
            p2mt=self.words[place + 4],
            domid=tail & LOW_HALF,
            order=tail >> HIGH_HALF_SHIFT,
            tsc=self.tsc[rows],
            record=rows,
        )

    def decrease_reservations(self) -> ExtentEvents:
        """One row an extent that a guest or toolstack gives back, before its removal."""
        return self._extent_events(MemEvent.DECREASE_RESERVATION, has_mfn=False)

    def pod_populates(self) -> ExtentEvents:
        """Populate-on-demand entries that got memory (``p2m_pod_demand_populate``)."""
        return self._extent_events(MemEvent.POD_POPULATE, has_mfn=True)

    def pod_zero_reclaims(self) -> ExtentEvents:
        """Zero pages taken back into the PoD cache (``p2m_pod_zero_check``)."""
        return self._extent_events(MemEvent.POD_ZERO_RECLAIM, has_mfn=True)

    def pod_splinters(self) -> ExtentEvents:
        """2M PoD entries splintered because the cache had no superpage left; order 9 each."""
        rows = self._rows(MemEvent.POD_SUPERPAGE_SPLINTER)
        place = self.payload[rows]
        return ExtentEvents(
            gfn=_u64(self.words, place),
            mfn=np.full(rows.size, INVALID_FRAME, dtype=np.uint64),
            domid=self.words[place + 2] & LOW_HALF,
            order=np.full(rows.size, ORDER_2M, dtype=np.uint32),
            tsc=self.tsc[rows],
            record=rows,
        )

    def nested_faults(self) -> NestedFaults:
        """Nested page faults, each with the leaf that resolved it."""
        rows = self._rows(MemEvent.NPF)
        place = self.payload[rows]
        return NestedFaults(
            gfn=_u64(self.words, place) >> np.uint64(PAGE_SHIFT),
            mfn=_u64(self.words, place + 2),
            p2mt=self.words[place + 5],
            tsc=self.tsc[rows],
            record=rows,
        )

    def orders_are_halves(self) -> bool:
        """Whether records of extents are as before Xen 4.18: see ``xen_layout.EXTENTS``."""
        first, second = self._tails()
        return bool((first >> HIGH_HALF_SHIFT).any() or (second > ORDER_MAX).any())

    def orders_are_words(self) -> bool:
        """Whether they are as since Xen 4.18 for sure; where all orders are 0 nothing tells."""
        return bool(self._tails()[1].any()) and not self.orders_are_halves()

    def _tails(self) -> tuple[Words, Words]:
        """Of all records of extents both words that say whose and of which order."""
        tails = [self.payload[self.event == event] + at for event, at in EXTENTS.items()]
        place = np.concatenate(tails)
        return self.words[place], self.words[place + 1]

    def _extent_events(self, event: int, *, has_mfn: bool) -> ExtentEvents:
        rows = self._rows(event)
        place = self.payload[rows]
        tail = place + EXTENTS[event]
        is_half = self.orders_are_halves()
        absent = np.full(rows.size, INVALID_FRAME, dtype=np.uint64)
        return ExtentEvents(
            gfn=_u64(self.words, place),
            mfn=_u64(self.words, place + 2) if has_mfn else absent,
            domid=self.words[tail] & LOW_HALF,
            order=self.words[tail] >> HIGH_HALF_SHIFT if is_half else self.words[tail + 1],
            tsc=self.tsc[rows],
            record=rows,
        )

    def _rows(self, event: int) -> Indices:
        """Record numbers of one event, by last TSC of their pcpu, ties in file order."""
        rows = np.flatnonzero(self.event == event)
        return rows[np.argsort(self.tsc[rows], kind="stable")]


def decode_xentrace(data: bytes | memoryview, source: str) -> XenTrace:
    """Decode a whole, uncompressed xentrace binary.

    Args:
        data: the file's bytes.
        source: its name, for the error line.

    Raises:
        BadInputError: empty, foreign, cut off or damaged file; one line with the byte offset.
    """
    trace = decode_part(data, source)
    if trace.cut:
        raise BadInputError(trace.cut)
    return trace


def decode_part(data: bytes | memoryview, source: str) -> XenTrace:
    """As ``decode_xentrace``; of a file that was cut off what is there, to its last whole record.

    Raises:
        BadInputError: empty, foreign or damaged.
    """
    words, windows = windows_of(memoryview(data), source, plain, keep)
    start, fits = _record_starts(words, windows)
    header = words[start]
    event = header & EVENT_MASK
    event[event & ~np.uint32(STATES) == RUNSTATE_CHANGE] = RUNSTATE_CHANGE
    has_tsc = header >> TSC_SHIFT != 0
    payload = start + 1 + TSC_WORDS * has_tsc
    slot = np.minimum(np.searchsorted(KNOWN, event), KNOWN.size - 1)
    is_known = KNOWN[slot] == event
    is_opening = event == CPU_CHANGE
    is_opening[is_opening] = np.isin(start[is_opening] + HEADER_WORDS, windows.start)
    wrong = np.flatnonzero(_is_wrong(words, start, event, is_known, NEED[slot]) & ~is_opening)
    if wrong.size or not fits:
        place = int(start[wrong[0] if wrong.size else -1])
        end = int(windows.end[np.searchsorted(windows.start, place, side="right") - 1])
        raise BadInputError(fault_at(words, place, end, source))
    if windows.broken:
        raise BadInputError(windows.broken)
    nr_records = np.diff(np.append(np.flatnonzero(is_opening), start.size))
    cpu = np.repeat(windows.cpu.astype(np.uint32), nr_records)
    tsc = np.zeros(start.size, dtype=np.uint64)
    tsc[has_tsc] = _u64(words, start[has_tsc] + 1)
    return XenTrace(
        source=source,
        records=int(start.size),
        lost=int(words[payload[event == LOST_RECORDS]].sum(dtype=np.uint64)),
        unknown=int(event.size - is_known.sum()),
        events=_counts(event, slot, is_known),
        cut=windows.cut,
        words=words,
        header=header,
        payload=payload,
        event=event,
        cpu=cpu,
        tsc=_last_tsc(cpu, tsc),
    )


def _record_starts(words: Words, windows: Windows) -> tuple[Indices, bool]:
    """Word index of every record header, ascending, cpu_change included; whether all windows fit.

    Up to the first record that leaves its window, if they do not.
    """
    lengths = (
        (1 + (words >> EXTRA_SHIFT & EXTRA_MASK) + TSC_WORDS * (words >> TSC_SHIFT))
        .astype(np.uint8)
        .tobytes()
    )
    is_start = bytearray(words.size)
    fits = True
    for begin, end in zip(windows.start.tolist(), windows.end.tolist(), strict=True):
        is_start[begin - HEADER_WORDS] = 1
        place = int(begin)
        while place < end:
            is_start[place] = 1
            place += lengths[place]
        if place != end:
            fits = False
            break
    return np.flatnonzero(np.frombuffer(is_start, dtype=np.uint8)), fits


def _is_wrong(words: Words, start: Indices, event: Words, is_known: Flags, need: Words) -> Flags:
    """Records in which ``fault_of`` finds something, but for those that leave their window."""
    header = words[start]
    wrong = is_known & (header >> EXTRA_SHIFT & EXTRA_MASK < need)
    has_tsc = np.flatnonzero(header >> TSC_SHIFT)
    wrong[has_tsc] |= words.take(start[has_tsc] + 2, mode="clip") >> np.uint32(TSC_BITS - 32) != 0
    payload = start + 1 + TSC_WORDS * (header >> TSC_SHIFT)
    for number, shape in SHAPES.items():
        if shape.tail >= 0:
            rows = np.flatnonzero(event == number)
            wrong[rows] |= words.take(payload[rows] + shape.tail, mode="clip") > shape.most()
    return wrong


def _counts(event: Words, slot: Indices, is_known: Flags) -> dict[str, int]:
    """Records by event name; the unknown ones by number, ``0x`` and eight digits."""
    known = np.bincount(slot[is_known], minlength=KNOWN.size).tolist()
    counts = {name: count for (name, _), count in zip(EVENTS.values(), known, strict=True) if count}
    numbers, unknown = np.unique(event[~is_known], return_counts=True)
    counts.update(zip(map("0x{:08x}".format, numbers.tolist()), unknown.tolist(), strict=True))
    return counts


def _last_tsc(cpu: Words, tsc: FrameArray) -> FrameArray:
    """The highest TSC so far of each record's pcpu; ``tsc`` is 0 where a record has none."""
    by_cpu = np.argsort(cpu, kind="stable")
    is_first = np.append(True, np.diff(cpu[by_cpu]) != 0)
    ordered = tsc[by_cpu]
    holder = np.where((ordered > 0) | is_first, np.arange(cpu.size), 0)
    ordered = ordered[np.maximum.accumulate(holder)]
    if (ordered[1:] < ordered[:-1])[~is_first[1:]].any():
        # Ranks of TSCs above those of all pcpus before, so that one pass raises all.
        values, rank = np.unique(ordered, return_inverse=True)
        rank += np.cumsum(is_first) * values.size
        ordered = values[np.maximum.accumulate(rank) % values.size]
    filled = np.empty_like(tsc)
    filled[by_cpu] = ordered
    return filled


def _u64(words: Words, place: Indices) -> FrameArray:
    """The u64 at each word index, shape of ``place``."""
    return words[place] | words[place + 1].astype(np.uint64) << np.uint64(32)
