"""What must be true of each node: the buddy heap's shape, and that every frame is somewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from protocols.frames import DOMID_INVALID, MAX_ORDER, FrameArray, expand
from services.spec import runs
from services.spec.findings import AuditReport, Violation
from services.spec.host_frames import HostFrames, owner_name
from services.spec.snapshots import BoolArray, ByteArray, NodeSnapshot, Runs


def check_node(
    node: NodeSnapshot, host: HostFrames, owners: Iterable[int], report: AuditReport
) -> None:
    """All rules of one node; ``owners`` are the domids that may own frames, Xen's among them."""
    for problem in node.problems:
        report.add("own_audit", f"node {node.node}: {problem}")
    mfns, orders = node.free_blocks
    by_mfn = np.argsort(mfns, kind="stable")
    mfns, orders = mfns[by_mfn], orders[by_mfn]
    blocks = (mfns, np.uint64(1) << orders.astype(np.uint64))
    report.checked += runs.total(blocks)
    usable = _check_blocks(node, mfns, orders, report)
    _check_buddies(node, mfns, orders, report)
    _check_free(node, mfns[usable], orders[usable], report)
    _check_sum(node, host, blocks, owners, report)


def _check_blocks(
    node: NodeSnapshot, mfns: FrameArray, orders: ByteArray, report: AuditReport
) -> BoolArray:
    """Blocks aligned, disjoint, in the node, none with frame 0; which can be looked up."""
    sizes = np.uint64(1) << orders.astype(np.uint64)

    def broken(how: str) -> Callable[[int], Violation]:
        def describe(at: int) -> Violation:
            return Violation(
                "heap_blocks", f"free block of node {node.node} {how}", None, None,
                int(mfns[at]), int(orders[at]),
            )  # fmt: skip

        return describe

    crooked = (mfns & (sizes - np.uint64(1))) != 0
    report.add_each(crooked, broken("is not aligned"))
    ends = mfns + sizes
    overlaps = np.zeros(mfns.size, dtype=np.bool_)
    overlaps[1:] = mfns[1:] < np.maximum.accumulate(ends)[:-1]
    report.add_each(overlaps, broken("overlaps another"))
    outside = (mfns < max(1, node.start)) | (ends > node.start + node.nr_frames)
    report.add_each(outside, broken("lies outside it"))
    report.add_each(orders > MAX_ORDER, broken(f"is above MAX_ORDER, {MAX_ORDER}"))
    nr_free = runs.total((mfns, sizes))
    if nr_free != node.free_frames:
        message = f"node {node.node}: {nr_free} frames in free blocks, {node.free_frames} counted"
        report.add("heap_blocks", message)
    return ~(crooked | outside)


def _check_buddies(
    node: NodeSnapshot, mfns: FrameArray, orders: ByteArray, report: AuditReport
) -> None:
    """No two free buddies that ``free_heap_pages`` would have merged."""
    for order in np.unique(orders[orders < MAX_ORDER]).tolist():
        same = mfns[orders == order]
        lower = same[(same >> order & 1) == 0]
        apart = np.isin(lower + (1 << order), same, assume_unique=True)

        def describe(at: int, lower: FrameArray = lower, order: int = order) -> Violation:
            message = f"free buddies of node {node.node} are not merged"
            return Violation("heap_merged", message, None, None, int(lower[at]), order)

        report.add_each(apart, describe)


def _check_free(
    node: NodeSnapshot, mfns: FrameArray, orders: ByteArray, report: AuditReport
) -> None:
    """No frame both free and owned."""
    for order in np.unique(orders).tolist():
        same = mfns[orders == order]
        owned = ~node.owner.owner_uniform(same, order, DOMID_INVALID)

        def describe(at: int, same: FrameArray = same, order: int = order) -> Violation:
            frames = expand(same[at : at + 1], order)
            owners = node.owner.owner(frames)
            first = int((owners != DOMID_INVALID).argmax())
            owner = int(owners[first])
            message = f"free in the heap of node {node.node}, but {owner_name(owner)}"
            return Violation("free_unowned", message, owner, None, int(frames[first]), order)

        report.add_each(owned, describe)


def _check_sum(
    node: NodeSnapshot, host: HostFrames, blocks: Runs, owners: Iterable[int], report: AuditReport
) -> None:
    """Free, owned by somebody known and offlined are all there is. Frame 0 is nobody's."""
    start, end = max(1, node.start), node.start + node.nr_frames
    owned = [host.owned_runs(domid, node.node) for domid in sorted(owners)]
    nr_owned = sum(runs.total(part) for part in owned)
    if node.free_frames + nr_owned + node.nr_offlined == end - start:
        return
    everything = (np.array([start], np.uint64), np.array([end - start], np.uint64))
    nowhere, lengths = runs.subtract(everything, runs.together([blocks, *owned]))
    first = int(nowhere[0]) if nowhere.size else None
    message = (
        f"node {node.node}: {node.free_frames} free + {nr_owned} owned + "
        f"{node.nr_offlined} offlined frames are not {end - start}"
    )
    if first is not None:
        owner = int(host.owners(nowhere[:1])[0])
        message += f"; {int(lengths[0])} frames from this one are in no list, {owner_name(owner)}"
    report.add("frames_accounted", message, None, None, first)
