"""What an audit looks at: the state of P2Ms, nodes, books and walkers, as plain arrays.

Frame numbers are u64, orders and types u8; parallel arrays have the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocols.frames import FrameArray

BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]
Runs = tuple[FrameArray, FrameArray]
"""(starts, lengths) of runs of frames."""


class FrameOwners(Protocol):
    """Who owns each 4K frame of a node (``page_get_owner``); DOMID_INVALID if it is free."""

    def owner_uniform(self, mfns: FrameArray, order: int, domid: int) -> BoolArray:
        """Whether all frames of each extent have this owner."""
        ...

    def owner(self, mfns: FrameArray) -> npt.NDArray[np.uint16]:
        """The owner of each frame."""
        ...


class MachineToPhys(Protocol):
    """The M2P words of a node (``get_gpfn_from_mfn``); INVALID_FRAME if there is none."""

    def m2p_matches(self, mfns: FrameArray, gfns: FrameArray, order: int) -> BoolArray:
        """Whether m2p[mfn + i] = gfn + i in the whole of each extent."""
        ...

    def m2p(self, mfns: FrameArray) -> FrameArray:
        """The word of each frame."""
        ...

    def orphans(self, domid: int) -> Runs:
        """The frames of an owner whose word is invalid, ascending and disjoint."""
        ...


@dataclass(frozen=True, slots=True)
class P2mSnapshot:
    """One domain's tables, their pool and its PoD state.

    Attributes:
        domid: The domain.
        gfns: First gfn of each leaf, ascending.
        orders: Of each leaf.
        mfns: First frame of each leaf, as decoded or as the entry's frame field stands.
        types: Of each leaf.
        ptps: A table frame for each time that the walk of the tree came upon it.
        pool_total: Frames of the paging pool.
        pool_used: Of those, the ones that are tables.
        pool_free: Of those, the ones that are not.
        pool_mfns: All frames of the pool.
        pod_entry_count: Frames that are said to lie under PoD entries.
        pod_cache: Every 4K frame of the PoD cache.
        outstanding_flushes: Flushes that were ordered or are owed, and not acknowledged.
        max_mapped: The highest gfn that ever held an entry (``max_mapped_pfn``).
        problems: What the table's own audit says.
    """

    domid: int
    gfns: FrameArray
    orders: ByteArray
    mfns: FrameArray
    types: ByteArray
    ptps: FrameArray
    pool_total: int
    pool_used: int
    pool_free: int
    pool_mfns: FrameArray
    pod_entry_count: int
    pod_cache: FrameArray
    outstanding_flushes: int
    max_mapped: int
    problems: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """One NUMA node: its heap and its part of the frame table.

    Attributes:
        node: Its number.
        start: Its first mfn.
        nr_frames: Its frames, free, owned or offlined.
        free_blocks: (mfns, orders) of every free block of the buddy heap, in any order.
        free_frames: What the heap counts as free.
        owner: Who owns what.
        m2p: The M2P.
        problems: What the heap's own audit says.
        nr_offlined: Frames that the heap does not have and nobody owns.
    """

    node: int
    start: int
    nr_frames: int
    free_blocks: tuple[FrameArray, ByteArray]
    free_frames: int
    owner: FrameOwners
    m2p: MachineToPhys
    problems: list[str] = field(default_factory=list[str])
    nr_offlined: int = 0


@dataclass(frozen=True, slots=True)
class DomainAccount:
    """A domain in the books of its home node, in frames (``domain_tot_pages``, ``max_pages``)."""

    domid: int
    tot_pages: int
    max_pages: int
    home_node: int


@dataclass(frozen=True, slots=True)
class TlbSnapshot:
    """The valid entries of one vCPU's TLB: first gfn, first mfn, order."""

    domid: int
    vcpu: int
    gfns: FrameArray
    mfns: FrameArray
    orders: ByteArray
