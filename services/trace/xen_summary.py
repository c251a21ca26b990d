"""The report of a xentrace too long for frames: counts, leaves, hypercalls, nothing over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.trace import MemEvent
from services.trace.domains import EXTENT_EVENTS, LEAF_ORDERS, type_name
from services.trace.report import HYPERCALLS, SCHEMA, run_classes
from services.trace.superpages import GfnMaps
from services.trace.xen_stream import Batch, Stream, keep

DOMID_SHIFT: Final = 48
ORDER_SHIFT: Final = 32
IDLE_DOMID: Final = 0x7FF0
"""From here on domids are Xen's own: DOMID_IDLE is 0x7fff."""


def summarise(
    data: memoryview, source: str, *, cpu_hz: float, give_back: Callable[[int], None] = keep
) -> dict[str, Any]:
    """The report of a whole xentrace in one pass, as ``report`` without views.

    Raises:
        BadInputError: empty, foreign or inconsistent.
    """
    stream = Stream(data, source, give_back)
    domains = _Domains()
    for batch in stream.batches():
        domains.take(batch)
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
        "domains": domains.sections(),
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


class _Domains:
    """What the domains add up to; as large as they are, whatever the trace's length."""

    def __init__(self) -> None:
        self._maps = GfnMaps(LEAF_ORDERS["npt"], compiled=True)
        self._updates: Counter[int] = Counter()
        self._events: Counter[int] = Counter()

    def take(self, batch: Batch) -> None:
        """The events of a batch, in order."""
        is_update = batch.event == MemEvent.SET_P2M_ENTRY
        updates = np.flatnonzero(is_update)
        domid, order, kind = (column[updates] for column in (batch.domid, batch.order, batch.type))
        self._maps.apply(domid, order, kind, batch.gfn[updates], batch.mfn[updates])
        _count(self._updates, domid << DOMID_SHIFT | (order & 0xFFFF) << ORDER_SHIFT | kind)
        rest = np.flatnonzero(~is_update & (batch.domid >= 0))
        order = batch.order[rest] & 0xFFFF
        key = batch.domid[rest] << DOMID_SHIFT | order << ORDER_SHIFT
        _count(self._events, key | batch.event[rest] & 0xFFFF)

    def sections(self) -> dict[str, Any]:
        """As ``services.trace.domains`` makes them, by domid."""
        keys = [*self._updates, *self._events]
        domids = sorted({key >> DOMID_SHIFT for key in keys})
        return {str(domid): self._section(domid) for domid in domids}

    def _section(self, domid: int) -> dict[str, Any]:
        leaves = self._maps.leaves(domid)
        updates: dict[str, dict[str, int]] = {}
        for order, kind, nr in _of(self._updates, domid):
            updates.setdefault(str(order), {})[type_name(kind)] = nr
        events = [(order, event, nr) for order, event, nr in _of(self._events, domid)]
        return {
            "p2m_updates": updates,
            **{
                name: {str(order): nr for order, kind, nr in events if kind == event & 0xFFFF}
                for event, name in EXTENT_EVENTS.items()
            },
            **{
                name: sum(nr for _, kind, nr in events if kind == event & 0xFFFF)
                for event, name in (
                    (MemEvent.POD_SUPERPAGE_SPLINTER, "pod_superpage_splinter"),
                    (MemEvent.NPF, "nested_faults"),
                )
            },
            "shatters": self._maps.shatters(domid),
            "final_extents": {
                str(order): {type_name(kind): nr << order for kind, nr in kinds.items()}
                for order, kinds in leaves.items()
            },
            "final_leaves": {
                str(order): {type_name(kind): nr for kind, nr in kinds.items()}
                for order, kinds in leaves.items()
            },
        }


def _count(counts: Counter[int], keys: npt.NDArray[np.int64]) -> None:
    found, numbers = np.unique(keys, return_counts=True)
    counts.update(dict(zip(found.tolist(), numbers.tolist(), strict=True)))


def _of(counts: Counter[int], domid: int) -> list[tuple[int, int, int]]:
    """(order, type or event, count) of a domain, ascending."""
    return [
        (key >> ORDER_SHIFT & 0xFFFF, key & 0xFFFF_FFFF, nr)
        for key, nr in sorted(counts.items())
        if key >> DOMID_SHIFT == domid
    ]
