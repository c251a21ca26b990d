"""Requests to the P2M of a domain: Xen's p2m interface (xen/arch/x86/include/asm/p2m.h)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from protocols.memory import Status
from protocols.message import (
    Count,
    Domid,
    Frame,
    Frames,
    Message,
    Order,
    P2mTypeNumber,
    Request,
    ReturnCode,
    check_frames,
    check_pairs,
)

PagingFormat = Annotated[str, msgspec.Meta(pattern="^(npt|ept|pae|x86_32)$")]


class P2mCreate(Request[Status], frozen=True, tag="p2m_init"):
    """p2m_init and hap_enable: an empty table whose root comes from the pool frames given here.

    ``leaf_orders`` are the orders the domain may map with (``hap_1gb``, ``hap_2mb``, policy).
    """

    domid: Domid
    paging: PagingFormat
    leaf_orders: list[Order]
    vcpus: Annotated[int, msgspec.Meta(ge=0, le=512)]
    pool: Frames
    force_4k: Frames = b""

    def __post_init__(self) -> None:
        check_frames(self, "pool", "force_4k")


class P2mPoolAdd(Request[Status], frozen=True, tag="p2m_pool_add"):
    """hap_set_allocation upwards: more frames for page-table pages."""

    domid: Domid
    mfns: Frames

    def __post_init__(self) -> None:
        check_frames(self, "mfns")


class P2mPoolFrames(Message, frozen=True, tag="p2m_pool_frames"):
    """Pool frames given back, and how many the pool still holds (free and used)."""

    mfns: Frames
    pool_pages: Count


class P2mPoolRemove(Request[P2mPoolFrames], frozen=True, tag="p2m_pool_remove"):
    """hap_set_allocation downwards: give back up to ``nr`` free pool frames."""

    domid: Domid
    nr: Count


class P2mTeardown(Request[P2mPoolFrames], frozen=True, tag="p2m_teardown"):
    """p2m_final_teardown: flush the walkers, forget the table, give all pool frames back."""

    domid: Domid


class P2mUpdated(Message, frozen=True, tag="p2m_updated"):
    """Reply of an update: leading extents done, the errno that stopped it, and what came loose.

    ``displaced`` are the 4K mfns of RAM whose mapping was overwritten or removed: their M2P words
    are stale and, after a removal, the frames may go back to the heap; every flush for them has
    been acknowledged. ``nr_partial`` leading frames of the failing extent were mapped, too.
    """

    nr_done: Count
    rc: ReturnCode
    displaced: Frames = b""
    nr_partial: Count = 0


class P2mAddPage(Request[P2mUpdated], frozen=True, tag="p2m_add_page"):
    """guest_physmap_add_page (p2m_add_page): RAM of the domain appears at each gfn."""

    domid: Domid
    order: Order
    gfns: Frames
    mfns: Frames

    def __post_init__(self) -> None:
        check_pairs(self, "gfns", "mfns")


class P2mRemovePages(Request[P2mUpdated], frozen=True, tag="guest_remove_page"):
    """The p2m part of decrease_reservation, extent by extent; stops at the first that cannot go.

    PoD entries of an extent are dropped first (p2m_pod_decrease_reservation), then
    guest_remove_page takes the rest 4K by 4K: a hole is -ENOENT, mmio_direct -EPERM, another
    entry without a frame -EINVAL. ``displaced`` also holds the prefix of the failing extent.
    """

    domid: Domid
    order: Order
    gfns: Frames

    def __post_init__(self) -> None:
        check_frames(self, "gfns")


class P2mUnmap(Request[P2mUpdated], frozen=True, tag="p2m_remove_page"):
    """guest_physmap_remove_page: gfn must map exactly mfn, else -EILSEQ and no change."""

    domid: Domid
    gfn: Frame
    mfn: Frame


class P2mMove(Request[P2mUpdated], frozen=True, tag="p2m_move_page"):
    """The p2m part of xenmem_add_to_physmap_one(gmfn): the page at ``src`` moves to ``dst``.

    Done under one lock span; ``mfn`` is what the caller found at ``src`` and is checked again.
    """

    domid: Domid
    src: Frame
    dst: Frame
    mfn: Frame


class P2mSetEntry(Request[P2mUpdated], frozen=True, tag="p2m_set_entry"):
    """p2m_set_entry for each extent: the bare table update, no M2P and no ownership check.

    An mfn of all ones is INVALID_MFN.
    """

    domid: Domid
    order: Order
    p2mt: P2mTypeNumber
    gfns: Frames
    mfns: Frames

    def __post_init__(self) -> None:
        check_pairs(self, "gfns", "mfns")


class P2mChangeType(Request[P2mUpdated], frozen=True, tag="p2m_change_type_one"):
    """p2m_change_type_one for each 4K gfn (the device model's set_mem_type): RAM types only."""

    domid: Domid
    p2mt: P2mTypeNumber
    gfns: Frames

    def __post_init__(self) -> None:
        check_frames(self, "gfns")


class P2mEntries(Message, frozen=True, tag="p2m_entries"):
    """Reply of a look-up, one an input gfn: mfns (u64), types (u8) and leaf orders (u8)."""

    mfns: Frames
    types: bytes
    orders: bytes


class P2mGetEntry(Request[P2mEntries], frozen=True, tag="p2m_get_entry"):
    """get_gfn: what each gfn maps to; with ``alloc`` (P2M_ALLOC) a PoD entry is populated."""

    domid: Domid
    gfns: Frames
    alloc: bool = False

    def __post_init__(self) -> None:
        check_frames(self, "gfns")


class P2mTranslate(Request[P2mEntries], frozen=True, tag="p2m_translate"):
    """gfn_to_mfn as seen by software: as a look-up without alloc, RAM only; else INVALID_MFN."""

    domid: Domid
    gfns: Frames

    def __post_init__(self) -> None:
        check_frames(self, "gfns")


class P2mMarkPod(Request[P2mUpdated], frozen=True, tag="p2m_mark_populate_on_demand"):
    """guest_physmap_mark_populate_on_demand for each extent; RAM in the way is -EBUSY."""

    domid: Domid
    order: Order
    gfns: Frames

    def __post_init__(self) -> None:
        check_frames(self, "gfns")


class P2mPodState(Message, frozen=True, tag="p2m_pod_state"):
    """The PoD accounting of a domain in frames: cache ``count`` and ``entry_count``."""

    count: Count
    entry_count: Count


class P2mPodCacheAdd(Request[P2mPodState], frozen=True, tag="p2m_pod_cache_add"):
    """p2m_pod_cache_add: frames (owned by the domain) join the PoD cache; empty only asks."""

    domid: Domid
    order: Order
    mfns: Frames

    def __post_init__(self) -> None:
        check_frames(self, "mfns")


class P2mRoot(Message, frozen=True, tag="p2m_root"):
    """Where a walk starts: the root table's mfn (H_CR3 >> 12, EPTP >> 12) and the format."""

    root_mfn: Frame
    paging: PagingFormat


class P2mGetRoot(Request[P2mRoot], frozen=True, tag="p2m_get_root"):
    """pagetable_get_pfn(p2m_get_pagetable): for a walker that starts."""

    domid: Domid
    reader: str


class PageTableFrames(Message, frozen=True, tag="page_table_frames"):
    """4096 bytes for each table frame asked for, in order; a frame no longer a table is zeros."""

    data: bytes


class ReadPageTableFrames(Request[PageTableFrames], frozen=True, tag="read_page_table_frame"):
    """A walker's memory read of table frames: raw contents, as the hardware would see them.

    ``reader`` joins the domain's dirty mask: it is asked to flush before an old entry is forgotten.
    """

    domid: Domid
    reader: str
    mfns: Frames

    def __post_init__(self) -> None:
        check_frames(self, "mfns")
