"""What every component answers to its operator: snapshots for the audit and the dumps."""

from __future__ import annotations

import msgspec

from protocols.message import Count, Domid, Frame, Frames, Message, Request


class Continuation(Message, frozen=True, tag="hypercall_continuation"):
    """hypercall_create_continuation: a component's note to itself to go on with a long call.

    Its answer is itself: the host resumes the activity that sent it. ``progress`` is the
    start_extent of the re-executed call.
    """

    progress: Count


class LeafTable(Message, frozen=True, tag="leaf_table"):
    """The leaves of a domain's tables, ascending gfn: parallel arrays.

    ``orders`` and ``types`` are u8, ``low12`` and ``high12`` u16 little-endian: PTE bits 11..0 and
    63..52. ``extents`` counts present leaves by order.
    """

    domid: Domid
    gfns: Frames
    mfns: Frames
    orders: bytes
    types: bytes
    low12: bytes
    high12: bytes


class SnapshotP2m(Request["P2mSnapshotReply"], frozen=True, tag="snapshot_p2m"):
    """Everything the audit needs of one P2M; ``leaves`` False leaves the leaf table out."""

    domid: Domid
    leaves: bool = True


class P2mSnapshotReply(Message, frozen=True, tag="snapshot_p2m_reply"):
    """State of one P2M: leaf table, page-table frames, pool, PoD, obligations."""

    table: LeafTable
    ptps: Frames
    pool: Frames
    pool_free: Count
    pod_entries: Count
    pod_cache: Frames
    outstanding_flushes: Count
    extents: dict[int, int]
    shatters: dict[int, int]
    nr_updates: Count
    max_mapped: Frame
    problems: list[str]


class DomainAccountRecord(msgspec.Struct, frozen=True, array_like=True):
    """One domain in its home allocator's books, in frames."""

    domid: int
    tot_pages: int
    max_pages: int
    pool_pages: int
    claim: int


class SnapshotNode(Request["NodeSnapshotReply"], frozen=True, tag="snapshot_node"):
    """Everything the audit needs of one NUMA node's allocator; ``full`` False: counters only."""

    node: int
    full: bool = True


class NodeSnapshotReply(Message, frozen=True, tag="snapshot_node_reply"):
    """One NUMA node: heap, books, and the frame table (owners and M2P) in its compact form."""

    node: int
    start: Count
    nr_frames: Count
    free_frames: Count
    block_mfns: bytes
    block_orders: bytes
    frame_table: bytes
    accounts: list[DomainAccountRecord]
    problems: list[str]


class SnapshotWalker(Request["WalkerSnapshotReply"], frozen=True, tag="snapshot_walker"):
    """What a walker has cached."""

    domid: Domid


class WalkerSnapshotReply(Message, frozen=True, tag="snapshot_walker_reply"):
    """TLB content: gfn, mfn and order (u8) of each valid entry, and the cached table frames."""

    domid: Domid
    vcpu: Count
    gfns: bytes
    mfns: bytes
    orders: bytes
    frame_mfns: bytes
