"""The audit: silent about a good host, and for each planted disagreement the exact frame."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.frames import DOMID_INVALID, DOMID_XEN, INVALID_FRAME, runs_of
from protocols.p2m_types import P2mType as T
from services.spec import runs
from services.spec.findings import DETAILS_MAX
from services.spec.invariants import (
    INVARIANTS,
    DomainAccount,
    NodeSnapshot,
    P2mSnapshot,
    TlbSnapshot,
    audit,
)

NODE_FRAMES = 1 << 14
POOL, POD = (0x300, 0x310), (0x320, 0x330)


def frames(*numbers):
    return np.array(numbers, dtype=np.uint64)


def span(start, end):
    return np.arange(start, end, dtype=np.uint64)


class DenseFrames:
    """Owners and M2P of a node, one word a frame."""

    def __init__(self, start, nr):
        self.start = start
        self.owners = np.full(nr, DOMID_INVALID, dtype=np.uint16)
        self.words = np.full(nr, INVALID_FRAME, dtype=np.uint64)

    def owner(self, mfns):
        return self.owners[mfns - self.start]

    def m2p(self, mfns):
        return self.words[mfns - self.start]

    def owner_uniform(self, mfns, order, domid):
        assert not (mfns & ((1 << order) - 1)).any()
        every = mfns[:, None] + span(0, 1 << order)
        return (self.owner(every) == domid).all(axis=1)

    def m2p_matches(self, mfns, gfns, order):
        assert not (mfns & ((1 << order) - 1)).any()
        steps = span(0, 1 << order)
        return (self.m2p(mfns[:, None] + steps) == gfns[:, None] + steps).all(axis=1)

    def _runs(self, which):
        return runs_of(np.flatnonzero(which).astype(np.uint64) + self.start)

    def owned_runs(self, domid):
        return self._runs(self.owners == domid)

    def orphans(self, domid):
        return self._runs((self.owners == domid) & (self.words == INVALID_FRAME))


def blocks(free):
    """Free frames as maximal aligned blocks: what a buddy heap of them holds."""
    found = []
    for start, length in zip(*(a.tolist() for a in runs_of(free)), strict=True):
        mfn, end = start, start + length
        while mfn < end:
            order = min((mfn & -mfn).bit_length() - 1, (end - mfn).bit_length() - 1, 18)
            found.append((mfn, order))
            mfn += 1 << order
    return frames(*(f[0] for f in found)), np.array([f[1] for f in found], dtype=np.uint8)


class Host:
    """Two nodes; d1 with 2M and 4K leaves, holes, PoD and an mmio leaf; d2 with memory on both.

    Change what you like, then ``audit``. Books and heap are as they were before the change.
    """

    def __init__(self):
        self.nodes = [DenseFrames(node * NODE_FRAMES, NODE_FRAMES) for node in range(2)]
        self.leaves = {1: {}, 2: {}}
        self.pools = {1: span(*POOL), 2: span(0x310, 0x318)}
        self.cache = {1: span(*POD), 2: frames()}
        for domid in (1, 2):
            self.own(domid, self.cache[domid])
            self.own(DOMID_XEN, self.pools[domid])
        self.populate(1, 0x000, 0x400, 9)
        self.populate(1, 0x200, 0xC00, 9)
        for i in range(8):
            self.populate(1, 0x400 + i, 0x600 + 3 * i, 0)
        self.leaf(1, 0x600, 0xFFFFFFFFFE, 9, T.POPULATE_ON_DEMAND)
        self.leaf(1, 0x800, INVALID_FRAME, 0, T.POPULATE_ON_DEMAND)
        self.leaf(1, 0xFEE00, 0xFFFFFFFFFF, 0, T.MMIO_DIRECT)
        self.leaf(1, 0xFEE01, 0xFEE00, 0, T.MMIO_DIRECT)
        self.populate(2, 0x000, 0x2000, 9, T.RAM_LOGDIRTY)
        self.populate(2, 0x200, NODE_FRAMES + 0x200, 9)
        self.leaf(2, 0x900, 0x400, 0, T.MAP_FOREIGN)
        self.own(2, frames(0x700, 0x701))
        self.tlbs = {
            1: [(0x000, 0x400, 9), (0x403, 0x609, 0), (0x200 + 7, 0xC07, 0)],
            2: [(0x000, 0x2000, 9)],
        }
        self.changes = {1: {}, 2: {}}
        self.node_changes = [{}, {}]
        self.accounts = [
            DomainAccount(1, 2 * 512 + 8 + 16, 4096, 0),
            DomainAccount(2, 2 * 512 + 2, 1026, 1),
        ]
        # Frame 0 is nobody's.
        self.free = [
            span(node.start, node.start + NODE_FRAMES)[node.owners == DOMID_INVALID]
            for node in self.nodes
        ]
        self.free[0] = self.free[0][1:]
        self.blocks = [blocks(free) for free in self.free]

    def node(self, mfn):
        return self.nodes[int(mfn) // NODE_FRAMES]

    def own(self, domid, mfns):
        for mfn in mfns.tolist():
            self.node(mfn).owners[mfn % NODE_FRAMES] = domid

    def m2p(self, mfn, gfn):
        self.node(mfn).words[mfn % NODE_FRAMES] = gfn

    def leaf(self, domid, gfn, mfn, order, p2mt=T.RAM_RW):
        self.leaves[domid][gfn] = (mfn, order, p2mt)

    def populate(self, domid, gfn, mfn, order, p2mt=T.RAM_RW):
        self.leaf(domid, gfn, mfn, order, p2mt)
        self.own(domid, span(mfn, mfn + (1 << order)))
        for i in range(1 << order):
            self.m2p(mfn + i, gfn + i)

    def p2m(self, domid):
        leaves = sorted(self.leaves[domid].items())
        pool = self.pools[domid]
        snapshot = P2mSnapshot(
            domid,
            frames(*(gfn for gfn, _ in leaves)),
            np.array([leaf[1] for _, leaf in leaves], dtype=np.uint8),
            frames(*(leaf[0] for _, leaf in leaves)),
            np.array([leaf[2] for _, leaf in leaves], dtype=np.uint8),
            pool[:5],
            pool.size,
            5,
            pool.size - 5,
            pool,
            sum(1 << leaf[1] for _, leaf in leaves if leaf[2] == T.POPULATE_ON_DEMAND),
            self.cache[domid],
            0,
            0xFEE01,
        )
        return dataclasses.replace(snapshot, **self.changes[domid])

    def audit(self, domids=(1, 2)):
        nodes = []
        for number, node in enumerate(self.nodes):
            nr_free = self.free[number].size
            whole = NodeSnapshot(
                number, node.start, NODE_FRAMES, self.blocks[number], nr_free, node, node
            )
            nodes.append(dataclasses.replace(whole, **self.node_changes[number]))
        tlbs = []
        for domid, entries in self.tlbs.items():
            columns = list(zip(*entries, strict=True)) or [(), (), ()]
            gfns, mfns = frames(*columns[0]), frames(*columns[1])
            tlbs.append(TlbSnapshot(domid, 3, gfns, mfns, np.array(columns[2], dtype=np.uint8)))
        return audit([self.p2m(domid) for domid in domids], nodes, self.accounts, tlbs)


@pytest.fixture
def host():
    return Host()


def found(host, **kwargs):
    """(invariant, domid, gfn, mfn, order) of each violation."""
    report = host.audit(**kwargs)
    assert {v.invariant for v in report.violations} <= INVARIANTS.keys()
    return [(v.invariant, v.domid, v.gfn, v.mfn, v.order) for v in report.violations]


def test_a_good_host(host):
    report = host.audit()
    assert [str(violation) for violation in report.violations] == []
    assert (report.orphans, report.m2p_bad, report.p2m_bad) == (2, 0, 0)
    leaf_frames = 1024 + 8 + 1 + 1024 + 1
    frameless = 2 + 1
    free = sum(free.size for free in host.free)
    assert report.checked == leaf_frames + frameless + free + 24 + 16 + 4


def test_a_misaligned_leaf(host):
    host.leaf(1, 0x200, 0xC01, 9)
    bad = found(host)
    assert bad[0] == ("leaf_aligned", 1, 0x200, 0xC01, 9)
    assert ("leaf_owned", 1, 0x3FF, 0xE00, 9) in bad
    assert ("m2p_matches", 1, 0x200, 0xC01, 9) in bad
    assert ("m2p_backed", 1, 0x200, 0xC00, None) in bad


def test_a_misaligned_gfn_and_an_overlap(host):
    host.leaf(1, 0x7F0, INVALID_FRAME, 9, T.POPULATE_ON_DEMAND)
    bad = found(host)
    assert ("leaf_aligned", 1, 0x7F0, INVALID_FRAME, 9) in bad
    assert ("leaf_aligned", 1, 0x800, INVALID_FRAME, 0) in bad


def test_a_leaf_beyond_max_mapped(host):
    host.changes[2]["max_mapped"] = 0x3FE
    bad = found(host)
    assert ("max_mapped", 2, 0x200, NODE_FRAMES + 0x200, 9) in bad
    assert ("max_mapped", 2, 0x900, 0x400, 0) in bad


@pytest.mark.parametrize("mfn", [0x400, 0x5FF, 0x4AB])
@pytest.mark.parametrize("owner", [2, DOMID_XEN, DOMID_INVALID])
def test_every_frame_of_a_superpage_is_the_domains(host, mfn, owner):
    host.own(owner, frames(mfn))
    assert ("leaf_owned", 1, mfn - 0x400, mfn, 9) in found(host)


def test_a_frame_outside_all_memory(host):
    host.leaf(1, 0x408, 2 * NODE_FRAMES, 0)
    host.leaf(1, 0x2000, 2 * NODE_FRAMES - 0x200 + 0x200, 9)
    bad = found(host)
    assert ("leaf_owned", 1, 0x408, 2 * NODE_FRAMES, 0) in bad
    assert host.audit().p2m_bad == 0


@pytest.mark.parametrize("owner", [DOMID_INVALID, DOMID_XEN])
def test_a_foreign_frame_is_somebodys(host, owner):
    host.own(owner, frames(0x400))
    assert ("leaf_owned", 2, 0x900, 0x400, 0) in found(host)


@pytest.mark.parametrize("offset", [0, 1, 511])
@pytest.mark.parametrize("word", [INVALID_FRAME, 0x12345])
def test_every_m2p_word_of_a_superpage(host, offset, word):
    host.m2p(0xC00 + offset, word)
    bad = found(host)
    assert ("m2p_matches", 1, 0x200 + offset, 0xC00 + offset, 9) in bad
    valid = word != INVALID_FRAME
    assert (("m2p_backed", 1, 0x12345, 0xC00 + offset, None) in bad) == valid
    assert len(bad) == 1 + valid
    report = host.audit()
    assert (report.p2m_bad, report.m2p_bad, report.orphans) == (1, valid, 2 + (not valid))


def test_an_m2p_word_written_for_the_first_frame_only(host):
    for i in range(1, 512):
        host.m2p(0xC00 + i, INVALID_FRAME)
    assert found(host) == [("m2p_matches", 1, 0x201, 0xC01, 9)]
    assert host.audit().p2m_bad == 511


def test_the_m2p_word_of_a_4k_leaf(host):
    host.m2p(0x603, 0x777)
    assert found(host) == [
        ("m2p_matches", 1, 0x401, 0x603, 0),
        ("m2p_backed", 1, 0x777, 0x603, None),
    ]


def test_an_m2p_word_without_leaf(host):
    """The leaf went, the M2P stayed."""
    del host.leaves[1][0x200]
    host.tlbs[1] = []
    assert found(host) == [("m2p_backed", 1, 0x200, 0xC00, None)]
    assert host.audit().m2p_bad == 512


def test_one_frame_under_two_leaves_of_a_domain(host):
    host.leaf(1, 0x500, 0x5AA, 0)
    assert ("mapped_once", 1, 0x500, 0x5AA, 0) in found(host)


def test_one_frame_under_leaves_of_two_domains(host):
    host.leaf(2, 0x600, 0x400, 9)
    bad = found(host)
    assert ("mapped_once", 2, 0x600, 0x400, 9) in bad
    assert ("leaf_owned", 2, 0x600, 0x400, 9) in bad


def test_every_leaf_inside_another_one_is_found(host):
    host.leaf(1, 0x500, 0x400, 0)
    host.leaf(1, 0x501, 0x4AA, 0)
    bad = [v[1:] for v in found(host) if v[0] == "mapped_once"]
    assert bad == [(1, 0x500, 0x400, 0), (1, 0x501, 0x4AA, 0)]
    message = next(str(v) for v in host.audit().violations if v.gfn == 0x501)
    assert "M2P says gfn 0xaa" in message
    text = [str(v) for v in host.audit().violations if v.invariant == "mapped_once"]
    assert text[1].endswith("also under d1 gfn 0xaa order 9")


def test_shared_and_granted_frames_may_have_many_leaves(host):
    host.leaf(2, 0x901, 0x400, 0, T.GRANT_MAP_RW)
    host.leaf(2, 0x902, 0x400, 0, T.GRANT_MAP_RO)
    host.leaf(2, 0x903, 0x400, 0, T.RAM_SHARED)
    host.leaf(2, 0x904, 0x400, 0, T.RAM_SHARED)
    assert found(host) == []


def test_a_free_frame_that_is_owned(host):
    mfn = int(host.free[0][-1])
    host.own(2, frames(mfn))
    bad = found(host)
    block = max(mfns for mfns in host.blocks[0][0].tolist() if mfns <= mfn)
    order = int(host.blocks[0][1][host.blocks[0][0] == block][0])
    assert ("free_unowned", 2, None, mfn, order) in bad
    assert ("tot_pages", 2, None, None, None) in bad


def test_a_leaked_frame(host):
    """Given back by its owner, and never put on a list."""
    host.own(DOMID_INVALID, frames(0x700))
    bad = found(host)
    assert ("frames_accounted", None, None, 0x700, None) in bad


def test_frames_of_a_domain_that_is_gone(host):
    host.own(9, frames(0x700, 0x701))
    report = host.audit()
    lines = [str(v) for v in report.violations if v.invariant == "frames_accounted"]
    assert len(lines) == 1
    assert lines[0].startswith("frames_accounted mfn 0x700: node 0:")
    assert lines[0].endswith("2 frames from this one are in no list, owned by d9")


def test_offlined_frames_are_counted(host):
    mfns, orders = host.blocks[1]
    last = int(mfns.argmax())
    keep = np.arange(mfns.size) != last
    host.blocks[1] = mfns[keep], orders[keep]
    gone = 1 << int(orders[last])
    host.node_changes[1].update(free_frames=host.free[1].size - gone, nr_offlined=gone)
    assert found(host) == []
    host.node_changes[1].update(nr_offlined=0)
    assert found(host) == [("frames_accounted", None, None, int(mfns[last]), None)]


def plant_block(host, node, mfn, order):
    mfns, orders = host.blocks[node]
    host.blocks[node] = np.append(mfns, frames(mfn)), np.append(orders, np.uint8(order))


def test_free_blocks_are_aligned_disjoint_and_counted(host):
    plant_block(host, 1, NODE_FRAMES + 0x3001, 2)
    bad = found(host)
    assert ("heap_blocks", None, None, NODE_FRAMES + 0x3001, 2) in bad
    assert [v[0] for v in bad].count("heap_blocks") == 3
    messages = [str(v) for v in host.audit().violations]
    assert any("not aligned" in line for line in messages)
    assert any("overlaps" in line for line in messages)
    assert any("counted" in line for line in messages)


def test_every_block_inside_another_one_is_found(host):
    mfns, orders = host.blocks[1]
    base = int(mfns[orders.argmax()])
    plant_block(host, 1, base + 2, 0)
    plant_block(host, 1, base + 9, 0)
    bad = found(host)
    assert ("heap_blocks", None, None, base + 2, 0) in bad
    assert ("heap_blocks", None, None, base + 9, 0) in bad


@pytest.mark.parametrize(("mfn", "order"), [(0, 0), (2 * NODE_FRAMES, 1)])
def test_a_free_block_outside_the_node(host, mfn, order):
    plant_block(host, 0, mfn, order)
    assert ("heap_blocks", None, None, mfn, order) in found(host)


def test_unmerged_buddies(host):
    mfns, orders = host.blocks[0]
    at = int(orders.argmax())
    mfn, order = int(mfns[at]), int(orders[at]) - 1
    orders[at] = order
    plant_block(host, 0, mfn + (1 << order), order)
    assert found(host) == [("heap_merged", None, None, mfn, order)]


def test_neighbours_that_are_no_buddies_stay_apart(host):
    """1 and 2-3, 4-7 of frame 1 on: adjacent everywhere, buddies nowhere."""
    mfns, orders = host.blocks[0]
    assert list(zip(mfns.tolist(), orders.tolist(), strict=True))[:3] == [(1, 0), (2, 1), (4, 2)]
    assert found(host) == []


def test_a_table_reached_twice(host):
    host.changes[1]["ptps"] = frames(0x300, 0x301, 0x302, 0x303, 0x304, 0x302)
    assert found(host) == [("ptp_reached_once", 1, None, 0x302, None)]


def test_a_table_from_elsewhere(host):
    host.changes[1]["ptps"] = frames(0x300, 0x301, 0x302, 0x303, 0x700)
    assert found(host) == [("ptp_from_pool", 1, None, 0x700, None)]


@pytest.mark.parametrize(
    "change", [{"pool_total": 15}, {"pool_free": 10}, {"pool_used": 6, "pool_free": 10}]
)
def test_pool_counts(host, change):
    host.changes[1].update(change)
    assert {v[:2] for v in found(host)} == {("pool_accounted", 1)}


def test_a_pool_frame_that_is_not_xens(host):
    host.own(1, frames(0x309))
    assert ("pool_accounted", 1, None, 0x309, None) in found(host)


def test_a_frame_in_two_pools(host):
    host.pools[2] = np.append(host.pools[2], frames(0x30A))
    assert found(host) == [("pool_accounted", 2, None, 0x30A, None)]


def test_a_table_frame_that_no_pool_has(host):
    """A table replaced and forgotten; with a P2M missing here it may be that one's."""
    host.pools[1] = host.pools[1][:-1]
    assert found(host) == [("pool_accounted", None, None, 0x30F, None)]
    host.tlbs[2] = []
    assert found(host, domids=(1,)) == []


@pytest.mark.parametrize("change", [{"tot_pages": 1047}, {"max_pages": 1047}])
def test_the_books(host, change):
    host.accounts[0] = dataclasses.replace(host.accounts[0], **change)
    assert found(host) == [("tot_pages", 1, None, None, None)]


def test_two_books_and_none(host):
    host.accounts.append(dataclasses.replace(host.accounts[0], home_node=1))
    assert found(host) == [("tot_pages", 1, None, None, None)]
    del host.accounts[::2]
    assert found(host) == [("tot_pages", 1, None, None, None)]


def test_pod_entry_count(host):
    host.changes[1]["pod_entry_count"] = 512
    assert found(host) == [("pod_entry_count", 1, None, None, None)]


def test_the_pod_cache(host):
    host.own(2, frames(0x321))
    host.m2p(0x322, 0x500)
    host.changes[1]["pod_cache"] = np.append(host.cache[1], frames(0x323))
    bad = [v for v in found(host) if v[0] == "pod_cache"]
    assert bad == [
        ("pod_cache", 1, None, 0x321, None),
        ("pod_cache", 1, 0x500, 0x322, None),
        ("pod_cache", 1, None, 0x323, None),
    ]


def test_cached_frames_are_no_orphans(host):
    host.changes[1]["pod_cache"] = host.cache[1][1:]
    assert found(host) == []
    assert host.audit().orphans == 3


@pytest.mark.parametrize(
    "entry",
    [
        (0x403, 0x60A, 0),  # another frame
        (0x600, 0x400, 9),  # a PoD entry
        (0x409, 0x600, 0),  # a hole
        (0x408, 0x616, 0),  # a hole, at the frame after that of the leaf before
        (0xFFFFF, 0x600, 0),  # beyond
        (0x400, 0x600, 9),  # a superpage where there are 4K leaves
        (0x000, 0x400, 18),  # a larger one than the leaf
    ],
)
def test_a_stale_translation(host, entry):
    host.tlbs[1].append(entry)
    assert found(host) == [("tlb_coherent", 1, *entry)]


def test_a_tlb_entry_may_span_leaves_that_map_the_same(host):
    for gfn in range(0xA00, 0xC00):
        host.leaf(2, gfn, gfn + 0x2000 - 0xA00 + 0x200, 0)
    host.tlbs[2].append((0xA00, 0x2200, 9))
    assert not any(v[0] == "tlb_coherent" for v in found(host))
    host.leaf(2, 0xBFF, 0x2001, 0)
    assert ("tlb_coherent", 2, 0xA00, 0x2200, 9) in found(host)
    del host.leaves[2][0xBFF]
    assert ("tlb_coherent", 2, 0xA00, 0x2200, 9) in found(host)


def test_a_translation_to_a_leaf_that_faults(host):
    host.leaf(1, 0x400, 0x600, 0, T.RAM_PAGING_OUT)
    host.tlbs[1].append((0x400, 0x600, 0))
    assert found(host) == [("tlb_coherent", 1, 0x400, 0x600, 0)]


def test_translations_of_a_domain_without_table(host):
    host.tlbs[7] = [(0, 0x400, 9)]
    assert found(host) == [("tlb_coherent", 7, 0, 0x400, 9)]


def test_a_stale_translation_says_what_the_table_has(host):
    host.tlbs[1].append((0x205, 0x9999, 0))
    (violation,) = host.audit().violations
    assert str(violation) == (
        "tlb_coherent d1 gfn 0x205 mfn 0x9999 order 0: "
        "vcpu 3 has this cached, the table mfn 0xc05 order 9"
    )


def test_what_is_owed_and_what_others_found(host):
    host.changes[1].update(outstanding_flushes=2, problems=["d1: a table is gone"])
    host.node_changes[1]["problems"] = ["free lists are a knot"]
    assert found(host) == [
        ("own_audit", None, None, None, None),
        ("own_audit", 1, None, None, None),
        ("flushed", 1, None, None, None),
    ]


def test_a_long_list_is_counted(host):
    host.tlbs[1] = [(0x10000 + i, 5, 0) for i in range(DETAILS_MAX + 7)]
    violations = host.audit().violations
    assert len(violations) == DETAILS_MAX + 1
    assert violations[-1].message == "7 more like these"


def test_a_broken_host_still_gets_its_verdict(host):
    host.leaves[1] = dict.fromkeys(range(40), (INVALID_FRAME, 0, T.RAM_RW))
    host.tlbs = {1: []}
    report = host.audit()
    assert sum(v.invariant == "leaf_owned" for v in report.violations) == DETAILS_MAX + 1
    assert report.m2p_bad == 1032


def test_nothing_at_all():
    report = audit([], [], [], [])
    assert (report.checked, report.violations) == (0, [])


def test_every_invariant_was_planted_here():
    text = Path(__file__).read_text()
    assert [name for name in INVARIANTS if f'"{name}"' not in text] == []


run_lists = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=6)


@given(run_lists, run_lists)
@settings(max_examples=150, deadline=None)
def test_runs_are_sets_of_frames(ones, others):
    def columns(pairs):
        return frames(*(p[0] for p in pairs)), frames(*(p[1] for p in pairs))

    def members(pairs):
        return {frame for start, length in pairs for frame in range(start, start + length)}

    starts, lengths = runs.subtract(columns(ones), columns(others))
    left = list(zip(starts.tolist(), lengths.tolist(), strict=True))
    assert members(left) == members(ones) - members(others)
    assert all(a + length < b for (a, length), (b, _) in pairwise(left))
    assert runs.total((starts, lengths)) == len(members(ones) - members(others))
