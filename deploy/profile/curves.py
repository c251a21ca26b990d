"""What every domain had mapped after each tick at which that changed, for the page's plots."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from services.trace.domains import LEAF_ORDERS, TEARDOWN, TYPE_NAMES
from services.trace.frame import Trace
from services.trace.stats import groups
from services.trace.superpages import COMPILE_FROM, POD, Flags, GfnMaps, Leaves

STEPS_MAX: Final = 150_000
Table = npt.NDArray[np.int64]


class Curves(NamedTuple):
    """What a replay of all updates says.

    A part of a trace does not say what was mapped before it. The report, which saw the whole, does:
    where the replay disagrees with it, there are no flags, or no steps.
    """

    orders: tuple[int, ...]
    flags: Flags | None
    """Those of GfnMaps, of each update."""
    steps: Table
    """Rows by time: time, domid, and its leaves of each of ``orders`` from then on."""
    nr_steps: int
    """That there are; ``steps`` may hold fewer of a long trace, each exact."""


def curves(trace: Trace, report: dict[str, Any], most: int = STEPS_MAX) -> Curves:
    """The curves of a trace of which ``services.trace.report.report`` said ``report``."""
    paging = str(trace.header.get("host", {}).get("paging", "npt"))
    orders = LEAF_ORDERS[paging]
    said: dict[str, Any] = report.get("domains", {})
    lives = _Lives(trace)
    ends = lives.ends()
    maps = GfnMaps(
        orders,
        ept=paging == "ept",
        nr_domids=lives.room,
        compiled=trace.updates.rows >= COMPILE_FROM,
    )
    flags: Flags = np.zeros(trace.updates.rows, dtype=np.uint8)
    rows = [(time, domid, *(0 for _ in orders)) for domid, time in lives.deaths]
    columns = [trace.updates[name][lives.order] for name in ("order", "type", "gfn", "mfn")]
    first = 0
    for end in lives.sampled(ends, said, most).tolist():
        part = slice(first, end)
        flags[lives.order[part]] = maps.apply(lives.life[part], *(each[part] for each in columns))
        life = int(lives.life[end - 1])
        time = int(lives.time[end - 1])
        rows.append((time, lives.domid_of[life], *_mapped(maps.leaves(life), orders)))
        first = end
    steps = np.array(rows, dtype=np.int64).reshape(len(rows), 2 + len(orders))
    steps = steps[np.argsort(steps[:, 0], kind="stable")]
    of = len(ends) + len(lives.deaths)
    shatters = {domid: Counter[str]() for domid in lives.domid_of}
    for life, domid in enumerate(lives.domid_of):
        shatters[domid].update(maps.shatters(life))
    nothing = maps.shatters(lives.room - 1)
    if any(shatters.get(int(d), nothing) != each.get("shatters") for d, each in said.items()):
        return Curves(orders, None, steps[:0], of)
    agree = all(_agrees(steps[steps[:, 1] == int(d)], each, orders) for d, each in said.items())
    return Curves(orders, flags, steps if agree else steps[:0], of)


class _Lives:
    """The updates by domain and, where its tables were torn down in between, by life of it.

    ``order``: rows by life, in order of execution; ``life`` and ``time`` of each of them.
    """

    def __init__(self, trace: Trace) -> None:
        u, m = trace.updates, trace.messages
        downs: dict[int, Table] = {} if m.rows else trace.domids_given_again()
        if m.rows:
            gone = trace.rows_of_kind(TEARDOWN)
            for domid, rows in groups(m["domid"][gone]):
                downs[domid] = np.sort(m["started"][gone[rows]])
        self.domid_of: list[int] = []
        self.deaths: list[tuple[int, int]] = []
        life = np.zeros(u.rows, dtype=np.int64)
        for domid, rows in groups(u["domid"]):
            down = downs.get(domid, np.zeros(0, dtype=np.int64))
            # What happens in the tick of a teardown comes after it, as the report has it.
            life[rows] = len(self.domid_of) + np.searchsorted(down, u["time"][rows], side="right")
            self.domid_of += [domid] * (len(down) + 1)
            self.deaths += [(domid, int(time)) for time in down]
        self.order: Table = np.argsort(life, kind="stable")
        self.life, self.time = life[self.order], u["time"][self.order]
        self.room = 1 << len(self.domid_of).bit_length()

    def ends(self) -> Table:
        """Where among the ordered rows a tick ends in which a domain had updates."""
        if not len(self.order):
            return self.order
        new = (np.diff(self.time) != 0) | (np.diff(self.life) != 0)
        return np.concatenate((np.flatnonzero(new) + 1, [len(self.order)]))

    def sampled(self, ends: Table, said: dict[str, Any], most: int) -> Table:
        """At most about ``most`` of the ends: the last of each life and of each of its bins."""
        if len(ends) <= most:
            return ends
        keep = np.zeros(len(ends), dtype=np.bool_)
        keep[:: -(-len(ends) // most)] = True
        time, life = self.time[ends - 1], self.life[ends - 1]
        keep[np.append(np.diff(life) != 0, True)] = True
        for number, rows in groups(life):
            series = said.get(str(self.domid_of[number]), {}).get("series", {})
            last = np.searchsorted(time[rows], np.array(series.get("edges", [0])[1:])) - 1
            keep[rows[last[last >= 0]]] = True
        return ends[keep]


def _mapped(leaves: Leaves, orders: tuple[int, ...]) -> list[int]:
    """Leaves of each order that map something; PoD entries map nothing yet."""
    return [
        sum(nr for kind, nr in leaves.get(order, {}).items() if kind != POD) for order in orders
    ]


def _agrees(steps: Table, section: dict[str, Any], orders: tuple[int, ...]) -> bool:
    """Whether the report saw the same leaves of a domain at the end, and in its first bin."""
    pod = TYPE_NAMES[POD]
    extents = section.get("final_extents", {})
    final = [
        sum(nr for kind, nr in extents.get(str(order), {}).items() if kind != pod) >> order
        for order in orders
    ]
    if _last(steps) != (final if any(final) else []):
        return False
    series = section.get("series", {})
    mapped: dict[str, list[int]] = series.get("mapped", {})
    if not mapped or not len(steps):
        return True
    edges: list[int] = series["edges"]
    begin = [mapped.get(str(order), [0])[0] >> order for order in orders]
    before = steps[: int(np.searchsorted(steps[:, 0], edges[1]))]
    return _last(before) == (begin if any(begin) else [])


def _last(steps: Table) -> list[int]:
    """The leaves after some steps; nothing if none is mapped."""
    last: list[int] = steps[-1, 2:].tolist() if len(steps) else []
    return last if any(last) else []
