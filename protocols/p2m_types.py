"""The p2m types and memory flags, with Xen's numbers (p2m.h, public/memory.h; Xen 4.17)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class P2mType(IntEnum):
    """``p2m_type_t``: what a p2m entry maps. 7 bits in an NPT entry, 6 in an EPT entry."""

    RAM_RW = 0
    INVALID = 1
    RAM_LOGDIRTY = 2
    RAM_RO = 3
    MMIO_DM = 4
    MMIO_DIRECT = 5
    POPULATE_ON_DEMAND = 6
    GRANT_MAP_RW = 7
    GRANT_MAP_RO = 8
    RAM_PAGING_OUT = 9
    RAM_PAGED = 10
    RAM_PAGING_IN = 11
    RAM_SHARED = 12
    RAM_BROKEN = 13
    MAP_FOREIGN = 14
    IOREQ_SERVER = 15


RAM_TYPES: Final = frozenset(
    {
        P2mType.RAM_RW,
        P2mType.RAM_LOGDIRTY,
        P2mType.RAM_RO,
        P2mType.RAM_PAGING_OUT,
        P2mType.RAM_PAGED,
        P2mType.RAM_PAGING_IN,
        P2mType.RAM_SHARED,
        P2mType.IOREQ_SERVER,
    }
)
"""``P2M_RAM_TYPES``: the frame below is the domain's own memory and the M2P records it."""

GRANT_TYPES: Final = frozenset({P2mType.GRANT_MAP_RW, P2mType.GRANT_MAP_RO})
SPECIAL_TYPES: Final = GRANT_TYPES | {P2mType.MAP_FOREIGN, P2mType.MMIO_DIRECT}
"""Types that an ordinary add must not overwrite (``p2m_is_special``)."""
HOLE_TYPES: Final = frozenset(
    {P2mType.INVALID, P2mType.MMIO_DM, P2mType.RAM_PAGING_IN, P2mType.RAM_PAGED}
)
INVALID_MFN_TYPES: Final = frozenset(
    {
        P2mType.POPULATE_ON_DEMAND,
        P2mType.MMIO_DIRECT,
        P2mType.RAM_PAGING_OUT,
        P2mType.RAM_PAGED,
        P2mType.RAM_PAGING_IN,
    }
)
"""``p2m_allows_invalid_mfn``: such an entry is stored although its mfn is INVALID_MFN."""


class MemFlag:
    """``XENMEMF_*`` bits of a reservation's mem_flags."""

    NODE_SHIFT: Final = 8
    NODE_MASK: Final = 0xFF << NODE_SHIFT
    POPULATE_ON_DEMAND: Final = 1 << 16
    EXACT_NODE_REQUEST: Final = 1 << 17
    VNODE: Final = 1 << 18

    @staticmethod
    def exact_node(node: int) -> int:
        """``XENMEMF_exact_node(n)``: only frames of this node will do."""
        return ((node + 1) << MemFlag.NODE_SHIFT) | MemFlag.EXACT_NODE_REQUEST

    @staticmethod
    def get_node(flags: int) -> int | None:
        """``XENMEMF_get_node``: the node asked for, or None for any."""
        node = (flags & MemFlag.NODE_MASK) >> MemFlag.NODE_SHIFT
        return node - 1 if node else None
