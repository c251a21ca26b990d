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
from services.trace.select import Selection
from services.trace.stats import bin_of, edges_of, groups, percentiles
from services.trace.superpages import Flags, GfnMap

SERIES_BINS: Final = 240
SERIES_CELLS: Final = 24_000
"""Bins of all domains together: a thousand domains share what one may have alone."""
HEAT_BANDS: Final = 64
HEAT_DOMAINS: Final = 64
"""Heat maps are made of the domains with the most updates."""
HOTTEST: Final = 20
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
    messages: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def domains(
    trace: Trace, span: tuple[int, int], selection: Selection, *, views: bool
) -> dict[str, Any]:
    """The section of each domain; with ``views`` also what changes over time and over gfns.

    Counts are of what ``selection`` asks for; leaves are those of the whole domain at its end.
    """
    rows = _rows(trace, selection.domid)
    bins = max(12, min(SERIES_BINS, SERIES_CELLS // max(1, len(rows))))
    edges = edges_of(selection.between or span, bins)
    busiest = sorted(rows, key=lambda domid: -len(rows[domid].updates))[:HEAT_DOMAINS]
    return {
        str(domid): _domain(
            trace, rows[domid], edges, selection, views=views, heat=domid in busiest
        )
        for domid in sorted(rows)
    }


def _rows(trace: Trace, only: int | None) -> dict[int, Rows]:
    """Every domain that some table names: updates and events, or messages of ours."""
    found: dict[int, Rows] = {}
    tables: tuple[tuple[str, Frame], ...] = (
        ("updates", trace.updates), ("events", trace.events), ("messages", trace.messages),
    )  # fmt: skip
    for name, frame in tables:
        if not frame.rows:
            continue
        for domid, rows in groups(frame["domid"]):
            if domid >= 0 and only in {None, domid}:
                setattr(found.setdefault(domid, Rows()), name, rows)
    return found


def _domain(
    trace: Trace,
    rows: Rows,
    edges: Sequence[int],
    selection: Selection,
    *,
    views: bool,
    heat: bool,
) -> dict[str, Any]:
    every = trace.updates.take(rows.updates)
    replay = _Replay(trace, every, rows, edges if views else (edges[0], edges[-1]))
    keep = selection.updates(every)
    updates, flags = every.take(keep), replay.flags[keep]
    events = trace.events.take(rows.events)
    events = events.take(selection.updates(events))
    chosen = trace.messages.take(rows.messages)
    messages = chosen.take(selection.messages(chosen, list(trace.kinds)))
    section: dict[str, Any] = {
        "p2m_updates": _by_order_and_type(updates),
        **_event_counts(events),
        "shatters": replay.map.shatters(flags),
        "final_extents": replay.final(frames=True),
        "final_leaves": replay.final(frames=False),
    }
    if trace.messages.rows:
        section["populate"] = _populate(trace, messages)
    if views:
        section["series"] = _series(trace, messages, updates, events, flags, replay, edges)
        section["hottest"] = _hottest(updates, flags)
        if heat and updates.rows:
            section["heat"] = _heat(updates, flags, edges)
    return section


def _by_order_and_type(updates: Frame) -> dict[str, dict[str, int]]:
    key = updates["order"].astype(np.int64) << 8 | updates["type"]
    counts: dict[str, dict[str, int]] = {}
    for number, nr in zip(*np.unique(key, return_counts=True), strict=True):
        kinds = counts.setdefault(str(int(number) >> 8), {})
        kinds[type_name(int(number) & 0xFF)] = int(nr)
    return counts


def _event_counts(events: Frame) -> dict[str, Any]:
    counts: dict[str, Any] = {}
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
        ends: list[int] = np.searchsorted(updates["time"], np.array(edges[1:])).tolist()
        ends[-1] = updates.rows
        downs = self._teardowns(trace, rows, updates)
        first = 0
        for end in ends:
            while downs and (downs[0] < end or end == updates.rows):
                self._apply(updates, first, downs[0])
                first = downs.pop(0)
                self.map = self._empty()
            self._apply(updates, first, end)
            first = end
            self.mapped.append(self.map.frames())

    def _empty(self) -> GfnMap:
        return GfnMap(LEAF_ORDERS[self._paging], ept=self._paging == "ept")

    def _teardowns(self, trace: Trace, rows: Rows, updates: Frame) -> list[int]:
        """How many updates came before each destruction: its tables are forgotten there."""
        if "p2m_teardown" not in trace.kinds:
            return []
        m = trace.messages
        mine = rows.messages[m["kind"][rows.messages] == trace.kinds.index("p2m_teardown")]
        when = np.sort(m["started"][mine])
        return np.searchsorted(updates["time"], when, side="left").tolist()

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
    trace: Trace,
    messages: Frame,
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

    orders = sorted({order for mapped in replay.mapped for order in mapped})
    series: dict[str, Any] = {
        "edges": list(edges),
        "mapped": {str(order): [each.get(order, 0) for each in replay.mapped] for order in orders},
        "coverage": [_coverage(each) for each in replay.mapped],
        "updates": count(updates["time"]),
        "shatters": count(updates["time"][flags > 0]),
    }
    for event, name in SERIES_EVENTS.items():
        series[name] = count(events["time"][events["event"] == event])
    calls = _populate_rows(trace, messages)
    series["populate_calls"] = count(messages["started"][calls])
    series["extents"] = count(messages["started"][calls], messages["nr"][calls])
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


def _populate_rows(trace: Trace, messages: Frame) -> Indices:
    if "populate_physmap" not in trace.kinds:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(messages["kind"] == trace.kinds.index("populate_physmap"))


def _populate(trace: Trace, m: Frame) -> dict[str, Any]:
    """The populate_physmap calls of a domain, and where the ladder went a step down."""
    calls = _populate_rows(trace, m)
    answers = np.flatnonzero(m["reply_to"])
    by_request = answers[np.argsort(m["reply_to"][answers], kind="stable")]
    asked_ids = m["reply_to"][by_request]
    at = np.minimum(np.searchsorted(asked_ids, m["id"][calls]), max(len(asked_ids) - 1, 0))
    order, asked = m["order"][calls].astype(np.int64), m["nr"][calls]
    done = np.zeros(len(calls), dtype=np.int64)
    if len(asked_ids):
        found = asked_ids[at] == m["id"][calls]
        done = np.where(found, m["nr"][by_request[at]], 0)
    fallbacks: dict[str, int] = {}
    short = np.flatnonzero((done < asked)[:-1] & (order[1:] < order[:-1]))
    for step in short.tolist():
        name = f"{order[step]}->{order[step + 1]}"
        fallbacks[name] = fallbacks.get(name, 0) + 1
    figures = percentiles(asked)
    return {
        "calls": len(calls),
        "extents_per_call": {name: figures[name] for name in ("p50", "p90", "max")},
        "asked": _sums(order, asked),
        "done": _sums(order, done),
        "fallbacks": fallbacks,
    }


def _sums(keys: Column, values: Column) -> dict[str, int]:
    return {str(key): int(values[rows].sum()) for key, rows in groups(keys)}


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
