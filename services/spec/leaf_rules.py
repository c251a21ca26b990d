"""What must be true of each leaf: its place, its frames' owner, its M2P words, and no second one.

A superpage is asked about as one extent of its order. Only where that answer is no are its frames
looked at one by one, so a report names the very frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.frames import (
    DOMID_INVALID,
    DOMID_XEN,
    FRAME_MAX,
    INVALID_FRAME,
    FrameArray,
    expand,
)
from protocols.p2m_types import GRANT_TYPES, HOLE_TYPES, RAM_TYPES, P2mType
from services.spec import runs
from services.spec.findings import AuditReport, Violation
from services.spec.host_frames import NO_NODE, HostFrames, owner_name
from services.spec.snapshots import BoolArray, P2mSnapshot, Runs

_AT_ONCE: Final = 1 << 20
"""Frames looked at one by one in one array."""


def _table(types: frozenset[P2mType]) -> BoolArray:
    table = np.zeros(256, dtype=np.bool_)
    table[list(types)] = True
    return table


_HOLE: Final = _table(frozenset({P2mType.INVALID, P2mType.MMIO_DM}))
"""By type: what max_mapped_pfn takes no notice of."""
_FRAMELESS: Final = _table(HOLE_TYPES | {P2mType.POPULATE_ON_DEMAND})
"""By type: the entry never maps a frame."""
_MAY_BE_FRAMELESS: Final = _table(frozenset({P2mType.MMIO_DIRECT, P2mType.RAM_PAGING_OUT}))
"""By type: the entry may hold INVALID_MFN, cut to its frame field."""
_OWNED: Final = _table((RAM_TYPES - HOLE_TYPES - {P2mType.RAM_SHARED}) | {P2mType.RAM_BROKEN})
"""By type: the frame is the domain's own. A shared one is dom_cow's, and may have many leaves."""
_FOREIGN: Final = _table(GRANT_TYPES | {P2mType.MAP_FOREIGN})
"""By type: the frame is another domain's, by that one's leave."""


@dataclass(frozen=True, slots=True)
class OwnLeaves:
    """The leaves of a domain that map its own frames: parallel arrays, shape (n,)."""

    domid: int
    gfns: FrameArray
    mfns: FrameArray
    orders: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Extents:
    """Leaves of one order, as aligned extents of ``order`` (0 where the leaf's mfn is crooked).

    ``mine``: the frames should be the domain's own. ``leaf_order`` is for the report.
    """

    domid: int
    gfns: FrameArray
    mfns: FrameArray
    mine: BoolArray
    order: int
    leaf_order: int


def check_leaves(p2m: P2mSnapshot, host: HostFrames, report: AuditReport) -> OwnLeaves:
    """All rules of one domain's leaves but ``mapped_once``; its own leaves, for that."""
    sizes = np.uint64(1) << p2m.orders.astype(np.uint64)
    framed = ~_FRAMELESS[p2m.types]
    ones = p2m.mfns | (sizes - np.uint64(1))
    framed &= ~(_MAY_BE_FRAMELESS[p2m.types] & ((ones & (ones + np.uint64(1))) == 0))
    crooked = framed & ((p2m.mfns & (sizes - np.uint64(1))) != 0)
    _check_places(p2m, sizes, crooked, report)
    report.checked += int(sizes[framed].sum(dtype=np.uint64)) + int((~framed).sum())
    own = framed & _OWNED[p2m.types]
    good: list[Runs] = []
    for extents in _by_order(p2m, framed, own, crooked):
        _check_owner(extents, host, report)
        good.append(_check_m2p(extents, host, report))
    _check_foreign(p2m, framed & _FOREIGN[p2m.types], host, report)
    _check_backed(p2m, host, runs.together(good), report)
    return OwnLeaves(p2m.domid, p2m.gfns[own], p2m.mfns[own], p2m.orders[own])


def check_mapped_once(leaves: Sequence[OwnLeaves], report: AuditReport) -> None:
    """No frame under two RAM leaves, in one domain or two."""
    if not leaves:
        return
    mfns = np.concatenate([part.mfns for part in leaves])
    where = np.argsort(mfns, kind="stable")
    where = where[: int((mfns <= FRAME_MAX).sum())]
    mfns = mfns[where]
    orders = np.concatenate([part.orders for part in leaves])[where]
    ends = mfns + (np.uint64(1) << orders.astype(np.uint64))
    reached = np.maximum.accumulate(ends)
    again = np.zeros(mfns.size, dtype=np.bool_)
    again[1:] = mfns[1:] < reached[:-1]
    if not again.any():
        return
    gfns = np.concatenate([part.gfns for part in leaves])[where]
    domids = np.repeat([part.domid for part in leaves], [part.gfns.size for part in leaves])[where]
    # The leaf that reaches furthest of those before: of equal ends the last.
    furthest = np.maximum.accumulate(np.where(ends == reached, np.arange(mfns.size), 0))

    def describe(at: int) -> Violation:
        other = int(furthest[at - 1])
        gfn = int(gfns[other]) + int(mfns[at]) - int(mfns[other])
        message = f"also under d{domids[other]} gfn {gfn:#x} order {orders[other]}"
        return Violation(
            "mapped_once", message, int(domids[at]), int(gfns[at]), int(mfns[at]), int(orders[at])
        )

    report.add_each(again, describe)


def _check_places(
    p2m: P2mSnapshot, sizes: FrameArray, crooked: BoolArray, report: AuditReport
) -> None:
    """Leaves aligned, ascending, disjoint and below max_mapped_pfn."""

    def broken(invariant: str, message: str) -> Callable[[int], Violation]:
        def describe(at: int) -> Violation:
            gfn, mfn, order = int(p2m.gfns[at]), int(p2m.mfns[at]), int(p2m.orders[at])
            return Violation(invariant, message, p2m.domid, gfn, mfn, order)

        return describe

    report.add_each(crooked, broken("leaf_aligned", "mfn is not aligned"))
    askew = (p2m.gfns & (sizes - np.uint64(1))) != 0
    report.add_each(askew, broken("leaf_aligned", "gfn is not aligned"))
    ends = p2m.gfns + sizes
    overlaps = np.zeros(ends.size, dtype=np.bool_)
    overlaps[1:] = p2m.gfns[1:] < ends[:-1]
    report.add_each(overlaps, broken("leaf_aligned", "gfns overlap the leaf before"))
    beyond = (ends - np.uint64(1) > p2m.max_mapped) & ~_HOLE[p2m.types]
    message = f"beyond max_mapped_pfn {p2m.max_mapped:#x}"
    report.add_each(beyond, broken("max_mapped", message))


def _by_order(
    p2m: P2mSnapshot, framed: BoolArray, own: BoolArray, crooked: BoolArray
) -> Iterator[_Extents]:
    """The leaves with frames, one group an order; crooked ones frame by frame."""
    for order in np.unique(p2m.orders[framed]).tolist():
        of_order = framed & (p2m.orders == order)
        for which, size in ((of_order & ~crooked, order), (of_order & crooked, 0)):
            if which.any():
                pieces = order - size
                yield _Extents(
                    p2m.domid,
                    expand(p2m.gfns[which], pieces),
                    expand(p2m.mfns[which], pieces),
                    np.repeat(own[which], 1 << pieces),
                    size,
                    order,
                )


def _check_owner(extents: _Extents, host: HostFrames, report: AuditReport) -> None:
    """The domain's own leaves map frames that it owns."""
    domid, order = extents.domid, extents.order
    alien = extents.mine & ~host.owned(extents.mfns, order, domid)

    def describe(at: int) -> Violation:
        frames = expand(extents.mfns[at : at + 1], order)
        owners = host.owners(frames)
        first = int((owners != domid).argmax())
        return Violation(
            "leaf_owned", f"frame is {owner_name(int(owners[first]))}", domid,
            int(extents.gfns[at]) + first, int(frames[first]), extents.leaf_order,
        )  # fmt: skip

    report.add_each(alien, describe)


def _check_m2p(extents: _Extents, host: HostFrames, report: AuditReport) -> Runs:
    """M2P[mfn + i] = gfn + i; the frames for which it is so. Counts p2m_bad."""
    order = extents.order
    right = host.m2p_matches(extents.mfns, extents.gfns, order)
    good = [(extents.mfns[right], np.full(int(right.sum()), 1 << order, dtype=np.uint64))]
    suspects = np.flatnonzero(~right)
    if not suspects.size:
        return good[0]
    wrong = np.zeros(right.size, dtype=np.bool_)
    first_wrong = np.zeros(right.size, dtype=np.intp)
    for some in np.array_split(suspects, max(1, (suspects.size << order) // _AT_ONCE)):
        frames, gfns = expand(extents.mfns[some], order), expand(extents.gfns[some], order)
        matches = host.m2p(frames) == gfns
        good.append(runs.of_frames(frames[matches]))
        # A frame outside all memory has no M2P word; it is its owner that is wrong.
        bad = ~matches & (host.owners(frames) != NO_NODE)
        bad &= np.repeat(extents.mine[some], 1 << order)
        report.p2m_bad += int(bad.sum())
        bad = bad.reshape(-1, 1 << order)
        wrong[some] = bad.any(axis=1)
        first_wrong[some] = bad.argmax(axis=1)

    def describe(at: int) -> Violation:
        first = int(first_wrong[at])
        mfn = int(extents.mfns[at]) + first
        message = f"M2P says {_word(host, mfn)}"
        gfn = int(extents.gfns[at]) + first
        return Violation("m2p_matches", message, extents.domid, gfn, mfn, extents.leaf_order)

    report.add_each(wrong, describe)
    return runs.together(good)


def _check_foreign(
    p2m: P2mSnapshot, foreign: BoolArray, host: HostFrames, report: AuditReport
) -> None:
    """Grants and foreign mappings show frames that some domain has."""
    for at in np.flatnonzero(foreign).tolist():
        gfn, mfn, order = int(p2m.gfns[at]), int(p2m.mfns[at]), int(p2m.orders[at])
        owners = host.owners(expand(p2m.mfns[at : at + 1], order))
        bad = np.isin(owners, (NO_NODE, DOMID_INVALID, DOMID_XEN))
        if bad.any():
            first = int(bad.argmax())
            message = f"foreign frame is {owner_name(int(owners[first]))}"
            report.add("leaf_owned", message, p2m.domid, gfn + first, mfn + first, order)


def _check_backed(p2m: P2mSnapshot, host: HostFrames, good: Runs, report: AuditReport) -> None:
    """Every owned frame with an M2P word has the leaf that says so. Counts orphans and m2p_bad."""
    domid = p2m.domid
    rest = runs.subtract(host.owned_runs(domid), good)
    if not rest[0].size:
        return
    starts, lengths = runs.subtract(rest, host.orphans(domid))
    orphans = runs.subtract(rest, (starts, lengths))
    report.orphans += runs.total(runs.subtract(orphans, runs.of_frames(p2m.pod_cache)))
    report.m2p_bad += runs.total((starts, lengths))

    def describe(at: int) -> Violation:
        mfn = int(starts[at])
        message = f"M2P says so, but the p2m does not; {lengths[at]} frames from this one"
        return Violation("m2p_backed", message, domid, int(host.m2p(starts[at : at + 1])[0]), mfn)

    report.add_each(lengths > 0, describe)


def _word(host: HostFrames, mfn: int) -> str:
    """An M2P word, for a message."""
    word = int(host.m2p(np.array([mfn], dtype=np.uint64))[0])
    return "no gfn" if word == INVALID_FRAME else f"gfn {word:#x}"
