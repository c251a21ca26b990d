"""A trace as an xentrace binary: what Xen's own xenalyze reads (public/trace.h, xentrace(8)).

One window a pcpu, which is a shard of ours. Memory events are records of TRC_MEM, hypercalls those
of PV hypercalls. Every record has a TSC: a nanosecond is a tick (``--cpu-hz=1G``), a step a
thousand. Domain 0 runs on every pcpu but for nested page faults, which belong to whoever runs.

Records are as Xen 4.17 has them, where all exits have one number (``xenalyze --svm-mode``) and the
orders of extents are halves of words. Of an xentrace that has them as later Xens do (exits of AMD's
their own number, orders their own words) so does what is written of it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocols.trace import NO_DOMID, MemEvent
from services.trace.frame import Column, Frame, Trace
from services.trace.xen_layout import CPU_CHANGE_HEADER

STEP_TICKS: Final = 1000
FIRST_TSC: Final = 1_000_000
"""Not 0, which readers take for no time at all."""
HAS_TSC: Final = 1 << 31
PV_HYPERCALL: Final = 0x0020_100D
DOM_ADD: Final = 0x0004_1001
TO_RUNNING: Final = 0x0002_1101
"""A runstate change from runnable to running; and the other way round:"""
FROM_RUNNING: Final = 0x0002_1011
VMENTRY: Final = 0x0008_1001
VMEXIT: Final = 0x0008_1002
SVM_EXIT: Final = 0x0008_1003
VMEXIT_NPF: Final = np.uint32(0x400)
HYPERCALL_OF: Final = {
    "populate_physmap": 12, "increase_reservation": 12, "decrease_reservation": 12,
    "add_to_physmap": 12, "remove_from_physmap": 12, "claim_pages": 12, "set_pod_target": 12,
    "multicall": 13, "domctl_createdomain": 36, "domctl_destroydomain": 36,
    "domctl_getdomaininfo": 36, "domctl_set_paging_mempool_size": 36,
}  # fmt: skip

Words = npt.NDArray[np.uint32]


RANKS_EACH: Final = 8
"""A nested page fault takes seven records one after the other."""


class Records(NamedTuple):
    """Records of one shape: where and when, and their payload words, shape (n, words)."""

    cpu: Column
    time: Column
    rank: Column | int
    event: int
    payload: Words


def encode(trace: Trace) -> bytes:
    """The bytes of the file; a trace without memory events and hypercalls gives none."""
    kinds = [each for each in _records(trace) if len(each.cpu)]
    if not kinds:
        return b""
    cpus = np.unique(np.concatenate([each.cpu for each in kinds]))
    first = np.full(len(cpus), -1, dtype=np.int64)
    kinds.append(
        # Before all else: who runs.
        Records(cpus, first, 0, TO_RUNNING, _stack(cpus))
    )
    cpu = np.concatenate([each.cpu for each in kinds])
    time = np.concatenate([each.time for each in kinds])
    rank = np.concatenate([np.full(len(each.cpu), each.rank, dtype=np.int64) for each in kinds])
    length = np.concatenate([np.full(len(each.cpu), 3 + each.payload.shape[1]) for each in kinds])
    order = np.lexsort((np.arange(len(cpu)), rank, time, cpu))
    starts = np.concatenate(([0], np.cumsum(length[order])))
    place = np.empty(len(cpu), dtype=np.int64)
    # Each pcpu's records come after the three words of its window.
    place[order] = starts[:-1] + 3 * (np.searchsorted(cpus, cpu[order]) + 1)
    out: Words = np.zeros(int(starts[-1]) + 3 * len(cpus), dtype="<u4")
    scale = 1 if trace.ticks_per_s else STEP_TICKS
    at = 0
    for each in kinds:
        _put(out, place[at : at + len(each.cpu)], each, scale)
        at += len(each.cpu)
    _put_windows(out, cpus, cpu, length)
    return out.tobytes()


def _put(out: Words, place: Column, each: Records, scale: int) -> None:
    words = each.payload.shape[1]
    out[place] = HAS_TSC | words << 28 | each.event
    tsc = ((each.time + 1) * scale + FIRST_TSC).astype(np.uint64)
    out[place + 1], out[place + 2] = _halves(tsc)
    for word in range(words):
        out[place + 3 + word] = each.payload[:, word]


def _put_windows(out: Words, cpus: Column, cpu: Column, length: Column) -> None:
    sizes = np.bincount(np.searchsorted(cpus, cpu), weights=length).astype(np.int64)
    begin = 0
    for number, size in enumerate(sizes.tolist()):
        out[begin : begin + 3] = CPU_CHANGE_HEADER, number, 4 * size
        begin += 3 + size


def _halves(values: Column) -> tuple[Column, Column]:
    low = (values & np.uint64(0xFFFF_FFFF)).astype(np.uint32)
    return low, (values >> np.uint64(32)).astype(np.uint32)


def _stack(*columns: Column) -> Words:
    return np.column_stack([np.asarray(column).astype(np.uint32) for column in columns])


def _records(trace: Trace) -> list[Records]:
    """Every record but the first of each pcpu; ``rank`` orders those of one time."""
    of_updates, of_events = _ranks(trace)
    found = [_added(trace), _updates(trace.updates, of_updates), *_hypercalls(trace)]
    for event in MemEvent:
        if event != MemEvent.SET_P2M_ENTRY:
            rows = np.flatnonzero(trace.events["event"] == event)
            found += _events(trace.events.take(rows), of_events[rows], event, trace)
    return found


def _ranks(trace: Trace) -> tuple[Column, Column]:
    """Ranks of updates and of events behind what else there is, with room for RANKS_EACH each.

    An old trace of ours does not say in which order they were: its updates go first.
    """
    updates, events = (frame["seq"].astype(np.int64) for frame in (trace.updates, trace.events))
    if not (updates.any() or events.any()):
        updates = np.arange(len(updates))
        events = len(updates) + np.arange(len(events))
    return (1 + updates) * RANKS_EACH, (1 + events) * RANKS_EACH


def _updates(u: Frame, rank: Column) -> Records:
    tail = u["domid"].astype(np.uint32) | u["order"].astype(np.uint32) << np.uint32(16)
    payload = _stack(*_halves(u["gfn"]), *_halves(u["mfn"]), u["type"], tail)
    return Records(u["cpu"].astype(np.int64), u["time"], rank, int(MemEvent.SET_P2M_ENTRY), payload)


def _events(e: Frame, rank: Column, event: MemEvent, trace: Trace) -> list[Records]:
    cpu, time = e["cpu"].astype(np.int64), e["time"]
    domid = np.maximum(e["domid"], 0).astype(np.uint32)
    gfn, mfn = _halves(e["gfn"]), _halves(e["mfn"])
    nothing = np.zeros(e.rows, dtype=np.uint32)
    order = np.maximum(e["order"], 0).astype(np.uint32)
    tail = (domid | order << np.uint32(16), nothing)
    if trace.header.get("order_words"):
        tail = (domid, order)
    if event == MemEvent.NPF:
        gpa = _halves(e["gfn"] << np.uint64(12))
        fault = _stack(*gpa, *mfn, nothing, nothing)
        guest, vcpu = _stack(domid << np.uint32(16)), _stack(cpu)
        # Whoever faults runs just then; of faults at one time the next waits for the last.
        leave = SVM_EXIT if trace.header.get("svm_exits") else VMEXIT
        return [
            Records(cpu, time, rank, FROM_RUNNING, vcpu),
            Records(cpu, time, rank + 1, TO_RUNNING, guest),
            # xenalyze believes in a fault only between a VM exit and the next entry.
            Records(cpu, time, rank + 2, leave, _stack(nothing + VMEXIT_NPF, nothing)),
            Records(cpu, time, rank + 3, int(event), fault),
            Records(cpu, time, rank + 4, VMENTRY, np.zeros((e.rows, 0), dtype=np.uint32)),
            Records(cpu, time, rank + 5, FROM_RUNNING, guest),
            Records(cpu, time, rank + 6, TO_RUNNING, vcpu),
        ]
    if event == MemEvent.DECREASE_RESERVATION:
        payload = _stack(*gfn, *tail)
    elif event == MemEvent.POD_SUPERPAGE_SPLINTER:
        payload = _stack(*gfn, domid, tail[1])
    elif event in {MemEvent.POD_POPULATE, MemEvent.POD_ZERO_RECLAIM}:
        payload = _stack(*gfn, *mfn, *tail)
    else:
        payload = _stack(domid)
    return [Records(cpu, time, rank, int(event), payload)]


def _hypercalls(trace: Trace) -> list[Records]:
    """A record for each hypercall: our messages of such kinds, or what a xentrace had."""
    calls = trace.hypercalls
    found = [
        Records(calls["cpu"].astype(np.int64), calls["time"], 2, PV_HYPERCALL, _stack(calls["op"]))
    ]
    m = trace.messages
    number = np.array([HYPERCALL_OF.get(kind, -1) for kind in trace.kinds] or [-1])
    rows = np.flatnonzero(number[m["kind"]] >= 0) if m.rows else np.zeros(0, dtype=np.int64)
    op = _stack(number[m["kind"][rows]])
    found.append(
        Records(m["shard"][rows].astype(np.int64), m["started"][rows], 2, PV_HYPERCALL, op)
    )
    return found


def _added(trace: Trace) -> Records:
    """A dom_add for each domain, when it is first heard of."""
    parts = [
        (frame["domid"].astype(np.int64), frame["time"], frame["cpu"].astype(np.int64))
        for frame in (trace.updates, trace.events)
    ]
    domid, time, cpu = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(time, kind="stable")
    domids, first = np.unique(domid[order], return_index=True)
    first = order[first[domids != NO_DOMID]]
    return Records(cpu[first], time[first], 1, DOM_ADD, _stack(domid[first]))
