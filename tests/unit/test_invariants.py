"""The audit: a healthy host has no violations, and each planted disagreement its own."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.frames import DOMID_INVALID, DOMID_XEN, INVALID_FRAME, expand
from protocols.p2m_types import P2mType
from services.heap.frame_table import FrameTable
from services.spec.invariants import (
    REPORTS_MAX,
    Account,
    AuditReport,
    FrameAccess,
    NodeSnapshot,
    P2mSnapshot,
    TlbSnapshot,
    audit,
)

NODE_FRAMES = 4096
RAM, POD, MMIO = P2mType.RAM_RW, P2mType.POPULATE_ON_DEMAND, P2mType.MMIO_DIRECT


def u64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


class DenseFrames:
    """The accessors of a frame table, from two plain arrays."""

    def __init__(self, start: int, nr: int) -> None:
        self.start = start
        self.owners = np.full(nr, DOMID_INVALID, dtype=np.uint16)
        self.words = np.full(nr, INVALID_FRAME, dtype=np.uint64)

    def _at(self, mfns):
        at = mfns.astype(np.int64) - self.start
        assert ((at >= 0) & (at < self.owners.size)).all(), "asked about another node's frame"
        return at

    def owner(self, mfns):
        return self.owners[self._at(mfns)]

    def m2p(self, mfns):
        return self.words[self._at(mfns)]

    def owner_uniform(self, mfns, order, domid):
        return (self.owner(expand(mfns, order)) == domid).reshape(-1, 1 << order).all(axis=1)

    def m2p_matches(self, mfns, gfns, order):
        same = self.m2p(expand(mfns, order)) == expand(gfns, order)
        return same.reshape(-1, 1 << order).all(axis=1)

    def owned_runs(self, domid):
        mine = np.concatenate(([0], (self.owners == domid).astype(np.int8), [0]))
        starts, ends = np.flatnonzero(np.diff(mine) == 1), np.flatnonzero(np.diff(mine) == -1)
        return (starts + self.start).astype(np.uint64), (ends - starts).astype(np.uint64)

    def count_owned(self, domid):
        return int((self.owners == domid).sum())


@dataclass
class World:
    """Two nodes and two domains, in agreement until a test says otherwise."""

    frames: list[DenseFrames]
    p2ms: dict[int, P2mSnapshot]
    accounts: dict[int, Account]
    tlbs: list[TlbSnapshot] = field(default_factory=list)
    blocks: dict[int, NodeSnapshot] = field(default_factory=dict)

    def frame(self, mfn: int) -> tuple[DenseFrames, int]:
        return self.frames[mfn // NODE_FRAMES], mfn % NODE_FRAMES

    def own(self, mfn: int, domid: int) -> None:
        node, at = self.frame(mfn)
        node.owners[at] = domid

    def m2p(self, mfn: int, gfn: int) -> None:
        node, at = self.frame(mfn)
        node.words[at] = gfn

    def p2m(self, domid: int, **changes: Any) -> None:
        self.p2ms[domid] = replace(self.p2ms[domid], **changes)

    def leaf(self, domid: int, i: int, **changes: int) -> None:
        for name, value in changes.items():
            column = getattr(self.p2ms[domid], name).copy()
            column[i] = value
            self.p2m(domid, **{name: column})

    def books(self, domid: int, **changes: int) -> None:
        self.accounts[domid] = replace(self.accounts[domid], **changes)

    def freeze_heap(self) -> None:
        """Fix the free blocks as they are, whatever happens to owners later."""
        for i, node in enumerate(self.frames):
            free = np.flatnonzero(node.owners == DOMID_INVALID) + node.start
            orders = np.zeros(free.size, dtype=np.uint8)
            self.blocks[i] = NodeSnapshot(
                i, node.start, NODE_FRAMES, free.astype(np.uint64), orders, free.size, node
            )

    def heap(self, i: int, **changes: Any) -> None:
        self.blocks[i] = replace(self.blocks[i], **changes)

    def audit(self) -> AuditReport:
        nodes = list(self.blocks.values())
        return audit(list(self.p2ms.values()), nodes, list(self.accounts.values()), self.tlbs)

    def check(self, *lines: str) -> AuditReport:
        report = self.audit()
        assert [str(violation) for violation in report.violations] == list(lines)
        return report


def p2m_of(domid, leaves, ptps, pool, cache=()) -> P2mSnapshot:
    gfns, orders, mfns, types = (np.array(c) for c in zip(*leaves, strict=True))
    pod = sum(1 << o for o, t in zip(orders.tolist(), types.tolist(), strict=True) if t == POD)
    return P2mSnapshot(
        domid,
        gfns.astype(np.uint64),
        orders.astype(np.uint8),
        mfns.astype(np.uint64),
        types.astype(np.uint8),
        types != POD,
        u64(*ptps),
        u64(*pool),
        len(pool) - len(ptps),
        pod,
        u64(*cache),
        0,
    )


def tlb_of(domid, vcpu, entries, frame_mfns=()) -> TlbSnapshot:
    gfns, mfns, orders = (np.array(c, dtype=np.uint64) for c in zip(*entries, strict=True))
    return TlbSnapshot(domid, vcpu, gfns, mfns, orders.astype(np.uint8), u64(*frame_mfns))


def healthy() -> World:
    """Domain 1: two 4K leaves, 2M on each node, PoD; domain 2: 2M and a device."""
    one = [(0, 0, 0x10, RAM), (1, 0, 0x12, RAM), (0x200, 9, 0x200, RAM), (0x400, 9, 0x1200, RAM)]
    one += [(0x600, 9, 0, POD), (0x800, 0, 0, POD)]
    two = [(0x200, 9, 0x400, RAM), (0x400, 0, 0xFEE00, MMIO)]
    world = World(
        [DenseFrames(0, NODE_FRAMES), DenseFrames(NODE_FRAMES, NODE_FRAMES)],
        {
            1: p2m_of(1, one, (0x20, 0x21), (0x20, 0x21, 0x22), cache=(0x30, 0x31)),
            2: p2m_of(2, two, (0x1023,), (0x1023, 0x24)),
        },
        {1: Account(1, 2 + 1024 + 2, 2000, 3, 100), 2: Account(2, 512, 512, 2, 0)},
        [
            tlb_of(1, 0, [(1, 0x12, 0), (0x400, 0x1200, 9)], (0x20,)),
            tlb_of(2, 3, [(0x210, 0x410, 0)]),
        ],
    )
    for domid, p2m in world.p2ms.items():
        for gfn, order, mfn, kind in (one, two)[domid - 1]:
            for i in range(1 << order if kind == RAM else 0):
                world.own(mfn + i, domid)
                world.m2p(mfn + i, gfn + i)
        for mfn in p2m.pod_cache.tolist():
            world.own(mfn, domid)
        for mfn in p2m.pool.tolist():
            world.own(mfn, DOMID_XEN)
    world.freeze_heap()
    return world


@pytest.fixture
def world() -> World:
    return healthy()


def test_healthy_host(world):
    report = world.check()
    assert report.checked == 2 + 1024 + 512 + 2 + 5
    assert (report.orphans, report.m2p_bad, report.p2m_bad) == (0, 0, 0)


def test_frame_table_has_the_accessors(world):
    table = FrameTable(0, 2 * NODE_FRAMES)
    access: FrameAccess = table
    for node in world.frames:
        for i, (domid, gfn) in enumerate(zip(node.owners, node.words, strict=True)):
            if domid != DOMID_INVALID:
                mfn = u64(node.start + i)
                table.set_owner(mfn, 0, int(domid), expected=DOMID_INVALID)
                table.set_m2p(mfn, np.array([gfn]), 0)
    free = np.concatenate([snapshot.block_mfns for snapshot in world.blocks.values()])
    orders = np.zeros(free.size, dtype=np.uint8)
    nodes = [NodeSnapshot(0, 0, 2 * NODE_FRAMES, free, orders, free.size, access)]
    report = audit([*world.p2ms.values()], nodes, [*world.accounts.values()], world.tlbs)
    assert not report.violations
    table.set_m2p(u64(0x205), u64(7), 0)
    report = audit([*world.p2ms.values()], nodes, [*world.accounts.values()], world.tlbs)
    assert [str(v) for v in report.violations] == [
        "m2p: domid 1 gfn 0x205 mfn 0x205 order 9: M2P entry is 0x7"
    ]


def test_no_domains_and_no_nodes():
    assert audit([], [], [], []) == AuditReport(0, [], 0, 0, 0)


# -- leaves ------------------------------------------------------------------------------------


def test_misaligned_mfn(world):
    """The frames agree one by one; only the superpage over them is impossible."""
    for i in range(512):
        world.own(0x600 + i, 2)
    for at in range(0x400, 0x800):
        world.own(at, 2 if 0x401 <= at < 0x601 else DOMID_INVALID)
        world.m2p(at, at - 0x401 + 0x200)
    world.m2p(0x400, INVALID_FRAME)
    world.leaf(2, 0, mfns=0x401)
    world.freeze_heap()
    world.tlbs.pop()
    world.check("aligned: domid 2 gfn 0x200 mfn 0x401 order 9: leaf is not aligned to its order")


def test_misaligned_gfn(world):
    world.leaf(2, 0, gfns=0x100)
    for i in range(512):
        world.m2p(0x400 + i, 0x100 + i)
    world.tlbs.pop()
    world.check("aligned: domid 2 gfn 0x100 mfn 0x400 order 9: leaf is not aligned to its order")


def test_leaf_on_no_node(world):
    world.leaf(2, 0, mfns=0x4000)
    world.tlbs.pop()
    for mfn in range(0x400, 0x600):
        world.own(mfn, DOMID_INVALID)
    world.freeze_heap()
    world.books(2, tot_pages=0)
    report = world.check(
        "owner: domid 2 gfn 0x200 mfn 0x4000 order 9: the frames are of no single node"
    )
    assert report.p2m_bad == 512


@pytest.mark.parametrize("owner", [DOMID_INVALID, DOMID_XEN, 2])
def test_frame_under_a_superpage_is_not_owned(world, owner):
    world.own(0x233, owner)
    report = world.audit()
    first = str(report.violations[0])
    assert first == f"owner: domid 1 gfn 0x233 mfn 0x233 order 9: owner is {owner:#x}"
    assert report.p2m_bad == 1
    later = {violation.invariant for violation in report.violations[1:]}
    # The owner's books, or the host's sum, are wrong with it.
    expected = {DOMID_INVALID: {"account", "total"}, DOMID_XEN: {"account", "pool"}}
    assert later == expected.get(owner, {"account", "leafless"})


@pytest.mark.parametrize("gfn", [7, INVALID_FRAME])
def test_m2p_disagrees_under_a_superpage(world, gfn):
    world.m2p(0x1233, gfn)
    report = world.check(f"m2p: domid 1 gfn 0x433 mfn 0x1233 order 9: M2P entry is {gfn:#x}")
    assert (report.orphans, report.m2p_bad, report.p2m_bad) == (0, 0, 1)


def test_m2p_disagrees_on_a_4k_leaf(world):
    world.m2p(0x12, 2)
    world.check("m2p: domid 1 gfn 0x1 mfn 0x12 order 0: M2P entry is 0x2")


def test_two_domains_map_one_frame(world):
    world.leaf(2, 1, mfns=0x205, types=RAM)
    lines = [str(violation) for violation in world.audit().violations]
    assert lines == [
        "owner: domid 2 gfn 0x400 mfn 0x205 order 0: owner is 0x1",
        "twice: domid 2 gfn 0x400 mfn 0x205 order 0: "
        "also mapped by domid 1 gfn 0x200 mfn 0x200 order 9",
    ]


def test_one_domain_maps_a_frame_twice(world):
    world.leaf(1, 5, mfns=0x12, types=RAM, present=True)
    world.p2m(1, pod_entries=512)
    world.check(
        "m2p: domid 1 gfn 0x800 mfn 0x12 order 0: M2P entry is 0x1",
        "twice: domid 1 gfn 0x800 mfn 0x12 order 0: "
        "also mapped by domid 1 gfn 0x1 mfn 0x12 order 0",
    )


def test_leaf_lost(world):
    """The domain still owns the frames and the M2P still names the gfns: nothing maps them."""
    world.leaf(2, 0, types=P2mType.INVALID, present=False)
    world.tlbs.pop()
    report = world.audit()
    assert {violation.invariant for violation in report.violations} == {"leafless"}
    assert len(report.violations) == REPORTS_MAX + 1
    assert str(report.violations[0]) == (
        "leafless: domid 2 gfn 0x200 mfn 0x400 order 0: "
        "the M2P names a gfn that no leaf maps to this frame"
    )
    assert str(report.violations[-1]) == f"leafless: ... and {512 - REPORTS_MAX} more"
    assert (report.orphans, report.m2p_bad) == (0, 512)


def test_stray_frame_with_m2p_entry(world):
    world.own(0x50, 2)
    world.m2p(0x50, 0x999)
    world.freeze_heap()
    world.books(2, tot_pages=513, max_pages=513)
    report = world.check(
        "leafless: domid 2 gfn 0x999 mfn 0x50 order 0: "
        "the M2P names a gfn that no leaf maps to this frame"
    )
    assert report.m2p_bad == 1


def test_orphans_are_counted_only(world):
    world.own(0x50, 2)
    world.own(0x1800, 2)
    world.freeze_heap()
    world.books(2, tot_pages=514, max_pages=514)
    report = world.check()
    assert (report.orphans, report.m2p_bad) == (2, 0)


# -- books -------------------------------------------------------------------------------------


def test_tot_pages(world):
    world.books(2, tot_pages=511)
    world.check("account: domid 2: owns 512 frames, tot_pages 511")


def test_max_pages(world):
    world.books(2, max_pages=511)
    world.check("account: domid 2: tot_pages 512 > max_pages 511")


def test_no_account(world):
    del world.accounts[2]
    world.check("account: domid 2: no account; owns 512 frames")


def test_account_without_p2m(world):
    world.accounts[3] = Account(3, 0, 10, 0, 0)
    world.check()
    world.books(3, tot_pages=4)
    world.check("account: domid 3: owns 0 frames, tot_pages 4")


def test_claims(world):
    free = sum(snapshot.free_frames for snapshot in world.blocks.values())
    world.books(2, claim=free - 100)
    world.check()
    world.books(2, claim=free)
    world.check(f"claims: claims of {free + 100} frames on {free} free ones")


# -- populate on demand ------------------------------------------------------------------------


def test_pod_entries(world):
    world.p2m(1, pod_entries=512)
    world.check("pod: domid 1: 513 frames under PoD entries, 512 counted")


def test_pod_cache_frame_of_another(world):
    world.p2m(1, pod_cache=u64(0x30, 0x4000))
    report = world.check("pod: domid 1 mfn 0x4000 order 0: cache frame is not the domain's")
    assert report.orphans == 1


def test_pod_cache_frame_with_gfn(world):
    world.m2p(0x31, 0x600)
    world.check("pod: domid 1 mfn 0x31 order 0: cache frame has an M2P entry")


def test_pod_cache_frame_twice(world):
    world.p2m(1, pod_cache=u64(0x30, 0x31, 0x30))
    world.check("pod: domid 1 mfn 0x30 order 0: frame is twice in the cache")


def test_pod_cache_beyond_tot_pages(world):
    world.books(1, tot_pages=1)
    world.check(
        "pod: domid 1: cache of 2 frames, tot_pages 1",
        "account: domid 1: owns 1028 frames, tot_pages 1",
    )


# -- heap --------------------------------------------------------------------------------------


def test_frame_free_and_owned(world):
    world.own(0x1900, 2)
    world.books(2, tot_pages=513, max_pages=513)
    report = world.check("free: domid 2 mfn 0x1900 order 0: frame is owned, yet free in the heap")
    assert report.orphans == 1


def test_frame_neither_free_nor_owned(world):
    mfns, orders = world.blocks[1].block_mfns[1:], world.blocks[1].block_orders[1:]
    world.heap(1, block_mfns=mfns, block_orders=orders, free_frames=mfns.size)
    report = world.audit()
    assert [violation.invariant for violation in report.violations] == ["total"]


def test_frame_of_an_unknown_owner(world):
    world.own(0x1900, 9)
    world.freeze_heap()
    assert [violation.invariant for violation in world.audit().violations] == ["total"]


def test_free_count(world):
    nr = world.blocks[0].free_frames
    world.heap(0, free_frames=nr + 1)
    world.check(f"heap: node 0: blocks of {nr} frames, {nr + 1} counted")


@pytest.mark.parametrize(("mfn", "order"), [(0x800, 1), (0x801, 1), (0x5000, 0)])
def test_block_overlaps_or_is_astray(world, mfn, order):
    old = world.blocks[0]
    mfns = np.append(old.block_mfns, u64(mfn))
    orders = np.append(old.block_orders, np.uint8(order))
    world.heap(0, block_mfns=mfns, block_orders=orders, free_frames=old.free_frames + (1 << order))
    assert "heap" in {violation.invariant for violation in world.audit().violations}


def test_problems_are_passed_on(world):
    world.heap(1, problems=["two free buddies unmerged"])
    world.p2m(2, problems=["root is missing"])
    world.check("heap: node 1: two free buddies unmerged", "table: domid 2: root is missing")


# -- tables ------------------------------------------------------------------------------------


def test_leaves_overlap(world):
    world.leaf(2, 1, gfns=0x3FF)
    world.check(
        "table: domid 2 gfn 0x3ff mfn 0xfee00 order 0: leaf begins before the last one ends"
    )


def test_outstanding_flushes(world):
    world.p2m(2, outstanding_flushes=3)
    world.check("flushes: domid 2: 3 flushes outstanding")


def test_table_reached_twice(world):
    world.p2m(1, ptps=u64(0x20, 0x21, 0x20), pool_free=0)
    world.check("ptp: domid 1 mfn 0x20 order 0: table is reached twice")


def test_table_not_of_the_pool(world):
    world.p2m(2, ptps=u64(0x99))
    world.check("ptp: domid 2 mfn 0x99 order 0: table is not of the pool")


def test_pool_free_count(world):
    world.p2m(1, pool_free=2)
    world.check("pool: domid 1: 2 tables, pool of 3 with 2 free")


def test_pool_pages(world):
    world.books(1, pool_pages=4)
    world.check("pool: domid 1: pool of 3 frames, pool_pages 4")


def test_pool_frame_not_xens(world):
    world.own(0x22, DOMID_INVALID)
    world.freeze_heap()
    world.check(
        "pool: domid 1 mfn 0x22 order 0: pool frame is not DOMID_XEN's",
        "pool: DOMID_XEN owns 4 frames, pools have 5",
    )


def test_pool_frame_leaked(world):
    world.own(0x60, DOMID_XEN)
    world.freeze_heap()
    world.check("pool: DOMID_XEN owns 6 frames, pools have 5")


def test_pool_frame_in_two_pools(world):
    world.p2m(2, pool=u64(0x1023, 0x22))
    world.own(0x24, DOMID_INVALID)
    world.freeze_heap()
    world.check("pool: domid 1 mfn 0x22 order 0: frame is twice in pools, of domids [1, 2]")


# -- walkers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gfn", "mfn", "order"),
    [
        (0, 0x11, 0),  # another frame
        (0x200, 0x200, 18),  # larger than the leaf
        (0x3FF, 0x3FF, 1),  # reaches beyond its leaf
        (2, 0x13, 0),  # a hole
        (0x800, 0, 0),  # populate on demand
        (0x900, 0x100, 0),  # beyond all leaves
    ],
)
def test_stale_translation(world, gfn, mfn, order):
    world.tlbs = [tlb_of(1, 2, [(1, 0x12, 0), (gfn, mfn, order)])]
    world.check(
        f"tlb: domid 1 gfn {gfn:#x} mfn {mfn:#x} order {order}: "
        "vcpu 2 holds a translation that the table does not have"
    )


def test_translation_below_all_leaves(world):
    world.tlbs = [tlb_of(2, 0, [(5, 5, 0)])]
    assert [violation.invariant for violation in world.audit().violations] == ["tlb"]


def test_translation_of_a_domain_without_tables(world):
    world.tlbs = [tlb_of(7, 0, [(5, 5, 0)])]
    assert [violation.domid for violation in world.audit().violations] == [7]


def test_stale_table_frame(world):
    world.tlbs = [tlb_of(1, 1, [(1, 0x12, 0)], (0x20, 0x22))]
    world.check("tlb: domid 1 mfn 0x22 order 0: vcpu 1 holds a copy of a frame that is no table")


# -- reports -----------------------------------------------------------------------------------


def test_reports_are_capped(world):
    world.p2m(1, problems=[f"problem {i}" for i in range(25)])
    world.tlbs = [tlb_of(1, 0, [(0x1000 + i, i, 0) for i in range(30)])]
    lines = [str(violation) for violation in world.audit().violations]
    assert len(lines) == 2 * (REPORTS_MAX + 1)
    assert lines[REPORTS_MAX] == "table: ... and 5 more"
    assert lines[-1] == "tlb: ... and 10 more"


Plant = Callable[[World, int], None]
PLANTS: dict[str, Plant] = {
    "m2p": lambda world, i: world.m2p(0x200 + i, 0x5000 + i),
    "owner": lambda world, i: world.own(0x200 + i, DOMID_INVALID),
    "free": lambda world, i: world.own(0x1800 + i, 2),
}


@pytest.mark.parametrize("invariant", sorted(PLANTS))
@given(offset=st.integers(0, 511))
def test_any_single_frame_is_seen(invariant, offset):
    world = healthy()
    PLANTS[invariant](world, offset)
    found = [v for v in world.audit().violations if v.invariant == invariant]
    assert len(found) == 1
    assert found[0].mfn == (0x1800 if invariant == "free" else 0x200) + offset
