"""The bulk heap against the model that takes one extent at a time: same frames, same lists."""

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from protocols.frames import MAX_ORDER
from services.heap.buddy import BuddyHeap
from services.spec.heap import HeapModel

orders = st.one_of(st.integers(0, 5), st.integers(0, MAX_ORDER + 1))
starts = st.one_of(
    st.integers(0, 300),
    st.integers(-40, 40).map(lambda delta: (1 << 12) + delta),
    st.integers(-70, 70).map(lambda delta: (1 << 20) + delta),
)
sizes = st.one_of(st.integers(0, 80), st.integers(200, 3000), st.just(3 << 18))


def lists_of(heap):
    """Every list that is not empty, in list order: (zone, order) to [(mfn, dirty)]."""
    return {
        (zone, order): list(blocks.items())
        for zone, by_order in heap._lists.items()
        for order, blocks in enumerate(by_order)
        if blocks
    }


class HeapMachine(RuleBasedStateMachine):
    """Extents that are out are kept as disjoint ranges, so that any part of one can be freed."""

    @initialize(start=starts, nr_frames=sizes)
    def boot(self, start, nr_frames):
        self.heap = BuddyHeap(3, start, nr_frames)
        self.model = HeapModel(start, nr_frames)
        self.taken = []

    @rule(order=orders, nr=st.integers(0, 40), zone_hi=st.sampled_from([63, 20, 12, 8, 5]))
    def alloc(self, order, nr, zone_hi):
        mfns = self.heap.alloc(order, nr, zone_hi)
        assert mfns.dtype == np.uint64
        assert mfns.tolist() == self.model.alloc(order, nr, zone_hi)
        self.taken += [(mfn, mfn + (1 << order)) for mfn in mfns.tolist()]

    @rule(order=orders, dirty=st.booleans())
    def alloc_all_and_give_every_other_back(self, order, dirty):
        mfns = self.heap.alloc(order, 64).tolist()
        assert mfns == self.model.alloc(order, 64)
        for mfn in mfns[::2]:
            self.give_back(mfn, mfn + (1 << order), dirty)
        self.taken += [(mfn, mfn + (1 << order)) for mfn in mfns[1::2]]

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), dirty=st.booleans())
    def free_one(self, data, dirty):
        at = data.draw(st.integers(0, len(self.taken) - 1))
        self.give_back(*self.taken.pop(at), dirty)

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), dirty=st.booleans())
    def free_a_part(self, data, dirty):
        at = data.draw(st.integers(0, len(self.taken) - 1))
        low, high = self.taken.pop(at)
        first = data.draw(st.integers(low, high))
        end = data.draw(st.integers(first, high))
        self.give_back(first, end, dirty)
        self.taken += [(a, b) for a, b in ((low, first), (end, high)) if a < b]

    @precondition(lambda self: self.taken)
    @rule(dirty=st.booleans())
    def free_a_run_of_extents(self, dirty):
        """The longest run that several extents make is one call, as when a domain dies."""
        self.taken.sort()
        runs = [[self.taken[0]]]
        for extent in self.taken[1:]:
            if extent[0] == runs[-1][-1][1]:
                runs[-1].append(extent)
            else:
                runs.append([extent])
        run = max(runs, key=len)
        self.taken = [extent for extent in self.taken if extent not in run]
        self.give_back(run[0][0], run[-1][1], dirty)

    def give_back(self, low, high, dirty):
        self.heap.free(low, high - low, dirty=dirty)
        self.model.free(low, high - low, dirty=dirty)

    @invariant()
    def same_lists(self):
        if not hasattr(self, "heap"):
            return
        expected = {key: blocks for key, blocks in self.model.lists.items() if blocks}
        assert lists_of(self.heap) == expected

    @invariant()
    def reports_agree(self):
        if not hasattr(self, "heap"):
            return
        mfns, block_orders = self.heap.blocks()
        blocks = list(zip(mfns.tolist(), block_orders.tolist(), strict=True))
        assert blocks == sorted(self.model.blocks())
        out = sum(high - low for low, high in self.taken)
        assert self.heap.free_frames == self.model.free_frames()
        assert self.heap.free_frames + out == self.heap.total_frames
        assert self.heap.audit() == []


TestHeapMachine = HeapMachine.TestCase
TestHeapMachine.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


@settings(max_examples=60, deadline=None)
@given(start=starts, nr_frames=st.integers(1, 2000), order=st.integers(0, 9), data=st.data())
def test_one_call_for_many_extents_is_many_calls_for_one(start, nr_frames, order, data):
    """Splitting a request into any parts changes neither the frames nor what is left."""
    bulk, stepwise = BuddyHeap(0, start, nr_frames), BuddyHeap(0, start, nr_frames)
    parts = data.draw(st.lists(st.integers(0, 30), max_size=8))
    got = [mfn for part in parts for mfn in stepwise.alloc(order, part).tolist()]
    event("exhausted" if len(got) < sum(parts) else "served")
    assert bulk.alloc(order, sum(parts)).tolist() == got
    assert lists_of(bulk) == lists_of(stepwise)


@settings(max_examples=60, deadline=None)
@given(start=starts, nr_frames=st.integers(1, 1500), seed=st.randoms(use_true_random=False))
def test_everything_freed_in_any_order_is_whole_again(start, nr_frames, seed):
    heap = BuddyHeap(0, start, nr_frames)
    fresh = heap.blocks()
    mfns = heap.alloc(0, nr_frames).tolist()
    assert len(set(mfns)) == heap.total_frames
    assert heap.free_frames == 0
    seed.shuffle(mfns)
    for mfn in mfns:
        heap.free(mfn, 1)
    assert [part.tolist() for part in heap.blocks()] == [part.tolist() for part in fresh]


def test_the_model_refuses_what_is_free_already():
    model = HeapModel(0x100, 0x100)
    (mfn,) = model.alloc(4, 1)
    model.free(mfn + 8, 8)
    with pytest.raises(AssertionError, match=f"mfn {mfn:#x} order 4: double free"):
        model.free(mfn, 16)
    with pytest.raises(AssertionError, match="not within"):
        model.free(0x1F0, 0x20)
