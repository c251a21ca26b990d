"""The TLB against a dict, and its limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocols.frames import INVALID_FRAME
from services.walker.tlb import Tlb

CAPACITIES = {0: 8, 9: 4, 18: 2}
SHIFT = 5 << 18
"""The model test caches translations from gfn to gfn + SHIFT: consistent in any order."""

gfns_of = st.integers(0, 12).map(lambda n: n * 300 + (n % 3 << 18))


def frames(*numbers):
    return np.array(numbers, dtype=np.uint64)


class TlbMachine(RuleBasedStateMachine):
    """Dict of (order, slot) to page number."""

    def __init__(self):
        super().__init__()
        self.tlb = Tlb(CAPACITIES)
        self.model = {}
        self.looked_up = self.hits = 0

    @rule(gfns=st.lists(gfns_of, max_size=6), order=st.sampled_from([0, 9, 10, 18]))
    def insert(self, gfns, order):
        self.tlb.insert(frames(*gfns), frames(*gfns) + SHIFT, order)
        kept = 9 if order == 10 else order
        for gfn in gfns:
            page = gfn >> kept
            self.model[kept, page % CAPACITIES[kept]] = page

    @rule(gfns=st.lists(gfns_of, max_size=8))
    def lookup(self, gfns):
        mfns, hit = self.tlb.lookup(frames(*gfns))
        known = [
            any(gfn >> order == page for (order, _), page in self.model.items()) for gfn in gfns
        ]
        assert hit.tolist() == known
        assert mfns.tolist() == [
            gfn + SHIFT if is_known else INVALID_FRAME
            for gfn, is_known in zip(gfns, known, strict=True)
        ]
        self.looked_up += len(gfns)
        self.hits += sum(known)

    @rule()
    def flush(self):
        self.tlb.flush()
        self.model.clear()

    @rule(gfn=gfns_of, nr=st.integers(0, 700))
    def flush_range(self, gfn, nr):
        self.tlb.flush_range(gfn, nr)
        self.model = {
            (order, slot): page
            for (order, slot), page in self.model.items()
            if nr == 0 or page << order >= gfn + nr or page + 1 << order <= gfn
        }

    @invariant()
    def entries_are_the_model(self):
        columns = [a.tolist() for a in self.tlb.entries()]
        expected = sorted((order, page << order) for (order, _), page in self.model.items())
        assert list(zip(columns[2], columns[0], strict=True)) == expected
        assert columns[1] == [gfn + SHIFT for gfn in columns[0]]
        assert (self.tlb.hits, self.tlb.misses) == (self.hits, self.looked_up - self.hits)


TlbMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestTlb = TlbMachine.TestCase


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=20))
@settings(max_examples=60, deadline=None)
def test_the_last_of_a_batch_stays(pairs):
    together, one_by_one = Tlb({0: 8}), Tlb({0: 8})
    together.insert(frames(*(p[0] for p in pairs)), frames(*(p[1] for p in pairs)), 0)
    for gfn, mfn in pairs:
        one_by_one.insert(frames(gfn), frames(mfn), 0)
    for ours, theirs in zip(together.entries(), one_by_one.entries(), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_a_leaf_is_found_from_any_gfn_in_it():
    tlb = Tlb(CAPACITIES)
    tlb.insert(frames(0x205), frames(0x40005), 9)
    mfns, hit = tlb.lookup(frames(0x200, 0x3FF, 0x400, 0x1FF))
    assert mfns.tolist() == [0x40000, 0x401FF, INVALID_FRAME, INVALID_FRAME]
    assert hit.tolist() == [True, True, False, False]
    assert [a.tolist() for a in tlb.entries()] == [[0x200], [0x40000], [9]]


def test_a_1g_leaf_is_broken_up_by_a_tlb_without_1g_entries():
    tlb = Tlb({0: 8, 9: 8})
    tlb.insert(frames((1 << 18) + 0x1234), frames((4 << 18) + 0x1234), 18)
    gfns, mfns, orders = tlb.entries()
    assert (gfns.tolist(), mfns.tolist()) == ([0x41200], [0x101200])
    assert orders.tolist() == [9]


def test_the_largest_order_answers():
    tlb = Tlb(CAPACITIES)
    tlb.insert(frames(0x200), frames(0x9), 0)
    tlb.insert(frames(0x200), frames(0x400), 9)
    assert tlb.lookup(frames(0x200))[0].tolist() == [0x400]


def test_no_gfn_matches_an_empty_entry():
    tlb = Tlb({0: 2, 9: 2})
    tlb.insert(frames(0), frames(7), 0)
    edge = frames(INVALID_FRAME, INVALID_FRAME - 1, INVALID_FRAME >> 9, 1)
    assert not tlb.lookup(edge)[1].any()


def test_streams_longer_than_a_block():
    tlb = Tlb({0: 16, 9: 64})
    gfns = np.random.default_rng(5).integers(0, 1 << 14, 100_000).astype(np.uint64)
    tlb.insert(
        np.arange(0, 1 << 13, 512, dtype=np.uint64) + 7, frames(*range(0, 1 << 13, 512)) + 7, 9
    )
    tlb.insert(frames(0x3000), frames(0x9), 0)
    mfns, hit = tlb.lookup(gfns)
    assert (hit == ((gfns < 1 << 13) | (gfns == 0x3000))).all()
    assert (mfns[gfns < 1 << 13] == gfns[gfns < 1 << 13]).all()
    assert tlb.hits == int(hit.sum())
    assert tlb.misses == int((~hit).sum())


@pytest.mark.parametrize("capacities", [{}, {0: 0}, {0: 1}, {0: 1024, 9: 1000}])
def test_capacities_are_powers_of_two(capacities):
    with pytest.raises(ValueError):
        Tlb(capacities)


def test_a_leaf_below_every_entry_cannot_be_cached():
    with pytest.raises(ValueError, match="order 0"):
        Tlb({9: 8}).insert(frames(1), frames(1), 0)


def test_an_mfn_that_no_such_leaf_has_is_our_bug():
    with pytest.raises(AssertionError, match="gfn 0x205 order 9: mfn 0x40006"):
        Tlb(CAPACITIES).insert(frames(0x204, 0x205), frames(0x40004, 0x40006), 9)
