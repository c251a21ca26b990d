"""The report of a xentrace too long for frames: counts, leaves, hypercalls, nothing over time."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocols.trace import MemEvent
from services.trace.domains import EXTENT_EVENTS, LEAF_ORDERS, type_name
from services.trace.frame import Column
from services.trace.report import HYPERCALLS, SCHEMA, run_classes
from services.trace.stats import groups
from services.trace.superpages import GfnMap
from services.trace.xen_stream import Batch, Stream

IDLE_DOMID = 0x7FF0
"""From here on domids are Xen's own: DOMID_IDLE is 0x7fff."""


def summarise(data: memoryview, source: str, *, cpu_hz: float) -> dict[str, Any]:
    """The report of a whole xentrace in one pass, as ``report`` without views.

    Raises:
        BadInputError: empty, foreign or inconsistent.
    """
    stream = Stream(data, source)
    domains: dict[int, _Domain] = {}
    for batch in stream.batches():
        for domid, rows in groups(batch.domid):
            if domid >= 0:
                domains.setdefault(domid, _Domain()).take(batch, rows)
    totals = stream.totals()
    length = max(totals.span[1] - totals.span[0], 1)
    cpus = sorted({cpu for cpu, _ in totals.running})
    return {
        "schema": SCHEMA,
        "source": source,
        "format": "xentrace",
        "ticks_per_s": cpu_hz,
        "span": [0, length],
        "records": totals.records,
        "lost": totals.lost,
        "truncated": bool(totals.cut),
        "header": {"cpus": len(cpus), "cut": totals.cut},
        "events": totals.events,
        "messages": {},
        "domains": {str(domid): domains[domid].section() for domid in sorted(domains)},
        "hypercalls": {
            HYPERCALLS.get(number, str(number)): {
                "count": count, "updates": updates, "runs": run_classes(classes),
            }
            for number, (count, updates, classes) in totals.hypercalls.items()
        },
        "pcpus": {
            str(cpu): _pcpu({d: t for (c, d), t in totals.running.items() if c == cpu}, length)
            for cpu in cpus
        },
    }  # fmt: skip


def _pcpu(running: dict[int, int], length: int) -> dict[str, Any]:
    busy = sum(ticks for domid, ticks in running.items() if domid < IDLE_DOMID)
    return {
        "busy": busy / length,
        "by_domid": {str(domid): ticks for domid, ticks in sorted(running.items())},
    }


class _Domain:
    """What one domain adds up to; as large as the domain, whatever the trace's length."""

    def __init__(self) -> None:
        self._map = GfnMap(LEAF_ORDERS["npt"])
        self._updates = np.zeros((256, 256), dtype=np.int64)
        self._events = {event: np.zeros(256, dtype=np.int64) for event in EXTENT_EVENTS}
        self._splinters = self._faults = 0
        self._shatters = self._map.shatters(np.zeros(0, dtype=np.uint8))

    def take(self, batch: Batch, rows: Column) -> None:
        """The domain's rows of a batch, in order."""
        event, order = batch.event[rows], batch.order[rows]
        is_update = event == MemEvent.SET_P2M_ENTRY
        updates = rows[is_update]
        if len(updates):
            orders, kinds = batch.order[updates], batch.type[updates]
            np.add.at(self._updates, (orders & 0xFF, kinds & 0xFF), 1)
            flags = self._map.apply(orders, kinds, batch.gfn[updates], batch.mfn[updates])
            for step, nr in self._map.shatters(flags).items():
                self._shatters[step] += nr
        for kind in self._events:
            self._events[kind] += np.bincount(order[event == kind] & 0xFF, minlength=256)
        self._splinters += int(np.count_nonzero(event == MemEvent.POD_SUPERPAGE_SPLINTER))
        self._faults += int(np.count_nonzero(event == MemEvent.NPF))

    def section(self) -> dict[str, Any]:
        """As ``services.trace.domains`` makes it."""
        leaves = self._map.leaves()
        return {
            "p2m_updates": {
                str(order): {
                    type_name(kind): int(self._updates[order, kind])
                    for kind in np.flatnonzero(self._updates[order]).tolist()
                }
                for order in np.flatnonzero(self._updates.any(axis=1)).tolist()
            },
            **{
                name: {
                    str(order): int(self._events[event][order])
                    for order in np.flatnonzero(self._events[event]).tolist()
                }
                for event, name in EXTENT_EVENTS.items()
            },
            "pod_superpage_splinter": self._splinters,
            "nested_faults": self._faults,
            "shatters": self._shatters,
            "final_extents": {
                str(order): {type_name(kind): nr << order for kind, nr in kinds.items()}
                for order, kinds in leaves.items()
            },
            "final_leaves": {
                str(order): {type_name(kind): nr for kind, nr in kinds.items()}
                for order, kinds in leaves.items()
            },
        }
