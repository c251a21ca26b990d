"""What a xentrace file must look like, for whoever reads one: its windows, its records, its faults.

A file is a row of windows, each a cpu_change record and ``window_bytes`` of records of that pcpu. A
record is a u32 header, a u64 TSC if header bit 31 is set, and as many u32 words as header bits
30..28 say; bits 27..0 name the event. All little-endian (public/trace.h, xentrace(8)).

xentrace writes a window's size before its records, so a writer that was killed leaves a window that
says more than it has: such a file is cut, and good up to its last whole record. Anything else that
no xentrace writes is a fault, and the first of a file, by its offset, is why it is refused. The
functions here are plain Python that a compiler takes as well (``services.trace.loops``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocols.errno import BadInputError
from protocols.trace import MemEvent
from services.trace.loops import Loop, Runner, place_of
from services.trace.xen_events import NAMES

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

LOST_RECORDS: Final = 0x0001_F001
CPU_CHANGE: Final = 0x0001_F003
CPU_CHANGE_HEADER: Final = CPU_CHANGE | 2 << 28
HEADER_WORDS: Final = 3
"""Of a window: the cpu_change record."""
RUNSTATE_CHANGE: Final = 0x0002_1001
CONTINUE_RUNNING: Final = 0x0002_1002
STATES: Final = 0x0330
"""Bits of a runstate change's number that are the old state and the new one."""
VMMCALL_EVENT: Final = 0x0008_2012
PV_HYPERCALL: Final = 0x0020_100D
PV_SUBCALL: Final = 0x0020_200E
DOM_ADD_EVENT: Final = 0x0004_1001
DOM_REM_EVENT: Final = 0x0004_1002

# What a reader does with an event.
RUNSTATE: Final = 1
PV_CALL: Final = 2
VMMCALL: Final = 3
LOST: Final = 4
FOREIGN: Final = 5
KEPT: Final = 6
"""From here on events are about memory, or about which domains there are."""
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
TAIL_SHIFT: Final = 8
NEED_SHIFT: Final = 16
"""Above an action: ``Shape.tail`` plus 1, and the fewest payload words of its records."""


class Shape(NamedTuple):
    """What is done with an event, and the fewest payload words that say what it must.

    ``tail``: the word that names the domain, and in its upper half the order of what has one; -1
    where any word will do.
    """

    name: str
    does: int
    words: int
    tail: int = -1

    def packed(self) -> int:
        """All of it for a loop."""
        return self.does | self.words << NEED_SHIFT | self.tail + 1 << TAIL_SHIFT

    def most(self) -> int:
        """The largest that the tail may be."""
        return DOMID_MAX if self.does >= GRANT else TAIL_MAX


ORDER_MAX: Final = 20
"""Xen's MAX_ORDER; on x86 it is 18."""
DOMID_MAX: Final = 0xFFFF
TAIL_MAX: Final = ORDER_MAX << 16 | DOMID_MAX
SHAPES: Final[dict[int, Shape]] = {
    LOST_RECORDS: Shape("lost_records", LOST, 4),
    0x0001_F002: Shape("wrap_buffer", 0, 0),
    # Inside a window there is none, whatever it has: no record has so many words.
    CPU_CHANGE: Shape("cpu_change", FOREIGN, 8),
    RUNSTATE_CHANGE: Shape("runstate_change", RUNSTATE, 1),
    CONTINUE_RUNNING: Shape("continue_running", RUNSTATE, 1),
    DOM_ADD_EVENT: Shape("dom_add", DOM_ADD, 1, 0),
    DOM_REM_EVENT: Shape("dom_rem", DOM_REM, 1, 0),
    VMMCALL_EVENT: Shape("vmmcall", VMMCALL, 1),
    PV_HYPERCALL: Shape("pv_hypercall", PV_CALL, 1),
    PV_SUBCALL: Shape("pv_hypercall_subcall", PV_CALL, 1),
    MemEvent.PAGE_GRANT_MAP: Shape("page_grant_map", GRANT, 1, 0),
    MemEvent.PAGE_GRANT_UNMAP: Shape("page_grant_unmap", GRANT, 1, 0),
    MemEvent.PAGE_GRANT_TRANSFER: Shape("page_grant_transfer", GRANT, 1, 0),
    MemEvent.SET_P2M_ENTRY: Shape("set_p2m_entry", P2M, 6, 5),
    MemEvent.DECREASE_RESERVATION: Shape("decrease_reservation", DECREASE, 4, 2),
    MemEvent.POD_POPULATE: Shape("pod_populate", POPULATE, 6, 4),
    MemEvent.POD_ZERO_RECLAIM: Shape("pod_zero_reclaim", RECLAIM, 6, 4),
    MemEvent.POD_SUPERPAGE_SPLINTER: Shape("pod_superpage_splinter", SPLINTER, 4),
    MemEvent.NPF: Shape("npf", NPF, 6),
}
"""The events that mean something to a reader, by number; of all others any shape will do."""
TSC_BITS: Final = 62
"""Of ticks of any clock: a century of them is less."""
EXTENTS: Final[dict[int, int]] = {
    MemEvent.DECREASE_RESERVATION: 2, MemEvent.POD_POPULATE: 4, MemEvent.POD_ZERO_RECLAIM: 4,
    MemEvent.POD_SUPERPAGE_SPLINTER: 2,
}  # fmt: skip
"""Records of extents, and the first of two words that say whose and of which order.

Since Xen 4.18 (83af664db3) these are the domid and the order. Before, the first has them as its
halves, and the second is whatever was on the stack, as is the upper half of a splinter. Records do
not tell which Xen wrote them. A file is of an older one if in any of these records the upper half
of the first word is not 0, or the second is no order; where neither is, all orders are 0 but for
rubble that happens to be small.
"""

CPUS: Final = 1 << 16
"""Far more than Xen's NR_CPUS may be."""

WHOLE: Final = 0
SHORT: Final = 1
CROSSES: Final = 2
INSIDE: Final = 3
LATE: Final = 4
STRANGE: Final = 5
"""Faults of records; see ``reason``."""


class Windows(NamedTuple):
    """The windows in the order of the file: where the records of each begin and end, in words.

    ``cut``: why the last one ends early, if it does. ``broken``: why no window could be read behind
    the last one though the file goes on; a fault, unless there is one before it.
    """

    start: Ints
    end: Ints
    cpu: Ints
    cut: str
    broken: str


def base_event(event: Any) -> Any:
    """An event's number, without the states if it is a runstate change."""
    return RUNSTATE_CHANGE if event & ~STATES == RUNSTATE_CHANGE else event


def record_words(header: Any) -> Any:
    """Words of a record."""
    return 1 + (header >> 28 & 7) + 2 * (header >> 31)


def is_strange(words: Any, payload: Any, does: Any) -> Any:
    """Whether a record names a domain or an order that there is none of; ``does``: packed."""
    tail = does >> TAIL_SHIFT & 0xFF
    if tail == 0:
        return False
    most = DOMID_MAX if does & ACTION >= GRANT else TAIL_MAX
    return words[payload + tail - 1] > most


def fault_of(words: Any, place: Any, end: Any, does: Any) -> Any:
    """What is wrong with a record of a window that ends there; ``does``: its packed shape."""
    header = np.int64(words[place])
    payload = place + 1 + 2 * (header >> 31)
    extra = header >> 28 & 7
    if payload + extra > end:
        return CROSSES
    if does & ACTION == FOREIGN:
        return INSIDE
    if extra < does >> NEED_SHIFT:
        return SHORT
    if header >> 31 and words[place + 2] >> TSC_BITS - 32:
        return LATE
    return STRANGE if is_strange(words, payload, does) else WHOLE


def _first_fault(words: Any, start: Any, end: Any, events: Any, actions: Any) -> Any:
    """Where the first record with a fault is; -1 if there is none."""
    for window in range(len(start)):
        place = start[window]
        while place < end[window]:
            header = np.int64(words[place])
            at = place_of(events, base_event(header & 0x0FFF_FFFF))
            does = actions[at] if events[at] >= 0 else 0
            if fault_of(words, place, end[window], does) != WHOLE:
                return place
            place += record_words(header)
    return -1


def _find(words: Any, place: Any, found: Any) -> Any:
    """How many windows lie from ``place`` on, as far as there is room: first word, end, pcpu."""
    nr = 0
    while nr < len(found) and place + 3 <= len(words):
        size = np.int64(words[place + 2])
        if words[place] != CPU_CHANGE_HEADER or words[place + 1] >= CPUS or size & 3:
            break
        found[nr, 0] = place + 3
        found[nr, 1] = place + 3 + size // 4
        found[nr, 2] = words[place + 1]
        place = found[nr, 1]
        nr += 1
    return nr


def _whole_end(words: Any, place: Any) -> Any:
    """Where the last whole record from ``place`` on ends."""
    while place < len(words):
        after = place + record_words(np.int64(words[place]))
        if after > len(words):
            break
        place = after
    return place


FIND: Final = Loop(_find)
WHOLE_END: Final = Loop(_whole_end, (record_words,))
FIRST_FAULT: Final = Loop(_first_fault, (place_of, base_event, record_words, is_strange, fault_of))
AT_A_TIME: Final = 1 << 13
"""Windows that are looked for in one go."""
SLOTS: Final = 1 << 12
"""Of the table of events."""


def actions_of() -> tuple[Ints, Ints]:
    """A hash table of the events that mean something, and of each its action and words."""
    events: Ints = np.full(SLOTS, -1, dtype=np.int64)
    actions: Ints = np.zeros(SLOTS, dtype=np.int64)
    for event, shape in SHAPES.items():
        at = place_of(events, event)
        events[at], actions[at] = event, shape.packed()
    return events, actions


def keep(offset: int) -> None:
    """Give nothing back: what was handed over is in memory anyway."""
    del offset


def windows_of(
    data: memoryview, source: str, run: Runner, passed: Callable[[int], None]
) -> tuple[Words, Windows]:
    """The words of a file and its windows; ``passed`` is told of bytes that were walked over.

    Raises:
        BadInputError: empty, foreign, or without a single whole record.
    """
    size = len(data)
    words: Words = np.frombuffer(data, dtype="<u4", count=size // 4)
    if not size:
        raise BadInputError(f"{source}: offset 0: expected an xentrace binary, got an empty file")
    if not words.size or words[0] != CPU_CHANGE_HEADER:
        got = bytes(data[:4]).hex(" ")
        raise BadInputError(
            f"{source}: offset 0: expected a cpu_change record of an xentrace binary, got {got}"
        )
    parts: list[Ints] = []
    place, cut, broken = 0, "", ""
    find = run(FIND)
    while place + HEADER_WORDS <= words.size and not broken:
        found: Ints = np.empty((AT_A_TIME, 3), dtype=np.int64)
        nr = find(words, place, found)
        if nr:
            parts.append(found[:nr])
            place = int(found[nr - 1, 1])
            passed(min(4 * place, size))
        else:
            broken = _broken(words, place, source)
    rows: Ints = np.concatenate([np.empty((0, 3), dtype=np.int64), *parts])
    if place < words.size and words[place] != CPU_CHANGE_HEADER:
        broken = _broken(words, place, source)
    elif place > words.size:
        start, _, cpu = rows[-1].tolist()
        rows[-1, 1] = whole = run(WHOLE_END)(words, start)
        cut = (
            f"{source}: offset {4 * whole}: truncated: {4 * (place - whole):,} bytes of pcpu "
            f"{cpu}'s last window are missing"
        )
    elif 4 * place < size and not broken:
        cut = f"{source}: offset {4 * place}: truncated in the cpu_change record of a window"
    if broken and not len(rows):
        raise BadInputError(broken)
    if not len(rows) or int(rows[0, 1]) == HEADER_WORDS < place:
        raise BadInputError(f"{source}: offset 0: truncated before the first whole record")
    start, end, cpu = (rows[:, column].copy() for column in range(3))
    return words, Windows(start, end, cpu, cut, broken)


def _broken(words: Words, place: int, source: str) -> str:
    """What is wrong with the cpu_change record of a window."""
    where = f"{source}: offset {4 * place}: "
    if words[place] != CPU_CHANGE_HEADER:
        return f"{where}expected the cpu_change record of a window, got {int(words[place]):#010x}"
    if words[place + 1] >= CPUS:
        return f"{where}a window of pcpu {int(words[place + 1])}, expected less than {CPUS}"
    return (
        f"{where}inconsistent: the window of pcpu {int(words[place + 1])} says "
        f"{int(words[place + 2])} bytes, expected whole words"
    )


def first_fault(words: Words, windows: Windows, source: str, run: Runner) -> str:
    """What is wrong with the first record of a file that is damaged, as one line."""
    events, actions = actions_of()
    place = run(FIRST_FAULT)(words, windows.start, windows.end, events, actions)
    window = int(np.searchsorted(windows.start, place, side="right")) - 1
    return fault_at(words, place, int(windows.end[window]), source)


def fault_at(words: Words, place: int, end: int, source: str) -> str:
    """What is wrong with a record of a window that ends there, as one line."""
    event = base_event(int(words[place]) & 0x0FFF_FFFF)
    does = SHAPES[event].packed() if event in SHAPES else 0
    code = fault_of(words, place, end, does)
    assert code != WHOLE, f"{source}: offset {4 * place}: a record without a fault"
    return f"{source}: offset {4 * place}: {_reason(words, place, code)}"


def _reason(words: Words, place: int, code: int) -> str:
    """A fault in words."""
    header = int(words[place])
    event = base_event(header & 0x0FFF_FFFF)
    shape = SHAPES.get(event, Shape(NAMES.get(event, f"0x{event:08x}"), 0, 0))
    payload = place + 1 + 2 * (header >> 31)
    if code == CROSSES:
        return "inconsistent: the record leaves its window"
    if code == INSIDE:
        return "inconsistent: a cpu_change record inside a window"
    if code == SHORT:
        has = header >> 28 & 7
        return f"{shape.name} record has {has} payload words, expected {shape.words}"
    if code == LATE:
        tsc = int(words[place + 1]) | int(words[place + 2]) << 32
        return f"{shape.name} record with a TSC of {tsc:#x}, expected less than 2**{TSC_BITS}"
    tail = int(words[payload + shape.tail])
    if shape.does >= GRANT:
        return f"{shape.name} record of domain {tail}, expected at most {DOMID_MAX}"
    return f"{shape.name} record of order {tail >> 16}, expected at most {ORDER_MAX}"
