"""What became of each domain's memory: updates, shatters, coverage over time, faults, populates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.frames import ORDER_2M
from protocols.p2m_types import P2mType
from protocols.trace import MemEvent
from services.trace.frame import Column, Frame, Trace
from services.trace.populates import NO_CALLS, Calls, populates
from services.trace.select import Selection
from services.trace.stats import bin_of, edges_of, groups
from services.trace.superpages import Flags, GfnMap
from services.trace.xen_populates import xen_populates

TEARDOWN: Final = "p2m_teardown"
"""The message with which all that a domain had mapped is forgotten."""
SERIES_BINS: Final = 240
SERIES_CELLS: Final = 24_000
"""Bins of all domains together: as many as a hundred have that have each all they may."""
BINS_MIN: Final = 15
"""Bins are halved no further."""
HEAT_BANDS: Final = 64
HEAT_DOMAINS: Final = 64
"""Heat maps are made of the domains with the most updates."""
HOTTEST: Final = 20
END_OF_TIME: Final = 1 << 63
TYPE_NAMES: Final = [kind.name.lower() for kind in P2mType]
LEAF_ORDERS: Final = {"npt": (0, 9, 18), "ept": (0, 9, 18), "pae": (0, 9), "x86_32": (0, 10)}
EXTENT_EVENTS: Final = {
    MemEvent.DECREASE_RESERVATION: "decrease_reservation",
    MemEvent.POD_POPULATE: "pod_populate",
    MemEvent.POD_ZERO_RECLAIM: "pod_zero_reclaim",
}
SERIES_EVENTS: Final = {
    MemEvent.NPF: "nested_faults",
    MemEvent.POD_POPULATE: "pod_populate",
    MemEvent.POD_SUPERPAGE_SPLINTER: "pod_splinter",
    MemEvent.POD_ZERO_RECLAIM: "pod_reclaim",
}
Indices = npt.NDArray[np.int64]


def type_name(number: int) -> str:
    """Xen's name of a p2m type."""
    return TYPE_NAMES[number] if number < len(TYPE_NAMES) else f"type_{number}"


@dataclass
class Rows:
    """The rows of one domain in each table, in order of time."""

    updates: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    events: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    downs: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """When its tables were torn down, or its domid was given to another domain."""
    befores: Indices | None = None
    """How many of its updates came before each of ``downs``; None: those of an earlier time."""
    calls: Calls | None = None
    """None: how it was populated is not known."""
    unknown: int = 0
    """Frames that it got nobody knows how."""


def domains(
    trace: Trace, span: tuple[int, int], selection: Selection, *, views: bool
) -> dict[str, Any]:
    """The section of each domain; with ``views`` also what changes over time and over gfns.

    Counts are of what ``selection`` asks for; leaves are those of the whole domain at its end.
    """
    rows = _rows(trace, selection)
    edges = edges_of(selection.between or span, SERIES_BINS)
    room = SERIES_CELLS // SERIES_BINS
    while len(rows) > room:
        edges, room = halved(edges), 2 * room
    busiest = sorted(rows, key=lambda domid: -len(rows[domid].updates))[:HEAT_DOMAINS]
    return {
        str(domid): _domain(
            trace, rows[domid], edges, selection, views=views, heat=domid in busiest
        )
        for domid in sorted(rows)
    }


def halved(edges: list[int]) -> list[int]:
    """The edges of half as many bins, neighbours being one; of few the same."""
    return edges if len(edges) - 1 <= BINS_MIN else [*edges[:-1:2], edges[-1]]


def _rows(trace: Trace, selection: Selection) -> dict[int, Rows]:
    """Every domain that some table names: updates and events, or messages of ours."""
    found: dict[int, Rows] = {}
    tables: tuple[tuple[str, Frame], ...] = (("updates", trace.updates), ("events", trace.events))
    for name, frame in tables:
        for domid, rows in groups(frame["domid"]) if frame.rows else []:
            setattr(found.setdefault(domid, Rows()), name, rows)
    m = trace.messages
    if trace.is_xens:
        downs, updates = trace.domids_given_again(), trace.updates_before_given_again()
        for domid in found.keys() & downs.keys():
            each = found[domid]
            each.downs = downs[domid]
            each.befores = np.searchsorted(each.updates, updates[domid])
        calls, unknown = xen_populates(trace, selection, downs)
        for domid, each in calls.items():
            found[domid].calls, found[domid].unknown = each, unknown.get(domid, 0)
    elif m.rows:
        for domid in np.unique(m["domid"]).tolist():
            found.setdefault(domid, Rows())
        keep = None if selection.everything else selection.messages(m, list(trace.kinds))
        for domid, calls in populates(trace, keep).items():
            found[domid].calls = calls
        downs = trace.rows_of_kind(TEARDOWN)
        for domid, rows in groups(m["domid"][downs]):
            found[domid].downs = np.sort(m["started"][downs[rows]])
        for each in found.values():
            each.calls = each.calls or NO_CALLS
    return {
        domid: rows
        for domid, rows in found.items()
        if domid >= 0 and selection.domid in {None, domid}
    }


def _domain(
    trace: Trace,
    rows: Rows,
    edges: Sequence[int],
    selection: Selection,
    *,
    views: bool,
    heat: bool,
) -> dict[str, Any]:
    updates, events = trace.updates.take(rows.updates), trace.events.take(rows.events)
    replay = _Replay(trace, updates, rows, edges if views else (edges[0], edges[-1]))
    flags = replay.flags
    if not selection.everything:
        keep = selection.updates(updates)
        updates, flags = updates.take(keep), flags[keep]
        events = events.take(selection.updates(events))
    section: dict[str, Any] = {
        "p2m_updates": _by_order_and_type(updates),
        **_event_counts(events),
        "shatters": replay.map.shatters(flags),
        "final_extents": replay.final(frames=True),
        "final_leaves": replay.final(frames=False),
    }
    if rows.calls is not None:
        section["populate"] = rows.calls.section()
        if rows.unknown:
            section["populate"]["unknown_frames"] = rows.unknown
    if views:
        section["series"] = _series(rows, updates, events, flags, replay, edges)
        section["hottest"] = _hottest(updates, flags)
        if heat and updates.rows:
            section["heat"] = _heat(updates, flags, edges)
    return section


def _by_order_and_type(updates: Frame) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    if not updates.rows:
        return counts
    key = updates["order"].astype(np.int64) << 8 | updates["type"]
    for number, nr in zip(*np.unique(key, return_counts=True), strict=True):
        kinds = counts.setdefault(str(int(number) >> 8), {})
        kinds[type_name(int(number) & 0xFF)] = int(nr)
    return counts


def _event_counts(events: Frame) -> dict[str, Any]:
    counts: dict[str, Any] = {name: {} for name in EXTENT_EVENTS.values()}
    counts |= {"pod_superpage_splinter": 0, "nested_faults": 0}
    if not events.rows:
        return counts
    for event, name in EXTENT_EVENTS.items():
        orders = events["order"][events["event"] == event]
        counts[name] = {
            str(int(order)): int(nr)
            for order, nr in zip(*np.unique(orders, return_counts=True), strict=True)
        }
    for event, name in (
        (MemEvent.POD_SUPERPAGE_SPLINTER, "pod_superpage_splinter"),
        (MemEvent.NPF, "nested_faults"),
    ):
        counts[name] = int(np.count_nonzero(events["event"] == event))
    return counts


class _Replay:
    """The domain's leaves after each bin, and which updates shattered one."""

    def __init__(self, trace: Trace, updates: Frame, rows: Rows, edges: Sequence[int]) -> None:
        self._paging = str(trace.header.get("host", {}).get("paging", "npt"))
        self.map = self._empty()
        self.flags: Flags = np.zeros(updates.rows, dtype=np.uint8)
        self.mapped: list[dict[int, int]] = []
        if not updates.rows:
            self.mapped = [{}] * (len(edges) - 1)
            return
        # Of a part, what comes after its last bin still makes the final leaves.
        ends: list[int] = np.searchsorted(updates["time"], np.array(edges[1:])).tolist()
        ends.append(updates.rows)
        # How many updates came before each destruction: the tables are forgotten there.
        downs: list[int] = rows.downs.tolist()
        known = rows.befores
        befores: list[int] = (
            np.searchsorted(updates["time"], rows.downs) if known is None else known
        ).tolist()
        first = 0
        for edge, end in zip([*edges[1:], END_OF_TIME], ends, strict=True):
            while downs and downs[0] < edge:
                before = befores[-len(downs)]
                del downs[0]
                self._apply(updates, first, before)
                first = max(first, before)
                self.map = self._empty()
            self._apply(updates, first, end)
            first = end
            if edge != END_OF_TIME:
                self.mapped.append(self.map.frames())

    def _empty(self) -> GfnMap:
        return GfnMap(LEAF_ORDERS[self._paging], ept=self._paging == "ept")

    def _apply(self, updates: Frame, first: int, end: int) -> None:
        if end > first:
            part = slice(first, end)
            self.flags[part] = self.map.apply(
                updates["order"][part], updates["type"][part],
                updates["gfn"][part], updates["mfn"][part],
            )  # fmt: skip

    def final(self, *, frames: bool) -> dict[str, dict[str, int]]:
        """{order: {type: frames or leaves}} at the end."""
        return {
            str(order): {
                type_name(kind): nr << order if frames else nr for kind, nr in kinds.items()
            }
            for order, kinds in self.map.leaves().items()
        }


def _series(
    rows: Rows,
    updates: Frame,
    events: Frame,
    flags: Flags,
    replay: _Replay,
    edges: Sequence[int],
) -> dict[str, Any]:
    nr = len(edges) - 1

    def count(times: Column, weights: Column | None = None) -> list[int]:
        at = bin_of(times, edges)
        return np.bincount(at, weights=weights, minlength=nr).astype(np.int64).tolist()

    orders = sorted({order for mapped in replay.mapped for order, nr in mapped.items() if nr})
    series: dict[str, Any] = {
        "edges": list(edges),
        "mapped": {str(order): [each.get(order, 0) for each in replay.mapped] for order in orders},
        "coverage": [_coverage(each) for each in replay.mapped],
        "updates": count(updates["time"]),
        "shatters": count(updates["time"][flags > 0]),
    }
    for event, name in SERIES_EVENTS.items():
        series[name] = count(events["time"][events["event"] == event])
    calls = rows.calls or NO_CALLS
    series["populate_calls"] = count(calls.started)
    series["extents"] = count(calls.started, calls.asked)
    return series


def covered(extents: Mapping[str, Mapping[str, int]]) -> float:
    """The share of the mapped frames of {order: {type: frames}} that lie in superpages."""
    pod = TYPE_NAMES[P2mType.POPULATE_ON_DEMAND]
    return _coverage(
        {
            int(order): sum(nr for kind, nr in kinds.items() if kind != pod)
            for order, kinds in extents.items()
        }
    )


def _coverage(mapped: dict[int, int]) -> float:
    """The share of the mapped frames that lie in superpages."""
    total = sum(mapped.values())
    large = sum(nr for order, nr in mapped.items() if order >= ORDER_2M)
    return large / total if total else 0.0


def _hottest(updates: Frame, flags: Flags) -> list[dict[str, int]]:
    """The 2M ranges with the most updates; one of a larger order counts where it begins."""
    base = updates["gfn"] >> np.uint64(ORDER_2M)
    found, where, counts = np.unique(base, return_inverse=True, return_counts=True)
    shatters = np.bincount(where, weights=flags > 0, minlength=len(found))
    top = np.argsort(-counts, kind="stable")[:HOTTEST]
    return [
        {
            "gfn": int(found[at]) << ORDER_2M,
            "updates": int(counts[at]),
            "shatters": int(shatters[at]),
        }
        for at in top.tolist()
    ]


def _heat(updates: Frame, flags: Flags, edges: Sequence[int]) -> dict[str, Any]:
    """Updates and shatters by band of gfns and by time."""
    base = updates["gfn"] >> np.uint64(ORDER_2M)
    used = np.unique(base)
    # Bands of equally many superpages that are used: guests leave large holes between.
    nr_bands = min(HEAT_BANDS, len(used))
    firsts = used[[len(used) * number // nr_bands for number in range(nr_bands)]]
    band = np.searchsorted(firsts, base, side="right").astype(np.int64) - 1
    nr = len(edges) - 1
    cell = band * nr + bin_of(updates["time"], edges)
    shape = (nr_bands, nr)
    every = np.bincount(cell, minlength=nr_bands * nr).reshape(shape)
    some = np.bincount(cell[flags > 0], minlength=nr_bands * nr).reshape(shape)
    return {
        "gfn_edges": [int(each) << ORDER_2M for each in (*firsts, used[-1] + np.uint64(1))],
        "edges": list(edges),
        "updates": every.tolist(),
        "shatters": some.tolist(),
    }
