"""What must be true of each domain: its books, its paging pool, PoD, and its walkers' TLBs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from protocols.frames import DOMID_XEN, INVALID_FRAME
from protocols.p2m_types import HOLE_TYPES, P2mType
from services.spec import runs
from services.spec.findings import AuditReport, Violation
from services.spec.host_frames import HostFrames, owner_name
from services.spec.snapshots import DomainAccount, P2mSnapshot, TlbSnapshot

UNREACHABLE: Final = np.zeros(256, dtype=np.bool_)
"""By type: no access gets through such a leaf, so no walker may have cached one."""
UNREACHABLE[
    [
        *HOLE_TYPES,
        P2mType.POPULATE_ON_DEMAND,
        P2mType.RAM_PAGING_OUT,
        P2mType.RAM_BROKEN,
    ]
] = True


def check_accounts(
    accounts: Sequence[DomainAccount], host: HostFrames, report: AuditReport
) -> None:
    """tot_pages is what the domain owns, and no more than max_pages; one book a domain."""
    seen = dict[int, int]()
    for account in accounts:
        domid, tot_pages = account.domid, account.tot_pages
        nr_owned = runs.total(host.owned_runs(domid))
        if domid in seen:
            message = f"in the books of node {seen[domid]} and of node {account.home_node}"
            report.add("tot_pages", message, domid)
        seen[domid] = account.home_node
        if tot_pages != nr_owned:
            report.add("tot_pages", f"tot_pages {tot_pages}, but it owns {nr_owned} frames", domid)
        if tot_pages > account.max_pages:
            report.add("tot_pages", f"tot_pages {tot_pages} of {account.max_pages} allowed", domid)


def check_quiet(p2m: P2mSnapshot, report: AuditReport) -> None:
    """The table's own audit is content and no flush is owed."""
    for problem in p2m.problems:
        report.add("own_audit", problem, p2m.domid)
    if p2m.outstanding_flushes:
        report.add("flushed", f"{p2m.outstanding_flushes} flushes are outstanding", p2m.domid)


def check_pool(p2m: P2mSnapshot, host: HostFrames, report: AuditReport) -> None:
    """Tables reached once each, all of them pool frames; the pool's counts; Xen owns it."""
    domid, pool = p2m.domid, p2m.pool_mfns
    report.checked += pool.size
    tables, times = np.unique(p2m.ptps, return_counts=True)
    report.add_each(
        times > 1,
        lambda at: Violation(
            "ptp_reached_once", f"table reached {times[at]} times", domid, None, int(tables[at])
        ),
    )
    report.add_each(
        ~np.isin(tables, pool),
        lambda at: Violation(
            "ptp_from_pool", "table is no frame of the pool", domid, None, int(tables[at])
        ),
    )
    if not p2m.pool_total == pool.size == p2m.pool_used + p2m.pool_free:
        message = (
            f"{pool.size} frames in the pool: total {p2m.pool_total}, "
            f"used {p2m.pool_used}, free {p2m.pool_free}"
        )
        report.add("pool_accounted", message, domid)
    if p2m.pool_used != tables.size:
        message = f"{p2m.pool_used} pool frames used, {tables.size} tables reached"
        report.add("pool_accounted", message, domid)
    owners = host.owners(pool)
    report.add_each(
        owners != DOMID_XEN,
        lambda at: Violation(
            "pool_accounted", f"pool frame is {owner_name(int(owners[at]))}", domid, None,
            int(pool[at]),
        ),
    )  # fmt: skip


def check_pools_apart(
    p2ms: Sequence[P2mSnapshot], host: HostFrames, *, complete: bool, report: AuditReport
) -> None:
    """No frame in two pools; if these are all pools there are, Xen owns nothing else."""
    if not p2ms:
        return
    frames = np.concatenate([p2m.pool_mfns for p2m in p2ms])
    domids = np.repeat([p2m.domid for p2m in p2ms], [p2m.pool_mfns.size for p2m in p2ms])
    where = np.argsort(frames, kind="stable")
    frames, domids = frames[where], domids[where]
    twice = np.zeros(frames.size, dtype=np.bool_)
    twice[1:] = frames[1:] == frames[:-1]
    report.add_each(
        twice,
        lambda at: Violation(
            "pool_accounted", f"also in the pool of d{domids[at - 1]}", int(domids[at]), None,
            int(frames[at]),
        ),
    )  # fmt: skip
    if not complete:
        return
    starts, lengths = runs.subtract(host.owned_runs(DOMID_XEN), runs.of_frames(frames))
    report.add_each(
        lengths > 0,
        lambda at: Violation(
            "pool_accounted", f"{lengths[at]} frames from this one are Xen's and in no pool",
            None, None, int(starts[at]),
        ),
    )  # fmt: skip


def check_pod(p2m: P2mSnapshot, host: HostFrames, report: AuditReport) -> None:
    """entry_count is the frames under PoD entries; the cache holds owned frames without gfn."""
    domid, cache = p2m.domid, p2m.pod_cache
    marked = p2m.types == P2mType.POPULATE_ON_DEMAND
    under = int((np.uint64(1) << p2m.orders[marked].astype(np.uint64)).sum(dtype=np.uint64))
    if under != p2m.pod_entry_count:
        message = f"entry_count {p2m.pod_entry_count}, but {under} frames lie under PoD entries"
        report.add("pod_entry_count", message, domid)
    report.checked += cache.size
    frames, times = np.unique(cache, return_counts=True)
    owners, words = host.owners(frames), host.m2p(frames)

    def describe(at: int) -> Violation:
        message = f"cached {times[at]} times, {owner_name(int(owners[at]))}"
        gfn = None if words[at] == INVALID_FRAME else int(words[at])
        return Violation("pod_cache", message, domid, gfn, int(frames[at]))

    report.add_each((times > 1) | (owners != domid) | (words != INVALID_FRAME), describe)


def check_tlb(tlb: TlbSnapshot, p2m: P2mSnapshot | None, report: AuditReport) -> None:
    """Every cached translation is what the table says now."""
    report.checked += tlb.gfns.size
    if p2m is None or not p2m.gfns.size:
        stale = np.ones(tlb.gfns.size, dtype=np.bool_)
    else:
        at = np.searchsorted(p2m.gfns, tlb.gfns, side="right") - 1
        before = at < 0
        at[before] = 0
        offset = tlb.gfns - p2m.gfns[at]
        leaf_size = np.uint64(1) << p2m.orders[at].astype(np.uint64)
        size = np.uint64(1) << tlb.orders.astype(np.uint64)
        right = ~before & ~UNREACHABLE[p2m.types[at]] & (tlb.mfns == p2m.mfns[at] + offset)
        stale = ~(right & (offset + size <= leaf_size))
        for index in np.flatnonzero(right & (size > leaf_size)).tolist():
            stale[index] = not _maps_alike(p2m, int(at[index]), tlb, index)

    def describe(index: int) -> Violation:
        gfn, mfn, order = (int(column[index]) for column in (tlb.gfns, tlb.mfns, tlb.orders))
        message = f"vcpu {tlb.vcpu} has this cached, the table {_says(p2m, gfn)}"
        return Violation("tlb_coherent", message, tlb.domid, gfn, mfn, order)

    report.add_each(stale, describe)


def _maps_alike(p2m: P2mSnapshot, first: int, tlb: TlbSnapshot, index: int) -> bool:
    """Whether smaller leaves from ``first`` on map just what a larger TLB entry does."""
    end = int(tlb.gfns[index]) + (1 << int(tlb.orders[index]))
    last = int(np.searchsorted(p2m.gfns, end))
    gfns, mfns = p2m.gfns[first:last], p2m.mfns[first:last]
    sizes = np.uint64(1) << p2m.orders[first:last].astype(np.uint64)
    if runs.total((gfns, sizes)) != end - int(gfns[0]):
        return False
    deltas = mfns - gfns
    return bool((deltas == deltas[0]).all() and not UNREACHABLE[p2m.types[first:last]].any())


def _says(p2m: P2mSnapshot | None, gfn: int) -> str:
    """What a table has for a gfn, for a message."""
    at = -1 if p2m is None else int(np.searchsorted(p2m.gfns, gfn, side="right")) - 1
    if p2m is None or at < 0:
        return "nothing"
    offset = gfn - int(p2m.gfns[at])
    order, p2mt = int(p2m.orders[at]), int(p2m.types[at])
    if offset >> order or UNREACHABLE[p2mt]:
        return "nothing"
    return f"mfn {int(p2m.mfns[at]) + offset:#x} order {order}"
