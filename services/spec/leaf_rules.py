"""What must be true of each leaf: its place, its frames' owner, its M2P words, and no second one.

A superpage is asked about as one extent of its order. Only where that answer is no are its frames
looked at one by one, so a report names the very frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.frames import DOMID_INVALID, DOMID_XEN, FRAME_MAX, FrameArray, expand
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
    """The leaves of a domain that map its own frames: parallel arrays."""

    domid: int
    gfns: FrameArray
    mfns: FrameArray
    orders: npt.NDArray[np.uint8]


def check_leaves(p2m: P2mSnapshot, host: HostFrames, report: AuditReport) -> OwnLeaves:
    """All rules of one domain's leaves but ``mapped_once``."""
    sizes = np.uint64(1) << p2m.orders.astype(np.uint64)
    framed = ~_FRAMELESS[p2m.types]
    ones = p2m.mfns | (sizes - np.uint64(1))
    framed &= ~(_MAY_BE_FRAMELESS[p2m.types] & ((ones & (ones + np.uint64(1))) == 0))
    crooked = _check_places(p2m, sizes, framed, report)
    report.checked += int(sizes[framed].sum(dtype=np.uint64)) + int((~framed).sum())
    own = framed & _OWNED[p2m.types]
    good: list[Runs] = []
    for which, order, shown in _groups(p2m, framed, crooked):
        gfns, mfns = p2m.gfns[which], p2m.mfns[which]
        if order != shown:
            gfns, mfns = expand(gfns, shown), expand(mfns, shown)
            mine = np.repeat(own[which], 1 << shown)
        else:
            mine = own[which]
        extents = _Extents(p2m.domid, gfns, mfns, order, shown)
        _check_owner(extents, mine, host, report)
        good.append(_check_m2p(extents, mine, host, report))
    _check_foreign(p2m, framed & _FOREIGN[p2m.types], host, report)
    _check_backed(p2m, host, runs.together(good), report)
    return OwnLeaves(p2m.domid, p2m.gfns[own], p2m.mfns[own], p2m.orders[own])
