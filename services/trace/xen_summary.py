"""The report of a xentrace too long for frames, from one pass over it, as ``report`` makes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.frames import ORDER_2M
from services.trace.domains import (
    HEAT_BANDS,
    HEAT_DOMAINS,
    HOTTEST,
    SERIES_EVENTS,
    type_name,
)
from services.trace.loops import Runner, plain
from services.trace.report import HYPERCALLS, SCHEMA, run_classes
from services.trace.stats import RATE_BINS, edges_of
from services.trace.superpages import Leaves
from services.trace.xen_gather import Cells, Gathered
from services.trace.xen_layout import (
    DECREASE,
    NPF,
    ORDER_MAX,
    P2M,
    POPULATE,
    RECLAIM,
    SPLINTER,
    Ints,
    keep,
)
from services.trace.xen_stream import Batch, Stream, Totals
from services.trace.xen_views import FAULTS, SHATTERS, UPDATES

IDLE_DOMID: Final = 0x7FF0
"""From here on domids are Xen's own: DOMID_IDLE is 0x7fff."""
EXTENTS: Final = {
    DECREASE: "decrease_reservation", POPULATE: "pod_populate", RECLAIM: "pod_zero_reclaim",
}  # fmt: skip
SINGLES: Final = {SPLINTER: "pod_superpage_splinter", NPF: "nested_faults"}
Tallies = list[tuple[int, int, int, int]]
Pump = Callable[[Iterator[Batch], Callable[[Batch], None]], None]
"""Brings each batch from where it is made to where it is taken, in order."""


def one_by_one(batches: Iterator[Batch], take: Callable[[Batch], None]) -> None:
    """A batch is made and taken, then the next."""
    for batch in batches:
        take(batch)


def summarise(
    data: memoryview,
    source: str,
    *,
    cpu_hz: float,
    give_back: Callable[[int], None] = keep,
    runner: Runner = plain,
    pump: Pump = one_by_one,
) -> dict[str, Any]:
    """The report of a whole xentrace in one pass, or two if a pcpu's TSC falls.

    ``give_back`` is told of bytes from the start of the file that are not looked at for now.
    ``runner`` compiles the loops. ``pump`` may make batches in another thread.

    Raises:
        BadInputError: empty, foreign or inconsistent.
    """
    stream = Stream(data, source, runner, give_back)
    span = stream.span
    while True:
        gathered = Gathered(stream.words, span, runner)

        def take(batch: Batch, into: Gathered = gathered) -> None:
            into.take(batch)
            give_back(batch.done)

        pump(stream.batches(), take)
        totals = stream.totals()
        if totals.span == span:
            break
        span = totals.span
        stream = Stream(data, source, runner, give_back)
    gathered.finish()
    return _report(gathered, totals, source, cpu_hz)


def _report(gathered: Gathered, totals: Totals, source: str, cpu_hz: float) -> dict[str, Any]:
    length = totals.span[1] - totals.span[0]
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "source": source,
        "format": "xentrace",
        "ticks_per_s": cpu_hz,
        "span": [0, length],
        "records": totals.records,
        "lost": totals.lost,
        "truncated": bool(totals.cut),
        "header": {"cpus": totals.cpus, "cut": totals.cut},
        "events": totals.events,
        "messages": {},
        "domains": _domains(gathered),
        "rate": {"edges": edges_of((0, length), RATE_BINS), "total": [], "by_service": {}},
    }
    if totals.hypercalls:
        found["hypercalls"] = {
            HYPERCALLS.get(number, str(number)): {
                "count": count, "updates": updates, "runs": run_classes(classes),
            }
            for number, (count, updates, classes) in totals.hypercalls.items()
        }  # fmt: skip
    cpus = sorted({cpu for cpu, _ in totals.running})
    if cpus:
        found["pcpus"] = {
            str(cpu): _pcpu({d: t for (c, d), t in totals.running.items() if c == cpu}, length)
            for cpu in cpus
        }
    return found


def _pcpu(running: dict[int, int], length: int) -> dict[str, Any]:
    busy = sum(ticks for domid, ticks in running.items() if domid < IDLE_DOMID)
    return {
        "busy": busy / max(length, 1),
        "by_domid": {str(domid): ticks for domid, ticks in sorted(running.items())},
    }


def _domains(gathered: Gathered) -> dict[str, Any]:
    """As ``services.trace.domains`` makes them, by domid."""
    slots, tallies = gathered.slots(), gathered.tallies()
    updates = gathered.views.series[:, UPDATES].sum(axis=1)
    busiest = sorted(
        (domid for domid in slots if updates[slots[domid]]),
        key=lambda domid: -updates[slots[domid]],
    )[:HEAT_DOMAINS]
    cells = gathered.heat()
    halves = _orders_are_halves(tallies)
    found: dict[str, Any] = {}
    for domid, slot in slots.items():
        tally, leaves = tallies.get(slot, []), gathered.leaves(domid)
        section: dict[str, Any] = {
            **_counts(tally, halves=halves),
            "shatters": gathered.maps.shatters(domid),
            "final_extents": _final(leaves, frames=True),
            "final_leaves": _final(leaves, frames=False),
            "series": _series(gathered, slot),
        }
        gfns, numbers, shatters = gathered.superpages(domid)
        top = np.argsort(-numbers, kind="stable")[:HOTTEST]
        section["hottest"] = [
            {"gfn": int(gfns[at]), "updates": int(numbers[at]), "shatters": int(shatters[at])}
            for at in top.tolist()
        ]
        if domid in busiest:
            section["heat"] = _heat(gfns, cells[domid], gathered.views.edges)
        found[str(domid)] = section
    return found


def _orders_are_halves(tallies: dict[int, Tallies]) -> bool:
    """As ``XenTrace.orders_are_halves``."""
    return any(
        action in {*EXTENTS, SPLINTER} and (order or second > ORDER_MAX)
        for tally in tallies.values()
        for action, order, second, _ in tally
    )


def _counts(tally: Tallies, *, halves: bool) -> dict[str, Any]:
    updates: dict[str, dict[str, int]] = {}
    extents: dict[str, Counter[str]] = {name: Counter() for name in EXTENTS.values()}
    for action, order, kind, nr in tally:
        if action == P2M:
            updates.setdefault(str(order), {})[type_name(kind)] = nr
        elif action in EXTENTS:
            extents[EXTENTS[action]][str(order if halves else kind)] += nr
    return {
        "p2m_updates": updates,
        **{name: dict(counts) for name, counts in extents.items()},
        **{
            name: sum(nr for each, _, _, nr in tally if each == event)
            for event, name in SINGLES.items()
        },
    }


def _final(leaves: Leaves, *, frames: bool) -> dict[str, dict[str, int]]:
    return {
        str(order): {type_name(kind): nr << order if frames else nr for kind, nr in kinds.items()}
        for order, kinds in leaves.items()
    }


def _series(gathered: Gathered, slot: int) -> dict[str, Any]:
    views = gathered.views
    mapped = views.mapped[slot]
    total, large = mapped.sum(axis=0), mapped[1:].sum(axis=0)
    nothing = [0] * (len(views.edges) - 1)
    series: dict[str, Any] = {
        "edges": views.edges.tolist(),
        "mapped": {
            str(level * ORDER_2M): mapped[level].tolist()
            for level in range(len(mapped))
            if mapped[level].any()
        },
        "coverage": (large / np.maximum(total, 1)).tolist(),
        "updates": views.series[slot, UPDATES].tolist(),
        "shatters": views.series[slot, SHATTERS].tolist(),
    }
    for curve, name in enumerate(SERIES_EVENTS.values(), FAULTS):
        series[name] = views.series[slot, curve].tolist()
    # A xentrace names no populate call.
    return {**series, "populate_calls": nothing, "extents": nothing}


def _heat(gfns: npt.NDArray[np.uint64], cells: Cells, edges: Ints) -> dict[str, Any]:
    """Updates and shatters by band of gfns and by time."""
    # Bands of equally many superpages that are used: guests leave large holes between.
    nr_bands, nr = min(HEAT_BANDS, len(gfns)), len(edges) - 1
    firsts = gfns[[len(gfns) * number // nr_bands for number in range(nr_bands)]]
    band = np.maximum(np.searchsorted(firsts, cells.gfn, side="right") - 1, 0)

    def summed(numbers: Ints) -> list[list[int]]:
        sums = np.bincount(band * nr + cells.bin, weights=numbers, minlength=nr_bands * nr)
        return sums.astype(np.int64).reshape(nr_bands, nr).tolist()

    return {
        "gfn_edges": [*firsts.tolist(), int(gfns[-1]) + (1 << ORDER_2M)],
        "edges": edges.tolist(),
        "updates": summed(cells.updates),
        "shatters": summed(cells.shatters),
    }
