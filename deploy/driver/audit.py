"""Collect snapshots from every component by message, and audit them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

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
from services.spec.findings import AuditReport
from services.spec.invariants import audit
from services.spec.snapshots import DomainAccount, NodeSnapshot, P2mSnapshot, TlbSnapshot


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
    report = audit_snapshots(nodes, p2ms, tlbs)
    total = sum(node.nr_frames for node in nodes)
    free = sum(node.free_frames for node in nodes)
    return TakenAudit(report, total, free, p2ms, accounts)


def audit_snapshots(
    nodes: Sequence[NodeSnapshotReply],
    p2ms: Sequence[P2mSnapshotReply],
    tlbs: Sequence[WalkerSnapshotReply],
) -> AuditReport:
    """Cross-check snapshots that were taken while nothing moved."""
    return audit(
        [_p2m(snapshot) for snapshot in p2ms],
        [_node(snapshot) for snapshot in nodes],
        [
            DomainAccount(each.domid, each.tot_pages, each.max_pages, node.node)
            for node in nodes
            for each in node.accounts
        ],
        [_tlb(snapshot) for snapshot in tlbs],
    )


def _request(request: object) -> Request[Message]:
    return cast("Request[Message]", request)


def _p2m(snapshot: P2mSnapshotReply) -> P2mSnapshot:
    table = snapshot.table
    pool, ptps = unpack(snapshot.pool), unpack(snapshot.ptps)
    return P2mSnapshot(
        domid=table.domid,
        gfns=unpack(table.gfns),
        orders=np.frombuffer(table.orders, dtype=np.uint8),
        mfns=unpack(table.mfns),
        types=np.frombuffer(table.types, dtype=np.uint8),
        ptps=ptps,
        pool_total=int(pool.size),
        pool_used=int(pool.size) - snapshot.pool_free,
        pool_free=snapshot.pool_free,
        pool_mfns=pool,
        pod_entry_count=snapshot.pod_entries,
        pod_cache=unpack(snapshot.pod_cache),
        outstanding_flushes=snapshot.outstanding_flushes,
        max_mapped=snapshot.max_mapped,
        problems=snapshot.problems,
    )


def _node(snapshot: NodeSnapshotReply) -> NodeSnapshot:
    frames = FrameTable.from_bytes(snapshot.frame_table)
    orders = np.frombuffer(snapshot.block_orders, dtype=np.uint8)
    return NodeSnapshot(
        node=snapshot.node,
        start=snapshot.start,
        nr_frames=snapshot.nr_frames,
        free_blocks=(unpack(snapshot.block_mfns), orders),
        free_frames=snapshot.free_frames,
        owner=frames,
        m2p=frames,
        problems=snapshot.problems,
    )


def _tlb(snapshot: WalkerSnapshotReply) -> TlbSnapshot:
    return TlbSnapshot(
        snapshot.domid,
        snapshot.vcpu,
        unpack(snapshot.gfns),
        unpack(snapshot.mfns),
        np.frombuffer(snapshot.orders, dtype=np.uint8),
    )
