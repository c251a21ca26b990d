"""Memory hypercalls (``__HYPERVISOR_memory_op``, public/memory.h), answered by the allocator.

``extent_start`` holds the gfn of each extent. Operations 0, 1 and 6 of Xen never return an error:
``nr_done`` counts the leading extents that were done, the rest is untouched (but for a prefix of
the failing extent of a decrease). ``caller`` stands for Xen's ``current->domain`` and decides the
order limit (``max_order``): 0 is the control domain.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from protocols.message import (
    EXTENTS_MAX,
    Count,
    Domid,
    Frame,
    Frames,
    Message,
    Order,
    Request,
    ReturnCode,
    check_frames,
)

MemFlags = Annotated[int, msgspec.Meta(ge=0, le=0x7FFFF)]
Space = Annotated[int, msgspec.Meta(ge=0, le=5)]

MAPSPACE_GMFN = 2
MAPSPACE_GMFN_RANGE = 3


class NrDone(Message, frozen=True, tag="nr_done"):
    """Reply of the reservation operations: how many leading extents were done."""

    nr_done: Count


class Status(Message, frozen=True, tag="status"):
    """Reply of an operation that succeeds or fails as a whole: 0 or a negative errno."""

    rc: ReturnCode


class PopulatePhysmap(Request[NrDone], frozen=True, tag="populate_physmap"):
    """XENMEM_populate_physmap (6): allocate an extent for each gfn and map it there."""

    domid: Domid
    extent_order: Order
    mem_flags: MemFlags
    extent_start: Frames
    caller: Domid = 0

    def __post_init__(self) -> None:
        check_frames(self, "extent_start")


class IncreaseReservation(Request[NrDone], frozen=True, tag="increase_reservation"):
    """XENMEM_increase_reservation (0): allocate only; a translated domain gets orphans."""

    domid: Domid
    extent_order: Order
    nr_extents: Annotated[int, msgspec.Meta(ge=0, le=EXTENTS_MAX)]
    mem_flags: MemFlags
    caller: Domid = 0


class DecreaseReservation(Request[NrDone], frozen=True, tag="decrease_reservation"):
    """XENMEM_decrease_reservation (1): take each extent's frames back, 4K by 4K."""

    domid: Domid
    extent_order: Order
    extent_start: Frames
    caller: Domid = 0

    def __post_init__(self) -> None:
        check_frames(self, "extent_start")


class AddToPhysmap(Request[Status], frozen=True, tag="add_to_physmap"):
    """XENMEM_add_to_physmap (7): spaces gmfn and gmfn_range move pages from ``idx`` to ``gpfn``."""

    domid: Domid
    space: Space
    idx: Frame
    gpfn: Frame
    size: Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)] = 1


class RemoveFromPhysmap(Request[Status], frozen=True, tag="remove_from_physmap"):
    """XENMEM_remove_from_physmap (15): unmap one gfn; the frame stays owned, an orphan."""

    domid: Domid
    gpfn: Frame


class ClaimPages(Request[Status], frozen=True, tag="claim_pages"):
    """XENMEM_claim_pages (24): set aside ``nr_pages`` in all for the domain; 0 cancels."""

    domid: Domid
    nr_pages: Count


class PodTarget(Message, frozen=True, tag="pod_target"):
    """Reply of set_pod_target: the domain's pages, its PoD cache and its PoD entries, in frames."""

    rc: ReturnCode
    tot_pages: Count
    pod_cache_pages: Count
    pod_entries: Count


class SetPodTarget(Request[PodTarget], frozen=True, tag="set_pod_target"):
    """XENMEM_set_pod_target (16): grow the PoD cache until ``target_pages`` are held in all."""

    domid: Domid
    target_pages: Count


MemoryOp = (
    PopulatePhysmap
    | IncreaseReservation
    | DecreaseReservation
    | AddToPhysmap
    | RemoveFromPhysmap
    | ClaimPages
)


class MulticallReply(Message, frozen=True, tag="multicall_reply"):
    """One result an entry: nr_done or a negative errno, as the hypercall itself would return."""

    results: list[int]


class Multicall(Request[MulticallReply], frozen=True, tag="multicall"):
    """__HYPERVISOR_multicall (13): the entries run in order; multicalls cannot nest."""

    entries: Annotated[list[MemoryOp], msgspec.Meta(min_length=1, max_length=1024)]
