"""The buddy heap: which frames come in which order, what merges, what it refuses, its audit."""

import re

import numpy as np
import pytest

from protocols.frames import MAX_ORDER, ORDER_1G, ORDER_2M
from services.heap.buddy import BuddyHeap


def heap_of(start, nr_frames, node=0):
    return BuddyHeap(node, start, nr_frames)


def blocks(heap):
    mfns, orders = heap.blocks()
    return list(zip(mfns.tolist(), orders.tolist(), strict=True))


def dirty_blocks(heap):
    return sorted(
        (mfn, order)
        for lists in heap._lists.values()
        for order, blocks in enumerate(lists)
        for mfn, dirty in blocks.items()
        if dirty
    )


def emptied(start, nr_frames):
    """A heap of which everything was allocated, so that a test frees just what it wants."""
    heap = heap_of(start, nr_frames)
    heap.alloc(0, heap.free_frames)
    assert blocks(heap) == []
    return heap


class TestOrderOfAddresses:
    def test_a_fresh_heap_gives_its_highest_block_first(self):
        heap = heap_of(0x100000, 4 << ORDER_1G)
        assert heap.alloc(ORDER_1G, 4).tolist() == [0x1C0000, 0x180000, 0x140000, 0x100000]

    def test_extents_descend_from_the_top_of_a_block(self):
        """The frames of a captured build: 0x1ffe00, 0x1ffc00, 0x1ffa00."""
        heap = heap_of(0x100000, 4 << ORDER_1G)
        assert heap.alloc(ORDER_2M, 3).tolist() == [0x1FFE00, 0x1FFC00, 0x1FFA00]
        assert heap.alloc(0, 3).tolist() == [0x1FF9FF, 0x1FF9FE, 0x1FF9FD]

    def test_descent_goes_on_through_block_after_block(self):
        heap = heap_of(0x100000, 2 << ORDER_1G)
        mfns = heap.alloc(ORDER_2M, 1024)
        assert mfns.dtype == np.uint64
        assert mfns.tolist() == list(range(0x17FE00, 0xFFE00, -0x200))

    def test_halving_keeps_the_upper_half_and_frees_the_lower(self):
        heap = heap_of(0x40, 0x40)
        assert heap.alloc(3, 1).tolist() == [0x78]
        assert blocks(heap) == [(0x40, 5), (0x60, 4), (0x70, 3)]

    @pytest.mark.parametrize(
        ("taken", "left"),
        [
            (1, [(0x40, 5), (0x60, 4), (0x70, 3), (0x78, 2)]),
            (3, [(0x40, 5), (0x60, 4), (0x70, 2)]),
            (8, [(0x40, 5)]),
            (11, [(0x40, 4), (0x50, 2)]),
            (16, []),
        ],
    )
    def test_bulk_leaves_a_block_for_each_bit_of_the_rest(self, taken, left):
        heap = heap_of(0x40, 0x40)
        assert heap.alloc(2, taken).tolist() == [0x7C - 4 * nth for nth in range(taken)]
        assert blocks(heap) == left
        assert heap.free_frames == 0x40 - 4 * taken

    def test_the_smallest_order_that_fits_comes_before_higher_addresses(self):
        heap = emptied(0x100, 0x100)
        heap.free(0x180, 0x40)
        heap.free(0x108, 8)
        heap.free(0x120, 4)
        assert heap.alloc(2, 1).tolist() == [0x120]
        assert heap.alloc(2, 1).tolist() == [0x10C]
        assert heap.alloc(4, 1).tolist() == [0x1B0]

    def test_the_highest_zone_comes_before_the_better_fit(self):
        heap = emptied(0x80, 0x180)
        heap.free(0x80, 1)
        heap.free(0x100, 0x80)
        assert heap.alloc(0, 1).tolist() == [0x17F]

    def test_in_one_list_the_block_freed_last_comes_first(self):
        heap = emptied(0x100, 0x100)
        for mfn in (0x110, 0x150, 0x130):
            heap.free(mfn, 1)
        assert heap.alloc(0, 3).tolist() == [0x130, 0x150, 0x110]

    def test_one_call_crosses_orders_and_zones(self):
        heap = emptied(0x80, 0x180)
        heap.free(0xC0, 4)
        heap.free(0x100, 2)
        heap.free(0x108, 1)
        assert heap.alloc(0, 9).tolist() == [0x108, 0x101, 0x100, 0xC3, 0xC2, 0xC1, 0xC0]


class TestLimits:
    def test_zone_hi_keeps_below_an_address_width(self):
        """Zone z holds mfns of z bits: 20 address bits leave zone 8, mfns below 0x100."""
        heap = heap_of(0x40, 0x3C0)
        assert heap.alloc(0, 2, zone_hi=20 - 12).tolist() == [0xFF, 0xFE]
        assert heap.alloc(0, 1000, zone_hi=7).tolist() == list(range(0x7F, 0x3F, -1))
        assert heap.alloc(0, 1, zone_hi=7).size == 0
        assert heap.alloc(0, 1).tolist() == [0x3FF]

    def test_an_exhausted_heap_gives_fewer(self):
        heap = heap_of(0x100, 0x28)
        assert heap.alloc(4, 9).tolist() == [0x110, 0x100]
        assert heap.alloc(4, 1).size == 0
        assert heap.free_frames == 8
        assert heap.alloc(3, 9).tolist() == [0x120]
        empty = heap.alloc(0, 1)
        assert empty.size == 0
        assert empty.dtype == np.uint64

    def test_nothing_wanted_changes_nothing(self):
        heap = heap_of(0x100, 0x100)
        assert heap.alloc(0, 0).size == 0
        assert blocks(heap) == [(0x100, 8)]

    def test_nothing_is_larger_than_max_order(self):
        heap = heap_of(1 << 20, 1 << 20)
        assert heap.alloc(MAX_ORDER + 1, 1).size == 0
        assert heap.alloc(MAX_ORDER, 1).size == 1

    def test_mfn_0_is_never_given_out(self):
        heap = heap_of(0, 8)
        assert heap.total_frames == heap.free_frames == 7
        assert blocks(heap) == [(1, 0), (2, 1), (4, 2)]
        assert heap.alloc(0, 9).tolist() == [7, 6, 5, 4, 3, 2, 1]

    @pytest.mark.parametrize(("start", "nr_frames"), [(0x100, 0), (0, 1), (0, 0)])
    def test_a_node_without_memory(self, start, nr_frames):
        heap = heap_of(start, nr_frames)
        assert heap.free_frames == 0
        assert heap.alloc(0, 1).size == 0
        assert heap.audit() == []

    def test_free_outside_the_node_is_a_bug(self):
        heap = heap_of(0x100, 0x100, node=2)
        for start, nr in ((0xFF, 1), (0x200, 1), (0x1F8, 0x10), (0x110, -1)):
            with pytest.raises(AssertionError, match=f"node 2.*{start:#x}"):
                heap.free(start, nr)
        assert heap.audit() == []

    @pytest.mark.parametrize("mfn", [0x140, 0x147, 0x15F])
    def test_double_free_is_a_bug(self, mfn):
        heap = emptied(0x100, 0x100)
        heap.free(0x140, 0x20)
        with pytest.raises(AssertionError, match=f"double free of mfn {mfn:#x} order 0.*0x140"):
            heap.free(mfn, 1)

    def test_free_of_a_block_around_the_head_of_a_free_one_is_a_bug(self):
        heap = emptied(0x100, 0x100)
        heap.free(0x140, 4)
        with pytest.raises(AssertionError, match="double free of mfn 0x140 order 5"):
            heap.free(0x140, 0x20)


class TestDirty:
    def test_clean_goes_to_the_head_and_dirty_to_the_tail(self):
        heap = emptied(0x100, 0x100)
        heap.free(0x110, 1)
        heap.free(0x120, 1, dirty=True)
        heap.free(0x130, 1)
        heap.free(0x140, 1, dirty=True)
        assert heap.audit() == []
        assert heap.alloc(0, 4).tolist() == [0x130, 0x110, 0x120, 0x140]

    def test_superpages_come_from_clean_blocks_wherever_they_are(self):
        """A lower zone and a larger block: both are better than a dirty head."""
        heap = emptied(0x80, 0x180)
        heap.free(0x100, 4, dirty=True)
        heap.free(0x90, 0x10)
        assert heap.alloc(2, 1).tolist() == [0x9C]

    def test_when_nothing_is_clean_dirty_serves(self):
        heap = emptied(0x80, 0x180)
        heap.free(0x100, 4, dirty=True)
        heap.free(0x90, 8)
        assert heap.alloc(2, 9).tolist() == [0x94, 0x90, 0x100]

    def test_single_frames_do_not_wait_for_clean_ones(self):
        heap = emptied(0x100, 0x100)
        heap.free(0x140, 0x40)
        heap.free(0x100, 4, dirty=True)
        assert heap.alloc(0, 1).tolist() == [0x103]

    def test_the_rest_of_a_dirty_block_is_dirty(self):
        heap = emptied(0x100, 0x100)
        heap.free(0x140, 0x10, dirty=True)
        heap.alloc(0, 1)
        assert (
            dirty_blocks(heap) == blocks(heap) == [(0x140, 3), (0x148, 2), (0x14C, 1), (0x14E, 0)]
        )

    @pytest.mark.parametrize("first_is_dirty", [False, True])
    def test_a_merge_with_a_dirty_block_is_dirty(self, first_is_dirty):
        heap = emptied(0x100, 0x100)
        heap.free(0x148, 8, dirty=first_is_dirty)
        heap.free(0x140, 8, dirty=not first_is_dirty)
        assert dirty_blocks(heap) == [(0x140, 4)]


class TestMerge:
    def test_up_to_max_order_and_no_further(self):
        heap = heap_of(1 << 20, 2 << ORDER_1G)
        for mfn in heap.alloc(ORDER_2M, 1024).tolist():
            heap.free(mfn, 1 << ORDER_2M)
        assert blocks(heap) == [(1 << 20, 18), ((1 << 20) + (1 << 18), 18)]

    def test_one_frame_can_close_the_whole_gap(self):
        heap = heap_of(1 << 18, 1 << 18)
        (mfn,) = heap.alloc(0, 1).tolist()
        assert len(blocks(heap)) == 18
        heap.free(mfn, 1)
        assert blocks(heap) == [(1 << 18, 18)]

    def test_a_range_is_freed_in_maximal_aligned_blocks(self):
        heap = emptied(0x100, 0x100)
        heap.free(0x103, 0x1A)
        assert blocks(heap) == [(0x103, 0), (0x104, 2), (0x108, 3), (0x110, 3), (0x118, 2),
                                (0x11C, 0)]  # fmt: skip

    def test_neighbours_that_are_no_buddies_stay_apart(self):
        heap = emptied(0x100, 0x100)
        heap.free(0x108, 8)
        heap.free(0x110, 8)
        assert blocks(heap) == [(0x108, 3), (0x110, 3)]

    def test_buddies_of_different_order_stay_apart(self):
        heap = emptied(0x100, 0x100)
        heap.free(0x100, 4)
        heap.free(0x108, 8)
        assert blocks(heap) == [(0x100, 2), (0x108, 3)]

    def test_no_block_crosses_a_zone(self):
        heap = heap_of(0, 1 << 12)
        expected = [(1 << bit, bit) for bit in range(12)]
        assert blocks(heap) == expected
        heap.alloc(0, 1 << 12)
        heap.free(1, (1 << 12) - 1)
        assert blocks(heap) == expected

    def test_no_block_crosses_a_node(self):
        """Two nodes meet at 0x110, in the middle of what could be one block of 0x20 frames."""
        low, high = heap_of(0x100, 0x10, node=0), heap_of(0x110, 0x10, node=1)
        assert low.alloc(5, 1).size == high.alloc(5, 1).size == 0
        for heap, mfn in ((low, 0x100), (high, 0x110)):
            assert heap.alloc(4, 1).tolist() == [mfn]
            heap.free(mfn, 0x10)
            assert blocks(heap) == [(mfn, 4)]

    def test_a_node_may_start_and_end_anywhere(self):
        heap = heap_of(0x10D, 0x26)
        assert blocks(heap) == [(0x10D, 0), (0x10E, 1), (0x110, 4), (0x120, 4), (0x130, 1),
                                (0x132, 0)]  # fmt: skip
        assert heap.audit() == []


def plant_free(heap, mfn, order, zone=None):
    """A block that nobody freed, in the list and in the index."""
    zone = mfn.bit_length() if zone is None else zone
    heap._lists[zone][order][mfn] = False
    heap._filled[zone] |= 1 << order
    heap._order_of[mfn] = order
    heap.free_frames += 1 << order


def plant_a_misaligned_block(heap):
    plant_free(heap, 0x112, 2)


def plant_a_block_above_the_node(heap):
    plant_free(heap, 0x200, 0, zone=9)


def plant_a_block_below_the_node(heap):
    plant_free(heap, 0x90, 0, zone=9)


def plant_a_clean_block_behind_a_dirty_one(heap):
    heap.free(0x110, 1, dirty=True)
    plant_free(heap, 0x120, 0)


def plant_a_wrong_count(heap):
    heap.free_frames += 1


def plant_unmerged_buddies(heap):
    plant_free(heap, 0x110, 2)
    plant_free(heap, 0x114, 2)


def plant_an_overlap(heap):
    plant_free(heap, 0x110, 4)
    plant_free(heap, 0x118, 2)


def plant_a_forgotten_block(heap):
    heap.free(0x110, 4)
    del heap._order_of[0x110]


def plant_a_lost_block(heap):
    heap.free(0x110, 4)
    del heap._lists[9][2][0x110]


def plant_a_stale_bit(heap):
    heap._filled[9] |= 1 << 7


def plant_a_missing_bit(heap):
    heap.free(0x110, 4)
    heap._filled[9] = 0


@pytest.mark.parametrize(
    ("plant", "problem"),
    [
        (plant_a_misaligned_block, "mfn 0x112 is not aligned"),
        (plant_an_overlap, "mfn 0x118 overlaps the one below"),
        (plant_a_block_above_the_node, "outside the node"),
        (plant_a_block_below_the_node, "outside the node"),
        (plant_a_block_below_the_node, "zone 9 order 0: mfn 0x90 is of another"),
        (plant_unmerged_buddies, "free buddies mfn 0x110 and 0x114 order 2 are not merged"),
        (plant_a_wrong_count, "0 frames in free blocks, 1 counted"),
        (plant_a_clean_block_behind_a_dirty_one, "order 0: a dirty block is before a clean one"),
        (plant_a_forgotten_block, "mfn 0x110 order None is listed with order 2"),
        (plant_a_lost_block, "mfn 0x110 order 2 is listed with order None"),
        (plant_a_stale_bit, "zone 9 order 7: its bit in the mask is wrong"),
        (plant_a_missing_bit, "zone 9 order 2: its bit in the mask is wrong"),
    ],
)
def test_audit_finds_a_planted_defect(plant, problem):
    heap = emptied(0x100, 0x100)
    assert heap.audit() == []
    plant(heap)
    found = [line for line in heap.audit() if re.search(problem, line)]
    assert len(found) == 1
    assert found[0].startswith("node 0")


def test_audit_finds_the_double_free_that_free_does_not():
    """A block inside the freed one, not at its head: too dear to look for at each call."""
    heap = emptied(0x100, 0x100)
    heap.free(0x118, 4)
    heap.free(0x110, 0x10)
    assert any("mfn 0x118 overlaps" in line for line in heap.audit())
