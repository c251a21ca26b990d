"""Real ``xentrace`` binaries as numpy arrays: which leaf Xen wrote, when, for whom.

The format is Xen's (public/trace.h, xentrace(8)). A file is a row of windows, each a cpu_change
record and ``window_bytes`` of records of that pcpu. A record is a u32 header, a u64 TSC if header
bit 31 is set, and as many u32 words as header bits 30..28 say; bits 27..0 name the event. All
little-endian.

Only where records start has to be found one after the other. That loop reads one byte a record
from a table of record lengths; everything after it works on whole arrays. Windows need no loop of
their own: a cpu_change record has the shape of any other, so one walk crosses them, and afterwards
the windows must tile the file exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from protocols.errno import BadInputError
from protocols.frames import INVALID_FRAME, ORDER_2M, PAGE_SHIFT
from services.trace.xen_events import NAMES

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

LOST_RECORDS: Final = 0x0001_F001
CPU_CHANGE: Final = 0x0001_F003
CPU_CHANGE_HEADER: Final = CPU_CHANGE | 2 << 28
RUNSTATE_CHANGE: Final = 0x0002_1000
RUNSTATE_STATES: Final = np.uint32(0x0000_0FFF)
NESTED_PAGE_FAULT: Final = 0x0008_2021
SET_P2M_ENTRY: Final = 0x0010_F004
DECREASE_RESERVATION: Final = 0x0010_F005
POD_POPULATE: Final = 0x0010_F010
POD_ZERO_RECLAIM: Final = 0x0010_F011
POD_SUPERPAGE_SPLINTER: Final = 0x0010_F012

_READ: Final[dict[int, tuple[str, int]]] = {
    LOST_RECORDS: ("lost_records", 4),
    0x0001_F002: ("wrap_buffer", 0),
    CPU_CHANGE: ("cpu_change", 2),
    RUNSTATE_CHANGE: ("runstate_change", 1),
    0x0004_1001: ("dom_add", 1),
    0x0004_1002: ("dom_rem", 1),
    0x0008_2012: ("vmmcall", 1),
    NESTED_PAGE_FAULT: ("npf", 6),
    0x0010_F001: ("page_grant_map", 1),
    0x0010_F002: ("page_grant_unmap", 1),
    0x0010_F003: ("page_grant_transfer", 1),
    SET_P2M_ENTRY: ("set_p2m_entry", 6),
    DECREASE_RESERVATION: ("decrease_reservation", 4),
    POD_POPULATE: ("pod_populate", 6),
    POD_ZERO_RECLAIM: ("pod_zero_reclaim", 6),
    POD_SUPERPAGE_SPLINTER: ("pod_superpage_splinter", 4),
    0x0020_100D: ("pv_hypercall", 1),
    0x0020_200E: ("pv_hypercall_subcall", 1),
}
"""Name and fewest payload words of each event that memory management meets."""
EVENTS: Final[dict[int, tuple[str, int]]] = dict(
    sorted(({number: (name, 0) for number, name in NAMES.items()} | _READ).items())
)
"""Name and fewest payload words of every event that has a name, ascending."""
KNOWN: Final = np.array(list(EVENTS), dtype=np.uint32)


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
    some proves nothing. The arrays behind are one entry a record, in file order.
    """

    source: str
    records: int
    lost: int
    unknown: int
    events: dict[str, int]
    words: Words
    payload: Indices
    """Where each record's payload starts, in words."""
    event: Words
    cpu: Words
    tsc: FrameArray
    """Last TSC seen on the record's pcpu up to and including it; 0 before the first."""

    def p2m_updates(self) -> P2mUpdates:
        """Every set_p2m_entry in the order in which Xen executed them."""
        rows = self._rows(SET_P2M_ENTRY)
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
        return self._extent_events(DECREASE_RESERVATION, has_mfn=False)

    def pod_populates(self) -> ExtentEvents:
        """Populate-on-demand entries that got memory (``p2m_pod_demand_populate``)."""
        return self._extent_events(POD_POPULATE, has_mfn=True)

    def pod_zero_reclaims(self) -> ExtentEvents:
        """Zero pages taken back into the PoD cache (``p2m_pod_zero_check``)."""
        return self._extent_events(POD_ZERO_RECLAIM, has_mfn=True)

    def pod_splinters(self) -> ExtentEvents:
        """2M PoD entries splintered because the cache had no superpage left; order 9 each."""
        rows = self._rows(POD_SUPERPAGE_SPLINTER)
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
        rows = self._rows(NESTED_PAGE_FAULT)
        place = self.payload[rows]
        return NestedFaults(
            gfn=_u64(self.words, place) >> np.uint64(PAGE_SHIFT),
            mfn=_u64(self.words, place + 2),
            p2mt=self.words[place + 5],
            tsc=self.tsc[rows],
            record=rows,
        )

    def _extent_events(self, event: int, *, has_mfn: bool) -> ExtentEvents:
        rows = self._rows(event)
        place = self.payload[rows]
        tail = self.words[place + (4 if has_mfn else 2)]
        absent = np.full(rows.size, INVALID_FRAME, dtype=np.uint64)
        return ExtentEvents(
            gfn=_u64(self.words, place),
            mfn=_u64(self.words, place + 2) if has_mfn else absent,
            domid=tail & LOW_HALF,
            order=tail >> HIGH_HALF_SHIFT,
            tsc=self.tsc[rows],
            record=rows,
        )

    def _rows(self, event: int) -> Indices:
        """Record numbers of one event, by last TSC of their pcpu, ties in file order."""
        rows = np.flatnonzero(self.event == event)
        return rows[np.argsort(self.tsc[rows], kind="stable")]


def decode_xentrace(data: bytes, source: str) -> XenTrace:
    """Decode a whole, uncompressed xentrace binary.

    Args:
        data: the file's bytes.
        source: its name, for the error line.

    Raises:
        BadInputError: empty, foreign, cut off or inconsistent file; one line with the byte offset.
    """
    if not data:
        raise BadInputError(f"{source}: offset 0: expected an xentrace binary, got an empty file")
    words: Words = np.frombuffer(data, dtype="<u4", count=len(data) // 4)
    if words.size == 0 or words[0] != CPU_CHANGE_HEADER:
        got = data[:4].hex(" ")
        raise BadInputError(
            f"{source}: offset 0: expected a cpu_change record of an xentrace binary, got {got}"
        )
    if len(data) % 4:
        raise BadInputError(f"{source}: offset {words.size * 4}: truncated in the middle of a word")
    start = _record_starts(words, source)
    header = words[start]
    event = header & EVENT_MASK
    event[(event & ~RUNSTATE_STATES) == RUNSTATE_CHANGE] = RUNSTATE_CHANGE
    extra = (header >> EXTRA_SHIFT) & EXTRA_MASK
    has_tsc = header >> TSC_SHIFT != 0
    slot = np.minimum(np.searchsorted(KNOWN, event), KNOWN.size - 1)
    is_known = KNOWN[slot] == event
    _check_payloads(start, slot, extra, is_known, source)
    cpu = _check_windows(words, start, header, event, source)
    tsc = np.zeros(start.size, dtype=np.uint64)
    tsc[has_tsc] = _u64(words, start[has_tsc] + 1)
    payload = start + 1 + TSC_WORDS * has_tsc
    return XenTrace(
        source=source,
        records=int(start.size),
        lost=int(words[payload[event == LOST_RECORDS]].sum(dtype=np.uint64)),
        unknown=int(event.size - is_known.sum()),
        events=_counts(event, slot, is_known),
        words=words,
        payload=payload,
        event=event,
        cpu=cpu,
        tsc=_last_tsc(cpu, tsc, has_tsc),
    )


def _record_starts(words: Words, source: str) -> Indices:
    """Word index of every record header, shape (records,), ascending."""
    lengths = (
        (1 + (words >> EXTRA_SHIFT & EXTRA_MASK) + TSC_WORDS * (words >> TSC_SHIFT))
        .astype(np.uint8)
        .tobytes()
    )
    is_start = bytearray(words.size)
    place = last = 0
    nr_words = words.size
    while place < nr_words:
        is_start[place] = 1
        last = place
        place += lengths[place]
    if place != nr_words:
        raise BadInputError(
            f"{source}: offset {last * 4}: truncated in a record of {(place - last) * 4} bytes, "
            f"the file has {(nr_words - last) * 4} of them"
        )
    return np.flatnonzero(np.frombuffer(is_start, dtype=np.uint8))


def _counts(event: Words, slot: Indices, is_known: Flags) -> dict[str, int]:
    """Records by event name; the unknown ones by number, ``0x`` and eight digits."""
    known = np.bincount(slot[is_known], minlength=KNOWN.size).tolist()
    counts = {name: count for (name, _), count in zip(EVENTS.values(), known, strict=True) if count}
    numbers, unknown = np.unique(event[~is_known], return_counts=True)
    counts.update(zip(map("0x{:08x}".format, numbers.tolist()), unknown.tolist(), strict=True))
    return counts


def _check_payloads(
    start: Indices, slot: Indices, extra: Words, is_known: Flags, source: str
) -> None:
    """Reject an event whose record is too short for what the event must say."""
    need = np.array([nr_words for _, nr_words in EVENTS.values()], dtype=np.uint32)
    short = np.flatnonzero(is_known & (extra < need[slot]))
    if short.size:
        first = int(short[0])
        name, nr_words = EVENTS[int(KNOWN[slot[first]])]
        raise BadInputError(
            f"{source}: offset {int(start[first]) * 4}: {name} record has {int(extra[first])} "
            f"payload words, expected {nr_words}"
        )


def _check_windows(words: Words, start: Indices, header: Words, event: Words, source: str) -> Words:
    """Reject windows that do not tile the file; the pcpu of every record, shape (records,)."""
    opens = np.flatnonzero(event == CPU_CHANGE)
    wrong = opens[header[opens] != CPU_CHANGE_HEADER]
    if wrong.size:
        raise BadInputError(
            f"{source}: offset {int(start[wrong[0]]) * 4}: cpu_change record of a foreign shape"
        )
    place = start[opens]
    nr_bytes = words[place + 2].astype(np.int64)
    end = 4 * (place + 3) + nr_bytes
    follows = 4 * np.append(place[1:], words.size)
    bad = np.flatnonzero(end != follows)
    if bad.size:
        first = int(bad[0])
        offset, cpu = int(place[first]) * 4, int(words[place[first] + 1])
        room = int(follows[first]) - offset - 12
        reason = "truncated" if end[first] > 4 * words.size else "inconsistent"
        raise BadInputError(
            f"{source}: offset {offset}: {reason}: the window of pcpu {cpu} says "
            f"{int(nr_bytes[first])} bytes, its records take {room}"
        )
    nr_records = np.diff(np.append(opens, start.size))
    return np.repeat(words[place + 1], nr_records)


def _last_tsc(cpu: Words, tsc: FrameArray, has_tsc: Flags) -> FrameArray:
    """Carry each pcpu's last TSC over its records without one; ``tsc`` is 0 where it has none."""
    by_cpu = np.argsort(cpu, kind="stable")
    is_first = np.append(True, np.diff(cpu[by_cpu]) != 0)
    holder = np.where(has_tsc[by_cpu] | is_first, np.arange(cpu.size), 0)
    filled = np.empty_like(tsc)
    filled[by_cpu] = tsc[by_cpu][np.maximum.accumulate(holder)]
    return filled


def _u64(words: Words, place: Indices) -> FrameArray:
    """The u64 at each word index, shape of ``place``."""
    return words[place] | words[place + 1].astype(np.uint64) << np.uint64(32)
