"""Between allocators, and from the P2M to them: frames and M2P words of a NUMA node."""

from __future__ import annotations

from protocols.memory import Status
from protocols.message import (
    Count,
    Domid,
    Frames,
    Message,
    Order,
    Request,
    check_frames,
    check_pairs,
)


class HeapPages(Message, frozen=True, tag="heap_pages"):
    """Frames handed out, extent bases in order of allocation; fewer than asked when exhausted."""

    mfns: Frames


class AllocHeapPages(Request[HeapPages], frozen=True, tag="alloc_heap_pages"):
    """alloc_domheap_pages on another node: up to ``nr`` extents, owned by ``owner``.

    ``owner`` is a domid or DOMID_XEN, hence the wider range.
    """

    owner: Count
    order: Order
    nr: Count


class FreeHeapPages(Request[Status], frozen=True, tag="free_heap_pages"):
    """free_domheap_pages on another node; the frames must be owned by ``owner``."""

    owner: Count
    order: Order
    mfns: Frames
    dirty: bool

    def __post_init__(self) -> None:
        check_frames(self, "mfns")


class SetM2p(Request[Status], frozen=True, tag="set_gpfn_from_mfn"):
    """set_gpfn_from_mfn over extents: m2p[mfn + i] = gfn + i; empty gfns write INVALID."""

    domid: Domid
    order: Order
    mfns: Frames
    gfns: Frames

    def __post_init__(self) -> None:
        if self.gfns:
            check_pairs(self, "mfns", "gfns")
        else:
            check_frames(self, "mfns")


class RelinquishMemory(Request[HeapPages], frozen=True, tag="relinquish_memory"):
    """domain_relinquish_resources on another node: free every frame of the domain there."""

    domid: Domid


class PodCacheRequest(Request[Status], frozen=True, tag="pod_cache_return"):
    """p2m_pod_set_cache_target downwards: PoD cache frames of the domain go back to the heap."""

    domid: Domid
    order: Order
    mfns: Frames

    def __post_init__(self) -> None:
        check_frames(self, "mfns")
