"""What must be true of a quiet host: P2Ms, M2P, owners, heaps, books and walkers compared.

One audit looks at everything at once, as no component can. It is Xen's ``audit_p2m`` with the heap,
the paging pools, populate-on-demand and the TLBs added. Extents are checked by order, one array
each. Pure; nothing is repaired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from protocols.frames import DOMID_XEN
from services.spec import domain_rules, leaf_rules
from services.spec.findings import AuditReport, Violation
from services.spec.host_frames import HostFrames
from services.spec.node_rules import check_node
from services.spec.snapshots import (
    DomainAccount,
    FrameOwners,
    MachineToPhys,
    NodeSnapshot,
    P2mSnapshot,
    TlbSnapshot,
)

__all__ = [
    "INVARIANTS",
    "AuditReport",
    "DomainAccount",
    "FrameOwners",
    "MachineToPhys",
    "NodeSnapshot",
    "P2mSnapshot",
    "TlbSnapshot",
    "Violation",
    "audit",
]

INVARIANTS: Final = {
    "leaf_aligned": "A leaf's gfn and mfn are aligned to its order, and leaves do not overlap.",
    "max_mapped": "No leaf maps a gfn above max_mapped_pfn.",
    "leaf_owned": "A RAM leaf maps frames of its domain, a grant or foreign one those of another.",
    "m2p_matches": "M2P[mfn + i] = gfn + i for every frame of every RAM leaf (p2m_bad).",
    "m2p_backed": "An owned frame with a valid M2P word has the leaf that says so (m2p_bad).",
    "mapped_once": "No frame is under two RAM leaves, in one domain or two.",
    "free_unowned": "No frame is both free in the heap and owned.",
    "frames_accounted": "Heap free, owned, pools and offlined frames add up to the node.",
    "heap_blocks": "Free blocks are aligned, disjoint and counted.",
    "heap_merged": "No two free buddies are unmerged.",
    "ptp_reached_once": "Every table is reached exactly once.",
    "ptp_from_pool": "Every table is a frame of its domain's paging pool.",
    "pool_accounted": "Pool total = used + free, each frame Xen's, in one pool, used if a table.",
    "tot_pages": "A domain's tot_pages are its owned frames, at most max_pages, in one book.",
    "pod_entry_count": "entry_count is the frames under PoD entries.",
    "pod_cache": "The PoD cache holds distinct owned frames that no gfn maps.",
    "tlb_coherent": "No walker holds a translation that differs from the table.",
    "flushed": "No flush is outstanding.",
    "own_audit": "The structure's own audit finds nothing.",
}
"""Every invariant by name, each in one sentence."""


def audit(
    p2ms: Sequence[P2mSnapshot],
    nodes: Sequence[NodeSnapshot],
    accounts: Sequence[DomainAccount],
    tlbs: Sequence[TlbSnapshot],
) -> AuditReport:
    """Check every invariant of a quiet host (``audit_p2m`` and more).

    Args:
        p2ms: One for each domain to be looked at.
        nodes: All nodes, disjoint.
        accounts: The books of all domains, those without a P2M here too. If each has its P2M here,
            frames that Xen owns outside every pool are reported as well.
        tlbs: The walkers; of a domain without P2M here, every entry is stale.
    """
    report = AuditReport()
    host = HostFrames(nodes)
    by_domid = {p2m.domid: p2m for p2m in p2ms}
    booked = {account.domid for account in accounts}
    for node in nodes:
        check_node(node, host, {DOMID_XEN, *booked, *by_domid}, report)
    domain_rules.check_accounts(accounts, host, report)
    own: list[leaf_rules.OwnLeaves] = []
    for p2m in p2ms:
        domain_rules.check_quiet(p2m, report)
        domain_rules.check_pool(p2m, host, report)
        domain_rules.check_pod(p2m, host, report)
        own.append(leaf_rules.check_leaves(p2m, host, report))
        if p2m.domid not in booked:
            report.add("tot_pages", "the domain is in no book", p2m.domid)
    leaf_rules.check_mapped_once(own, report)
    complete = booked <= by_domid.keys()
    domain_rules.check_pools_apart(p2ms, host, complete=complete, report=report)
    for tlb in tlbs:
        domain_rules.check_tlb(tlb, by_domid.get(tlb.domid), report)
    return report
