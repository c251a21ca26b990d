"""A real xentrace as frames: updates and events with whoever ran, hypercalls, and who ran where."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.frames import INVALID_FRAME, ORDER_2M
from protocols.trace import NO_DOMID, NO_ORDER, MemEvent
from services.trace.frame import Column, Frame, Trace
from services.trace.xen_events import SVM_EXITS
from services.trace.xen_layout import (
    CONTINUE_RUNNING,
    DOM_ADD_EVENT,
    DOM_REM_EVENT,
    PV_HYPERCALL,
    PV_SUBCALL,
    RUNSTATE_CHANGE,
    VMMCALL_EVENT,
)
from services.trace.xentrace import XenTrace, decode_part

NUMBER_MASK: Final = 0xF_FFFF
"""A PV hypercall's word: its number, and in the bits above which arguments follow."""
NEW_STATE_SHIFT: Final = 4
STATE_MASK: Final = 3
RUNNING: Final = 0
GRANTS: Final = (MemEvent.PAGE_GRANT_MAP, MemEvent.PAGE_GRANT_UNMAP, MemEvent.PAGE_GRANT_TRANSFER)

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]


def read_trace(data: memoryview, source: str, *, cpu_hz: float) -> Trace:
    """A xentrace, whole or cut off: what is there up to the last whole record.

    Raises:
        BadInputError: empty, foreign or damaged.
    """
    decoded = decode_part(data, source)
    seen = decoded.tsc > 0
    first = int(decoded.tsc[seen].min()) if seen.any() else 0
    time = np.where(seen, decoded.tsc.astype(np.int64) - first, 0)
    order = np.argsort(decoded.tsc, kind="stable")
    context = _Context(decoded, time, order)
    return Trace(
        source=source,
        format="xentrace",
        header={
            "format": "xentrace",
            "cpus": len(np.unique(decoded.cpu)),
            "cut": decoded.cut,
            "span": (0, int(time.max())),
            "given_again": context.given_again(),
            "svm_exits": bool(np.isin(decoded.event, list(SVM_EXITS)).any()),
            "order_words": decoded.orders_are_words(),
        },
        ticks_per_s=cpu_hz,
        updates=context.updates(),
        events=context.events(),
        hypercalls=context.hypercalls(),
        running=context.spans(),
        records=decoded.records,
        lost=decoded.lost,
        truncated=bool(decoded.cut),
        events_by_name=dict(decoded.events),
    )


class _Context:
    """What every record's pcpu was doing."""

    def __init__(self, decoded: XenTrace, time: Indices, order: Indices) -> None:
        self._trace = decoded
        self._time = time
        self._order = order
        self._words = decoded.words
        by_cpu = np.argsort(decoded.cpu, kind="stable")
        self._by_cpu = by_cpu
        self._starts = np.append(True, np.diff(decoded.cpu[by_cpu]) != 0)
        switches = self._switches()
        self._switch = self._last(switches)
        known = self._switch >= 0
        word = self._words[decoded.payload[np.maximum(self._switch, 0)]]
        self._domid = np.where(known, (word >> np.uint32(16)).astype(np.int64), NO_DOMID)
        self._vcpu = np.where(known, (word & np.uint32(0xFFFF)).astype(np.int64), -1)
        self._switched = switches
        event = decoded.event
        calls = (event == PV_HYPERCALL) | (event == PV_SUBCALL) | (event == VMMCALL_EVENT)
        self._calls = np.flatnonzero(calls)[
            np.argsort(decoded.tsc[np.flatnonzero(calls)], kind="stable")
        ]
        number = np.full(len(event), -1, dtype=np.int64)
        number[self._calls] = np.arange(len(self._calls))
        # A hypercall is its vcpu's: when another runs it is over, or goes on by a new record.
        latest = self._last(np.flatnonzero(calls | np.isin(np.arange(len(event)), switches)))
        self._call = np.where(latest >= 0, number[np.maximum(latest, 0)], -1)

    def _switches(self) -> Indices:
        """Records by which a vcpu begins to run."""
        event = self._trace.event
        rows = np.flatnonzero((event == RUNSTATE_CHANGE) | (event == CONTINUE_RUNNING))
        state = self._trace.header[rows] >> np.uint32(NEW_STATE_SHIFT) & np.uint32(STATE_MASK)
        return rows[state == RUNNING]

    def _last(self, rows: Indices) -> Indices:
        """For each record the last of some rows on its pcpu so far; -1 for none."""
        mark = np.full(len(self._trace.event), -1, dtype=np.int64)
        mark[rows] = rows
        ordered = mark[self._by_cpu]
        # Rows are filled from the first of each pcpu on, so that none takes over another's.
        at = np.where((ordered >= 0) | self._starts, np.arange(len(ordered)), 0)
        filled = np.empty_like(mark)
        filled[self._by_cpu] = ordered[np.maximum.accumulate(at)]
        return filled

    def updates(self) -> Frame:
        """UPDATES, as ``XenTrace.p2m_updates`` orders them."""
        found = self._trace.p2m_updates()
        rows = found.record
        return Frame.of(
            "updates",
            {
                "time": self._time[rows], "domid": found.domid, "order": found.order,
                "type": found.p2mt, "gfn": found.gfn, "mfn": found.mfn,
                "cause": self._call[rows] + 1, "cpu": self._trace.cpu[rows], "seq": rows,
            },
        )  # fmt: skip

    def events(self) -> Frame:
        """EVENTS, in the same order."""
        trace = self._trace
        parts: list[dict[str, Column]] = []

        def add(event: MemEvent, rows: Indices, **columns: Any) -> None:
            none = np.full(len(rows), INVALID_FRAME, dtype=np.uint64)
            parts.append(
                {
                    "record": rows, "time": self._time[rows], "event": np.full(len(rows), event),
                    "cause": self._call[rows] + 1, "cpu": trace.cpu[rows], "gfn": none,
                    "mfn": none, "order": np.full(len(rows), NO_ORDER),
                }
                | columns
            )  # fmt: skip

        for event, found in (
            (MemEvent.DECREASE_RESERVATION, trace.decrease_reservations()),
            (MemEvent.POD_POPULATE, trace.pod_populates()),
            (MemEvent.POD_ZERO_RECLAIM, trace.pod_zero_reclaims()),
        ):
            add(
                event, found.record, gfn=found.gfn, mfn=found.mfn, order=found.order,
                domid=found.domid,
            )  # fmt: skip
        splinters = trace.pod_splinters()
        add(
            MemEvent.POD_SUPERPAGE_SPLINTER, splinters.record, gfn=splinters.gfn,
            domid=splinters.domid, order=np.full(len(splinters.record), ORDER_2M),
        )  # fmt: skip
        faults = trace.nested_faults()
        add(
            MemEvent.NPF, faults.record, gfn=faults.gfn, mfn=faults.mfn,
            domid=self._domid[faults.record],
        )  # fmt: skip
        for event in GRANTS:
            rows = np.flatnonzero(trace.event == event)
            add(event, rows, domid=self._words[trace.payload[rows]])
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        record = whole.pop("record")
        whole["seq"] = record
        by_time = np.lexsort((record, trace.tsc[record]))
        return Frame.of("events", {name: column[by_time] for name, column in whole.items()})

    def given_again(self) -> dict[int, list[tuple[int, int]]]:
        """{domid: (time, updates before)} of each time that a domid was given to a new domain.

        Destroying a domain updates no p2m: its tables are freed wholesale. A first dom_add says
        nothing: updates have the last TSC of their pcpu, and may come before it.
        """
        event = self._trace.event[self._order]
        updates = np.cumsum(event == MemEvent.SET_P2M_ENTRY)
        gone: set[int] = set()
        found: dict[int, list[tuple[int, int]]] = {}
        for at in np.flatnonzero((event == DOM_ADD_EVENT) | (event == DOM_REM_EVENT)).tolist():
            row = int(self._order[at])
            domid = int(self._words[self._trace.payload[row]])
            if event[at] == DOM_REM_EVENT:
                gone.add(domid)
            elif domid in gone:
                gone.remove(domid)
                found.setdefault(domid, []).append((int(self._time[row]), int(updates[at])))
        return found

    def hypercalls(self) -> Frame:
        """HYPERCALLS, by time."""
        trace, rows = self._trace, self._calls
        word = self._words[trace.payload[rows]]
        is_vmmcall = trace.event[rows] == VMMCALL_EVENT
        updates = np.flatnonzero(trace.event == MemEvent.SET_P2M_ENTRY)
        made = self._call[updates]
        return Frame.of(
            "hypercalls",
            {
                "time": self._time[rows], "cpu": trace.cpu[rows], "domid": self._domid[rows],
                "vcpu": self._vcpu[rows],
                "op": np.where(is_vmmcall, word, word & np.uint32(NUMBER_MASK)),
                "subcall": trace.event[rows] == PV_SUBCALL,
                "updates": np.bincount(made[made >= 0], minlength=len(rows)),
            },
        )  # fmt: skip

    def spans(self) -> Frame:
        """RUNNING: from each switch to the next on its pcpu, the last to the pcpu's last record."""
        rows = self._switched
        cpu, start = self._trace.cpu[rows], self._time[rows]
        number = np.unique(self._trace.cpu, return_inverse=True)[1]
        last = np.zeros(number.max() + 1, dtype=np.int64)
        np.maximum.at(last, number, self._time)
        end = last[number[rows]]
        by_cpu = np.argsort(cpu, kind="stable")
        same = np.diff(cpu[by_cpu]) == 0
        end[by_cpu[:-1][same]] = start[by_cpu[1:][same]]
        by_start = np.argsort(start, kind="stable")
        columns = {
            "cpu": cpu, "domid": self._domid[rows], "vcpu": self._vcpu[rows], "start": start,
            "end": end,
        }  # fmt: skip
        return Frame.of("running", {name: column[by_start] for name, column in columns.items()})
