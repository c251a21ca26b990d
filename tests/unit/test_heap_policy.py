"""Order limits, slices, opportunistic extents, the books, and a node's memory as one thing."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.frames import (
    DOMID_INVALID,
    INVALID_FRAME,
    MAX_ORDER,
    ORDER_1G,
    ORDER_2M,
    ORDER_4M,
    expand,
)
from services.component.locks import Lock
from services.heap.accounts import Claims, DomainBook
from services.heap.node_memory import NodeMemory
from services.heap.policy import SLICE_EXTENTS, max_order, opportunistic_extents, slice_extents

LADDERS = [(18, 9, 0), (9, 0), (10, 0), (0,), (4, 2, 0)]


def frames(*numbers):
    return np.array(numbers, dtype=np.uint64)


def gfn_range(first, nr):
    return np.arange(first, first + nr, dtype=np.uint64)


def pieces(gfns, orders):
    return [(order, bases.tolist()) for order, bases in opportunistic_extents(gfns, orders)]


class TestLimits:
    def test_only_the_control_domain_may_ask_for_1g(self):
        assert max_order(0) == MAX_ORDER == ORDER_1G
        assert max_order(1) == max_order(0x7FEF) == ORDER_2M

    @pytest.mark.parametrize("order", range(MAX_ORDER + 3))
    def test_a_slice_makes_progress_and_is_bounded(self, order):
        nr = slice_extents(order)
        assert 1 <= nr <= SLICE_EXTENTS
        assert nr << order <= 1 << max(order, MAX_ORDER)

    def test_slices(self):
        assert [slice_extents(order) for order in (0, 4, 9, 18)] == [1 << 16, 1 << 14, 512, 1]


runs = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 1200)), min_size=1, max_size=4)
ladders = st.sampled_from(LADDERS)


class TestOpportunisticExtents:
    def test_an_aligned_run_is_superpages(self):
        assert pieces(gfn_range(0x200, 0x400), (9, 0)) == [(9, [0x200, 0x400])]

    def test_1g_2m_and_4k_in_one_run(self):
        first, end = (1 << 18) - 0x203, (2 << 18) + 0x401
        found = pieces(gfn_range(first, end - first), (18, 9, 0))
        assert found == [
            (0, [first, first + 1, first + 2]),
            (9, [0x3FE00]),
            (18, [1 << 18]),
            (9, [2 << 18, (2 << 18) + 0x200]),
            (0, [(2 << 18) + 0x400]),
        ]

    def test_4m_in_the_two_level_format(self):
        assert pieces(gfn_range(0x200, 0x800), (ORDER_4M, 0)) == [
            (0, list(range(0x200, 0x400))),
            (10, [0x400]),
            (0, list(range(0x800, 0xA00))),
        ]

    def test_a_missing_gfn_shatters_its_superpage_alone(self):
        gfns = np.delete(gfn_range(0, 0x600), 0x234)
        found = pieces(gfns, (9, 0))
        assert [(order, len(bases)) for order, bases in found] == [
            (9, 1),
            (0, 0x34),
            (0, 0x1CB),
            (9, 1),
        ]

    def test_descending_gfns_stay_4k(self):
        found = pieces(gfn_range(0, 0x400)[::-1], (9, 0))
        assert {order for order, _ in found} == {0}
        assert [gfn for _, bases in found for gfn in bases] == list(range(0x3FF, -1, -1))

    def test_without_superpages_a_run_is_one_piece(self):
        assert pieces(gfn_range(0x1F0, 0x300), (0,)) == [(0, list(range(0x1F0, 0x4F0)))]

    def test_no_gfns_no_extents(self):
        assert pieces(frames(), (9, 0)) == []

    def test_the_largest_frame_numbers(self):
        first = INVALID_FRAME - 0x201
        gfns = frames(*range(first, INVALID_FRAME + 1))
        assert pieces(gfns, (9, 0)) == [(0, [first, first + 1]), (9, [first + 2])]

    @settings(max_examples=60, deadline=None)
    @given(runs=runs, orders=ladders)
    def test_exactly_the_input_in_order_by_aligned_extents(self, runs, orders):
        gfns = np.concatenate([gfn_range(first, nr) for first, nr in runs])
        found = list(opportunistic_extents(gfns, orders))
        assert all(order in orders and bases.dtype == np.uint64 for order, bases in found)
        assert all((bases & ((1 << order) - 1) == 0).all() for order, bases in found)
        covered = np.concatenate([expand(bases, order) for order, bases in found])
        assert covered.tolist() == gfns.tolist()

    @settings(max_examples=60, deadline=None)
    @given(first=st.integers(0, 5000), nr=st.integers(1, 4000), orders=ladders)
    def test_no_larger_extent_was_possible(self, first, nr, orders):
        """Any aligned extent within the run that fits lies within a piece at least as large."""
        found = [
            (int(base), int(base) + (1 << order), order)
            for order, bases in opportunistic_extents(gfn_range(first, nr), orders)
            for base in bases
        ]
        by_order = {order: {base for base, _, o in found if o >= order} for order in orders}
        for order in orders[:-1]:
            size = 1 << order
            wanted = range(-(-first // size) * size, (first + nr) // size * size, size)
            large = [(base, end) for base, end, o in found if o >= order]
            assert by_order[order] <= set(range(first, first + nr))
            assert all(any(base <= gfn < end for base, end in large) for gfn in wanted)


class TestDomainBook:
    def book(self, max_pages=100):
        return DomainBook(
            7, max_pages, "explicit", Lock("book/7", (1, 0), deque(), [None]), Claims()
        )

    def test_pages_in_and_out(self):
        book = self.book()
        book.assign(60)
        assert (book.tot_pages, book.room()) == (60, 40)
        book.unassign(10)
        assert (book.tot_pages, book.room()) == (50, 50)

    @pytest.mark.parametrize("nr", [-1, 101])
    def test_no_more_than_max_pages(self, nr):
        with pytest.raises(AssertionError, match="domid 7"):
            self.book().assign(nr)

    def test_no_more_out_than_in(self):
        book = self.book()
        book.assign(5)
        with pytest.raises(AssertionError, match="domid 7"):
            book.unassign(6)

    def test_a_claim_shrinks_by_what_it_became(self):
        book = self.book()
        book.claims.total = 11
        book.set_claim(50)
        assert book.claims.total == 61
        book.assign(30)
        assert (book.claim, book.claims.total) == (20, 31)
        book.assign(40)
        assert (book.claim, book.claims.total) == (0, 11)
        book.unassign(70)
        assert (book.claim, book.claims.total) == (0, 11)


def conserved(memory, owners=(1, 2)):
    """Every frame is owned or free: the owner says so, the heap says so, and no M2P word stays."""
    free = memory.frames.count_owned(DOMID_INVALID)
    hidden = 1 if memory.start == 0 else 0
    assert free - hidden == memory.heap.free_frames
    held = sum(memory.frames.count_owned(owner) for owner in owners)
    assert held + free == memory.end - memory.start
    assert memory.heap.audit() == []
    starts, lengths = memory.frames.owned_runs(DOMID_INVALID)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        assert (memory.frames.m2p(gfn_range(start, length)) == INVALID_FRAME).all()


class TestNodeMemory:
    def test_alloc_assigns_and_free_clears(self):
        memory = NodeMemory(0, 0x1000, 0x1000)
        mfns = memory.alloc(ORDER_2M, 3, owner=1)
        assert mfns.tolist() == [0x1E00, 0x1C00, 0x1A00]
        memory.frames.set_m2p(mfns, frames(0, 0x200, 0x400), ORDER_2M)
        assert memory.frames.count_owned(1) == 3 << ORDER_2M
        assert memory.free(mfns[1:2], ORDER_2M, 1, dirty=False) == 1 << ORDER_2M
        assert memory.frames.count_owned(1) == 2 << ORDER_2M
        assert memory.frames.m2p(frames(0x1C00, 0x1DFF, 0x1E00, 0x1BFF)).tolist() == [
            INVALID_FRAME, INVALID_FRAME, 0, 0x5FF,
        ]  # fmt: skip
        conserved(memory)

    def test_nothing_left_gives_nothing(self):
        memory = NodeMemory(0, 0x1000, 0x300)
        assert memory.alloc(ORDER_2M, 4, owner=1).tolist() == [0x1000]
        assert memory.alloc(ORDER_2M, 4, owner=1).size == 0
        assert memory.free(frames(), ORDER_2M, 1, dirty=False) == 0
        conserved(memory)

    def test_only_the_owner_s_frames_can_be_freed_and_nothing_happens_by_half(self):
        memory = NodeMemory(0, 0x1000, 0x1000)
        mine, theirs = memory.alloc(0, 4, owner=1), memory.alloc(0, 1, owner=2)
        memory.frames.set_m2p(mine, gfn_range(0, 4), 0)
        for wrong in (theirs, frames(0x1000)):
            with pytest.raises(AssertionError, match=f"mfn {int(wrong[0]):#x}.*expected 0x1"):
                memory.free(np.concatenate((mine, wrong)), 0, 1, dirty=False)
        assert memory.frames.m2p(mine).tolist() == [0, 1, 2, 3]
        conserved(memory)

    def test_a_second_free_is_a_bug(self):
        memory = NodeMemory(0, 0x1000, 0x1000)
        mfns = memory.alloc(4, 1, owner=1)
        memory.free(mfns, 4, 1, dirty=False)
        with pytest.raises(AssertionError, match="mfn 0x1ff0 order 4"):
            memory.free(mfns, 4, 1, dirty=False)
        conserved(memory)

    @pytest.mark.parametrize("limit", [1, 0x1FF, 0x200, 0x340, 1 << 20])
    def test_a_dying_domain_s_frames_go_in_steps_and_dirty(self, limit):
        memory = NodeMemory(0, 0x1000, 0x800)
        memory.alloc(0, 3, owner=1)
        memory.alloc(ORDER_2M, 1, owner=2)
        memory.alloc(ORDER_2M, 1, owner=1)
        held = memory.frames.count_owned(1)
        steps = []
        while freed := memory.free_owned(1, limit):
            steps.append(freed)
            if len(steps) < 5:
                conserved(memory)
        assert sum(steps) == held == 0x203
        assert max(steps) <= limit
        conserved(memory)
        # Each of the two blocks that are left has taken in frames of the domain.
        lists = memory.heap._lists[13]
        assert lists[10] == {0x1000: True}
        assert lists[9] == {0x1600: True}

    def test_local(self):
        memory = NodeMemory(1, 0x1000, 0x1000)
        assert memory.local(frames())
        assert memory.local(frames(0x1000, 0x1FFF))
        assert not memory.local(frames(0x1000, 0x2000))
        assert not memory.local(frames(0xFFF))

    @settings(max_examples=40, deadline=None)
    @given(
        start=st.sampled_from([0, 0x1000, 0x11F3]),
        nr_frames=st.integers(1, 3000),
        steps=st.lists(
            st.tuples(st.sampled_from([0, 0, 3, 9]), st.integers(1, 700), st.sampled_from([1, 2])),
            max_size=6,
        ),
        data=st.data(),
    )
    def test_frames_are_conserved(self, start, nr_frames, steps, data):
        memory = NodeMemory(0, start, nr_frames)
        held = []
        for order, nr, owner in steps:
            mfns = memory.alloc(order, nr, owner)
            assert (memory.frames.owner(expand(mfns, order)) == owner).all()
            if mfns.size:
                memory.frames.set_m2p(mfns, mfns << np.uint64(1), order)
                held.append((mfns, order, owner))
            conserved(memory)
            if held and data.draw(st.booleans()):
                bases, size, whose = held.pop(data.draw(st.integers(0, len(held) - 1)))
                freed = memory.free(bases, size, whose, dirty=data.draw(st.booleans()))
                assert freed == bases.size << size
                conserved(memory)
        for owner in (1, 2):
            while memory.free_owned(owner, 1000):
                conserved(memory)
        assert memory.heap.free_frames == memory.heap.total_frames
