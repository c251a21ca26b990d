"""Owners and M2P words against plain dense arrays, at the edges of nodes, and how little they cost.

The reference is two numpy arrays with a word for each frame; whatever rule or page the table uses
inside, it must read the same.
"""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocols.frames import DOMID_INVALID, DOMID_XEN, INVALID_FRAME, expand, runs_of
from services.heap.buddy import BuddyHeap
from services.heap.frame_table import FrameTable

MIB = 1 << 20
OWNERS = (1, 2, DOMID_XEN, DOMID_INVALID)
# Nodes of a few 2M chunks that start and end at chunk edges, inside chunks, or within one.
NODES = [(0x1000, 0x1800), (0x1003, 0x17F1), (0x11FF, 0x1402), (0, 0x901), (0x1080, 0x100)]


def frames(*numbers):
    return np.array(numbers, dtype=np.uint64)


def span(first, end):
    return np.arange(first, end, dtype=np.uint64)


def runs(pair):
    return [part.tolist() for part in pair]


class Dense:
    """The same table, naively."""

    def __init__(self, start, nr_frames):
        self.start, self.end = start, start + nr_frames
        self.owner = np.full(nr_frames, DOMID_INVALID, dtype=np.uint16)
        self.m2p = np.full(nr_frames, INVALID_FRAME, dtype=np.uint64)

    def at(self, mfns, order=0):
        return (expand(mfns, order) - np.uint64(self.start)).astype(np.intp)

    def uniform(self, mfns, order, domid):
        return (self.owner[self.at(mfns, order)] == domid).reshape(-1, 1 << order).all(axis=1)

    def matches(self, mfns, gfns, order):
        right = self.m2p[self.at(mfns, order)] == expand(gfns, order)
        return right.reshape(-1, 1 << order).all(axis=1)

    def runs(self, where):
        return runs_of(np.flatnonzero(where).astype(np.uint64) + np.uint64(self.start))


@st.composite
def extents(draw, start, end):
    """(order, distinct extent bases): a run up or down, or scattered ones in any order."""
    order = draw(st.sampled_from([0, 0, 0, 1, 3, 8, 9, 9, 10]))
    first, last = -(-start >> order), end >> order
    if first >= last:
        order, first, last = 0, start, end
    shape = draw(st.sampled_from(["up", "down", "scattered"]))
    if shape == "scattered":
        picked = draw(st.lists(st.integers(first, last - 1), min_size=1, max_size=14, unique=True))
        numbers = np.array(picked, dtype=np.uint64)
    else:
        low = draw(st.integers(first, last - 1))
        numbers = span(low, draw(st.integers(low + 1, last)))
        if shape == "down":
            numbers = numbers[::-1].copy()
    return order, numbers << np.uint64(order)


class TableMachine(RuleBasedStateMachine):
    @initialize(node=st.sampled_from(NODES))
    def boot(self, node):
        self.table, self.dense = FrameTable(*node), Dense(*node)

    def draw(self, data):
        return data.draw(extents(self.dense.start, self.dense.end))

    @rule(data=st.data(), domid=st.sampled_from(OWNERS))
    def set_owner(self, data, domid):
        """Extents of mixed owners are refused and untouched; the others change hands."""
        order, mfns = self.draw(data)
        expected = int(self.dense.owner[self.dense.at(mfns[:1])][0])
        right = self.dense.uniform(mfns, order, expected)
        if not right.all():
            base = int(mfns[~right][0])
            wrong = self.dense.owner[self.dense.at(frames(base), order)] != expected
            bad = base + int(np.flatnonzero(wrong)[0])
            with pytest.raises(AssertionError, match=f"mfn {bad:#x} order {order}.*{domid:#x}"):
                self.table.set_owner(mfns, order, domid, expected=expected)
            mfns = mfns[right]
        self.table.set_owner(mfns, order, domid, expected=expected)
        self.dense.owner[self.dense.at(mfns, order)] = domid

    @rule(data=st.data(), gfn=st.integers(0, 1 << 30), step=st.sampled_from([1, -1, 3]))
    def set_m2p(self, data, gfn, step):
        """gfns climb with the extents as given (4K too), fall, or leave gaps."""
        order, mfns = self.draw(data)
        nth = np.arange(mfns.size) * step
        gfns = ((gfn + nth - min(0, int(nth[-1]))) << order).astype(np.uint64)
        self.table.set_m2p(mfns, gfns, order)
        self.dense.m2p[self.dense.at(mfns, order)] = expand(gfns, order)
        assert self.table.m2p_matches(mfns, gfns, order).all()

    @rule(data=st.data())
    def clear_m2p(self, data):
        order, mfns = self.draw(data)
        self.table.clear_m2p(mfns, order)
        self.dense.m2p[self.dense.at(mfns, order)] = INVALID_FRAME

    @rule()
    def clear_all(self):
        mfns = span(self.dense.start, self.dense.end)
        self.table.clear_m2p(mfns, 0)
        self.dense.m2p[:] = INVALID_FRAME

    @rule(data=st.data(), domid=st.sampled_from(OWNERS))
    def owner_uniform(self, data, domid):
        order, mfns = self.draw(data)
        found = self.table.owner_uniform(mfns, order, domid)
        assert found.tolist() == self.dense.uniform(mfns, order, domid).tolist()

    @rule(data=st.data(), off=st.sampled_from([0, 0, 1]))
    def m2p_matches(self, data, off):
        """The gfns that the bases have, or just not; most extents agree in their first frame."""
        order, mfns = self.draw(data)
        gfns = self.dense.m2p[self.dense.at(mfns)] + np.uint64(off)
        found = self.table.m2p_matches(mfns, gfns, order)
        assert found.tolist() == self.dense.matches(mfns, gfns, order).tolist()

    @precondition(lambda self: hasattr(self, "table"))
    @invariant()
    def reads_as_dense_arrays(self):
        self.same(self.table)

    @rule()
    def a_copy_reads_the_same(self):
        copy = FrameTable.from_bytes(self.table.to_bytes())
        assert (copy.start, copy.end) == (self.dense.start, self.dense.end)
        self.same(copy)
        assert copy.to_bytes() == self.table.to_bytes()

    def same(self, table):
        mfns = span(self.dense.start, self.dense.end)
        assert np.array_equal(table.owner(mfns), self.dense.owner)
        assert np.array_equal(table.m2p(mfns), self.dense.m2p)
        for domid in OWNERS:
            owned = self.dense.owner == domid
            assert runs(table.owned_runs(domid)) == runs(self.dense.runs(owned))
            assert table.count_owned(domid) == int(owned.sum())
            lost = owned & (self.dense.m2p == INVALID_FRAME)
            assert runs(table.orphans(domid)) == runs(self.dense.runs(lost))


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=50, stateful_step_count=15, deadline=None)


class TestOwners:
    def test_a_fresh_frame_belongs_to_nobody(self):
        table = FrameTable(0x1003, 0x17F1)
        assert runs(table.owned_runs(DOMID_INVALID)) == [[0x1003], [0x17F1]]
        assert runs(table.orphans(DOMID_INVALID)) == [[0x1003], [0x17F1]]
        assert table.count_owned(1) == 0
        assert table.owner(frames(0x1003)).dtype == np.uint16

    @pytest.mark.parametrize("nr", [1, 8, 9, 20])
    def test_superpages_change_hands_only_whole(self, nr):
        """One 4K frame of another owner in the last extent, few extents or many."""
        table = FrameTable(0, 32 << 9)
        mfns = span(1, 1 + nr) << np.uint64(9)
        table.set_owner(mfns, 9, 1, expected=DOMID_INVALID)
        bad = int(mfns[-1]) + 0x123
        table.set_owner(frames(bad), 0, 2, expected=1)
        with pytest.raises(AssertionError) as caught:
            table.set_owner(mfns, 9, DOMID_INVALID, expected=1)
        story = str(caught.value)
        assert all(word in story for word in (f"mfn {bad:#x}", "order 9", "0x2", "expected 0x1"))
        assert table.count_owned(1) == (nr << 9) - 1
        assert table.owner_uniform(mfns, 9, 1).tolist() == [True] * (nr - 1) + [False]

    def test_an_extent_of_1g(self):
        table = FrameTable(1 << 18, 2 << 18)
        table.set_owner(frames(2 << 18), 18, 7, expected=DOMID_INVALID)
        assert runs(table.owned_runs(7)) == [[2 << 18], [1 << 18]]
        table.set_owner(frames((2 << 18) + 5), 0, DOMID_INVALID, expected=7)
        assert table.owner_uniform(frames(1 << 18, 2 << 18), 18, DOMID_INVALID).tolist() == [
            True,
            False,
        ]
        assert runs(table.owned_runs(7)) == [[2 << 18, (2 << 18) + 6], [5, (1 << 18) - 6]]

    def test_runs_join_across_rules_and_pages(self):
        """A ruled chunk between two dense ones is one run with its neighbours."""
        table = FrameTable(0, 8 << 9)
        table.set_owner(frames(0x200), 9, 1, expected=DOMID_INVALID)
        table.set_owner(span(0x1F0, 0x200), 0, 1, expected=DOMID_INVALID)
        table.set_owner(span(0x400, 0x410), 0, 1, expected=DOMID_INVALID)
        assert runs(table.owned_runs(1)) == [[0x1F0], [0x220]]

    def test_frames_of_another_node_are_refused(self):
        table = FrameTable(0x1003, 0x17F1)
        for mfn in (0x1002, 0x27F4):
            assert not table.contains(frames(mfn))
            with pytest.raises(AssertionError, match=f"mfn {mfn:#x}"):
                table.set_owner(frames(mfn), 0, 1, expected=DOMID_INVALID)
        assert table.contains(frames(0x1003, 0x27F3))
        assert table.contains(frames())

    def test_no_extents_no_change(self):
        table = FrameTable(0, 0x800)
        before = table.to_bytes()
        table.set_owner(frames(), 9, 1, expected=2)
        table.set_m2p(frames(), frames(), 9)
        table.clear_m2p(frames(), 0)
        assert table.to_bytes() == before


class TestM2p:
    @pytest.mark.parametrize("order", [0, 3, 9, 18])
    @pytest.mark.parametrize("nr", [1, 12])
    def test_every_4k_frame_of_an_extent_has_its_gfn(self, order, nr):
        table = FrameTable(0, 16 << max(order, 9))
        mfns = span(2, 2 + nr)[::-1] << np.uint64(order)
        gfns = (np.uint64(3) * span(5, 5 + nr)) << np.uint64(order)
        table.set_m2p(mfns, gfns, order)
        assert table.m2p_matches(mfns, gfns, order).all()
        size = 1 << order
        for mfn, gfn in zip(mfns.tolist(), gfns.tolist(), strict=True):
            ends = table.m2p(frames(mfn, mfn + size - 1)).tolist()
            assert ends == [gfn, gfn + size - 1]
        assert (
            table.m2p(frames(int(mfns[-1]) - 1, int(mfns[0]) + size)).tolist()
            == [INVALID_FRAME] * 2
        )

    def test_a_superpage_with_one_wrong_frame_does_not_match(self):
        table = FrameTable(0, 0x1000)
        table.set_m2p(frames(0x200, 0x400), frames(0x8000, 0x8200), 9)
        table.set_m2p(frames(0x4FF), frames(0), 0)
        assert table.m2p_matches(frames(0x200, 0x400), frames(0x8000, 0x8200), 9).tolist() == [
            True,
            False,
        ]
        table.set_m2p(frames(0x4FF), frames(0x82FF), 0)
        assert table.m2p_matches(frames(0x400), frames(0x8200), 9).all()

    def test_a_gfn_that_is_not_aligned_to_the_extent(self):
        table = FrameTable(0, 0x1000)
        table.set_m2p(frames(0x200), frames(0x8001), 9)
        assert table.m2p(frames(0x200, 0x3FF)).tolist() == [0x8001, 0x8200]

    def test_an_orphan_is_owned_and_without_gfn(self):
        table = FrameTable(0, 0x1000)
        table.set_owner(frames(0x200, 0x400, 0x600), 9, 1, expected=DOMID_INVALID)
        table.set_m2p(frames(0x200, 0x600), frames(0, 0x200), 9)
        table.clear_m2p(frames(0x201), 0)
        assert runs(table.orphans(1)) == [[0x201, 0x400], [1, 0x200]]
        assert runs(table.orphans(2)) == [[], []]

    def test_a_copy_cannot_be_written(self):
        table = FrameTable(0x1003, 0x17F1)
        table.set_m2p(frames(0x1100), frames(5), 0)
        copy = FrameTable.from_bytes(table.to_bytes())
        with pytest.raises(ValueError, match="read-only"):
            copy.set_m2p(frames(0x1100), frames(6), 0)
        table.set_m2p(frames(0x1100), frames(7), 0)
        assert copy.m2p(frames(0x1100)).tolist() == [5]

    def test_a_copy_with_more_behind_it_is_refused(self):
        data = FrameTable(0, 0x800).to_bytes()
        with pytest.raises(AssertionError, match="3 bytes too many"):
            FrameTable.from_bytes(data + b"abc")


class TestCompactness:
    def test_4_tib_of_superpages_hold_under_64_mib(self):
        nr_frames = 1 << 30
        table = FrameTable(0, nr_frames)
        empty = table.nbytes
        mfns = np.arange(nr_frames - 512, -1, -512, dtype=np.int64).astype(np.uint64)
        gfns = mfns[::-1].copy()
        table.set_owner(mfns, 9, 1, expected=DOMID_INVALID)
        table.set_m2p(mfns, gfns, 9)
        assert table.nbytes == empty < 64 * MIB
        assert len(table.to_bytes()) < 64 * MIB
        assert table.count_owned(1) == nr_frames
        assert runs(table.orphans(1)) == [[], []]
        assert table.m2p_matches(mfns, gfns, 9).all()
        table.set_m2p(frames(0x12345), frames(1), 0)
        assert table.nbytes == empty + 512 * 8

    def test_a_domain_of_1_tib_that_nothing_maps_is_one_run(self):
        """A cache of populate on demand: every frame owned, none in the M2P but two."""
        nr_frames = 1 << 28
        table = FrameTable(0, nr_frames)
        mfns = np.arange(0, nr_frames, 512, dtype=np.uint64)
        table.set_owner(mfns, 9, 1, expected=DOMID_INVALID)
        assert table.nbytes < 16 * MIB
        assert runs(table.orphans(1)) == [[0], [nr_frames]]
        table.set_m2p(frames(0x12345), frames(1), 0)
        table.set_m2p(frames(0x20000), frames(0), 9)
        assert runs(table.orphans(1)) == [
            [0, 0x12346, 0x20200],
            [0x12345, 0x20000 - 0x12346, nr_frames - 0x20200],
        ]

    def test_orphans_of_a_fragmented_node(self):
        """Every other frame owned, in 2^13 chunks with a page each; one in four is mapped."""
        nr_frames = 1 << 22
        table = FrameTable(0, nr_frames)
        mine = np.arange(0, nr_frames, 2, dtype=np.uint64)
        table.set_owner(mine, 0, 1, expected=DOMID_INVALID)
        table.set_m2p(mine[::4], mine[::4], 0)
        starts, lengths = table.orphans(1)
        assert np.array_equal(starts, mine[np.arange(mine.size) % 4 != 0])
        assert (lengths == 1).all()

    def test_a_4k_domain_from_descending_frames_needs_pages_at_its_ends_alone(self):
        """superpages = off: frames come off the heap downwards while gfns go up."""
        start, nr_frames = 0x100000, 1 << 18
        heap, table = BuddyHeap(0, start, nr_frames), FrameTable(start, nr_frames)
        empty = table.nbytes
        heap.alloc(0, 5)
        nr_calls = 0
        gfn = 0x100
        while (mfns := heap.alloc(0, 1 << 14)).size:
            gfns = span(gfn, gfn + mfns.size)
            table.set_owner(mfns, 0, 1, expected=DOMID_INVALID)
            table.set_m2p(mfns, gfns, 0)
            assert table.m2p_matches(mfns, gfns, 0).all()
            gfn += mfns.size
            nr_calls += 1
        assert table.count_owned(1) == nr_frames - 5
        # A call that ends inside a chunk leaves one page there for owners and one for M2P words.
        assert table.nbytes - empty <= (nr_calls + 1) * 512 * (2 + 8)

    def test_a_shattered_superpage_costs_a_page_until_it_is_whole_again(self):
        table = FrameTable(0, 1 << 18)
        empty = table.nbytes
        for mfn in (0x200, 0x400, 0x600):
            table.set_owner(frames(mfn), 9, 1, expected=DOMID_INVALID)
            table.set_owner(frames(mfn + 7), 0, DOMID_INVALID, expected=1)
            table.set_owner(frames(mfn + 7), 0, 1, expected=DOMID_INVALID)
            assert table.nbytes == empty + 512 * 2
            table.set_owner(frames(mfn), 9, DOMID_INVALID, expected=1)
        assert table.nbytes == empty + 512 * 2
        assert runs(table.owned_runs(DOMID_INVALID)) == [[0], [1 << 18]]

    def test_clearing_what_is_clear_costs_nothing(self):
        table = FrameTable(0x1003, 0x17F1)
        empty = table.nbytes
        table.clear_m2p(frames(0x1003, 0x1200, 0x27F3), 0)
        assert table.nbytes == empty

    def test_more_pages_than_there_was_room_for_at_first(self):
        """Every chunk of a table gets a page, in steps; nothing is lost when the pages move."""
        nr_chunks = (1 << 14) + 100
        table = FrameTable(0, nr_chunks << 9)
        mfns = (span(0, nr_chunks) << np.uint64(9)) + np.uint64(3)
        for part in np.array_split(mfns, 3):
            table.set_owner(part, 0, 1, expected=DOMID_INVALID)
        assert table.count_owned(1) == nr_chunks
        assert np.array_equal(table.owned_runs(1)[0], mfns)
