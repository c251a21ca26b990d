"""Collect snapshots from every component by message, and audit them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np

from deploy.runtime import Runtime
from protocols import envelope
from protocols.control import (
    DomainAccountRecord,
    NodeSnapshotReply,
    P2mSnapshotReply,
    SnapshotNode,
    SnapshotP2m,
    SnapshotWalker,
    WalkerSnapshotReply,
)
from protocols.frames import unpack
from protocols.message import Message, Request
from services.heap.frame_table import FrameTable
from services.heap.host import HostConfig
from services.spec.invariants import (
    Account,
    AuditReport,
    NodeSnapshot,
    P2mSnapshot,
    TlbSnapshot,
    audit,
)

PRESENT_BITS: Final = {"npt": 0b001, "ept": 0b111, "pae": 0b001, "x86_32": 0b001}


@dataclass(slots=True)
class TakenAudit:
    """An audit's verdict, and the snapshots that reports are made from."""

    report: AuditReport
    host_total: int
    host_free: int
    p2ms: list[P2mSnapshotReply]
    accounts: list[DomainAccountRecord]


def take_audit(
    runtime: Runtime,
    config: HostConfig,
    domids: Sequence[int],
    walkers: Sequence[tuple[int, int]],
) -> TakenAudit:
    """Snapshot all nodes, these domains and these walkers of a host at rest; cross-check them."""
    requests: list[tuple[str, Request[Message]]] = []
    for node in range(config.nr_nodes):
        requests.append((envelope.allocator(node), _request(SnapshotNode(node))))
    for domid in domids:
        requests.append((envelope.p2m(domid), _request(SnapshotP2m(domid))))
    for domid, vcpu in walkers:
        requests.append((envelope.walker(domid, vcpu), _request(SnapshotWalker(domid))))
    replies = runtime.run(requests)
    nodes = [cast("NodeSnapshotReply", reply) for reply in replies[: config.nr_nodes]]
    rest = replies[config.nr_nodes :]
    p2ms = [cast("P2mSnapshotReply", reply) for reply in rest[: len(domids)]]
    tlbs = [cast("WalkerSnapshotReply", reply) for reply in rest[len(domids) :]]
    accounts = [account for node in nodes for account in node.accounts]
    report = audit(
        [_p2m(snapshot, config.paging) for snapshot in p2ms],
        [_node(snapshot) for snapshot in nodes],
        [
            Account(each.domid, each.tot_pages, each.max_pages, each.pool_pages, each.claim)
            for each in accounts
        ],
        [_tlb(snapshot) for snapshot in tlbs],
    )
    total = sum(node.nr_frames for node in nodes)
    free = sum(node.free_frames for node in nodes)
    return TakenAudit(report, total, free, p2ms, accounts)


def _request(request: object) -> Request[Message]:
    return cast("Request[Message]", request)


def _p2m(snapshot: P2mSnapshotReply, paging: str) -> P2mSnapshot:
    table = snapshot.table
    low12 = np.frombuffer(table.low12, dtype="<u2")
    return P2mSnapshot(
        domid=table.domid,
        gfns=unpack(table.gfns),
        orders=np.frombuffer(table.orders, dtype=np.uint8),
        mfns=unpack(table.mfns),
        types=np.frombuffer(table.types, dtype=np.uint8),
        present=(low12 & PRESENT_BITS[paging]) != 0,
        ptps=unpack(snapshot.ptps),
        pool=unpack(snapshot.pool),
        pool_free=snapshot.pool_free,
        pod_entries=snapshot.pod_entries,
        pod_cache=unpack(snapshot.pod_cache),
        outstanding_flushes=snapshot.outstanding_flushes,
        problems=snapshot.problems,
    )


def _node(snapshot: NodeSnapshotReply) -> NodeSnapshot:
    return NodeSnapshot(
        node=snapshot.node,
        start=snapshot.start,
        nr_frames=snapshot.nr_frames,
        block_mfns=unpack(snapshot.block_mfns),
        block_orders=np.frombuffer(snapshot.block_orders, dtype=np.uint8),
        free_frames=snapshot.free_frames,
        frames=FrameTable.from_bytes(snapshot.frame_table),
        problems=snapshot.problems,
    )


def _tlb(snapshot: WalkerSnapshotReply) -> TlbSnapshot:
    return TlbSnapshot(
        snapshot.domid,
        snapshot.vcpu,
        unpack(snapshot.gfns),
        unpack(snapshot.mfns),
        np.frombuffer(snapshot.orders, dtype=np.uint8),
        unpack(snapshot.frame_mfns),
    )
