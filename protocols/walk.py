"""Requests to a HAP walker (a vCPU), and its nested page faults."""

from __future__ import annotations

from protocols.memory import Status
from protocols.message import Count, Domid, Frames, Message, Request, check_frames

FAULT_RETRY = 0
"""The p2m maps the gfn now (populated, or the walker's copy was old): walk again."""
FAULT_HOLE = 1
"""Nothing there: mmio_dm, the access would be emulated."""
FAULT_FAILED = 2
"""The fault could not be resolved (out of PoD memory, no page-table frame)."""


class FlushTlb(Request[Status], frozen=True, tag="flush_tlb"):
    """FLUSH_HVM_ASID_CORE / INVEPT: forget every cached translation and table frame."""

    domid: Domid


class Translations(Message, frozen=True, tag="translations"):
    """One mfn an input gfn (INVALID_MFN where nothing maps it), and what the walk cost."""

    mfns: Frames
    nr_faults: Count
    nr_walk_refs: Count
    nr_tlb_hits: Count


class Touch(Request[Translations], frozen=True, tag="touch"):
    """A guest's access stream: translate each gfn as the hardware does, faulting where needed.

    With ``want_mfns`` False the reply carries no mfns, only the counts.
    """

    domid: Domid
    gfns: Frames
    write: bool = False
    want_mfns: bool = False

    def __post_init__(self) -> None:
        check_frames(self, "gfns")


class Accessed(Message, frozen=True, tag="accessed"):
    """What the accesses of a ``GuestAccess`` cost."""

    nr_faults: Count
    nr_walk_refs: Count
    nr_tlb_hits: Count


class GuestAccess(Request[Accessed], frozen=True, tag="guest_access"):
    """A program's accesses, one after the other: each waits for the fault of the one before.

    What nothing maps is emulated: a write is dropped, a read gives ones; the program goes on.
    """

    domid: Domid
    gfns: Frames
    write: bool

    def __post_init__(self) -> None:
        check_frames(self, "gfns")


class WalkTranslate(Request[Translations], frozen=True, tag="gfn_to_mfn"):
    """The RFC's readers: ``gfn_to_mfn_current`` for the walker's own domain, else ``_foreign``."""

    domid: Domid
    gfns: Frames

    def __post_init__(self) -> None:
        check_frames(self, "gfns")


class FaultOutcome(Message, frozen=True, tag="nested_page_fault_outcome"):
    """One FAULT_* byte for each faulting gfn."""

    outcome: bytes


class NestedPageFault(Request[FaultOutcome], frozen=True, tag="nested_page_fault"):
    """hvm_hap_nested_page_fault (EXITCODE_NPF / EPT violation), one a gfn, batched."""

    domid: Domid
    gfns: Frames
    write: bool

    def __post_init__(self) -> None:
        check_frames(self, "gfns")
