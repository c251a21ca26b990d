"""The populate_physmap calls of a real xentrace, from the p2m updates of its hypercalls.

Xen's record of a hypercall has its number alone: memory_op, but not which. A memory_op that only
maps memory where there was none, or a populate-on-demand entry, populates (``populate_physmap`` in
common/memory.c, ``guest_physmap_add_entry`` and ``guest_physmap_mark_populate_on_demand``); the
domain is that of the updates, whoever called. What a fault populates has its own event and is left
out. A memory_op that takes something away as well moves or exchanges pages. What cannot be told
apart: a page of Xen's own that ``add_to_physmap`` puts where nothing was (shared info, grant
table) looks like a call of one extent.

An extent of order 9 or 18 that was mapped in smaller pieces (hap_2mb=0, hap_1gb=0, a gfn that is
not aligned) is one nevertheless: ``p2m_set_entry`` then writes ascending mfns from an aligned one,
whereas single pages of a free block are handed out from its end. PoD entries have no mfn; as they
take no memory, nobody has a reason to ask for a whole 2M of them page by page. Orders in between
are seen as the pages that they are mapped by.

Xen may preempt a call and continue it under a new record. Pieces are put together where they follow
one another without a gap and add up exactly to the size of whole calls beside them; elsewhere each
record is a call. What a call asked for and did not get leaves no trace. But where the ladder of
``meminit_hvm`` goes on, right where a call of a larger order ended, with smaller pages over whole
naturally aligned areas of that order, it fell short: such calls count as fallbacks, and what the
first of them fills had been asked for. Of a ladder whose large calls all failed nothing is seen.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocols.frames import INVALID_FRAME, ORDER_1G, ORDER_2M
from protocols.p2m_types import P2mType
from protocols.trace import MemEvent
from services.trace.frame import Frame, Mask, Trace
from services.trace.populates import NO_CALLS, Calls
from services.trace.select import Selection

MEMORY_OP: Final = 12
NOTHING: Final = 0
POD: Final = 1
MAPPED: Final = 2
BATCH_MIN: Final = 4
"""Whole calls of at least so many extents: fewer agree with a sum by chance."""
PIECES_MAX: Final = 8
"""Of one call: more of them are calls of their own."""
LARGE: Final = (ORDER_1G, ORDER_2M)
KEY_BITS: Final = 46

Ints = npt.NDArray[np.int64]


class Found(NamedTuple):
    """The calls of each domain, and the frames that it got nobody knows how."""

    calls: dict[int, Calls]
    unknown: dict[int, int]


class _Call(NamedTuple):
    """One record, or more that were put together. ``end``: -1 if its gfns have gaps."""

    time: int
    caller: int
    order: int
    nr: int
    first: int
    end: int


def xen_populates(trace: Trace, selection: Selection, downs: dict[int, Ints]) -> Found:
    """The calls of each domain with a p2m update, of what ``selection`` asks for.

    ``downs``: when the tables of a domain were forgotten. A domain that got memory by nothing but
    hypercalls that the trace did not record is left out.
    """
    updates, hypercalls = trace.updates, trace.hypercalls
    cause = updates["cause"].astype(np.int64)
    made = np.bincount(cause, minlength=hypercalls.rows + 1)[1:]
    if not hypercalls.rows or not np.array_equal(made, hypercalls["updates"]):
        # A part of a trace keeps the row numbers of the whole: nobody can tell.
        return Found({}, {})
    is_call = np.append(False, hypercalls["op"] == MEMORY_OP)[cause]
    rows = _giving(trace, np.flatnonzero(is_call | (cause == 0)), downs)
    by_nobody = rows[cause[rows] == 0]
    extents = _extents(updates, rows[cause[rows] > 0])
    keep = selection.updates(
        Frame.of(
            "updates",
            {
                "time": updates["time"][extents[:, 4]], "domid": extents[:, 1],
                "order": extents[:, 2], "gfn": extents[:, 3],
            },
        )
    )  # fmt: skip
    known = set(extents[:, 1].tolist())
    silent = set(np.unique(updates["domid"]).tolist()) - known
    silent -= set(updates["domid"][by_nobody].tolist())
    found = dict.fromkeys(silent, NO_CALLS)
    for domid in sorted(known):
        mine = extents[:, 1] == domid
        found[domid] = _calls(_joined(_records(extents[mine], hypercalls, keep[mine])))
    by_nobody = by_nobody[selection.updates(updates)[by_nobody]]
    return Found(found, _frames(updates, by_nobody))


def _giving(trace: Trace, rows: Ints, downs: dict[int, Ints]) -> Ints:
    """Of some updates those that populate."""
    updates = trace.updates
    kind, mfn = updates["type"][rows], updates["mfn"][rows]
    is_pod = kind == P2mType.POPULATE_ON_DEMAND
    is_ram = (kind == P2mType.RAM_RW) & (mfn != np.uint64(INVALID_FRAME))
    pair = updates["cause"][rows].astype(np.int64) << 16 | updates["domid"][rows]
    takes = ~is_pod & (mfn == np.uint64(INVALID_FRAME))
    others = pair[takes & (updates["cause"][rows] > 0)]
    keep = np.flatnonzero((is_pod | is_ram) & ~np.isin(pair, others))
    keep = keep[~_by_fault(trace, rows[keep])]
    before, latest = _before(updates, rows[keep], downs)
    # A page that was taken for zero and is not goes back where it was (p2m_pod_zero_check).
    undone = (before == POD) & (updates["cause"][latest] == updates["cause"][rows[keep]])
    return rows[keep[np.where(is_pod[keep], before == NOTHING, (before != MAPPED) & ~undone)]]


def _by_fault(trace: Trace, rows: Ints) -> Mask:
    """Which of these updates a pod_populate event tells of, too."""
    events = trace.events
    mine = np.flatnonzero(events["event"] == MemEvent.POD_POPULATE)
    mfns, number = np.unique(
        np.concatenate((events["mfn"][mine], trace.updates["mfn"][rows])), return_inverse=True
    )
    causes = np.concatenate((events["cause"][mine], trace.updates["cause"][rows]))
    key = causes.astype(np.int64) * len(mfns) + number
    return np.isin(key[len(mine) :], key[: len(mine)])


def _before(updates: Frame, rows: Ints, downs: dict[int, Ints]) -> tuple[Ints, Ints]:
    """What the first frame of each of these updates was before, and which update made it so.

    NOTHING, POD or MAPPED; -1 where no update is known.
    """
    latest: Ints = np.full(len(rows), -1, dtype=np.int64)
    for order in np.unique(updates["order"]).tolist():
        of_order = np.flatnonzero(updates["order"] == order)
        keys, number = np.unique(_key(updates, of_order, order), return_inverse=True)
        place = number * (updates.rows + 1) + of_order
        place.sort()
        wanted = _key(updates, rows, order)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found = np.searchsorted(place, at * (updates.rows + 1) + rows) - 1
        row = place[np.maximum(found, 0)] - at * (updates.rows + 1)
        hit = (keys[at] == wanted) & (found >= 0) & (row >= 0)
        latest = np.where(hit, np.maximum(latest, row), latest)
    for domid, times in downs.items():
        mine = updates["domid"][rows] == domid
        gone = np.searchsorted(times, updates["time"][latest], side="right")
        now = np.searchsorted(times, updates["time"][rows], side="right")
        latest[mine & (now > gone)] = -1
    pod = updates["type"][latest] == P2mType.POPULATE_ON_DEMAND
    empty = (latest < 0) | (~pod & (updates["mfn"][latest] == np.uint64(INVALID_FRAME)))
    return np.where(empty, NOTHING, np.where(pod, POD, MAPPED)), latest


def _key(updates: Frame, rows: Ints, order: int) -> Ints:
    """One number for the domain and the area of an order that each update begins in."""
    area = updates["gfn"][rows] >> np.uint64(min(order, 63)) & np.uint64((1 << KEY_BITS) - 1)
    return updates["domid"][rows].astype(np.int64) << KEY_BITS | area.astype(np.int64)


def _frames(updates: Frame, rows: Ints) -> dict[int, int]:
    """{domid: frames} of some updates."""
    frames: dict[int, int] = {}
    for domid, order in zip(
        *(updates[name][rows].tolist() for name in ("domid", "order")), strict=True
    ):
        frames[domid] = frames.get(domid, 0) + (1 << order)
    return frames


def _extents(updates: Frame, rows: Ints) -> Ints:
    """[cause, domid, order, gfn, row] of each extent, by call and then as they were given."""
    columns = {
        name: updates[name][rows].astype(np.int64)
        for name in ("cause", "domid", "order", "type", "gfn")
    }
    by_call = np.lexsort((rows, columns["domid"], columns["cause"]))
    rows = rows[by_call]
    cause, domid, order, kind, gfn = (column[by_call] for column in columns.values())
    mfn = updates["mfn"][rows].view(np.int64)
    base = np.where(kind == P2mType.POPULATE_ON_DEMAND, gfn, mfn)
    size = np.left_shift(1, np.minimum(order, KEY_BITS))
    same = np.ones(len(rows), dtype=np.bool_)
    same[:1] = False
    for column in (cause, domid, order, kind):
        same[1:] &= column[1:] == column[:-1]
    for column in (gfn, base):
        same[1:] &= column[1:] == column[:-1] + size[:-1]
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(rows))))
    ends = np.append(np.flatnonzero(~same)[1:], len(rows)) - 1
    last = ends[np.cumsum(~same) - 1] if len(rows) else first
    taken = np.zeros(len(rows), dtype=np.bool_)
    drop = np.zeros(len(rows), dtype=np.bool_)
    whole = order.copy()
    for large in LARGE:
        begin = base >> large << large
        inside = ~taken & (order < large) & (begin >= base[first])
        inside &= begin + (1 << large) <= base[last] + size[last]
        taken |= inside
        drop |= inside & (base != begin)
        whole[inside] = large
    return np.stack((cause, domid, whole, gfn, rows), axis=1)[~drop]


def _records(extents: Ints, hypercalls: Frame, keep: Mask) -> list[_Call]:
    """The calls of one domain's extents, one a record and order; of what is asked for."""
    calls: list[_Call] = []
    key = extents[:, 0] << 8 | extents[:, 2]
    edges = [0, *(np.flatnonzero(np.diff(key)) + 1).tolist(), len(key)]
    for begin, end in pairwise(edges):
        part = extents[begin:end]
        if not keep[begin:end].any():
            continue
        row, order = int(part[0, 0]) - 1, int(part[0, 2])
        gfns = part[:, 3]
        has_gaps = bool((np.diff(gfns) != 1 << order).any())
        calls.append(
            _Call(
                int(hypercalls["time"][row]), int(hypercalls["domid"][row]), order, len(part),
                int(gfns[0]), -1 if has_gaps else int(gfns[-1]) + (1 << order),
            )
        )  # fmt: skip
    return calls


def _joined(calls: list[_Call]) -> list[_Call]:
    """Calls with their continuations."""
    found: list[_Call] = []
    for chain in _chains(calls, same_order=True):
        whole = max(call.nr for call in chain)
        at = 0
        while at < len(chain):
            nr, end = chain[at].nr, at + 1
            most = min(at + PIECES_MAX, len(chain))
            while nr < whole and end < most and chain[end].nr < whole:
                nr += chain[end].nr
                end += 1
            if nr != whole or whole < BATCH_MIN:
                nr, end = chain[at].nr, at + 1
            found.append(chain[at]._replace(nr=nr, end=chain[end - 1].end))
            at = end
    return found


def _chains(calls: list[_Call], *, same_order: bool) -> list[list[_Call]]:
    """Calls of one caller each of which begins where the one before ended."""
    chains: list[list[_Call]] = []
    for call in calls:
        last = chains[-1][-1] if chains else None
        follows = last is not None and (last.end, last.caller) == (call.first, call.caller)
        if follows and last is not None and (not same_order or last.order == call.order):
            chains[-1].append(call)
        else:
            chains.append([call])
    return chains


def _calls(calls: list[_Call]) -> Calls:
    """What the report counts, with the steps down the ladder."""
    fell: list[int] = []
    asked = [call.nr for call in calls]
    for chain in _chains(calls, same_order=False):
        largest = -1
        for at, call in enumerate(chain):
            larger = _fell_from(chain, at, largest)
            if larger >= 0 and chain[at - 1].order == larger:
                asked[len(fell) - 1] += (call.end >> larger) - (call.first >> larger)
            fell.append(larger)
            largest = max(largest, call.order)
    columns: list[Any] = [[call.time for call in calls], [call.order for call in calls], asked]
    columns += [[call.nr for call in calls], fell]
    return Calls(*(np.array(column, dtype=np.int64) for column in columns))


def _fell_from(chain: list[_Call], at: int, largest: int) -> int:
    """The order from which the ladder stepped down to a call; -1 if it did not.

    ``largest``: the largest order of the calls before it.
    """
    call = chain[at]
    for large in LARGE:
        begin = -(-call.first >> large) << large
        if largest < large or call.order >= large or begin >= call.end:
            continue
        end, after = call.end, at + 1
        # A whole GiB is asked for once, 2M for each call of up to 8 MiB anew.
        while large > ORDER_2M and end < begin + (1 << large):
            if after == len(chain) or chain[after].order >= large:
                break
            end, after = chain[after].end, after + 1
        if begin + (1 << large) <= end:
            return large
    return -1
